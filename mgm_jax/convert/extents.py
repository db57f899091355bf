"""A tensor on disk as a strided view of a byte range, and how to read it without loading more.

Every format that we read stores its arrays uncompressed at a known offset of a file (safetensors,
PyTorch's zip, `.npz`), so one description and one way of reading serve them all. Bytes come by
`pread` into a numpy buffer: pages of a mapped file would count as resident memory.
"""

from __future__ import annotations

import dataclasses
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

PIECE = 64 << 20  # bytes of one read


@dataclasses.dataclass(frozen=True)
class Extent:
    """Where a tensor lies: `shape` elements of `dtype` from byte `offset` of `file` on.

    `strides` are in elements, None for row-major order. `member` names a deflated zip member, of
    which `offset` then counts the inflated bytes.
    """

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...] | None = None
    member: str | None = None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Bytes from the first element to behind the last one."""
        if self.strides is None or not math.prod(self.shape):
            return self.nbytes
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> Extent:
        """The part [start:stop] along the first axis."""
        step = self.strides[0] if self.strides else math.prod(self.shape[1:])
        offset = self.offset + start * step * self.dtype.itemsize
        return dataclasses.replace(self, offset=offset, shape=(stop - start, *self.shape[1:]))

    def item(self, i: int) -> Extent:
        """Element i of the first axis."""
        strides = self.strides[1:] if self.strides else None
        return dataclasses.replace(self.rows(i, i + 1), shape=self.shape[1:], strides=strides)


def read_bytes(extent: Extent) -> np.ndarray:
    """The extent's bytes, [span] uint8. ValueError when the file ends before them."""
    buffer = np.empty(extent.span, np.uint8)
    view, done = memoryview(buffer), 0
    if extent.member:
        with zipfile.ZipFile(extent.file) as archive, archive.open(extent.member) as stream:
            stream.seek(extent.offset)
            while done < len(view) and (n := stream.readinto(view[done : done + PIECE])):
                done += n
    else:
        fd = os.open(extent.file, os.O_RDONLY)
        try:
            while done < len(view) and (
                n := os.preadv(fd, [view[done : done + PIECE]], extent.offset + done)
            ):
                done += n
        finally:
            os.close(fd)
    if done < len(view):
        raise ValueError(
            f"{extent.file}: ends {len(view) - done} bytes too early: found {done} bytes from "
            f"offset {extent.offset} on, expected {len(view)}"
        )
    return buffer


def read_extent(extent: Extent) -> np.ndarray:
    """The tensor, `shape` of `dtype`; a strided one is a view of its span."""
    flat = read_bytes(extent).view(extent.dtype)
    if extent.strides is None or not flat.size:
        return flat.reshape(extent.shape)
    strides = [s * extent.dtype.itemsize for s in extent.strides]
    return np.lib.stride_tricks.as_strided(flat, extent.shape, strides, writeable=False)


class TensorSource(Mapping):
    """Named tensors on disk; `source[name]` tells shape and dtype, `read` gets the values.

    A mapping name -> Extent (or anything else with `shape`, `dtype`, `nbytes` and `len()`), so that
    code which asks only for shapes never loads anything. `where` is what errors name.
    """

    def __init__(self, extents: Mapping[str, Extent], where: str | Path):
        self.extents, self.where = dict(extents), str(where)

    def __getitem__(self, name: str):
        try:
            return self.extents[name]
        except KeyError:
            raise ValueError(f"{self.where}: tensor {name!r} is missing") from None

    def __contains__(self, name) -> bool:
        return name in self.extents

    def __iter__(self) -> Iterator[str]:
        return iter(self.extents)

    def __len__(self) -> int:
        return len(self.extents)

    @property
    def files(self) -> list[Path]:
        """Every file that holds a tensor, in order of first use."""
        return list(dict.fromkeys(e.file for e in self.extents.values()))

    def block_nbytes(self, name: str, axes: int) -> int:
        """Bytes that reading one element of the first `axes` axes brings into memory."""
        found = self[name]
        return math.prod(found.shape[axes:]) * found.dtype.itemsize

    def read(self, name: str) -> np.ndarray:
        """The whole tensor. ValueError if it is missing or its file ends too early."""
        return self._read(name, self[name])

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """[stop - start, ...]: a slice of the first axis; nothing else is read."""
        found = self[name]
        if not found.shape or not 0 <= start <= stop <= found.shape[0]:
            raise ValueError(
                f"{self.where}: rows {start}:{stop} of {name!r}, whose shape is {found.shape}"
            )
        return self._read(name, found.rows(start, stop))

    def _read(self, name: str, extent: Extent) -> np.ndarray:
        try:
            return read_extent(extent)
        except ValueError as e:
            raise ValueError(f"{e} (tensor {name!r})") from e


def merge(parts: Iterable[tuple[Path, Mapping[str, Extent]]]) -> dict[str, Extent]:
    """Tensors of several files as one; a name in two of them is a ValueError that names both."""
    merged: dict[str, Extent] = {}
    for file, extents in parts:
        for name, extent in extents.items():
            if name in merged:
                raise ValueError(f"tensor {name!r} is in both {merged[name].file} and {file}")
            merged[name] = extent
    return merged


def check_inside(name: str, extent: Extent, end: int) -> Extent:
    """The extent, or a ValueError if it reaches beyond byte `end` of its file."""
    if extent.offset < 0 or extent.offset + extent.span > end:
        raise ValueError(
            f"{extent.file}: tensor {name!r} lies at bytes {extent.offset} to "
            f"{extent.offset + extent.span}, expected at most {end}: truncated or damaged"
        )
    return extent
