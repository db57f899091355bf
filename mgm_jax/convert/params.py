"""Our checkpoint's `params/`: orbax's layout, read and written array by array, layer by layer.

What orbax restores is a directory of zarr arrays and a JSON file that lists them. Without a
compressor a zarr chunk is the array's bytes as they are, so a chunk is written like any other
file; big stacked arrays take one chunk a layer (and expert), so that no more than a layer is ever
in memory, here or when a pod reads its part. Reading goes through tensorstore, because trained
checkpoints are compressed and packed (OCDBT).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from mgm_jax.checkpoint import SMALL, CheckpointError
from mgm_jax.convert.extents import Extent, TensorSource, read_extent
from mgm_jax.convert.writers import as_bytes, whole_file, write_all, write_text

LARGE = 128 << 20  # bytes of a chunk of an array without layers
ZARR_DTYPES = {np.dtype(ml_dtypes.bfloat16): "bfloat16"}


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array of `params/`: what tensorstore says about it.

    `raw` is the folder of its chunk files if they are the chunks' bytes as they are.
    """

    store: object
    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    raw: Path | None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class ParamsSource(TensorSource):
    """The arrays of an orbax directory by '/'-joined names; CheckpointError if unreadable."""

    def __init__(self, directory: Path):
        import tensorstore as ts

        directory = directory.absolute()
        try:
            meta = json.loads((directory / "_METADATA").read_text())
            paths = [[k["key"] for k in e["key_metadata"]] for e in meta["tree_metadata"].values()]
            context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
            opened = {
                "/".join(path): ts.open(_spec(directory, path, meta), context=context, read=True)
                for path in paths
            }
            arrays = {
                name: _stored(future.result(), _raw(directory, name, meta))
                for name, future in opened.items()
            }
        except (OSError, ValueError, KeyError, TypeError) as e:
            line = (str(e).splitlines() or [repr(e)])[0]
            raise CheckpointError(f"{directory}: unreadable parameters ({line})") from e
        self.directory = directory
        super().__init__(arrays, directory)

    @property
    def files(self) -> list[Path]:
        return sorted(f for f in self.directory.rglob("*") if f.is_file())

    def block_nbytes(self, name: str, axes: int) -> int:
        found = self[name]
        return math.prod(found.chunk[:axes] + found.shape[axes:]) * found.dtype.itemsize

    def read_block(self, name: str, first: tuple[int, ...]) -> np.ndarray:
        """From `first` on as far as a chunk reaches along those axes, and all of the others."""
        found = self[name]
        if found.raw and found.chunk[len(first) :] == found.shape[len(first) :]:
            return self._load_chunk(found, first)
        parts = zip(first, found.chunk[: len(first)], found.shape, strict=False)
        return self._load(name, tuple(slice(f, min(f + n, end)) for f, n, end in parts))

    def read(self, name: str) -> np.ndarray:
        return self.read_block(name, ())

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        if not self[name].shape or not 0 <= start <= stop <= len(self[name]):
            raise ValueError(f"{self.where}: rows {start}:{stop} of {name!r} {self[name].shape}")
        return self._load(name, slice(start, stop))

    def _load(self, name: str, part) -> np.ndarray:
        try:
            return np.asarray(self[name].store[part].read().result())
        except ValueError as e:
            line = str(e).splitlines()[0]
            raise CheckpointError(f"{self.where}: unreadable array {name!r} ({line})") from e

    def _load_chunk(self, found: StoredArray, first: tuple[int, ...]) -> np.ndarray:
        """As tensorstore would read it, but straight from its file, which takes less time."""
        grid = [f // n for f, n in zip(first, found.chunk, strict=False)]
        file = found.raw / chunk_file(grid, len(found.shape))
        try:
            array = read_extent(Extent(file, 0, found.chunk, found.dtype))
        except (OSError, ValueError) as e:
            raise CheckpointError(f"{self.where}: unreadable chunk ({e})") from e
        ends = zip(first, found.shape, strict=False)
        return array[tuple(slice(end - f) for f, end in ends)]


def chunk_file(index: Sequence[int], rank: int) -> str:
    """The name of the chunk at `index` of the grid, whose trailing zeros may be left out."""
    return ".".join(map(str, (*index, *(0,) * (rank - len(index))))) or "0"


def _raw(directory: Path, name: str, meta: dict) -> Path | None:
    if meta["use_ocdbt"] or meta.get("use_zarr3"):
        return None
    folder = directory / name.replace("/", ".")
    layout = json.loads((folder / ".zarray").read_text())
    expected = {"compressor": None, "filters": None, "order": "C", "dimension_separator": "."}
    return folder if layout.items() >= expected.items() else None


def _spec(directory: Path, path: list[str], meta: dict) -> dict:
    name = ".".join(path)
    store = {"driver": "file", "path": f"{directory / name}/"}
    if meta["use_ocdbt"]:
        store = {"driver": "ocdbt", "base": f"file://{directory}/", "path": f"{name}/"}
    return {"driver": "zarr3" if meta.get("use_zarr3") else "zarr", "kvstore": store}


def _stored(array, raw: Path | None) -> StoredArray:
    chunk = array.chunk_layout.read_chunk.shape or ()
    return StoredArray(array, tuple(array.shape), array.dtype.numpy_dtype, tuple(chunk), raw)


def chunk_shape(
    shape: tuple[int, ...], dtype: np.dtype, stacked: int, axis: int | None = 0
) -> tuple[int, ...]:
    """Of an array whose first `stacked` axes count layers (and experts).

    One chunk if it is small, else one a layer; without layers, parts along `axis` that divide it
    evenly (None: one chunk).
    """
    total = math.prod(shape) * dtype.itemsize
    if total <= SMALL or not shape:
        return shape
    if stacked:
        return (1,) * stacked + shape[stacked:]
    if axis is None:
        return shape
    size, pieces = shape[axis], math.ceil(total / LARGE)
    step = next((n for n in range(size // pieces, 0, -1) if size % n == 0), size)
    return (*shape[:axis], step, *shape[axis + 1 :])


@dataclasses.dataclass(frozen=True)
class Layout:
    """An array that is to be written: its first `stacked` axes are layers (and experts).

    `axis` is where the source's first axis went to, whose rows can be read alone; None if nowhere.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: int = 0
    axis: int | None = 0

    @property
    def chunk(self) -> tuple[int, ...]:
        return chunk_shape(self.shape, self.dtype, self.stacked, self.axis)

    @property
    def chunk_nbytes(self) -> int:
        return math.prod(self.chunk) * self.dtype.itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        return tuple(n // c if c else 1 for n, c in zip(self.shape, self.chunk, strict=True))


class ParamsWriter:
    """Writes `directory` chunk by chunk; what an earlier run has written is kept.

    The arrays lie in `<directory>.unfinished` until `close`.
    """

    def __init__(self, directory: Path, arrays: Mapping[str, Layout]):
        self.directory, self.arrays = directory, dict(arrays)
        self.partial = directory.with_name(directory.name + ".unfinished")
        self.finished = directory.exists()

    def start(self) -> None:
        """Makes the directories and the description of every array."""
        if self.finished:
            return
        for name, layout in self.arrays.items():
            place = self._place(name)
            place.mkdir(parents=True, exist_ok=True)
            description = {
                "chunks": list(layout.chunk),
                "compressor": None,
                "dimension_separator": ".",
                "dtype": ZARR_DTYPES.get(layout.dtype, layout.dtype.str),
                "fill_value": None,
                "filters": None,
                "order": "C",
                "shape": list(layout.shape),
                "zarr_format": 2,
            }
            if not (place / ".zarray").exists():
                (place / ".zarray.partial").write_text(json.dumps(description))
                os.replace(place / ".zarray.partial", place / ".zarray")

    def _place(self, name: str) -> Path:
        return self.partial / name.replace("/", ".")

    def _file(self, name: str, index: tuple[int, ...]) -> Path:
        return self._place(name) / chunk_file(index, len(self.arrays[name].shape))

    def has(self, name: str, index: tuple[int, ...]) -> bool:
        """Whether the chunk at `index` of the grid is on disk."""
        return self.finished or self._file(name, index).exists()

    def put(self, name: str, index: tuple[int, ...], chunk: np.ndarray) -> None:
        """Writes one chunk; trailing zeros of `index` may be left out."""
        layout = self.arrays[name]
        if chunk.size != math.prod(layout.chunk) or chunk.dtype != layout.dtype:
            raise ValueError(
                f"{name}: chunk {chunk.shape} {chunk.dtype}, expected {layout.chunk} {layout.dtype}"
            )
        with whole_file(self._file(name, index)) as stream:
            write_all(stream, as_bytes(chunk))

    def close(self) -> None:
        """Writes what makes the directory a checkpoint of orbax, and gives it its name."""
        if self.finished:
            return
        for rest in self.partial.rglob("*.partial"):
            rest.unlink()
        tree = {}
        for name in self.arrays:
            keys = name.split("/")
            tree[str(tuple(keys))] = {
                "key_metadata": [{"key": key, "key_type": 2} for key in keys],
                "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
            }
        metadata = {
            "tree_metadata": tree,
            "use_ocdbt": False,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        }
        handler = "orbax.checkpoint._src.handlers.standard_checkpoint_handler"
        checkpoint = {"item_handlers": f"{handler}.StandardCheckpointHandler"}
        write_text(self.partial / "_METADATA", json.dumps(metadata))
        write_text(self.partial / "_CHECKPOINT_METADATA", json.dumps(checkpoint))
        os.replace(self.partial, self.directory)
        self.finished = True
