"""Mixture of experts: top-k routing and dropless, sorted dispatch (MGM_SPEC 2.6).

t tokens, k experts a token, E experts, D and F widths, L layers. Every (token, expert) pair is
computed: pairs are sorted by expert, so that each expert's matrix meets one contiguous run of rows,
and no capacity limit drops any.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def route(logits, k: int):
    """logits [t, E] -> (weights [t, k], experts [t, k] int32, probabilities [t, E]).

    The softmax is float32, over all experts; the k best weights are renormalised to sum to 1.
    """
    precise = jnp.promote_types(logits.dtype, jnp.float32)
    probabilities = jax.nn.softmax(logits.astype(precise), axis=-1)
    weights, experts = jax.lax.top_k(probabilities, k)
    return weights / weights.sum(-1, keepdims=True), experts, probabilities


def dispatch(mlp: Callable, x, weights, experts, count: int):
    """Each token through its experts: sum_j weights_j * mlp_j(x), [t, D] in x's dtype.

    mlp: (rows [t*k, D] sorted by expert, rows of each expert [E]) -> [t*k, D]; x [t, D]; weights
    and experts [t, k] as `route` gives them.
    """
    t, k = experts.shape
    order = jnp.argsort(experts.reshape(-1))  # stable: pairs by expert, then by token
    sizes = jnp.bincount(experts.reshape(-1), length=count).astype(jnp.int32)
    y = mlp(jnp.take(x, order // k, axis=0), sizes)
    back = jnp.argsort(order)  # where each pair went; a gather, and no sum in unspecified order
    y = jnp.take(y, back, axis=0).reshape(t, k, -1)
    return (y * weights[..., None].astype(x.dtype)).sum(1)


def expert_mlp(w_gate, w_up, w_down, act: Callable) -> Callable:
    """All experts' SwiGLUs as an `mlp` of `dispatch`; kernels [E, D, F], [E, D, F], [E, F, D].

    One `ragged_dot` a matrix: the seam for a grouped-matmul kernel.
    """

    def mlp(rows, sizes):
        gate = act(jax.lax.ragged_dot(rows, w_gate, sizes))
        return jax.lax.ragged_dot(gate * jax.lax.ragged_dot(rows, w_up, sizes), w_down, sizes)

    return mlp


def router_load(probabilities, experts, real=None):
    """What one layer contributes to `balance_loss`, means over the tokens of `real` [t] bool.

    Returns {"share": [E] how often each expert is chosen (sums to k), "probability": [E]}.
    """
    chosen = jax.nn.one_hot(experts, probabilities.shape[-1], dtype=probabilities.dtype).sum(1)
    weights = jnp.ones(len(experts)) if real is None else real
    weights = weights.astype(probabilities.dtype)
    mean = weights / jnp.maximum(weights.sum(), 1)
    return {"share": mean @ chosen, "probability": mean @ probabilities}


def balance_loss(load):
    """Loads stacked over layers, [L, E] each -> the Switch load-balancing loss [].

    E * sum_e share_e * probability_e, of the means over all layers' tokens together.
    """
    share, probability = load["share"].mean(0), load["probability"].mean(0)
    return share.shape[-1] * jnp.sum(share * probability)
