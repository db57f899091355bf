"""Mixture of experts: top-k routing and dropless, sorted dispatch (MGM_SPEC 2.6).

B rows, T tokens of a row, t tokens together, k experts a token, n = t*k pairs, E experts, D and F
widths, L layers. Every (token, expert) pair is computed: pairs are sorted by expert, so that each
expert's matrix meets one contiguous run of rows, and no capacity limit drops any.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import megablox
from jax.sharding import PartitionSpec

from mgm_jax.ops import mesh


def route(logits, k: int):
    """logits [..., E] -> (weights [..., k], experts [..., k] int32, probabilities [..., E]).

    The softmax is float32, over all experts; the k best weights are renormalised to sum to 1.
    """
    precise = jnp.promote_types(logits.dtype, jnp.float32)
    probabilities = jax.nn.softmax(logits.astype(precise), axis=-1)
    weights, experts = jax.lax.top_k(probabilities, k)
    return weights / weights.sum(-1, keepdims=True), experts, probabilities


def expert_mlp(x, weights, experts, kernels, act: Callable, form: str = "auto"):
    """Each token through its experts' SwiGLUs: sum_j weights_j * mlp_j(x), [B, T, D] in x's dtype.

    x [B, T, D]; weights and experts [B, T, k] as `route` gives them; kernels: gate and up
    [E, D, F], down [E, F, D].

    form: "ragged" (`jax.lax.ragged_dot`), "gmm" (the Pallas kernel; off a TPU it is interpreted,
    for tests), or "auto": "gmm" where the program is for TPUs. With "gmm", rows are split over the
    batch axes of the mesh in context and the F of every expert over its `expert` and `tensor` axes:
    ValueError where they do not divide.
    """
    if mesh.choose("moe", form, "gmm", "ragged") == "ragged":
        return _mixture(x, weights, experts, kernels, act, jax.lax.ragged_dot)
    mesh.check_rows(len(x), "moe 'gmm'")
    width, parts = kernels[0].shape[-1], mesh.axis_size("expert", "tensor")
    if width % parts:
        raise ValueError(
            f"moe 'gmm': an MLP width of {width} does not divide by the mesh's {parts} parts "
            "(expert x tensor); use axes that divide it, or moe 'ragged'"
        )
    across = mesh.axis_size("expert") > 1, mesh.axis_size("tensor") > 1

    def part(x, weights, experts, *kernels):
        """The devices of an `expert` axis share their tokens; each has a part of every expert."""
        shared = x, weights, experts
        if across[0]:
            shared = [jax.lax.all_gather(a, "expert", tiled=True) for a in shared]
            shared[0] = checkpoint_name(shared[0], "tokens")
        y = _mixture(*shared, kernels, act, _gmm)
        if across[0]:
            y = jax.lax.psum_scatter(y, "expert", tiled=True)
        return jax.lax.psum(y, "tensor") if across[1] else y

    rows, split = mesh.rows(), ("expert", "tensor")
    columns = PartitionSpec(None, None, split)
    specs = rows, rows, rows, columns, columns, PartitionSpec(None, split, None)
    return mesh.split(part, specs, rows)(x, weights, experts, *kernels)


def _mixture(x, weights, experts, kernels, act: Callable, matmul: Callable):
    """`expert_mlp` by `matmul`: (rows [n, in] sorted by expert, kernels [E, in, out], rows of each
    expert [E]) -> [n, out].

    The weights go in before the last product: backwards, its result is not needed then.
    """
    k, (w_gate, w_up, w_down) = experts.shape[-1], kernels
    pairs = experts.reshape(-1)  # [n]
    order = jnp.argsort(pairs)  # stable: pairs by expert, then by token
    places = jnp.argsort(order)  # where each pair went
    sizes = jnp.bincount(pairs, length=len(w_gate)).astype(jnp.int32)
    weights = _spread(weights.reshape(-1, 1), order, places[:, None])
    rows = _spread(x.reshape(-1, x.shape[-1]), order, places.reshape(-1, k))
    gate, up = (
        checkpoint_name(matmul(rows, w, sizes), name)
        for name, w in (("gate", w_gate), ("up", w_up))
    )
    h = act(gate) * up
    y = matmul(h * weights.astype(h.dtype), w_down, sizes)
    return _collect(y, order, places.reshape(-1, k)).reshape(x.shape)


# A pair's row out of its token's, and a token's sum over its pairs' rows: each is the transpose of
# the other, and both are gathers, where the transpose of a gather is a scatter of unordered sums.


@jax.custom_vjp
def _spread(x, order, places):
    """x [t, D] -> [n, D]: row i is the token of pair order[i]; places [t, k] is its inverse."""
    return x.at[order // places.shape[1]].get(mode="promise_in_bounds")


@jax.custom_vjp
def _collect(y, order, places):
    """y [n, D] -> [t, D]: each token's sum over its k rows."""
    return sum(y.at[place].get(mode="promise_in_bounds") for place in places.T)


def _backward(transpose: Callable):
    return lambda saved, g: (transpose(g, *saved), None, None)


_spread.defvjp(lambda x, *saved: (_spread(x, *saved), saved), _backward(_collect))
_collect.defvjp(lambda y, *saved: (_collect(y, *saved), saved), _backward(_spread))


def _gmm(rows, kernels, sizes):
    """`jax.lax.ragged_dot` by the megablox kernel, which wants whole tiles of rows."""
    n = len(rows)
    tile = 512 if n >= 512 else 128
    if pad := -n % tile:
        rows = jnp.pad(rows, [(0, pad), (0, 0)])
        sizes = jnp.append(sizes, pad)  # a last group without an expert: not computed, zeros
    y = megablox.gmm(
        rows,
        kernels,
        sizes,
        preferred_element_type=rows.dtype,
        tiling=lambda m, k, n: (tile, min(k, 1024), min(n, 1024)),
        interpret=not mesh.on_tpu(),
    )
    return y[:n]


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
