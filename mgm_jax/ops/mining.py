"""Patch info mining, re-associated (paper section 3.2; MGM_SPEC 2.3), without the fused map.

Each low-resolution token is one query over the S = s*s high-resolution positions of its own region.
With keys W_k n_k(x) + b_k and values W_v n_v(x) + b_v, where n(x) = g * z + b is a LayerNorm with
standardised part z,

    q . (W_k n_k(x) + b_k)        = (g_k * W_k^T q) . z + a constant that the softmax cancels,
    sum_i p_i (W_v n_v(x_i) + b_v) = W_v (g_v * sum_i p_i z_i + b_v_norm) + b_v,

so the high-resolution map itself is never projected: the queries and the results are.

Nor is it made. It is the concatenation of maps, of which the coarser are resized bilinearly: at
position i of a region, x_i = sum_a M_ia x_a over the K positions a of a coarse map that are in or
next to the region, with the same M for all regions. So dot products with x_i are M times those with
x_a, weighted sums of x_i are sums of x_a weighted by M^T p, and the mean over channels that z needs
is M times the coarse mean. The square sum over channels of x_i is quadratic: it needs the products
of neighbouring x_a, see `_moments`.

B maps, N = n*n queries, C channels together, c of one map; h, w a map's sides, r = h / n its
positions a region side.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mgm_jax.ops import mesh
from mgm_jax.ops.resize import resize_bilinear


def mine(queries, maps, scale: float, eps: float):
    """Softmax over each query's region of the standardised map, and the region's weighted sum.

    queries [B, N, C]; maps: [B, h_i, w_i, c_i] each, the finest first, square, its side a multiple
    of n; C = sum of c_i. Coarser maps are resized to the finest as `resize_bilinear` does.
    Returns (sums of z [B, N, C] in the maps' dtype, weights [B, N, S] float32, row-major in a
    region). Differentiable by all arguments; equals the literal form to 1e-6 in float32.
    """
    n = round(queries.shape[1] ** 0.5)
    size = maps[0].shape[1]
    parts = [_prepare(x, n, size) for x in maps]
    precise = parts[0].mean.dtype
    pieces = jnp.split(queries, np.cumsum([x.shape[-1] for x in maps])[:-1], axis=-1)
    channels = queries.shape[-1]
    mean = sum(part.mean for part in parts) / channels  # [B, N, S]
    square = sum(part.square for part in parts) / channels
    inverse = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + eps)
    dots = sum(
        _exact("bnk,sk->bns", _by_windows(q, part.windows, precise), part.to_fine)
        for q, part in zip(pieces, parts, strict=True)
    )
    total = queries.astype(precise).sum(-1, keepdims=True)
    weights = region_softmax((dots - mean * total) * inverse * scale)
    scaled = weights * inverse
    windows = [part.windows for part in parts]
    if mesh.on_tpu():  # or XLA makes the maps float32 once, for both uses, and writes them out
        windows = jax.lax.optimization_barrier(windows)
    sums = [
        _of_windows(_exact("bns,sk->bnk", scaled, part.to_fine), x, precise)
        for part, x in zip(parts, windows, strict=True)
    ]
    sums = jnp.concatenate(sums, -1) - (scaled * mean).sum(-1, keepdims=True)
    return sums.astype(maps[0].dtype), weights


def region_softmax(logits):
    """logits [B, N, S] -> weights; NaN and infinite ones become finite first (MGM_SPEC 2.3)."""
    return jax.nn.softmax(jnp.nan_to_num(logits), axis=-1)


class _Part(NamedTuple):
    """What one map contributes."""

    windows: jax.Array  # the K = k*k positions that each region depends on: see `_windows`
    to_fine: np.ndarray  # [S, K]: M
    mean: jax.Array  # [B, N, S], the channel sums of the resized map
    square: jax.Array  # [B, N, S], the sums of squares


def _prepare(x, n: int, size: int) -> _Part:
    if x.shape[1] % n or size % x.shape[1]:  # regions would differ from each other
        x = resize_bilinear(x, (size, size)).astype(x.dtype)
    r, s = x.shape[1] // n, size // n
    precise = jnp.promote_types(x.dtype, jnp.float32)
    to_fine, squares = (m.astype(precise) for m in _matrices(s, r))
    if r < s:  # resizing repeats the edge
        x = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    k = r + 2 * (r < s)
    moments = [
        _windows(m[..., None], n, r, k).reshape(len(x), n * n, k * k)
        for m in _moments(x.astype(precise), r < s)
    ]
    square = sum(_exact("bnk,sk->bns", m, a) for m, a in zip(moments[1:], squares, strict=True))
    mean = _exact("bnk,sk->bns", moments[0], to_fine)
    return _Part(_windows(x, n, r, k), to_fine, mean, square)


def _moments(x, neighbours: bool):
    """x [B, h, w, c] -> channel sums [B, h, w] of x, x^2 and, of the neighbours that bilinear
    weights mix: of x with the next in the row, in the column, and of both diagonals of a cell.

    A value between (y, x) and (y+1, x+1) with weights u, 1-u by v, 1-v has the square sum
    u^2 v^2 |x_yx|^2 + ... + 2 u^2 v(1-v) x_yx . x_y(x+1) + ... + 2 u(1-u) v(1-v) (both diagonals).
    """
    found = [x.sum(-1), jnp.square(x).sum(-1)]
    if neighbours:
        right, down = (
            jnp.pad((a * b).sum(-1), pads)
            for a, b, pads in (
                (x[:, :, :-1], x[:, :, 1:], [(0, 0), (0, 0), (0, 1)]),
                (x[:, :-1], x[:, 1:], [(0, 0), (0, 1), (0, 0)]),
            )
        )
        across = x[:, :-1, :-1] * x[:, 1:, 1:] + x[:, :-1, 1:] * x[:, 1:, :-1]
        found += [right, down, jnp.pad(across.sum(-1), [(0, 0), (0, 1), (0, 1)])]
    return found


@lru_cache
def _matrices(s: int, r: int):
    """From r positions a region side (and one on each side if they are fewer) to s, for both sides:
    M [s*s, k*k], and the matrices of the same shape for the squares in `_moments`' order."""
    if r == s:
        return np.eye(s * s), np.eye(s * s)[None]
    position = (np.arange(s) + 0.5) * r / s + 0.5  # among the r + 2
    low = position.astype(int)
    one = np.zeros((s, r + 2))
    one[np.arange(s), low] = 1 - (position - low)
    one[np.arange(s), low + 1] = position - low
    own, next_ = one**2, one * np.roll(one, -1, axis=1)
    squares = np.kron(own, own), np.kron(own, next_), np.kron(next_, own), np.kron(next_, next_)
    return np.kron(one, one), np.stack(squares) * np.array([1, 2, 2, 2])[:, None, None]


