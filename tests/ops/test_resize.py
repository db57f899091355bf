"""`ops.resize` and `ops.views` against PyTorch and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mgm_jax.models.config import ImageSpec
from mgm_jax.ops.resize import resize_bilinear, split_crops
from mgm_jax.ops.views import normalise, views

SIZES = [
    ((768, 20), (336, 9)),  # LR from HR; every ratio is tested on rows and on columns
    ((20, 1536), (9, 672)),
    ((672, 6), (336, 3)),
    ((24, 12), (192, 48)),  # ConvNeXt stages: 8, 4, 2
    ((48, 96), (96, 192)),
    ((224, 28), (28, 28)),
    ((37, 101), (101, 37)),
    ((500, 333), (336, 1000)),
    ((1, 5), (7, 1)),
    ((1, 1), (3, 4)),
]


def reference(x, size):
    """torch's answer for channels-last x, [B, h, w, C]."""
    x = torch.from_numpy(x).permute(0, 3, 1, 2)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


def draw(shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("before, after", SIZES)
def test_equals_torch(before, after):
    x = draw((2, *before, 3))
    y = jax.jit(resize_bilinear, static_argnums=1)(x, after)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, reference(x, after).numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("before, after", [((37, 12), (16, 48)), ((1, 6), (4, 3))])
def test_gradient_equals_torch(before, after):
    x, weight = draw((1, *before, 2)), draw((1, *after, 2))
    leaf = torch.from_numpy(x).requires_grad_()
    y = F.interpolate(leaf.permute(0, 3, 1, 2), size=after, mode="bilinear", align_corners=False)
    (y.permute(0, 2, 3, 1) * torch.from_numpy(weight)).sum().backward()
    grad = jax.grad(lambda x: (resize_bilinear(x, after) * weight).sum())(x)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-5, atol=1e-5)


def test_float64_stays_and_equals_torch():
    x = draw((1, 101, 37, 2), np.float64)
    with jax.enable_x64(True):
        y = np.asarray(resize_bilinear(jnp.asarray(x), (37, 101)))
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, reference(x, (37, 101)).numpy(), atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.uint8])
def test_narrow_types_are_resized_in_float32(dtype):
    x = jnp.asarray(draw((1, 6, 6, 2)) * 50 + 100).astype(dtype)
    y = resize_bilinear(x, (4, 12))
    np.testing.assert_array_equal(y, resize_bilinear(x.astype(jnp.float32), (4, 12)))
    assert y.dtype == jnp.float32


def test_leading_axes_and_same_size():
    x = draw((2, 3, 6, 4, 2))
    y = resize_bilinear(x, (3, 8))
    np.testing.assert_array_equal(y[1, 2], resize_bilinear(x[1, 2], (3, 8)))
    np.testing.assert_array_equal(resize_bilinear(x, (6, 4)), x)


def test_halving_is_the_mean_of_each_block():
    x = draw((1, 8, 12, 3))
    expected = x.reshape(1, 4, 2, 6, 2, 3).mean((2, 4))
    np.testing.assert_allclose(resize_bilinear(x, (4, 6)), expected, atol=1e-6)


def test_only_the_taps_are_read():
    """Two taps per axis when shrinking: a NaN between the taps must not spread."""
    x = draw((1, 16, 16, 1))
    x[:, 0], x[:, :, 7] = np.nan, np.nan
    assert np.isfinite(resize_bilinear(x, (2, 2))).all()


@pytest.mark.parametrize(
    "shape, size", [((4, 4), (2, 2)), ((0, 4, 3), (2, 2)), ((4, 4, 3), (0, 2))]
)
def test_bad_shapes_are_refused(shape, size):
    with pytest.raises(ValueError, match="resize_bilinear: found shape"):
        resize_bilinear(jnp.zeros(shape), size)


def test_split_crops_is_row_major():
    x = draw((2, 6, 9, 2))
    crops = split_crops(x, 3)
    assert crops.shape == (2, 9, 2, 3, 2)
    for row in range(3):
        for column in range(3):
            tile = x[:, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            np.testing.assert_array_equal(crops[:, 3 * row + column], tile)
    with pytest.raises(ValueError, match="do not divide by grid 4"):
        split_crops(x, 4)


def test_normalise_equals_the_processor():
    """The original's order: level * (1 / 255) in float64, the rest in float32."""
    spec = ImageSpec(lr_size=4, hr_size=8)
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    scaled = (levels * (1 / 255)).astype(np.float32)
    expected = (scaled - np.float32(spec.mean)) / np.float32(spec.std)
    np.testing.assert_allclose(normalise(levels, spec), expected, atol=1e-6)


@pytest.mark.parametrize(
    "grid, use_global, shape",
    [(1, False, (4, 4, 3)), (2, False, (4, 4, 4, 3)), (2, True, (5, 4, 4, 3))],
)
def test_views_shapes_and_the_global_view(grid, use_global, shape):
    spec = ImageSpec(lr_size=4, hr_size=20, grid=grid, use_global=use_global)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 20, 3), np.uint8)
    lr, hr = jax.jit(views, static_argnums=1)(pixels, spec)
    assert lr.shape == (2, 3, *shape) and hr.shape == pixels.shape
    assert lr.dtype == hr.dtype == jnp.float32
    np.testing.assert_allclose(hr, normalise(pixels, spec), atol=1e-6)
    if use_global:  # from the 8-pixel picture, not from the 20-pixel one
        whole = resize_bilinear(resize_bilinear(normalise(pixels, spec), (8, 8)), (4, 4))
        np.testing.assert_allclose(lr[:, :, 4], whole, atol=1e-6)


@pytest.mark.parametrize(
    "pixels", [np.zeros((20, 20, 3), np.float32), np.zeros((20, 16, 3), np.uint8)]
)
def test_views_refuse_other_pixels(pixels):
    with pytest.raises(ValueError, match=r"expected uint8 \[\.\.\., 20, 20, 3\]"):
        views(pixels, ImageSpec(lr_size=4, hr_size=20))
