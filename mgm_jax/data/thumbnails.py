"""Pictures for a page: as the model sees them, and as small data: URIs."""

from __future__ import annotations

import base64
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mgm_jax.models.config import ImageSpec
from mgm_jax.ops.views import views

LOSSLESS = 64  # pictures up to this side are kept as they are: they will be shown magnified


@functools.partial(jax.jit, static_argnames="spec")
def low_views(pixels, spec: ImageSpec):
    """An HR picture [H, H, 3] uint8 -> what the low-resolution encoder gets of it, made by
    `ops.views` and back in uint8: [V, h, h, 3], the crops row-major and then the global view; V is
    1 without a grid."""
    lr, _ = views(pixels, spec)
    lr = 255 * (lr * jnp.asarray(spec.std) + jnp.asarray(spec.mean))
    return jnp.clip(jnp.round(lr), 0, 255).astype(jnp.uint8).reshape(-1, *lr.shape[-3:])


def data_uri(pixels: np.ndarray, most: int, quality: int = 80) -> str:
    """Pixels [h, w, 3] uint8 -> the URI of a WebP picture whose sides are at most `most`."""
    picture = Image.fromarray(np.asarray(pixels))
    lossless = max(picture.size) <= LOSSLESS
    picture.thumbnail((most, most), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=quality, lossless=lossless)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
