"""Backgrounds of the demo: random pieces of photographs, changed a little or a lot.

A handful of photographs must stand for all: `STRONG` (training) bends geometry, colour and detail
and mixes pictures, so that a tower cannot learn the photographs; `MILD` (evaluation) keeps them
as they are, but for crop, flip and a touch of light.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Augment:
    """How much a background may change. Probabilities are per picture, ranges both ways."""

    smallest: float = 1.0  # side of the smallest crop, in canvases (below 1 magnifies)
    aspect: float = 0.0  # log2 of the crop's width : height
    turn: bool = False  # 90-degree rotations
    brightness: float = 0.0  # of 255
    contrast: float = 0.0  # log2
    saturation: float = 0.0  # in 0..1: share of colour removed or added
    hue: float = 0.0  # degrees about the grey axis
    gamma: float = 0.0  # log2
    permute: float = 0.0  # probability of shuffled or inverted channels
    blur: float = 0.0  # probability of lost detail
    mix: float = 0.0  # probability of a second picture, blended or cut in
    calm: float = 0.0  # probability that all this is left out and `MILD` used


MILD = Augment(brightness=0.05, contrast=0.15, saturation=0.1, gamma=0.1)
STRONG = Augment(
    smallest=0.5,
    aspect=0.5,
    turn=True,
    brightness=0.2,
    contrast=0.7,
    saturation=0.7,
    hue=180.0,
    gamma=0.8,
    permute=0.3,
    blur=0.3,
    mix=0.35,
    calm=0.2,
)

GREY = np.array([0.299, 0.587, 0.114])
FLIP = Image.Transpose.FLIP_LEFT_RIGHT
TURNS = (
    None,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
)


def random_crop(rng: np.random.Generator, photo: np.ndarray, size: int, augment: Augment):
    """A random piece of uint8 [h, w, 3] as a size x size picture.

    The crop's side is log-uniform between `augment.smallest` canvases and the whole picture.
    """
    height, width = photo.shape[:2]
    largest = min(height, width)
    smallest = min(augment.smallest * size, largest)
    side = smallest * (largest / smallest) ** rng.uniform()
    stretch = 2 ** rng.uniform(-augment.aspect / 2, augment.aspect / 2)
    w, h = (max(2, int(v)) for v in (min(side * stretch, width), min(side / stretch, height)))
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    # Detail is lost by passing through a smaller picture: as soft as a blur, and far cheaper.
    target = int(size / rng.uniform(1.3, 5)) if rng.uniform() < augment.blur else size
    picture = Image.fromarray(np.ascontiguousarray(photo[y : y + h, x : x + w]))
    for side in dict.fromkeys((target, size)):
        picture = picture.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=1.5)
    if rng.uniform() < 0.5:
        picture = picture.transpose(FLIP)
    turn = TURNS[rng.integers(len(TURNS))] if augment.turn else None
    return picture if turn is None else picture.transpose(turn)


def colour_transform(rng: np.random.Generator, augment: Augment) -> np.ndarray:
    """Random affine map of colours, float64 [3, 4] on values in 0..255.

    In order: channels permuted or inverted, hue (rotation about the grey axis), saturation, then
    contrast about mid-grey and brightness.
    """
    matrix, offset = np.eye(3), np.zeros(3)
    if rng.uniform() < augment.permute:
        matrix = matrix[rng.permutation(3)]
        flip = rng.uniform() < 0.3
        matrix, offset = (-matrix, offset + 255.0) if flip else (matrix, offset)
    angle = np.deg2rad(rng.uniform(-augment.hue, augment.hue))
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    third = np.full((3, 3), 1 / 3)
    hue = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * third
    kept = 1 + rng.uniform(-augment.saturation, augment.saturation)
    saturation = kept * np.eye(3) + (1 - kept) * GREY[None, :]
    gain = 2 ** rng.uniform(-augment.contrast, augment.contrast)
    shift = 127.5 * (1 - gain) + 255 * rng.uniform(-augment.brightness, augment.brightness)
    total = gain * saturation @ hue
    return np.column_stack([total @ matrix, total @ offset + shift])


def recolour(rng: np.random.Generator, picture: Image.Image, augment: Augment) -> Image.Image:
    """`picture` through one random `colour_transform` and one random gamma."""
    matrix = colour_transform(rng, augment)
    picture = picture.convert("RGB", tuple(float(v) for v in matrix.reshape(-1)))
    gamma = 2 ** rng.uniform(-augment.gamma, augment.gamma)
    table = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(int).tolist()
    return picture.point(table * 3)


def cut_in(rng: np.random.Generator, first: Image.Image, second: Image.Image) -> Image.Image:
    """`first` with one side of a random straight line replaced by `second`."""
    size = first.width
    angle = rng.uniform(0, 2 * np.pi)
    middle = rng.uniform(0.25, 0.75, 2) * size
    columns = np.cos(angle) * (np.arange(size) - middle[0])
    rows = np.sin(angle) * (np.arange(size) - middle[1])
    softness = rng.choice([1.0, size / 4])
    mask = np.clip((columns[None, :] + rows[:, None]) / softness * 127.5 + 127.5, 0, 255)
    return Image.composite(first, second, Image.fromarray(mask.astype(np.uint8)))


def make_background(
    rng: np.random.Generator, photos: Mapping[str, np.ndarray], size: int, augment: Augment
) -> tuple[np.ndarray, str]:
    """A background, writable uint8 [size, size, 3], and the name of its (first) photograph."""
    if rng.uniform() < augment.calm:
        augment = MILD
    names = sorted(photos)
    name = names[rng.integers(len(names))]
    picture = recolour(rng, random_crop(rng, photos[name], size, augment), augment)
    if rng.uniform() < augment.mix:
        other = photos[names[rng.integers(len(names))]]
        other = recolour(rng, random_crop(rng, other, size, augment), augment)
        if rng.uniform() < 0.5:
            picture = Image.blend(picture, other, rng.uniform(0.25, 0.75))
        else:
            picture = cut_in(rng, picture, other)
    return np.array(picture), name
