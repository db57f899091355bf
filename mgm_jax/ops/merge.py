"""Placing image features among text embeddings: a gather by index, no dynamic shape."""

from __future__ import annotations

import jax.numpy as jnp


def place_images(text, features, visual_index):
    """Replaces the embeddings at image positions (ARCHITECTURE: batch contract).

    text [B, T, D]; features [G, M, N, D], the picture pools of G groups of B / G neighbouring rows;
    visual_index [B, T] int: slot * N + n into the row's own pool, or -1 for text -> [B, T, D].
    The gather stays inside a group, so it crosses no device when groups are what is sharded.
    """
    b, t, d = text.shape
    groups = features.shape[0]
    pool = features.reshape(groups, -1, d)  # [G, M*N, D]
    index = visual_index.reshape(groups, b // groups * t)
    placed = jnp.take_along_axis(pool, jnp.maximum(index, 0)[..., None], axis=1, mode="clip")
    placed = placed.reshape(b, t, d).astype(text.dtype)
    return jnp.where(visual_index[..., None] >= 0, placed, text)
