"""Attention, its masks, and its kernel on TPU. B rows, T queries, S keys, N heads, K key heads,
H head dim.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from mgm_jax.ops import mesh


def attend(q, k, v, mask=None):
    """Softmax attention, scores and softmax in float32.

    q [B, T, N, H], k and v [B, S, K, H] with N a multiple of K (query head n reads key head
    n // (N/K)); mask [B, T, S] bool or None (all visible) -> [B, T, N, H] in q's dtype.
    """
    return cache_attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask)


def cache_attend(q, k, v, mask=None):
    """`attend` over a cache, whose heads come before its slots: k and v [B, K, S, H].

    Queries of one key head become rows of one product, behind its batch axes: XLA's CPU backend
    runs it two to three times as fast as with heads and queries in another order.
    """
    b, t, n, h = q.shape
    kv = k.shape[1]
    g = n // kv
    q = (q * jnp.asarray(h**-0.5, q.dtype)).reshape(b, t, kv, g, h)
    q = q.transpose(0, 2, 3, 1, 4).reshape(b, kv, g * t, h)
    precise = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bkqh,bksh->bkqs", q, k.astype(q.dtype), preferred_element_type=precise)
    if mask is not None:
        scores = scores.reshape(b, kv, g, t, -1)
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(precise).min)
        scores = scores.reshape(b, kv, g * t, -1)
    scores = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = scores.sum(-1, keepdims=True)  # divided by where there is less: behind the product
    out = jnp.einsum(
        "bkqs,bksh->bkqh",
        scores.astype(q.dtype),
        v.astype(q.dtype),
        preferred_element_type=precise,
    )
    out = (out / total).astype(q.dtype).reshape(b, kv, g, t, h)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


def packed_mask(segments):
    """segments [B, T] int -> [B, T, T] bool: causal inside each segment; 0 is padding.

    A padding token sees the padding before it, so that no softmax row is empty.
    """
    t = segments.shape[1]
    causal = jnp.tril(jnp.ones((t, t), bool))
    return causal & (segments[:, :, None] == segments[:, None, :])


QUERIES, PARTS = 128, 8  # a part has at least so many queries; a row, at most so many parts


def causal_attend(q, k, v, segments, apart: bool = False):
    """`attend` of rows to themselves under `packed_mask(segments)`, by parts of the queries: each
    part reads the keys up to its own end, which halves the work and keeps the scores small.

    `apart`: one long row at a time, whose scores a CPU's cache holds; where no gradient is taken,
    which would keep them all.
    """
    t = q.shape[1]
    size = max(QUERIES, -(-t // PARTS))
    ends = [(start, min(start + size, t)) for start in range(0, t, size)]

    def rows(q, k, v, segments):
        k, v, mask = k.swapaxes(1, 2), v.swapaxes(1, 2), packed_mask(segments)
        again = jax.checkpoint(cache_attend)  # scores are made again backwards: they are large
        parts = (again(q[:, a:e], k[:, :, :e], v[:, :, :e], mask[:, a:e, :e]) for a, e in ends)
        return jnp.concatenate(list(parts), 1)

    if not apart or len(ends) == 1:
        return rows(q, k, v, segments)
    return _by_rows(rows, 1, q, k, v, segments)


WHOLE, PART = 2**23, 2**21  # bytes of keys: a CPU reads so many at once well; more, in such parts


def decode_attend(q, k, v, mask):
    """`cache_attend` where no gradient is taken: on a CPU, a cache that is too large for its
    products' copies is read some rows at a time."""
    size = len(k)
    if mesh.on_one_cpu() and k.nbytes > WHOLE:
        most = max(1, PART * len(k) // k.nbytes)
        size = next(n for n in range(most, 0, -1) if len(k) % n == 0)
    return _by_rows(cache_attend, size, q, k, v, mask)


def _by_rows(attend, size: int, *arrays):
    """attend(*arrays), of `size` rows at a time."""
    if size == len(arrays[0]):
        return attend(*arrays)
    parts = [x.reshape(-1, size, *x.shape[1:]) for x in arrays]
    out = jax.lax.map(lambda part: attend(*part), parts)
    return out.reshape(-1, *out.shape[2:])


def packed_attend(q, k, v, segments, form: str = "auto", reads: bool = False):
    """`attend` of rows to themselves under `packed_mask(segments)`, [B, T, N, H].

    form: "xla" (`causal_attend`), "splash" (the Pallas kernel, which holds neither scores nor mask;
    off a TPU it is interpreted, for tests), or "auto": "splash" where the program is for TPUs. With
    "splash", rows are split over the batch axes of the mesh in context and heads over its `tensor`
    axis: ValueError where they do not divide. `reads`: no gradient will be taken.
    """
    if mesh.choose("attention", form, "splash", "xla") == "xla":
        out = causal_attend(q, k, v, segments, apart=reads and mesh.on_one_cpu())
        return checkpoint_name(out, "attention")
    mesh.check_rows(len(q), "attention 'splash'")
    heads, kv, parts = q.shape[2], k.shape[2], mesh.axis_size("tensor")
    if heads % parts:
        raise ValueError(
            f"attention 'splash': {heads} heads do not divide by the mesh's tensor axis of "
            f"{parts}; use a tensor axis that divides them, or attention 'xla'"
        )
    # Fewer key heads than parts, or an uneven number: repeated until each part has its own.
    repeats = parts // math.gcd(kv, parts)
    k, v = (jnp.repeat(a, repeats, axis=2) for a in (k, v))
    spec = mesh.rows(None, "tensor", None)
    return mesh.split(_splash, (spec, spec, spec, mesh.rows(None)), spec)(q, k, v, segments)


LANES = 128  # a row's length is padded to a multiple
BLOCKS = (512, 384, 256, 128)  # tokens of a tile; the first that divides the row


def _splash(q, k, v, segments):
    """`packed_attend` of one device's rows and heads by the kernel."""
    t, h = q.shape[1], q.shape[3]
    pad = -t % LANES
    q = q * jnp.asarray(h**-0.5, q.dtype)
    q, k, v = (  # -> [B, heads, T, H]
        jnp.pad(a, [(0, 0), (0, pad), (0, 0), (0, 0)]).swapaxes(1, 2) for a in (q, k, v)
    )
    segments = jnp.pad(segments, [(0, 0), (0, pad)])
    block = next(b for b in BLOCKS if (t + pad) % b == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv")
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((t + pad, t + pad))] * q.shape[1]),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(**dict.fromkeys(names, block), use_fused_bwd_kernel=True),
        residual_checkpoint_name="attention",
        interpret=not mesh.on_tpu(),
    )
    out = jax.vmap(kernel)(q, k, v, splash.SegmentIds(segments, segments))
    return out.swapaxes(1, 2)[:, :t]
