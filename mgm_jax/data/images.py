"""Pictures on the host: decode, make square, bicubic to the HR size, always uint8 (MGM_SPEC 4.1).

Normalisation and the LR view happen on the device (`ops.views`); `preprocess` runs both halves.
"""

from __future__ import annotations

import contextlib
import math
import os
from functools import partial

import jax
import numpy as np
from PIL import Image, UnidentifiedImageError

from mgm_jax.data.records import Encoded, PictureFile
from mgm_jax.models.config import ImageSpec
from mgm_jax.ops.views import views

# Largest intermediate picture of `to_hr` (0.4 GB as RGB): only absurdly long strips reach it.
MAX_PIXELS = 2**27
# Rows are padded and filtered in bands of about this many pixels.
BAND_PIXELS = 2**20
# Blocks of memory, each of up to 16 MB, that Pillow keeps for the next picture. It would keep none,
# and getting fresh pages from the system can take a third of the time.
Image.core.set_blocks_max(8)

_REASONS = (  # (exception, kind of the ImageError, reason in its message)
    (FileNotFoundError, "missing_picture", "the file is missing"),
    (IsADirectoryError, "unreadable_picture", "this is a folder"),
    (PermissionError, "unreadable_picture", "the file may not be read"),
    (
        UnidentifiedImageError,
        "corrupt_picture",
        "empty, damaged header, or a format that Pillow does not know",
    ),
    (Image.DecompressionBombError, "too_many_pixels", "too many pixels"),
)


class ImageError(ValueError):
    """A picture that cannot be used; the message names the record, the file and the reason.

    `kind` names the reason in a word (`mgm_jax.data.findings.KINDS`).
    """

    def __init__(self, message: str, kind: str = "corrupt_picture"):
        super().__init__(message)
        self.kind = kind


def load_image(source, where: str = "") -> Image.Image:
    """Decode a picture (`records.Picture`, path or binary file object) to a PIL RGB image.

    Any mode `to_rgb` takes; EXIF orientation is left as it is and an animation gives its first
    frame, as in the original. `where` (a record, say) starts the message of the ImageError that a
    missing, empty, corrupt, truncated or oversized file raises.
    """
    if isinstance(source, str | os.PathLike):
        source = PictureFile(os.fspath(source))
    where = where or getattr(source, "where", "")
    name = str(getattr(source, "name", f"<{type(source).__name__}>"))
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(source, PictureFile | Encoded):
                source = stack.enter_context(source.open())
            picture = stack.enter_context(Image.open(source))
            picture.load()
            return to_rgb(picture)
    except Exception as error:  # decoders also raise SyntaxError, struct.error, EOFError, ...
        raise explain(error, name, where) from error


