"""The TPU's depthwise convolution, interpreted, against a direct sum in float64."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.ops import depthwise_kernel
from mgm_jax.ops.depthwise import depthwise


def case(b, h, w, c, k, dtype=jnp.float32):
    """(x, kernel, gradient of the result), such that results are of order 1."""
    rng = np.random.default_rng(h + c + k)
    sizes = (((b, h, w, c), 1), ((k * k, c), 1 / k), ((b, h, w, c), 1))
    return tuple(jnp.asarray(rng.standard_normal(size) * scale, dtype) for size, scale in sizes)


def direct(x, kernel):
    x, kernel = (np.asarray(a, np.float64) for a in (x, kernel))
    k, (_, h, w, _) = round(len(kernel) ** 0.5), x.shape
    padded = np.pad(x, [(0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)])
    return sum(padded[:, i : i + h, j : j + w] * kernel[i * k + j] for i, j in np.ndindex(k, k))


@pytest.mark.parametrize("memory, rows", [(600_000, 8), (1_000_000, 8), (24 << 20, 24)])
@pytest.mark.parametrize("c, k", [(256, 7), (96, 7), (128, 3)])
def test_as_a_direct_sum(monkeypatch, memory, rows, c, k):
    """In three strips, where there is room for one and a half too, and in one."""
    x, kernel, _ = case(2, 24, 8, c, k)
    monkeypatch.setattr(depthwise_kernel, "MEMORY", memory)
    assert depthwise_kernel.strip(24, 8, c, 4) == rows
    found = depthwise_kernel.depthwise(x, kernel, interpret=True)
    np.testing.assert_allclose(found, direct(x, kernel), rtol=0, atol=2e-6)


def test_sums_are_float32():
    """One rounding of the result, and none before it."""
    x, kernel, _ = case(1, 8, 16, 128, 7, jnp.bfloat16)
    found = depthwise_kernel.depthwise(x, kernel, interpret=True)
    assert found.dtype == jnp.bfloat16
    expected = direct(x, kernel)
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=2**-8, atol=1e-5)


def pull(form, x, kernel, g):
    value, backward = jax.vjp(lambda x, kernel: depthwise(x, kernel, form), x, kernel)
    return value, *backward(g)


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


def test_gradients_are_those_of_the_convolution():
    args = case(2, 16, 8, 128, 7)
    same(pull("kernel", *args), pull("conv", *args))


MESHED = """
import sys
sys.path.insert(0, {here!r})
import jax
from test_depthwise_kernel import case, pull, same
from mgm_jax.sharding import make_mesh
args = case(8, 8, 8, 128, 3)
expected = pull("conv", *args)
for mesh in ({{"fsdp": 8}}, {{"fsdp": 2, "expert": 2, "tensor": 2}}):
    with jax.set_mesh(make_mesh(mesh)):
        same(jax.jit(pull, static_argnums=0)("kernel", *args), expected)
"""


def test_pictures_are_split_over_a_mesh(run_command):
    code = MESHED.format(here=str(Path(__file__).parent))
    done = run_command([sys.executable, "-c", code], devices=8)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    "h, w, c, fits",
    [
        (192, 192, 192, True),
        (384, 384, 192, True),  # HD
        (24, 24, 1536, True),
        (12, 16, 192, False),
        (16, 12, 192, False),
        (800, 800, 192, False),  # one tile's rows are too much
    ],
)
def test_which_maps_have_tiles_and_room(h, w, c, fits):
    assert depthwise_kernel.fits(h, w, c, 7, 2) is fits
    assert not depthwise_kernel.fits(h, w, c, 19, 2)


def test_cost_counts_taps_and_bytes():
    one = depthwise_kernel.cost((1, 48, 48, 128), 7, 2)
    vector = one.flops / depthwise_kernel.MATRIX_FLOPS / (48 * 48 * 128)
    assert 98 <= vector < 130  # a multiplication and an addition a tap, and the shifts
    assert one.bytes_accessed == pytest.approx(2 * 48 * 48 * 128 * (2 + 16 / 48))
    half = depthwise_kernel.cost((1, 48, 48, 192), 7, 2)  # a register and a half take two
    assert half.flops == 2 * one.flops
