"""The mining microscope: which high-resolution pixels a visual token mined.

G x G visual tokens cover a picture (those of the crops, if there is a grid of them), each with its
own square region of the high-resolution picture, in which it spreads weights that sum to one.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from PIL import Image, ImageDraw

from mgm_jax.data.images import to_hr
from mgm_jax.demo.page import look, mining_map

FRAME = (255, 220, 0)
SHOWN = 672  # pixels of a side, at least, of what is shown
REGION = 320  # pixels of a side of the enlarged region


@dataclasses.dataclass(frozen=True, eq=False)
class Mined:
    """A picture as the model sees it [H, H, 3] uint8, and the weights of its tokens [G*G, S],
    row-major, each over its own sqrt(S) x sqrt(S) positions."""

    pixels: np.ndarray
    weights: np.ndarray

    @property
    def grid(self) -> int:
        return round(len(self.weights) ** 0.5)

    def token_at(self, x: float, y: float, size: int) -> tuple[int, int]:
        """(row, column) of the token under a point of the picture shown at `size` pixels."""
        row, column = (min(max(int(v * self.grid / size), 0), self.grid - 1) for v in (y, x))
        return row, column


def mine(model, picture: Image.Image) -> Mined:
    """Runs the towers and the mining of a `LoadedModel`; ValueError if it does not mine."""
    cfg = model.config
    if not cfg.convnext:
        raise ValueError("this model has no high-resolution encoder: it mines nothing")
    pixels = to_hr(picture, cfg.image)
    _, (weights,) = jax.device_get(look(model.module, model.params, pixels[None]))
    return Mined(pixels, row_major(np.asarray(weights, np.float32), cfg.image))


def row_major(weights: np.ndarray, spec) -> np.ndarray:
    """Weights [N, S] in the model's order (global view first, then crop by crop) -> those of the
    crops' tokens [G*G, S], row by row over the whole picture."""
    crops, g = spec.grid**2, spec.grid
    n = len(weights) // spec.crops
    own = weights[len(weights) - crops * n :]
    side = round(n**0.5)
    own = own.reshape(g, g, side, side, -1).transpose(0, 2, 1, 3, 4)
    return own.reshape(crops * n, -1)


def overview(mined: Mined, token: tuple[int, int] | None = None) -> Image.Image:
    """The whole picture, dark where nothing is mined; the token's region is framed."""
    side = len(mined.pixels)
    size = side * -(-SHOWN // side)
    heat = Image.fromarray(np.uint8(255 * mining_map(mined.weights, mined.grid)))
    drawn = _lit(Image.fromarray(mined.pixels), heat, size)
    if token is not None:
        row, column = token
        cell = size / mined.grid
        box = (column * cell, row * cell, (column + 1) * cell, (row + 1) * cell)
        ImageDraw.Draw(drawn).rectangle(box, outline=FRAME, width=3)
    return drawn


def region(mined: Mined, token: tuple[int, int]) -> Image.Image:
    """A token's region, enlarged: its pixels, and what of them was mined, side by side."""
    row, column = token
    cell = len(mined.pixels) / mined.grid
    box = (column * cell, row * cell, (column + 1) * cell, (row + 1) * cell)
    size = (REGION, REGION)
    crop = Image.fromarray(mined.pixels).resize(size, Image.Resampling.NEAREST, box)
    out = Image.new("RGB", (2 * REGION + 12, REGION), "white")
    out.paste(crop, (0, 0))
    out.paste(_lit(crop, Image.fromarray(_heat(mined, token)), REGION), (REGION + 12, 0))
    return out


def describe(mined: Mined, token: tuple[int, int]) -> str:
    """A token's weights in words."""
    row, column = token
    weights = mined.weights[row * mined.grid + column]
    side, best = round(len(weights) ** 0.5), int(weights.argmax())
    cell = len(mined.pixels) / mined.grid
    places = zip(token, divmod(best, side), strict=True)
    y, x = (round((place + (inside + 0.5) / side) * cell) for place, inside in places)
    spread = float(np.exp(-(weights * np.log(np.maximum(weights, 1e-12))).sum()))
    return (
        f"Token ({row}, {column}) of {mined.grid} x {mined.grid}. Heaviest at pixel ({x}, {y}) of "
        f"the {len(mined.pixels)} x {len(mined.pixels)} picture with {weights[best]:.0%} of the "
        f"weight; it looks at about {spread:.1f} of its {len(weights)} positions."
    )


def _heat(mined: Mined, token: tuple[int, int]) -> np.ndarray:
    weights = mined.weights[token[0] * mined.grid + token[1]]
    side = round(len(weights) ** 0.5)
    return np.uint8(255 * weights / weights.max()).reshape(side, side)


def _lit(picture: Image.Image, heat: Image.Image, size: int) -> Image.Image:
    """The picture at `size`, in colour where it is hot and dark gray where it is not."""
    bright = picture.resize((size, size), Image.Resampling.BICUBIC)
    mask = heat.resize((size, size), Image.Resampling.NEAREST)
    gray = bright.convert("L").convert("RGB")
    dark = Image.blend(gray, Image.new("RGB", gray.size), 0.75)
    return Image.composite(bright, dark, mask)