def explain(error: Exception, name: str, where: str = "") -> ImageError:
    """What opening or decoding the picture `name` raised, as `load_image` words it."""
    cut = "truncated" in str(error).lower()  # Pillow has no class of its own for it
    kind, reason = "truncated_picture" if cut else "corrupt_picture", "corrupt or truncated"
    if isinstance(error, ImageError):
        kind, reason = error.kind, ""
    if isinstance(error, OSError) and error.errno:  # the system's, not the decoder's
        kind, reason = "unreadable_picture", error.strerror
    for cls, kind_of_cls, reason_of_cls in _REASONS:
        if isinstance(error, cls):
            kind, reason = kind_of_cls, reason_of_cls
    named = isinstance(error, UnidentifiedImageError) or getattr(error, "filename", None)
    detail = "" if named else str(error)  # Pillow's and the system's text repeat the file name
    return _error(where, f"picture {name}", ": ".join(filter(None, (reason, detail))), kind)


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
        raise ImageError(
            f"found samples of mode {picture.mode!r}, expected 8 or 16 bits a sample",
            "unsupported_picture",
        )
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # same colours; the direct way warns
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def to_hr(picture: Image.Image, spec: ImageSpec, where: str = "") -> np.ndarray:
    """PIL image -> HR picture [hr_size, hr_size, 3] uint8 (MGM_SPEC 4.1, steps 1 to 4).

    "pad" centres it on a square of the mean colour, "square" crops the centre; the resize is
    Pillow's bicubic on uint8, bit-equal to the original. ImageError (starting with `where`) for
    modes `to_rgb` refuses and for strips so long that the result would need more than MAX_PIXELS.
    """
    fit = {"pad": _pad_resize, "square": _resize_crop}[spec.aspect]
    try:
        picture = to_rgb(picture)
        check_size(picture.size, spec)
        return np.array(fit(picture, spec))
    except ImageError as error:
        raise _error(where, "picture", str(error), error.kind) from error


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
    """Centre on a square canvas, resize to hr_size: most of the plain colour is never computed.

    Pillow filters rows, rounds to uint8, then filters columns. So a wide picture needs the canvas
    for its columns only. A tall one needs it for its rows only, which are filtered in bands; then
    only the columns that show something are filtered.
    """
    width, height = picture.size
    size, side = spec.hr_size, max(picture.size)
    colour = tuple(int(m * 255) for m in spec.mean)
    if width == height:
        return picture.resize((size, size), Image.Resampling.BICUBIC)
    before = (side - min(width, height)) // 2
    first, stop = _shown(before, min(width, height), side, size)
    end = stop * side / size
    result = Image.new("RGB", (size, size), colour)
    if width > height:
        canvas = Image.new("RGB", (size, side), colour)
        canvas.paste(picture.resize((size, height), Image.Resampling.BICUBIC), (0, before))
        box = (0, 0, size, end)
        result.paste(canvas.resize((size, stop), Image.Resampling.BICUBIC, box))
        return result
    narrow = Image.new("RGB", (stop, height))
    rows = max(1, BAND_PIXELS // side)
    for y in range(0, height, rows):
        strip = picture.crop((0, y, width, min(y + rows, height)))
        band = Image.new("RGB", (side, strip.height), colour)
        band.paste(strip, (before, 0))
        box = (0, 0, end, strip.height)
        narrow.paste(band.resize((stop, strip.height), Image.Resampling.BICUBIC, box), (0, y))
    narrow = narrow.crop((first, 0, stop, height))
    result.paste(narrow.resize((stop - first, size), Image.Resampling.BICUBIC), (first, 0))
    return result


def _shown(before, length, side, size):
    """Which of `size` outputs can show a picture at before ... before + length of `side` inputs:
    first ... stop - 1. The filter reaches over 2 inputs, or over 2 outputs where those are wider.

    Pillow computes outputs 0 ... stop - 1 alone, with the same coefficients, if told that they lie
    over stop * side / size inputs, and if float32 holds this number exactly. So `stop` goes up to
    the next multiple of the odd part of `size`, which leaves a power of two to divide by.
    """
    scale = side / size
    reach = 2 * max(scale, 1)
    first = max(0, math.floor((before - reach) / scale) - 1)
    stop = math.ceil((before + length + reach) / scale) + 1
    odd = size // (size & -size)
    multiple = -(-stop // odd)
    exact = multiple * odd < size and multiple * side < 2**24
    return first, multiple * odd if exact else size


def _resize_crop(picture, spec):
    """Short side to hr_size, long side truncated, centre crop."""
    size, short = spec.hr_size, min(picture.size)
    width, height = (size * n // short for n in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def check_size(size: tuple[int, int], spec: ImageSpec) -> None:
    """ImageError for a strip (width, height) so long that `to_hr` needs more than MAX_PIXELS."""
    width, height = spec.hr_size, max(size)  # "pad": after the rows are filtered
    if spec.aspect == "square":
        width, height = (spec.hr_size * n // min(size) for n in size)
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"found {size[0]} x {size[1]} pixels, too long a strip: resizing needs "
            f"{width} x {height} pixels, expected at most {MAX_PIXELS}",
            "too_long_strip",
        )


def _error(where, what, reason, kind):
    return ImageError(": ".join(filter(None, (where, what, reason))), kind)
