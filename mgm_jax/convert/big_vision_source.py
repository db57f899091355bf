"""big_vision's `.npz` files seen in one layout, whichever of theirs they have.

A tower's arrays come by the names of `families.siglip.big_vision_rules`: no prefix, a set of arrays
for each layer. What older files name or shape otherwise is renamed or computed when it is read;
nothing is loaded before.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mgm_jax.convert.extents import Extent, TensorSource, read_extent
from mgm_jax.convert.families.siglip import ATTENTION
from mgm_jax.convert.readers import open_source
from mgm_jax.models.config import ClipConfig

ROOTS = ("", "params/", "opt/target/")  # bare; with optimizer state; of Flax's old optimizer
SUBTREES = ("", "img/")
HEADS = (r"(MAPHead_0|pre_logits|head)/.*",)  # a Mini-Gemini takes the patches before pooling
BLOCK = r"(Transformer/encoderblock(?:_\d+)?)"
OLD_NAMES = (  # whole name in old files -> today's
    (r"Transformer/(?:posembed_input/)?pos_embedding", "pos_embedding"),
    (rf"{BLOCK}/LayerNorm_2/(.+)", r"\1/LayerNorm_1/\2"),
    (rf"{BLOCK}/MlpBlock_3/(.+)", r"\1/MlpBlock_0/\2"),
    (rf"{BLOCK}/MultiHeadDotProductAttention_1/(.+)", rf"\1/{ATTENTION}/\2"),
    (rf"(probe|(?:MlpBlock_0|{ATTENTION}|LayerNorm_0)/.+)", r"MAPHead_0/\1"),
)
NORM_EPS, ACT = 1e-6, "gelu_tanh"  # Flax's defaults, which no file tells


@dataclasses.dataclass(frozen=True)
class Computed:
    """A tensor that is made from others when it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    values: Callable[[], np.ndarray]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> Computed:
        shape = (stop - start, *self.shape[1:])
        return Computed(shape, self.dtype, lambda: self.values()[start:stop])


class Tower(TensorSource):
    """A ViT's tensors by today's names. `origins`: name -> the file's name, with `[i]` for layer i
    of a scanned array. `outside`: the file's names that are not of this tower."""

    def __init__(self, extents: Mapping, origins: Mapping[str, str], outside, source: TensorSource):
        super().__init__(extents, source.where)
        self.origins, self.outside, self._files = dict(origins), list(outside), source.files

    @property
    def files(self) -> list[Path]:
        return self._files

    def _read(self, name: str, extent) -> np.ndarray:
        return extent.values() if isinstance(extent, Computed) else super()._read(name, extent)


def split_subtree(text: str | Path) -> tuple[str, str | None]:
    """`file.npz:img` -> its two parts; a path that exists as it is has no subtree."""
    path, colon, subtree = str(text).rpartition(":")
    if not colon or Path(text).exists():
        return str(text), None
    return path, subtree.strip("/") or None


def resize_positions(grid: np.ndarray, n: int) -> np.ndarray:
    """Position embeddings [m, m, D] -> [n, n, D], bilinear with the corners kept.

    It is what `scipy.ndimage.zoom(grid, (n / m, n / m, 1), order=1)` computes, as big_vision does.
    """
    m = len(grid)
    at = np.linspace(0, m - 1, n)
    low = np.minimum(at.astype(int), max(m - 2, 0))
    weights = np.zeros((n, m))
    weights[np.arange(n), low] = 1 - (at - low)
    if m > 1:
        weights[np.arange(n), low + 1] = at - low
    return np.einsum("im,jk,mkd->ijd", weights, weights, grid.astype(np.float64), optimize=True)


def open_tower(path: str | Path, image_size: int | None = None) -> Tower:
    """The ViT in a file (`file.npz` or `file.npz:subtree`).

    `image_size`: resizes the position embeddings to the grid of a picture of so many pixels.
    FileNotFoundError or ValueError if there is no ViT, more than one, or an array of a wrong shape.
    """
    file, subtree = split_subtree(path)
    source = open_source(file)
    prefix = _prefix(source, subtree)
    extents, origins = {}, {}
    for name, extent in source.extents.items():
        if not name.startswith(prefix):
            continue
        for new, part, origin in _todays(name.removeprefix(prefix), extent):
            if new in extents:
                raise ValueError(f"{file}: {origins[new]!r} and {origin!r} are the same array")
            extents[new], origins[new] = part, prefix + origin
    _reshape_patches(extents, file)
    _reshape_positions(extents, file, image_size)
    outside = [name for name in source if not name.startswith(prefix)]
    return Tower(extents, origins, outside, source)


