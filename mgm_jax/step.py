"""One update: the loss of a batch, its gradients, AdamW."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mgm_jax import optim
from mgm_jax.lora import adapters
from mgm_jax.lora.config import LoraConfig
from mgm_jax.models.mgm import Mgm
from mgm_jax.nn.layout import split_rows
from mgm_jax.ops.loss import microbatch_weights
from mgm_jax.tree import flatten, merge


def make_step(
    model: Mgm,
    optimizer: optax.GradientTransformation,
    *,
    seed: int = 0,
    microbatch: int | None = None,
    nan_on_empty: bool = False,
    accumulate: int = 1,
    shards: int = 1,
    lora: LoraConfig | None = None,
):
    """(state, frozen, batch) -> (state, metrics): one update on the mean loss over weighted tokens.

    state = {"params": trainable tree, "opt": optimizer state}. metrics: loss, grad_norm and
    loss_tokens of the batch, and the `largest` of the parameters before the update and of the
    gradients, by name. Gradients exist for trainable parameters only. `microbatch`: rows whose own
    token mean counts once, see `ops.loss.microbatch_weights`. A batch (or micro-batch) without loss
    has the loss 0, or NaN with `nan_on_empty`. Random numbers are a function of `seed` and the
    number of steps done. `accumulate`: parts that the batch is worked on in, one after the other,
    which saves memory and changes nothing else; each part takes the same share of each of the
    `shards` of the batch. `lora`: of the adapters among the parameters.
    """

    def step(state, frozen, batch):
        key = jax.random.fold_in(jax.random.key(seed), optim.steps_done(state["opt"]))
        given = batch["loss_weights"]
        sums = given.reshape(-1, (microbatch or len(given)) * given.shape[1]).sum(-1)
        if microbatch:
            segments = batch["segments"]
            batch = batch | {"loss_weights": microbatch_weights(given, segments, microbatch)}
        penalty = 1
        if nan_on_empty:  # where there are examples: at a run's end rows may be empty
            some = (batch["segments"] > 0).reshape(len(sums), -1).any(-1)
            penalty = jnp.where((some & (sums == 0)).any(), jnp.nan, 1)

        def loss_of(trainable, batch, key):
            batch = jax.tree.map(split_rows, batch)
            params = merge(trainable, frozen)
            if lora:
                params = adapters.active(params, lora, dropout=True)
            rngs = {"drop_path": key} if model.drop_path else {}
            rngs |= {"dropout": key} if lora and lora.dropout else {}
            total, _ = model.apply({"params": params}, batch, method="loss", rngs=rngs)
            return total / jnp.maximum(sums.sum(), 1) * penalty

        loss_and_grads = jax.value_and_grad(loss_of)
        if accumulate == 1:
            loss, grads = loss_and_grads(state["params"], batch, key)
        else:

            def add(sums, part):
                return jax.tree.map(jnp.add, sums, loss_and_grads(state["params"], *part)), None

            parts = jax.tree.map(lambda x: in_parts(x, accumulate, shards), batch)
            zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state["params"]))
            (loss, grads), _ = jax.lax.scan(add, zeros, (parts, jax.random.split(key, accumulate)))
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        norm = optax.global_norm(grads)
        metrics = {"loss": loss, "grad_norm": norm, "loss_tokens": sums.sum()}
        metrics["largest_params"] = largest(state["params"])
        metrics["largest_grads"] = largest(grads)
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, metrics

    return step


def largest(tree) -> dict:
    """name -> largest absolute value, float32, NaN if one is: what a step that fails is told by."""
    return {n: jnp.abs(x).max().astype(jnp.float32) for n, x in flatten(tree).items()}


def in_parts(x, parts: int, shards: int):
    """[N, ...] split over `shards` -> [parts, N / parts, ...]: some of each shard in each part."""
    n = x.shape[0]
    x = x.reshape(shards, parts, n // (shards * parts), *x.shape[1:]).swapaxes(0, 1)
    return x.reshape(parts, n // parts, *x.shape[3:])
