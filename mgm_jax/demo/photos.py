"""Photographs that installed packages ship as files: the demo's backgrounds, without a download.

`PHOTOS` is the whole list with origin and the licence that the shipping package states. The split
into `TRAIN_PHOTOS` and `NEW_PHOTOS` is by picture: nothing, towers included, may train on a new
one. Left out on purpose: drawings (logo, colour wheel, chessboards, horse, phantom), the second
half of the stereo pair and the 102 px crop of a fundus photograph.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np

MAX_SIDE = 640  # larger pictures are scaled down once; a scene shows 192 px of them


@dataclasses.dataclass(frozen=True)
class Photo:
    """One shipped photograph: where its file is, what it shows, under which terms."""

    package: str  # import name of the package whose installation holds the file
    path: str  # relative to that package's directory
    title: str
    licence: str
    new: bool = False  # kept away from every kind of training


SKIMAGE, SKLEARN, MATPLOTLIB = "skimage", "sklearn", "matplotlib"
NASA = "public domain (NASA)"
UNSTATED = "not stated by the package, which is itself BSD-like"

PHOTOS = {
    "astronaut": Photo(SKIMAGE, "data/astronaut.png", "Eileen Collins, astronaut", NASA),
    "brick": Photo(SKIMAGE, "data/brick.png", "Brick wall", "CC0 (CC0Textures)"),
    "camera": Photo(SKIMAGE, "data/camera.png", "Man with a camera", "CC0 (Lav Varshney)"),
    "cell": Photo(SKIMAGE, "data/cell.png", "Cell in saline, phase image", "CC0 (Paul Mueller)"),
    "chelsea": Photo(SKIMAGE, "data/chelsea.png", "Cat", "CC0 (Stefan van der Walt)"),
    "china": Photo(
        SKLEARN, "datasets/images/china.jpg", "Chinese pavilion", "CC BY 2.0 (danielbuechele)"
    ),
    "clock": Photo(
        SKIMAGE, "data/clock_motion.png", "Wall clock, moving", "public domain (S. van der Walt)"
    ),
    "coffee": Photo(SKIMAGE, "data/coffee.png", "Coffee cup", "CC0 (Rachel Michetti)", new=True),
    "coins": Photo(
        SKIMAGE, "data/coins.png", "Greek coins", "no known restrictions (Brooklyn Museum)"
    ),
    "flower": Photo(
        SKLEARN, "datasets/images/flower.jpg", "Dahlia", "CC BY 2.0 (vultilion)", new=True
    ),
    "grace_hopper": Photo(
        MATPLOTLIB,
        "mpl-data/sample_data/grace_hopper.jpg",
        "Grace Hopper",
        UNSTATED,
        new=True,
    ),
    "grass": Photo(SKIMAGE, "data/grass.png", "Grass", "CC0 (linolafett)"),
    "gravel": Photo(SKIMAGE, "data/gravel.png", "Gravel", "CC0 (CC0Textures)", new=True),
    "hubble": Photo(SKIMAGE, "data/hubble_deep_field.jpg", "Hubble deep field", NASA),
    "ihc": Photo(SKIMAGE, "data/ihc.png", "Stained tissue", "no known restrictions (CMMI)"),
    "moon": Photo(SKIMAGE, "data/moon.png", "Surface of the moon", UNSTATED),
    "motorcycle": Photo(
        SKIMAGE,
        "data/motorcycle_left.png",
        "Motorcycle",
        UNSTATED + " (Middlebury 2014 stereo set)",
    ),
    "page": Photo(SKIMAGE, "data/page.png", "Printed page", UNSTATED),
    "retina": Photo(SKIMAGE, "data/retina.jpg", "Fundus of an eye", "CC0 (Mikael Haeggstroem)"),
    "rocket": Photo(SKIMAGE, "data/rocket.jpg", "Falcon 9 launch", "public domain (SpaceX)"),
    "text": Photo(SKIMAGE, "data/text.png", "Handwritten notes", "public domain (Wikipedia)"),
}

TRAIN_PHOTOS = tuple(name for name, photo in PHOTOS.items() if not photo.new)
NEW_PHOTOS = tuple(name for name, photo in PHOTOS.items() if photo.new)


def package_file(package: str, path: str) -> Path:
    """The file `path` inside the installed `package`, found without importing the package.

    Raises FileNotFoundError naming the package and the file when either is missing.
    """
    spec = importlib.util.find_spec(package)
    roots = list(spec.submodule_search_locations or []) if spec else []
    for root in roots:
        if (file := Path(root) / path).is_file():
            return file
    found = f"it is installed at {roots[0]} without that file" if roots else "it is not installed"
    raise FileNotFoundError(
        f"the demo needs {path} of package {package!r}, but {found}; "
        "install the demo's packages: pip install 'mgm_jax[demo]'"
    )


def load_photo(name: str) -> np.ndarray:
    """The photograph `name` of `PHOTOS` as uint8 [h, w, 3], long side at most `MAX_SIDE`.

    Raises ValueError for an unknown name or an unreadable file, FileNotFoundError for a missing
    one.
    """
    from PIL import Image

    if name not in PHOTOS:
        raise ValueError(f"unknown photograph {name!r}, expected one of {', '.join(PHOTOS)}")
    file = package_file(PHOTOS[name].package, PHOTOS[name].path)
    try:
        with Image.open(file) as picture:
            picture = picture.convert("RGB")
    except OSError as error:
        raise ValueError(f"photograph {name!r}: {file} cannot be read ({error})") from error
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def load_photos(names: tuple[str, ...] = tuple(PHOTOS)) -> dict[str, np.ndarray]:
    """`load_photo` for each of `names`: {name: uint8 [h, w, 3]}."""
    return {name: load_photo(name) for name in names}
