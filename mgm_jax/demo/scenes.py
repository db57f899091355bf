"""Scenes of the demo: a card with one handwritten digit lies somewhere on a photograph.

Everything is a pure function of a `numpy.random.Generator`. Boxes are (x0, y0, x1, y1) in pixels,
right and lower end excluded. The digit is meant to be readable at HR and hardly at LR (`lr_view`);
the card's colour is plain at both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from PIL import Image

from mgm_jax.demo import backgrounds
from mgm_jax.demo.backgrounds import STRONG, Augment
from mgm_jax.demo.glyphs import SIDE, Glyphs

INK = (250, 250, 250)
COLOURS = {  # dark enough for white ink, and far apart in RGB even when an LR pixel mixes in ink
    "red": (205, 25, 30),
    "orange": (225, 105, 0),
    "green": (20, 145, 50),
    "blue": (25, 60, 205),
    "purple": (140, 30, 165),
    "black": (18, 18, 18),
}
COLOUR_NAMES = tuple(COLOURS)
BACKGROUND, IGNORE = 10, -1  # `digit_map` values beside the digits 0..9

Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class SceneSpec:
    """Sizes of a scene. `glyph` is the side of MNIST's 28 px square once drawn (before jitter).

    It decides how much of a digit is left at LR: at a ratio of 16 the ceiling is 0.17 for 21 or 23,
    0.19 for 24 and 0.20 for 28 (`ceiling.lr_ceiling`, seed 0).
    """

    canvas: int = 192
    card: tuple[int, int] = (38, 44)  # side of the card in pixels, both ends included
    glyph: int = 23
    scale: tuple[float, float] = (0.95, 1.1)
    rotation: float = 8.0  # degrees either way
    shift: float = 1.5  # pixels either way, sub-pixel
    min_inside: float = 1.0  # least share of the card's side inside the canvas, in each direction

    def __post_init__(self):
        low, high = self.card
        if not 0 < self.glyph <= low <= high <= self.canvas:
            raise ValueError(
                f"scene: expected 0 < glyph <= card[0] <= card[1] <= canvas, found glyph "
                f"{self.glyph}, card {self.card}, canvas {self.canvas}"
            )
        if not 0 < self.min_inside <= 1:
            raise ValueError(f"scene: expected 0 < min_inside <= 1, found {self.min_inside}")


SCENE = SceneSpec()


@dataclasses.dataclass(frozen=True)
class Scene:
    """One picture and what is known about it. Boxes may reach over the edge of a crop."""

    image: np.ndarray  # uint8 [canvas, canvas, 3]
    digit: int
    colour: str
    box: Box  # the card
    digit_box: Box  # the glyph's square as drawn; its ink fills the middle 20/28
    photo: str
    glyph: int  # id of the glyph (`Glyphs.ids`)


def draw_glyph(rng: np.random.Generator, glyph: np.ndarray, side: int, spec: SceneSpec):
    """Ink coverage of one glyph on a card, and where the glyph went.

    The uint8 [28, 28] glyph is rotated, scaled and shifted about its centre (one bilinear
    resampling). Returns float32 [side, side] in 0..1 and the box of its square inside the card.
    """
    scale = spec.glyph / SIDE * rng.uniform(*spec.scale)
    angle = np.deg2rad(rng.uniform(-spec.rotation, spec.rotation))
    centre = side / 2 + rng.uniform(-spec.shift, spec.shift, 2)  # x, y on the card
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale  # from card to glyph coordinates
    x, y = centre
    inverse = (cos, sin, SIDE / 2 - cos * x - sin * y, -sin, cos, SIDE / 2 + sin * x - cos * y)
    picture = Image.fromarray(glyph).transform(
        (side, side), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    half = scale * SIDE / 2
    low, high = np.rint(centre - half), np.rint(centre + half)
    box = tuple(int(v) for v in np.clip(np.concatenate([low, high]), 0, side))
    return np.asarray(picture, np.float32) / 255, box


def draw_card(rng: np.random.Generator, glyph: np.ndarray, colour: str, spec: SceneSpec = SCENE):
    """A square card: uint8 [side, side, 3] and the digit's box in it.

    The card's colour is jittered a little; a one-pixel border, half way to the ink, frames it.
    """
    side = int(rng.integers(spec.card[0], spec.card[1] + 1))
    base, ink = np.asarray(COLOURS[colour], np.float32), np.asarray(INK, np.float32)
    base = np.clip(base * rng.uniform(0.92, 1.06) + rng.uniform(-8, 8, 3), 0, 255)
    coverage, box = draw_glyph(rng, glyph, side, spec)
    card = base + coverage[..., None] * (ink - base)
    frame = 0.6 * base + 0.4 * ink
    card[[0, -1]] = frame
    card[:, [0, -1]] = frame
    return np.rint(card).astype(np.uint8), box


def make_scene(
    rng: np.random.Generator,
    photos: Mapping[str, np.ndarray],
    glyphs: Glyphs,
    spec: SceneSpec = SCENE,
    augment: Augment = STRONG,
    glyph: int | None = None,
) -> Scene:
    """One scene: a random card on a random background (`backgrounds.make_background`).

    `photos` are uint8 [h, w, 3] by name. `glyph` picks a row of `glyphs`; by default it is random.
    Raises ValueError when there is no photograph or no glyph to choose from.
    """
    if not photos or not len(glyphs):
        raise ValueError(
            f"a scene needs photographs and glyphs, found {len(photos)}, {len(glyphs)}"
        )
    image, photo = backgrounds.make_background(rng, photos, spec.canvas, augment)
    return place_card(rng, image, glyphs, spec, glyph=glyph, photo=photo)


def place_card(
    rng: np.random.Generator,
    image: np.ndarray,
    glyphs: Glyphs,
    spec: SceneSpec = SCENE,
    glyph: int | None = None,
    photo: str = "",
) -> Scene:
    """A random card drawn into the background `image` (uint8 [canvas, canvas, 3], changed)."""
    row = int(rng.integers(len(glyphs))) if glyph is None else glyph
    colour = COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))]
    card, inner = draw_card(rng, glyphs.images[row], colour, spec)
    side = len(card)
    hidden = int((1 - spec.min_inside) * side)
    x, y = (int(v) for v in rng.integers(-hidden, spec.canvas - side + hidden + 1, 2))
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, spec.canvas), min(y + side, spec.canvas)
    image[y0:y1, x0:x1] = card[y0 - y : y1 - y, x0 - x : x1 - x]
    return Scene(
        image=image,
        digit=int(glyphs.labels[row]),
        colour=colour,
        box=(x, y, x + side, y + side),
        digit_box=(x + inner[0], y + inner[1], x + inner[2], y + inner[3]),
        photo=photo,
        glyph=int(glyphs.ids[row]),
    )


def digit_map(scene: Scene, stride: int) -> np.ndarray:
    """Label of each cell of a stride x stride grid over the picture: int32 [canvas // stride] ** 2.

    By the cell's centre: the digit inside the digit box, `IGNORE` on the rest of the card,
    `BACKGROUND` elsewhere. A digit cut by the edge of the canvas, so that less than 0.8 of its
    box's area shows, is `IGNORE` too. Raises ValueError when stride does not divide the canvas.
    """
    size = scene.image.shape[0]
    if size % stride:
        raise ValueError(f"digit_map: stride {stride} does not divide the canvas of {size} px")
    centres = (np.arange(size // stride) + 0.5) * stride

    def inside(box: Box) -> np.ndarray:
        x0, y0, x1, y1 = box
        columns, rows = (x0 <= centres) & (centres < x1), (y0 <= centres) & (centres < y1)
        return rows[:, None] & columns[None, :]

    labels = np.full((len(centres), len(centres)), BACKGROUND, np.int32)
    labels[inside(scene.box)] = IGNORE
    x0, y0, x1, y1 = scene.digit_box
    seen = (min(x1, size) - max(x0, 0)) * (min(y1, size) - max(y0, 0))
    if seen >= 0.8 * (x1 - x0) * (y1 - y0):
        labels[inside(scene.digit_box)] = scene.digit
    return labels


def lr_view(images: np.ndarray, ratio: int) -> np.ndarray:
    """The LR view of [..., S, S, 3] at an even ratio: float32 [..., S/ratio, S/ratio, 3].

    Bilinear without antialias and with half-pixel centres: an LR pixel is the mean of the 2x2 HR
    pixels in the middle of its ratio x ratio cell (MGM_SPEC 4.2). Raises ValueError on other sizes.
    """
    size = images.shape[-2]
    if ratio % 2 or size % ratio:
        raise ValueError(f"lr_view: expected an even ratio that divides {size}, found {ratio}")
    images = images.astype(np.float32)
    a, b = ratio // 2 - 1, ratio // 2
    rows = (images[..., a::ratio, :, :] + images[..., b::ratio, :, :]) / 2
    return (rows[..., a::ratio, :] + rows[..., b::ratio, :]) / 2