def _prefix(source: TensorSource, subtree: str | None) -> str:
    """Where in the file the ViT lies."""
    parts = SUBTREES if subtree is None else (f"{subtree}/",)
    found = [
        prefix
        for prefix in (root + part for root in ROOTS for part in parts)
        if prefix + "embedding/kernel" in source
        and any(name.startswith(prefix + "Transformer/") for name in source)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        choices = ", ".join(f"{source.where}:{p.rstrip('/')}" for p in found if p)
        raise ValueError(f"{source.where} holds several ViTs, choose one: {choices}")
    tops = sorted({name.split("/")[0] for name in source})
    where = f" under {subtree!r}" if subtree else ""
    raise ValueError(f"{source.where}: no ViT of big_vision{where} (it holds {', '.join(tops)})")


def _todays(name: str, extent: Extent):
    """(today's name, extent, the file's name) of a tensor: one, or one for each scanned layer."""
    new = name
    for pattern, target in OLD_NAMES:
        if match := re.fullmatch(pattern, name):
            new = match.expand(target)
            break
    head, scanned, leaf = new.partition("Transformer/encoderblock/")
    if head or not scanned:
        return [(new, extent, name)]
    block = "Transformer/encoderblock_{}/"
    return [(block.format(i) + leaf, extent.item(i), f"{name}[{i}]") for i in range(len(extent))]


def _reshape_patches(extents: dict, file: str) -> None:
    """NaFlex stores the kernel as [p*p*3, D]; today's is [p, p, 3, D]."""
    kernel = extents["embedding/kernel"]
    shape = kernel.shape
    if len(shape) == 2:
        p = math.isqrt(shape[0] // 3)
        shape = (p, p, 3, shape[1])
    if len(shape) != 4 or shape[0] != shape[1] or math.prod(shape) != math.prod(kernel.shape):
        raise ValueError(
            f"{file}: embedding/kernel has shape {kernel.shape}, expected [p, p, 3, D] or "
            "[p*p*3, D]"
        )
    if shape != kernel.shape:
        extents["embedding/kernel"] = Computed(
            shape, kernel.dtype, lambda: read_extent(kernel).reshape(shape)
        )


def _reshape_positions(extents: dict, file: str, image_size: int | None) -> None:
    """[1, G, D] from NaFlex's [n, n, D] or the old [1, 1 + G, D], whose first one is the class
    token's and is added to it; resized if a picture of `image_size` has another grid."""
    stored = extents.get("pos_embedding")
    if stored is None:
        raise ValueError(
            f"{file}: no pos_embedding; towers with computed positions (sincos2d) are not read"
        )
    count, width = math.prod(stored.shape[:-1]), stored.shape[-1]
    m = math.isqrt(count)
    first = count == m * m + 1
    flat = len(stored.shape) == 3 and stored.shape[0] == 1
    if not (flat and count in (m * m, m * m + 1)) and stored.shape != (m, m, width):
        raise ValueError(
            f"{file}: pos_embedding has shape {stored.shape}, expected [1, n*n, D], "
            "[1, 1 + n*n, D] or [n, n, D]"
        )
    n = m
    if image_size is not None:
        n = image_size // extents["embedding/kernel"].shape[0]
        if n < 1:
            raise ValueError(f"image_size is {image_size}, less than one patch of {file}")
    if first and "cls" in extents:
        cls = extents["cls"]

        def sum_of_both():
            position = read_extent(stored).reshape(-1, width)[:1]
            both = read_extent(cls).astype(np.float32) + position.astype(np.float32)
            return both.astype(cls.dtype)

        extents["cls"] = Computed(cls.shape, cls.dtype, sum_of_both)
    if flat and not first and n == m:
        return

    def positions():
        grid = read_extent(stored).reshape(-1, width)[int(first) :]
        if n != m:
            grid = resize_positions(grid.reshape(m, m, width), n).astype(stored.dtype)
        return np.ascontiguousarray(grid.reshape(1, n * n, width))

    extents["pos_embedding"] = Computed((1, n * n, width), stored.dtype, positions)


def tower_config(tower: Tower, *, select_layer: int, image_size: int | None = None) -> ClipConfig:
    """A ViT's config, from the shapes of its arrays alone.

    `image_size`: by default the smallest that has the file's grid. ValueError names the array that
    is missing or has another rank than expected.
    """

    def shape(name, rank):
        found = tower[name].shape
        if len(found) != rank:
            raise ValueError(
                f"{tower.where}: {tower.origins[name]} has shape {found}, expected {rank} axes"
            )
        return found

    patch, _, _, width = shape("embedding/kernel", 4)
    layers = 0
    while f"Transformer/encoderblock_{layers}/LayerNorm_0/scale" in tower:
        layers += 1
    block = "Transformer/encoderblock_0/"
    _, heads, _ = shape(f"{block}{ATTENTION}/query/kernel", 3)
    _, mlp_dim = shape(f"{block}MlpBlock_0/Dense_0/kernel", 2)
    grid = math.isqrt(shape("pos_embedding", 3)[1])
    return ClipConfig(
        image_size=image_size or grid * patch,
        patch_size=patch,
        width=width,
        layers=layers,
        heads=heads,
        mlp_dim=mlp_dim,
        norm_eps=NORM_EPS,
        act=ACT,
        select_layer=select_layer,
        kind="vit" if "cls" in tower else "siglip",
    )
