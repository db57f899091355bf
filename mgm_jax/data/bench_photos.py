"""Real JPEG files of about one megapixel for `data bench`, made from photos that packages ship."""

from __future__ import annotations

import io
import os
from functools import lru_cache, partial

import numpy as np
from etils import epath
from PIL import Image

from mgm_jax.data.files import write_whole
from mgm_jax.data.parallel import parallel_map
from mgm_jax.data.records import PictureFile
from mgm_jax.demo.photos import PHOTOS, load_photo

PIXELS = 1_000_000
SHAPES = (1, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3)  # width / height
QUALITY = 90
GRAIN = 4  # standard deviation of film grain, in levels: the files get a camera's size


def make_photos(folder, count: int, seed: int = 0, workers: int | None = None) -> list[PictureFile]:
    """`count` JPEGs in `folder`, no two alike: a function of (seed, number).

    Files that are there already are kept if they say that they are what would be made.
    FileNotFoundError if a package with photos is not installed.
    """
    epath.Path(folder).mkdir(parents=True, exist_ok=True)
    make = partial(_make, os.fspath(folder), seed)
    names = parallel_map(make, count, workers=workers, chunk=8, name="photos", unit="picture")
    return [PictureFile(name) for name in names]


def _make(folder: str, seed: int, number: int) -> str:
    """The path of photo `number`; made if it is not there."""
    path = epath.Path(folder) / f"{number:05}.jpg"
    recipe = f"mgm-jax data bench 1: seed {seed}, photo {number}".encode()
    if path.exists() and _comment(path) == recipe:
        return os.fspath(path)
    file = io.BytesIO()
    photo(seed, number).save(file, "JPEG", quality=QUALITY, subsampling="4:2:0", comment=recipe)
    write_whole(path, file.getvalue())
    return os.fspath(path)


def photo(seed: int, number: int) -> Image.Image:
    """A crop of a shipped photograph at about `PIXELS` pixels: mirrored or not, its light and
    colours changed, with grain."""
    random = np.random.default_rng((seed, number))
    picture = _load(sorted(PHOTOS)[number % len(PHOTOS)])
    shape = SHAPES[random.integers(len(SHAPES))]
    height = round((PIXELS / shape) ** 0.5)
    side = random.uniform(0.6, 1) * min(picture.width / shape, picture.height)
    left = random.uniform(0, picture.width - side * shape)
    top = random.uniform(0, picture.height - side)
    found = picture.resize(
        (round(height * shape), height),
        Image.Resampling.LANCZOS,
        box=(left, top, left + side * shape, top + side),
    )
    if random.random() < 0.5:
        found = found.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(found, np.float32) * random.uniform(0.8, 1.2, 3).astype(np.float32)
    grain = GRAIN * random.standard_normal(pixels.shape[:2], np.float32)
    pixels = np.clip(pixels + grain[..., None], 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


@lru_cache
def _load(name: str) -> Image.Image:
    return Image.fromarray(load_photo(name))


def _comment(path) -> bytes | None:
    try:
        with path.open("rb") as file, Image.open(file) as picture:
            return picture.info.get("comment")
    except OSError:
        return None
