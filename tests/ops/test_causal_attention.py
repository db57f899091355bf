"""Attention by parts of the queries, and one row at a time, against all at once in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.ops import attention
from mgm_jax.ops.attention import PARTS, QUERIES, causal_attend, packed_mask


def literal(q, k, v, segments):
    """Softmax attention of N heads over N / K times repeated keys, in numpy."""
    n, kv, h = q.shape[2], k.shape[2], q.shape[3]
    k, v = (np.repeat(x, n // kv, axis=2) for x in (k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(h)
    scores = np.where(np.asarray(packed_mask(segments))[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("length", [5, QUERIES, QUERIES + 1, QUERIES * PARTS + 70])
def test_parts_are_the_whole(length):
    rng = np.random.default_rng(length)
    q, k, v = (rng.standard_normal((2, length, heads, 8)) for heads in (4, 2, 2))
    segments = np.sort(rng.integers(1, 4, (2, length)))
    segments[:, length - length // 5 :] = 0  # padding
    with jax.enable_x64(True):
        expected = literal(q, k, v, segments)
        for apart in (False, True):
            found = causal_attend(*map(jnp.asarray, (q, k, v)), jnp.asarray(segments), apart)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_large_cache_is_read_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((6, 1, 4, 8))
    k, v = (rng.standard_normal((6, 2, 40, 8)) for _ in "kv")
    mask = np.arange(40) <= rng.integers(0, 40, (6, 1, 1))
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x) for x in (q, k, v, mask)]
        expected = attention.cache_attend(*arrays)
        monkeypatch.setattr(attention, "WHOLE", 0)
        for rows in (0.5, 2, 4):  # parts of 1, 2, and 3, which divides 6
            monkeypatch.setattr(attention, "PART", int(rows * k[0].nbytes))
            found = jax.jit(lambda *a: attention.decode_attend(*a))(*arrays)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_formula():
    """Against central differences in float64, along random directions."""
    length = QUERIES + 9
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, length, heads, 4)) for heads in (4, 2, 2)]
    segments = np.sort(rng.integers(1, 3, (2, length)))
    out = rng.standard_normal((2, length, 4, 4))
    with jax.enable_x64(True):
        loss = lambda *a: jnp.sum(causal_attend(*a, jnp.asarray(segments)) * out)  # noqa: E731
        grads = jax.grad(loss, argnums=(0, 1, 2))(*map(jnp.asarray, arrays))
        for i, gradient in enumerate(grads):
            along = rng.standard_normal(arrays[i].shape)
            ends = []
            for sign in (1, -1):
                moved = [a + sign * 1e-5 * along if j == i else a for j, a in enumerate(arrays)]
                ends.append((literal(*moved, segments) * out).sum())
            slope = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose((gradient * along).sum(), slope, rtol=1e-7)
