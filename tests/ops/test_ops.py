"""Each operation against a direct restatement; float32, 1e-5 unless said otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.models.mining import PatchInfoMining
from mgm_jax.ops.attention import attend, packed_mask
from mgm_jax.ops.depthwise import depthwise
from mgm_jax.ops.loss import chunked_loss, token_losses
from mgm_jax.ops.merge import place_images
from mgm_jax.ops.mining import mining_weights
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


def literal_mining(p, x, hr_map, eps):
    """The paper's form: keys and values of every position of the map."""

    def norm(a, scale, bias):
        a = (a - a.mean(-1, keepdims=True)) / jnp.sqrt(a.var(-1, keepdims=True) + eps)
        return a * scale + bias

    b, h, w, c = hr_map.shape
    s = h // 2
    regions = hr_map.reshape(b, 2, s, 2, s, c).swapaxes(2, 3).reshape(b, 4, s * s, c)
    q = norm(x, *(p["query"]["norm"][k] for k in ("scale", "bias")))
    q = q @ p["query"]["proj"]["kernel"] + p["query"]["proj"]["bias"]
    k, v = (
        norm(regions, p[n]["norm_scale"], p[n]["norm_bias"]) @ p[n]["kernel"] + p[n]["bias"]
        for n in ("key", "value")
    )
    weights = jax.nn.softmax((q[:, :, None] * k / np.sqrt(q.shape[-1])).sum(-1), -1)
    return (weights[..., None] * v).sum(2)


def test_reassociated_mining_equals_the_literal_form_and_its_gradients():
    x, hr_map = normal(2, 4, 6), normal(2, 8, 8, 10, seed=1)
    module = PatchInfoMining(10, 6, 1e-5)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, hr_map)["params"])
    import flax.linen as nn

    params = jax.tree.map(lambda s: normal(*s.shape, seed=s.size), nn.unbox(shapes))
    cotangent = normal(2, 4, 6, seed=3)

    def ours(params, x, hr_map):
        return jnp.vdot(module.apply({"params": params}, x, hr_map)[0], cotangent)

    def literal(params, x, hr_map):
        return jnp.vdot(literal_mining(params, x, hr_map, 1e-5), cotangent)

    found = jax.value_and_grad(ours, argnums=(0, 1, 2))(params, x, hr_map)
    expected = jax.value_and_grad(literal, argnums=(0, 1, 2))(params, x, hr_map)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4)  # values of order 10


def test_mining_logits_that_are_not_finite_become_finite():
    regions = np.array([[[[np.nan], [1.0], [2.0]]]], np.float32)
    weights = mining_weights(np.ones((1, 1, 1), np.float32), regions, 1.0)
    expected = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    np.testing.assert_allclose(weights[0, 0], expected, atol=1e-6)
    infinite = np.array([[[[np.inf], [-np.inf]]]], np.float32)
    weights = mining_weights(np.ones((1, 1, 1), np.float32), infinite, 1.0)
    np.testing.assert_array_equal(weights[0, 0], [1, 0])


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


def test_chunked_loss_and_gradient_equal_the_whole():
    x, head = normal(3, 7, 4), normal(4, 11, seed=1)
    rng = np.random.default_rng(2)
    targets, weights = rng.integers(11, size=(3, 7)), rng.integers(2, size=(3, 7))

    def whole(x, head):
        return jnp.sum(token_losses(x @ head, targets) * weights)

    def chunked(x, head):
        return chunked_loss(lambda x: x @ head, x, targets, weights, chunk=6)[0]

    for argument in (0, 1):
        found = jax.value_and_grad(chunked, argument)(x, head)
        expected = jax.value_and_grad(whole, argument)(x, head)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    assert chunked_loss(lambda x: x @ head, x, targets, weights)[1] == weights.sum()


def test_images_are_placed_from_their_own_group():
    text, features = normal(4, 3, 2), normal(2, 2, 2, 2, seed=1)  # G=2, M=2, N=2
    index = np.array([[0, -1, 3], [-1, -1, 2], [1, 1, -1], [-1, 0, 3]])
    found = np.asarray(place_images(text, features, index))
    for row, t in np.ndindex(4, 3):
        i = index[row, t]
        expected = text[row, t] if i < 0 else features[row // 2].reshape(4, 2)[i]
        np.testing.assert_array_equal(found[row, t], expected)
