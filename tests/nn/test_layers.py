"""Linear, Embed, Conv and the norms against direct restatements (float32 1e-5)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.nn.linear import Conv, Embed, Linear, torch_linear_init
from mgm_jax.nn.norms import LayerNorm, RMSNorm, standardise


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 4, 6)])
def test_linear(shape):
    x, kernel, bias = normal(*shape), normal(6, 5, seed=1), normal(5, seed=2)
    params = {"params": {"kernel": kernel, "bias": bias}}
    found = Linear(5, ("embed", "mlp")).apply(params, x)
    np.testing.assert_allclose(found, np.einsum("...i,io->...o", x, kernel) + bias, atol=1e-5)
    without = Linear(5, ("embed", "mlp"), use_bias=False)
    found = without.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(found, np.einsum("...i,io->...o", x, kernel), atol=1e-5)


def test_parameters_are_float32_with_logical_axes_and_the_output_follows_the_input():
    module, x = Linear(5, ("embed", "mlp")), jnp.ones((2, 6), jnp.bfloat16)
    boxed = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    specs = nn.get_partition_spec(boxed)
    assert tuple(specs["kernel"]) == ("embed", "mlp") and tuple(specs["bias"]) == ("mlp",)
    params = nn.unbox(boxed)
    assert params["kernel"].dtype == jnp.float32 and params["kernel"].shape == (6, 5)
    assert jax.eval_shape(module.apply, {"params": params}, x).dtype == jnp.bfloat16


def test_torch_linear_init_is_uniform_within_its_bound():
    drawn = np.asarray(torch_linear_init(jax.random.key(0), (64, 500)))
    assert np.abs(drawn).max() <= 1 / 8 and drawn.std() == pytest.approx(1 / 8 / 3**0.5, rel=0.02)


def test_embed_and_its_tied_head():
    table = normal(7, 4)
    module, params = Embed(7, 4, ("vocab", "embed")), {"params": {"embedding": table}}
    ids = np.array([[0, 6], [3, 3]])
    np.testing.assert_array_equal(module.apply(params, ids), table[ids])
    assert module.apply(params, ids, jnp.bfloat16).dtype == jnp.bfloat16
    x = normal(2, 3, 4, seed=1)
    logits = module.apply(params, x, method="logits")
    np.testing.assert_allclose(logits, x @ table.T, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 12), (9, 14)])  # the second leaves pixels over
def test_conv_is_a_strided_convolution(size):
    x, kernel, bias = normal(2, *size, 3), normal(4 * 4 * 3, 5, seed=1), normal(5, seed=2)
    found = Conv(5, 4, (None, "conv_out")).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    expected = jax.lax.conv_general_dilated(
        x,
        kernel.reshape(4, 4, 3, 5),
        window_strides=(4, 4),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(found, expected + bias, atol=1e-5)


def test_norms():
    x, scale, bias = 3 + 2 * normal(4, 16), normal(16, seed=1), normal(16, seed=2)
    exact = x.astype(np.float64)
    centred = exact - exact.mean(-1, keepdims=True)
    unit = centred / np.sqrt(exact.var(-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(standardise(x, 0.1), unit, atol=1e-5)
    found = LayerNorm(0.1).apply({"params": {"scale": scale, "bias": bias}}, x)
    np.testing.assert_allclose(found, unit * scale + bias, atol=1e-5)
    rms = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 0.1)
    found = RMSNorm(0.1).apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(found, rms * scale, atol=1e-5)


def test_statistics_of_half_precision_are_float32():
    """A large mean: bfloat16 statistics would lose the whole deviation."""
    x = jnp.asarray(normal(2, 512) + 64, jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    found = LayerNorm(1e-6).apply({"params": {"scale": jnp.ones(512), "bias": jnp.zeros(512)}}, x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=0.02)


def test_rms_norm_casts_before_it_scales():
    """MGM_SPEC 2.6: normalised in float32, cast to the input's type, then times the scale."""
    x, scale = jnp.asarray(normal(3, 8), jnp.bfloat16), normal(8, seed=1)
    y = np.asarray(x, np.float32)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
    expected = jnp.asarray(y, jnp.bfloat16) * jnp.asarray(scale, jnp.bfloat16)
    found = RMSNorm(1e-5).apply({"params": {"scale": scale}}, x)
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(expected, np.float32))
