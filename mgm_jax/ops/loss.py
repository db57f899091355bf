"""Next-token cross-entropy without ever holding all logits.

B rows, T tokens of a row, t tokens together, D width, V vocabulary, c columns of a chunk of it (or
tokens of a block).
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mgm_jax.ops import mesh

CHUNK_BYTES = 128 * 2**20  # of float32 logits that exist on a device at one time
TOKENS = 128  # that count, of a block


def token_losses(logits, targets):
    """logits [..., V], targets [...] int -> -log p(target) [...], float32."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def head_losses(x, kernel, targets, counted, tied: bool, form: str = "auto"):
    """`token_losses` of the output head's logits: [B, T], float32 (float64 stays), 0 for tokens
    that do not count.

    x [B, T, D]; kernel [D, V], or with `tied` an embedding [V, D], in x's dtype; targets [B, T];
    counted [B, T] bool. Logits are float32 and computed forwards and once more backwards. form:
    "vocabulary": they exist for a chunk of the vocabulary at a time (`CHUNK_BYTES`), with a running
    log-sum-exp, so the kernel and its gradient are read and written once, however many tokens
    there are. "tokens": for some of the tokens that count at a time, and for the others (pictures,
    questions) not at all. "auto": "vocabulary" where the program is for TPUs. Rows are split over
    the batch axes of the mesh in context (ValueError where they do not divide), the vocabulary over
    `tensor` where it divides.
    """
    return _forward(x, kernel, targets, counted, tied, form)[0]


def _forward(x, kernel, targets, counted, tied: bool, form: str):
    mesh.check_rows(len(x), "cross-entropy")
    x, kernel, targets, counted = map(jnp.asarray, (x, kernel, targets, counted))
    rows, split = mesh.rows(), _split_vocabulary(kernel, tied)
    by_tokens = _by_tokens(form)

    def part(x, kernel, targets, counted):
        flat, targets = (
            x.reshape(-1, x.shape[-1]),
            targets.reshape(-1) - _first(kernel, tied, split),
        )
        if by_tokens:
            best, total, picked = _token_sums(flat, kernel, targets, counted.reshape(-1), tied)
        else:
            best, total, picked = _scan_sums(flat, kernel, targets, tied)
        if split:
            highest = jax.lax.pmax(best, split)
            total = jax.lax.psum(total * jnp.exp(best - highest), split)
            best, picked = highest, jax.lax.psum(picked, split)
        log_sum = best + jnp.log(total)
        losses, log_sum = (a.reshape(x.shape[:2]) for a in (log_sum - picked, log_sum))
        return jnp.where(counted, losses, 0), log_sum

    specs = rows, _kernel_spec(None, split, tied), rows, rows
    losses, log_sum = mesh.split(part, specs, (rows, rows))(x, kernel, targets, counted)
    return losses, (x, kernel, targets, counted, log_sum)


def _backward(tied: bool, form: str, saved, g):
    x, kernel, targets, counted, log_sum = saved
    by_tokens = _by_tokens(form)
    rows, split = mesh.rows(), _split_vocabulary(kernel, tied)
    summed = [axis for axis in mesh.BATCH_AXES if mesh.axis_size(axis) > 1]
    scatter = "fsdp" if "fsdp" in summed and x.shape[-1] % mesh.axis_size("fsdp") == 0 else None

    def part(x, kernel, targets, counted, log_sum, g):
        flat, targets = (
            x.reshape(-1, x.shape[-1]),
            targets.reshape(-1) - _first(kernel, tied, split),
        )
        each = log_sum.reshape(-1, 1), jnp.where(counted, g, 0).reshape(-1, 1)
        if by_tokens:
            each += (counted.reshape(-1),)
            dx, dkernel = _token_gradients(flat, kernel, targets, *each, tied)
        else:
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
    specs = (rows, whole, rows, rows, rows, rows)
    dx, dkernel = mesh.split(part, specs, outs)(*saved, g)
    return dx, dkernel, None, None


head_losses.defvjp(_forward, _backward)


def _by_tokens(form: str) -> bool:
    return mesh.choose("cross-entropy", form, "vocabulary", "tokens") == "tokens"


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


def _token_sums(x, kernel, targets, counted, tied: bool):
    """`_scan_sums` of the tokens that count [t], 0, 1 and 0 for the others."""
    precise = jnp.promote_types(x.dtype, jnp.float32)

    def one(i, sums):
        at = block(i)
        logits, is_target = _block_logits(x[at], kernel, targets[at], tied)
        best = logits.max(-1)
        found = (
            best,
            jnp.exp(logits - best[:, None]).sum(-1),
            jnp.where(is_target, logits, 0).sum(-1),
        )
        return tuple(s.at[at].set(f) for s, f in zip(sums, found, strict=True))

    block, number = _blocks(counted)
    zeros = jnp.zeros(len(x), precise)
    return jax.lax.fori_loop(0, number, one, (zeros, zeros + 1, zeros))


def _token_gradients(x, kernel, targets, log_sum, g, counted, tied: bool):
    """`_scan_gradients`, of the tokens that count."""

    def one(i, gradients):
        dx, dkernel = gradients
        at = block(i)
        logits, is_target = _block_logits(x[at], kernel, targets[at], tied)
        weight = g.at[at].get(mode="fill", fill_value=0)
        d = ((jnp.exp(logits - log_sum[at]) - is_target) * weight).astype(x.dtype)  # [c, V]
        dx = dx.at[at].set(_dot(d, kernel, 1, 0 if tied else 1, dx.dtype))
        return dx, dkernel + _dot(*((d, x[at]) if tied else (x[at], d)), 0, 0, kernel.dtype)

    block, number = _blocks(counted)
    zeros = jnp.zeros(x.shape, log_sum.dtype), jnp.zeros_like(kernel)
    return jax.lax.fori_loop(0, number, one, zeros)


def _blocks(counted):
    """(i -> the places of the i-th `TOKENS` tokens that count; how many). Behind the last of them
    come others, and places beyond the end."""
    size = min(TOKENS, len(counted))
    order = jnp.argsort(~counted)  # those that count first
    order = jnp.pad(order, (0, -len(order) % size), constant_values=len(order))
    number = (counted.sum() + size - 1) // size
    return lambda i: jax.lax.dynamic_slice_in_dim(order, i * size, size), number


def _block_logits(x, kernel, targets, tied: bool):
    """x [c, D], targets [c] -> (logits, whether a column is the target), [c, V] each."""
    logits = _dot(x, kernel, 1, 1 if tied else 0, jnp.promote_types(x.dtype, jnp.float32))
    return logits, jnp.arange(logits.shape[1]) == targets[:, None]


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
