"""Patch info mining, re-associated (paper section 3.2; MGM_SPEC 2.3).

Each low-resolution token is one query over the S = s*s high-resolution positions of its own region.
With keys W_k n_k(x) + b_k and values W_v n_v(x) + b_v, where n(x) = g * z + b is a LayerNorm with
standardised part z,

    q . (W_k n_k(x) + b_k)        = (g_k * W_k^T q) . z + a constant that the softmax cancels,
    sum_i p_i (W_v n_v(x_i) + b_v) = W_v (g_v * sum_i p_i z_i + b_v_norm) + b_v,

so the high-resolution map itself is never projected: the queries and the results are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def to_regions(x, grid: int):
    """[B, h, w, C] -> [B, grid*grid, s*s, C]: the region of each query, both row-major."""
    b, h, w, c = x.shape
    x = x.reshape(b, grid, h // grid, grid, w // grid, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, grid * grid, -1, c)


def mining_weights(queries, regions, scale: float):
    """queries [B, N, C], regions [B, N, S, C] -> softmax weights [B, N, S], float32.

    NaN and infinite logits become finite first, as in MGM_SPEC 2.3 step 5.
    """
    precise = jnp.promote_types(regions.dtype, jnp.float32)
    logits = jnp.einsum("bnc,bnsc->bns", queries, regions, preferred_element_type=precise)
    return jax.nn.softmax(jnp.nan_to_num(logits * scale), axis=-1)


def gather_mined(weights, regions):
    """weights [B, N, S], regions [B, N, S, C] -> weighted sums [B, N, C] in the regions' dtype."""
    return jnp.einsum("bns,bnsc->bnc", weights.astype(regions.dtype), regions)
