"""Attention and its masks. B batch, T queries, S keys, N heads, K key heads, H head dim."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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


def packed_mask(segments):
    """segments [B, T] int -> [B, T, T] bool: causal inside each segment; 0 is padding.

    A padding token sees the padding before it, so that no softmax row is empty.
    """
    t = segments.shape[1]
    causal = jnp.tril(jnp.ones((t, t), bool))
    return causal & (segments[:, :, None] == segments[:, None, :])
