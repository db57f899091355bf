"""Each operation against a direct restatement; float32, 1e-5 unless said otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.ops.attention import attend, packed_mask
from mgm_jax.ops.depthwise import depthwise
from mgm_jax.ops.merge import place_images
from mgm_jax.ops.rope import rope_tables, rotate


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_attention_with_shared_keys_and_mask():
    q, k, v = normal(2, 5, 4, 8), normal(2, 5, 2, 8, seed=1), normal(2, 5, 2, 8, seed=2)
    mask = np.tril(np.ones((5, 5), bool))[None].repeat(2, 0)
    expected = np.zeros_like(q)
    for b, t, n in np.ndindex(2, 5, 4):
        scores = k[b, : t + 1, n // 2] @ q[b, t, n] / np.sqrt(8)
        weights = np.exp(scores) / np.exp(scores).sum()
        expected[b, t, n] = weights @ v[b, : t + 1, n // 2]
    np.testing.assert_allclose(attend(q, k, v, mask), expected, atol=1e-5)


def test_packed_mask_keeps_segments_apart():
    mask = np.asarray(packed_mask(jnp.array([[1, 1, 2, 2, 0]])))[0]
    expected = np.zeros((5, 5), bool)
    for i, j in ((0, 0), (1, 0), (1, 1), (2, 2), (3, 2), (3, 3), (4, 4)):
        expected[i, j] = True
    np.testing.assert_array_equal(mask, expected)


def test_rope_rotates_pairs_by_position():
    x, positions = normal(1, 3, 1, 4), np.array([[0, 1, 7]])
    found = rotate(x, rope_tables(positions, 4, 100.0))
    for t, p in enumerate(positions[0]):
        for i, frequency in enumerate((1.0, 0.1)):
            pair = complex(x[0, t, 0, i], x[0, t, 0, i + 2]) * np.exp(1j * p * frequency)
            np.testing.assert_allclose(
                found[0, t, 0, [i, i + 2]], [pair.real, pair.imag], atol=1e-6
            )


@pytest.mark.parametrize("k", [3, 7])
def test_depthwise_forms_agree_with_a_direct_sum(k):
    x, kernel, g = normal(2, 6, 5, 3), normal(k * k, 3, seed=1), normal(2, 6, 5, 3, seed=2)
    padded = np.pad(x, [(0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)])
    direct = sum(
        padded[:, i : i + 6, j : j + 5] * kernel[i * k + j] for i in range(k) for j in range(k)
    )
    results = {}
    for form in ("shift", "conv"):
        value, pull = jax.vjp(lambda x, w, form=form: depthwise(x, w, form), x, kernel)
        np.testing.assert_allclose(value, direct, atol=1e-5)
        results[form] = pull(g)
    for a, b in zip(results["shift"], results["conv"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_images_are_placed_from_their_own_group():
    text, features = normal(4, 3, 2), normal(2, 2, 2, 2, seed=1)  # G=2, M=2, N=2
    index = np.array([[0, -1, 3], [-1, -1, 2], [1, 1, -1], [-1, 0, 3]])
    found = np.asarray(place_images(text, features, index))
    for row, t in np.ndindex(4, 3):
        i = index[row, t]
        expected = text[row, t] if i < 0 else features[row // 2].reshape(4, 2)[i]
        np.testing.assert_array_equal(found[row, t], expected)
