"""One update: the loss of a batch, its gradients, AdamW."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mgm_jax import optim
from mgm_jax.models.mgm import Mgm
from mgm_jax.ops.loss import microbatch_weights
from mgm_jax.tree import merge


def make_step(
    model: Mgm,
    optimizer: optax.GradientTransformation,
    *,
    seed: int = 0,
    microbatch: int | None = None,
    nan_on_empty: bool = False,
):
    """(state, frozen, batch) -> (state, metrics): one update on the mean loss over weighted tokens.

    state = {"params": trainable tree, "opt": optimizer state}. Gradients exist for trainable
    parameters only. `microbatch`: rows whose own token mean counts once, see
    `ops.loss.microbatch_weights`. A batch (or micro-batch) without loss has the loss 0, or NaN with
    `nan_on_empty`. Random numbers are a function of `seed` and the number of steps done.
    """

    def step(state, frozen, batch):
        key = jax.random.fold_in(jax.random.key(seed), optim.steps_done(state["opt"]))
        options = {"rngs": {"drop_path": key}} if model.drop_path else {}
        given = batch["loss_weights"]
        sums = given.reshape(-1, (microbatch or len(given)) * given.shape[1]).sum(-1)
        if microbatch:
            batch = batch | {"loss_weights": microbatch_weights(given, microbatch)}
        penalty = jnp.where((sums == 0).any(), jnp.nan, 1) if nan_on_empty else 1

        def mean_loss(trainable):
            params = {"params": merge(trainable, frozen)}
            total, _ = model.apply(params, batch, method="loss", **options)
            return total / jnp.maximum(sums.sum(), 1) * penalty

        loss, grads = jax.value_and_grad(mean_loss)(state["params"])
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        norm = optax.global_norm(grads)
        metrics = {"loss": loss, "grad_norm": norm, "loss_tokens": sums.sum()}
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, metrics

    return step
