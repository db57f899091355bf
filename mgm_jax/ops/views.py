"""From the uint8 picture to the two normalised views, on the device (MGM_SPEC 4.1 step 5 to 4.3).

`spec` is a `models.config.ImageSpec`; only its fields are read here, so nothing is imported upward.
H = hr_size, h = lr_size, g = grid.
"""

from __future__ import annotations

import jax.numpy as jnp

from mgm_jax.ops.resize import resize_bilinear, resize_matrix, split_crops


def normalise(pixels, spec):
    """pixels [..., 3] uint8 -> (pixels / 255 - mean) / std, float32."""
    return _standardise(pixels, spec.mean, spec.std)


def normalise_hr(pixels, spec):
    """The same for the HR view, which may have a mean and std of its own."""
    own = spec.hr_mean is not None
    return _standardise(pixels, spec.hr_mean, spec.hr_std) if own else normalise(pixels, spec)


def _standardise(pixels, mean, std):
    mean, std = (jnp.asarray(v, jnp.float32) for v in (mean, std))
    return (pixels.astype(jnp.float32) / 255 - mean) / std


def views(pixels, spec):
    """HR pictures [..., H, H, 3] uint8 -> (lr, hr), normalised float32.

    hr [..., H, H, 3]. lr [..., h, h, 3] when grid is 1; else [..., g*g (+1), h, h, 3], crops
    row-major and then, with `use_global`, the whole picture. LR is resized without antialias from
    HR *normalised* as LR is, and the global view from the g*h picture, not from HR (MGM_SPEC 4.2,
    4.3).
    ValueError if the pixels are not uint8 of the size that the spec says.
    """
    expected = (spec.hr_size, spec.hr_size, 3)
    if pixels.dtype != jnp.uint8 or pixels.shape[-3:] != expected:
        raise ValueError(
            f"views: found pictures {pixels.dtype} {pixels.shape}, "
            f"expected uint8 [..., {', '.join(map(str, expected))}] (image.hr_size)"
        )
    side = spec.lr_size * spec.grid
    lr = resize_bilinear(normalise(pixels, spec), (side, side))
    return (lr if spec.grid == 1 else pack_views(lr, spec)), normalise_hr(pixels, spec)


def pack_views(x, spec):
    """A picture [..., g*h, g*w, C] -> its views [..., g*g (+1), h, w, C].

    Crops row-major, then, with `use_global`, the whole resized to h x w in float32 and cast back
    (MGM_SPEC 2.2 steps 5 and 6, 4.3).
    """
    crops = split_crops(x, spec.grid)
    if not spec.use_global:
        return crops
    whole = resize_bilinear(x, crops.shape[-3:-1]).astype(x.dtype)
    return jnp.concatenate([crops, whole[..., None, :, :, :]], axis=-4)


def whole_view(maps, grid: int):
    """Feature maps [B, h_i, h_i, c_i], the finest first -> the global view's part of each,
    [B, h_0 / g, h_0 / g, c_i]: resized to the finest, then to the view (MGM_SPEC 2.2 step 5).

    Both in one product an axis, so that no map of the finest's size is made of the others.
    """
    size = maps[0].shape[1]

    def one(x):
        precise = jnp.promote_types(x.dtype, jnp.float32)
        to_finest = resize_matrix(x.shape[1], size, precise)
        matrix = to_finest @ resize_matrix(size, size // grid, precise)  # [h_i, h_0 / g]
        rows = jnp.einsum("bhwc,hi->biwc", x, matrix, preferred_element_type=precise)
        return jnp.einsum("biwc,wj->bijc", rows, matrix).astype(x.dtype)

    return tuple(one(x) for x in maps)
