"""Pictures on the host: decode, make square, bicubic to the HR size, always uint8 (MGM_SPEC 4.1).

Normalisation and the LR view happen on the device (`ops.views`); `preprocess` runs both halves.
"""

from __future__ import annotations

import os
from functools import partial

import jax
import numpy as np
from PIL import Image, UnidentifiedImageError

from mgm_jax.models.config import ImageSpec
from mgm_jax.ops.views import views

# Largest intermediate picture of `to_hr` (0.4 GB as RGB): only absurdly long strips reach it.
MAX_PIXELS = 2**27
# Rows are padded and filtered in bands of about this many pixels.
BAND_PIXELS = 2**20

_REASONS = (
    (FileNotFoundError, "the file is missing"),
    (IsADirectoryError, "this is a folder"),
    (PermissionError, "the file may not be read"),
    (UnidentifiedImageError, "empty, damaged header, or a format that Pillow does not know"),
    (Image.DecompressionBombError, "too many pixels"),
)


class ImageError(ValueError):
    """A picture that cannot be used; the message names the record, the file and the reason."""


def load_image(source, where: str = "") -> Image.Image:
    """Decode a picture file (path or binary file object) to a PIL RGB image.

    Any mode `to_rgb` takes; EXIF orientation is left as it is and an animation gives its first
    frame, as in the original. `where` (a record, say) starts the message of the ImageError that a
    missing, empty, corrupt, truncated or oversized file raises.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else _stream_name(source)
    try:
        with Image.open(source) as picture:
            picture.load()
            return to_rgb(picture)
    except Exception as error:  # decoders also raise SyntaxError, struct.error, EOFError, ...
        default = "" if isinstance(error, ImageError) else "corrupt or truncated"
        reason = next((text for kind, text in _REASONS if isinstance(error, kind)), default)
        named = isinstance(error, UnidentifiedImageError) or getattr(error, "filename", None)
        detail = "" if named else str(error)  # Pillow's and the system's text repeat the file name
        raise _error(where, f"picture {name}", ": ".join(filter(None, (reason, detail)))) from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any 8- or 16-bit PIL image -> 8-bit RGB: palettes resolved, gray and CMYK converted.

    Alpha is dropped, as in the original. 16-bit gray keeps its high byte, which is what Pillow does
    with 16-bit colour (its own conversion of 16-bit gray clips to white). ImageError for an image
    without pixels or with samples that have no fixed range (32-bit integers, floats).
    """
    if min(picture.size) < 1:
        raise ImageError(f"found {picture.size[0]} x {picture.size[1]} pixels, expected at least 1")
    # Netpbm files, and PNG in older Pillow versions, hold their 16 bits in mode "I".
    if picture.mode.startswith("I;16") or (picture.mode, picture.format) in (
        ("I", "PNG"),
        ("I", "PPM"),
    ):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ImageError(f"found samples of mode {picture.mode!r}, expected 8 or 16 bits a sample")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # same colours; the direct way warns
    return picture.convert("RGB")


def to_hr(picture: Image.Image, spec: ImageSpec, where: str = "") -> np.ndarray:
    """PIL image -> HR picture [hr_size, hr_size, 3] uint8 (MGM_SPEC 4.1, steps 1 to 4).

    "pad" centres it on a square of the mean colour, "square" crops the centre; the resize is
    Pillow's bicubic on uint8, bit-equal to the original. ImageError (starting with `where`) for
    modes `to_rgb` refuses and for strips so long that the result would need more than MAX_PIXELS.
    """
    fit = {"pad": _pad_resize, "square": _resize_crop}[spec.aspect]
    try:
        return np.array(fit(to_rgb(picture), spec))
    except ImageError as error:
        raise _error(where, "picture", str(error)) from error


def preprocess(picture: Image.Image, spec: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
    """PIL image -> (lr, hr), normalised float32 as `ops.views.views` describes them.

    hr [hr_size, hr_size, 3]; lr [lr_size, lr_size, 3], or [crops, lr_size, lr_size, 3] with a grid.
    """
    lr, hr = _views(to_hr(picture, spec), spec=spec)
    return np.asarray(lr), np.asarray(hr)


@partial(jax.jit, static_argnames="spec")
def _views(pixels, spec):
    return views(pixels, spec)


def _pad_resize(picture, spec):
    """Centre on a square canvas, resize to hr_size: the canvas itself is never built.

    Pillow filters rows first, rounds to uint8, then filters columns; so rows can be padded and
    filtered in bands (all-padding rows stay constant), and only the columns need the full height.
    """
    width, height = picture.size
    size, side = spec.hr_size, max(picture.size)
    _check_size(size, side, picture)
    colour = tuple(int(m * 255) for m in spec.mean)
    left, top = (side - width) // 2, (side - height) // 2
    narrow = Image.new("RGB", (size, side), colour)
    rows = max(1, BAND_PIXELS // side)
    for y in range(0, height, rows):
        strip = picture.crop((0, y, width, min(y + rows, height)))
        band = Image.new("RGB", (side, strip.height), colour)
        band.paste(strip, (left, 0))
        band = band.resize((size, band.height), Image.Resampling.BICUBIC)
        narrow.paste(band, (0, top + y))
    return narrow.resize((size, size), Image.Resampling.BICUBIC)


def _resize_crop(picture, spec):
    """Short side to hr_size, long side truncated, centre crop."""
    size, short = spec.hr_size, min(picture.size)
    width, height = (size * n // short for n in picture.size)
    _check_size(width, height, picture)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def _check_size(width, height, picture):
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"found {picture.size[0]} x {picture.size[1]} pixels, too long a strip: resizing needs "
            f"{width} x {height} pixels, expected at most {MAX_PIXELS}"
        )


def _error(where, what, reason):
    return ImageError(": ".join(filter(None, (where, what, reason))))


def _stream_name(source):
    return str(getattr(source, "name", f"<{type(source).__name__}>"))
