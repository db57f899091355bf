"""The TPU's product with 4-bit integers, interpreted, against the same matrix in floating point."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.ops import quant, quant_kernel


@pytest.mark.parametrize("scheme", ["int4", "nf4"])
@pytest.mark.parametrize("t, i, o, group", [(3, 256, 128, 64), (300, 1024, 384, 128)])
def test_as_the_dequantised_matrix(scheme, t, i, o, group):
    rng = np.random.default_rng(t)
    q = quant.quantize(rng.standard_normal((i, o), np.float32), scheme, group)
    x = jnp.asarray(rng.standard_normal((t, i), np.float32))
    levels = functools.partial(quant.levels_of, scheme=scheme)
    assert quant_kernel.fits(q.values, q.scale)
    found = quant_kernel.matmul(x, q.values, q.scale, levels, interpret=True)
    expected = np.asarray(x, np.float64) @ np.asarray(quant.dequantize(q), np.float64)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    "i, o, group, fits",
    [
        (5120, 13824, 64, True),
        (13824, 5120, 128, True),
        (11008, 4096, 64, True),
        (4096, 4096, 0, False),  # one scale a channel: no tile holds the whole group
        (4096, 100, 64, False),
        (96, 256, 32, False),
    ],
)
def test_which_matrices_have_tiles(i, o, group, fits):
    shape = jax.ShapeDtypeStruct
    groups = i // (group or i)
    values, scale = shape((i, o), jnp.int4), np.empty((groups, o), np.float32)
    assert quant_kernel.fits(values, scale) is fits


def test_cost_is_that_of_the_product():
    """FLOPs as XLA counts them for the float matrix; bytes of every array once, for few rows."""
    t, i, o, groups = 8, 512, 512, 8
    x, w = jnp.zeros((t, i)), jnp.zeros((i, o))
    counted = jax.jit(jnp.dot).lower(x, w).compile().cost_analysis()["flops"]
    found = quant_kernel.cost(t, i, o, groups, 4)
    assert found.flops == pytest.approx(counted, rel=0.01)
    assert found.bytes_accessed == i * o // 2 + 4 * groups * o + 4 * t * (i + o)
    many = quant_kernel.cost(4 * quant_kernel.ROWS, i, 2 * o, groups, 4)  # 4 tiles by 2
    assert many.bytes_accessed == 4 * (i * o + 8 * groups * o) + 16 * quant_kernel.ROWS * (
        2 * i + 2 * o
    )
