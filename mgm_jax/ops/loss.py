"""Next-token cross-entropy without ever holding all logits.

B rows, T tokens of a row, t tokens together, D width, V vocabulary, c columns of a chunk of it.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mgm_jax.ops import mesh

CHUNK_BYTES = 128 * 2**20  # of float32 logits that exist on a device at one time


def token_losses(logits, targets):
    """logits [..., V], targets [...] int -> -log p(target) [...], float32."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def head_losses(x, kernel, targets, tied: bool):
    """`token_losses` of the output head's logits: [B, T], float32 (float64 stays).

    x [B, T, D]; kernel [D, V], or with `tied` an embedding [V, D], in x's dtype; targets [B, T].
    Logits are float32 and exist for a chunk of the vocabulary at a time (`CHUNK_BYTES`), forwards
    with a running log-sum-exp, and once more backwards: so the kernel and its gradient are read and
    written once, however many tokens there are. Rows are split over the batch axes of the mesh in
    context (ValueError where they do not divide), the vocabulary over `tensor` where it divides.
    """
    return _forward(x, kernel, targets, tied)[0]


def _forward(x, kernel, targets, tied: bool):
    mesh.check_rows(len(x), "cross-entropy")
    rows, split = mesh.rows(), _split_vocabulary(kernel, tied)

    def part(x, kernel, targets):
        flat, targets = (
            x.reshape(-1, x.shape[-1]),
            targets.reshape(-1) - _first(kernel, tied, split),
        )
        best, total, picked = _scan_sums(flat, kernel, targets, tied)
        if split:
            highest = jax.lax.pmax(best, split)
            total = jax.lax.psum(total * jnp.exp(best - highest), split)
            best, picked = highest, jax.lax.psum(picked, split)
        log_sum = best + jnp.log(total)
        return (log_sum - picked).reshape(x.shape[:2]), log_sum.reshape(x.shape[:2])

    specs = rows, _kernel_spec(None, split, tied), rows
    losses, log_sum = mesh.split(part, specs, (rows, rows))(x, kernel, targets)
    return losses, (x, kernel, targets, log_sum)


def _backward(tied: bool, saved, g):
    x, kernel, targets, log_sum = saved
    rows, split = mesh.rows(), _split_vocabulary(kernel, tied)
    summed = [axis for axis in mesh.BATCH_AXES if mesh.axis_size(axis) > 1]
    scatter = "fsdp" if "fsdp" in summed and x.shape[-1] % mesh.axis_size("fsdp") == 0 else None

    def part(x, kernel, targets, log_sum, g):
        flat, targets = (
            x.reshape(-1, x.shape[-1]),
            targets.reshape(-1) - _first(kernel, tied, split),
        )
        each = log_sum.reshape(-1, 1), g.reshape(-1, 1)
        dx, dkernel = _scan_gradients(flat, kernel, targets, *each, tied)
        if split:
            dx = jax.lax.psum(dx, split)
        if scatter:
            axis = 1 if tied else 0
            dkernel = jax.lax.psum_scatter(dkernel, scatter, scatter_dimension=axis, tiled=True)
        if rest := [axis for axis in summed if axis != scatter]:
            dkernel = jax.lax.psum(dkernel, rest)
        return dx.astype(x.dtype).reshape(x.shape), dkernel

    whole = _kernel_spec(None, split, tied)
    outs = rows, _kernel_spec(scatter, split, tied)
    dx, dkernel = mesh.split(part, (rows, whole, rows, rows, rows), outs)(*saved, g)
    return dx, dkernel, None


head_losses.defvjp(_forward, _backward)


def _split_vocabulary(kernel, tied: bool) -> str | None:
    parts = mesh.axis_size("tensor")
    return "tensor" if parts > 1 and kernel.shape[0 if tied else 1] % parts == 0 else None


def _kernel_spec(width: str | None, vocabulary: str | None, tied: bool) -> PartitionSpec:
    return PartitionSpec(vocabulary, width) if tied else PartitionSpec(width, vocabulary)


def _first(kernel, tied: bool, split: str | None):
    """The first token of a device's part of the vocabulary."""
    return jax.lax.axis_index(split) * kernel.shape[0 if tied else 1] if split else 0


