"""Rotary position embeddings, half-split layout (MGM_SPEC 1.2)."""

from __future__ import annotations

import jax.numpy as jnp


def rope_tables(positions, head_dim: int, theta: float, dtype=jnp.float32):
    """positions [B, T] int -> (cos, sin), each [B, T, 1, head_dim / 2]."""
    exponent = jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim
    angles = positions[..., None].astype(dtype) / theta**exponent
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def rotate(x, tables):
    """x [B, T, N, H] rotated by its positions, in x's dtype; the arithmetic is float32."""
    cos, sin = tables
    a, b = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