def _windows(x, n: int, r: int, k: int):
    """x [B, (n-1)*r + k, the same, c] -> [B, n*n, k*k, c]: windows of side k at stride r.

    For TPUs [B, n, n, k, k, c]: there the map stays as it lies, while elsewhere products are
    fastest over one axis of each kind.
    """
    if k == r:
        x = x.reshape(len(x), n, r, n, r, -1)
    else:
        last = (n - 1) * r + 1
        x = jnp.stack([x[:, i : i + last : r] for i in range(k)], axis=2)  # [B, n, k, w, c]
        x = jnp.stack([x[:, :, :, i : i + last : r] for i in range(k)], axis=4)
    x = x.swapaxes(2, 3)
    return x if mesh.on_tpu() else x.reshape(len(x), n * n, k * k, -1)


def _by_windows(q, windows, dtype):
    """q [B, N, c] -> [B, N, K]: dot products with the positions of each window."""
    q = q.astype(windows.dtype)
    if windows.ndim == 4:
        return jnp.einsum("bnc,bnkc->bnk", q, windows, preferred_element_type=dtype)
    q = q.reshape(*windows.shape[:3], -1)
    dots = jnp.einsum("bhwc,bhwijc->bhwij", q, windows, preferred_element_type=dtype)
    return dots.reshape(len(q), -1, windows.shape[3] * windows.shape[4])


def _of_windows(weights, windows, dtype):
    """weights [B, N, K] -> [B, N, c]: weighted sums of the positions of each window."""
    weights = weights.astype(windows.dtype)
    if windows.ndim == 4:
        return jnp.einsum("bnk,bnkc->bnc", weights, windows, preferred_element_type=dtype)
    weights = weights.reshape(windows.shape[:-1])
    sums = jnp.einsum("bhwij,bhwijc->bhwc", weights, windows, preferred_element_type=dtype)
    return sums.reshape(len(sums), -1, sums.shape[-1])


def _exact(form: str, a, b):
    """Products with the constant matrices, whose results are subtracted from each other."""
    return jnp.einsum(form, a, b, precision=jax.lax.Precision.HIGHEST)