def _scan_sums(x, kernel, targets, tied: bool):
    """x [t, D], targets [t] (outside of the kernel's: none) -> the greatest logit, the sum of
    exp(logit - greatest) and the target's logit, [t] each."""

    def one(sums, start):
        best, total, picked = sums
        logits, is_target, _ = chunk(start)
        highest = jnp.maximum(best, logits.max(-1))
        total = total * jnp.exp(best - highest) + jnp.exp(logits - highest[:, None]).sum(-1)
        return (highest, total, picked + jnp.where(is_target, logits, 0).sum(-1)), None

    chunk, starts, _ = _chunks(x, kernel, targets, tied)
    zeros = jnp.zeros(len(x), jnp.promote_types(x.dtype, jnp.float32))
    return jax.lax.scan(one, (zeros - jnp.inf, zeros, zeros), starts)[0]


def _scan_gradients(x, kernel, targets, log_sum, g, tied: bool):
    """Of the losses times g [t, 1]: (by x, [t, D] float32; by the kernel, in its dtype)."""

    def one(gradients, start):
        dx, dkernel = gradients
        logits, is_target, columns = chunk(start)
        d = ((jnp.exp(logits - log_sum) - is_target) * g).astype(x.dtype)  # [t, c]
        dx += _dot(d, columns, 1, 0 if tied else 1, dx.dtype)
        new = _dot(*((d, x) if tied else (x, d)), 0, 0, kernel.dtype)
        return (dx, jax.lax.dynamic_update_slice_in_dim(dkernel, new, start, axis)), None

    chunk, starts, padded = _chunks(x, kernel, targets, tied)
    axis = 0 if tied else 1
    zeros = jnp.zeros(x.shape, log_sum.dtype), jnp.zeros_like(padded)
    dx, dkernel = jax.lax.scan(one, zeros, starts)[0]
    return dx, jax.lax.slice_in_dim(dkernel, 0, kernel.shape[axis], axis=axis)


def _chunks(x, kernel, targets, tied: bool):
    """(first column -> (logits [t, c], whether a column is the target, the kernel's columns),
    the chunks' first columns, the kernel padded to whole chunks)."""
    axis, precise = 0 if tied else 1, jnp.promote_types(x.dtype, jnp.float32)
    size = kernel.shape[axis]
    least = math.ceil(len(x) * size * 4 / CHUNK_BYTES)
    # Whole tiles of 128 columns without padding, if a little more chunks give that.
    number = next((n for n in range(least, 2 * least) if size % (128 * n) == 0), least)
    c = math.ceil(size / number)
    pad = number * c - size
    kernel = jnp.pad(kernel, [(0, pad), (0, 0)] if tied else [(0, 0), (0, pad)])

    def chunk(start):
        columns = jax.lax.dynamic_slice_in_dim(kernel, start, c, axis)
        logits = _dot(x, columns, 1, 1 if tied else 0, precise)
        number = start + jnp.arange(c)
        if pad:
            logits = jnp.where(number < size, logits, -jnp.inf)
        return logits, number == targets[:, None], columns

    return chunk, jnp.arange(number) * c, kernel


def _dot(a, b, i: int, j: int, dtype):
    """The product of two matrices over axis i of the first and j of the second."""
    return jax.lax.dot_general(a, b, (((i,), (j,)), ((), ())), preferred_element_type=dtype)


def microbatch_weights(weights, segments, rows: int):
    """Loss weights and segments [B, T] -> weights with the same sum under which the token mean of
    the batch is the mean over its micro-batches, of `rows` neighbouring rows each, of their own
    token means.

    That is gradient accumulation and data parallelism in the original (MGM_SPEC 2.5). The loss of a
    micro-batch without any weight is 0, and counts; one without any example does not.
    """
    b, t = weights.shape
    sums = weights.reshape(-1, rows * t).sum(-1)  # [B / rows]
    count = (segments.reshape(-1, rows * t) > 0).any(-1).sum()
    count = jnp.maximum(count, 1)
    scale = weights.sum() / (count * jnp.where(sums > 0, sums, jnp.inf))
    return weights * jnp.repeat(scale, rows)[:, None]
