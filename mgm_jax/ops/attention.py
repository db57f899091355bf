"""Attention, its masks, and its kernel on TPU. B rows, T queries, S keys, N heads, K key heads,
H head dim.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from mgm_jax.ops import mesh


def attend(q, k, v, mask=None):
    """Softmax attention, scores and softmax in float32.

    q [B, T, N, H], k and v [B, S, K, H] with N a multiple of K (query head n reads key head
    n // (N/K)); mask [B, T, S] bool or None (all visible) -> [B, T, N, H] in q's dtype.
    """
    b, t, n, h = q.shape
    kv = k.shape[2]
    q = q.reshape(b, t, kv, n // kv, h) * jnp.asarray(h**-0.5, q.dtype)
    precise = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=precise)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(precise).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(b, t, n, h)


def cache_attend(q, k, v, mask):
    """`attend` over a cache, whose heads come before its slots: k and v [B, K, S, H]."""
    b, t, n, h = q.shape
    kv = k.shape[1]
    q = q.reshape(b, t, kv, n // kv, h) * jnp.asarray(h**-0.5, q.dtype)
    precise = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("btkgh,bksh->bkgts", q, k.astype(q.dtype), preferred_element_type=precise)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(precise).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("bkgts,bksh->btkgh", weights, v.astype(q.dtype)).reshape(b, t, n, h)


def packed_mask(segments):
    """segments [B, T] int -> [B, T, T] bool: causal inside each segment; 0 is padding.

    A padding token sees the padding before it, so that no softmax row is empty.
    """
    t = segments.shape[1]
    causal = jnp.tril(jnp.ones((t, t), bool))
    return causal & (segments[:, :, None] == segments[:, None, :])


def packed_attend(q, k, v, segments, form: str = "auto"):
    """`attend` of rows to themselves under `packed_mask(segments)`, [B, T, N, H].

    form: "xla" (`attend`), "splash" (the Pallas kernel, which holds neither scores nor mask; off
    a TPU it is interpreted, for tests), or "auto": "splash" where the program is for TPUs. With
    "splash", rows are split over the batch axes of the mesh in context and heads over its `tensor`
    axis: ValueError where they do not divide.
    """
    if mesh.choose("attention", form, "splash", "xla") == "xla":
        return attend(q, k, v, packed_mask(segments))
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
