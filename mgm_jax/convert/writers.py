"""Files that a kill cannot spoil, and the Hugging Face layout as a stream of tensors.

A conversion writes each file under another name, syncs it, and renames it: a file that has its
name is whole. `.convert.json` says which conversion a directory holds and whether it is
finished, so that a second run goes on where the first one stopped, and never mixes two.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

JOURNAL = ".convert.json"
SYNC = 64 << 20  # bytes of a file that wait in memory for the disk
SAFE_NAMES = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.int16): "I16",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
    np.dtype(np.bool_): "BOOL",
}
# The original reads the towers from whichever shards hold mining weights, and then all or none of
# CLIP: they must not be parted (MGM_SPEC 3.2).
TOGETHER = r"model\.(vision_tower|vision_tower_aux|vlm_uni_\w+)\..*"


@dataclasses.dataclass(frozen=True)
class Spec:
    """Name, shape and dtype of one tensor that is to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def check_given(file: object, expected: Spec, given: Spec, array: np.ndarray) -> None:
    """ValueError unless a writer of `file` is given the tensor that comes next."""
    if (given, array.shape, array.dtype) != (expected, expected.shape, expected.dtype):
        raise ValueError(
            f"{file}: got {given.name!r} {array.shape} {array.dtype}, expected {expected}"
        )


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in row-major order, without a copy where it already is."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


@contextlib.contextmanager
def whole_file(file: Path):
    """A stream whose bytes appear under `file` all at once, after they are safe on disk."""
    partial = file.with_name(file.name + ".partial")
    with open(partial, "wb", buffering=0) as stream:
        yield stream
        os.fsync(stream.fileno())
    os.replace(partial, file)


def write_all(stream, data) -> None:
    """Every byte of `data`: an unbuffered stream may take fewer at a time."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


class Steadily:
    """Writes to a stream and has the disk begin at once, not when memory is full or at the end."""

    def __init__(self, stream):
        self.stream, self.waiting = stream, 0

    def write(self, data) -> None:
        write_all(self.stream, data)
        self.waiting += len(data)
        if self.waiting >= SYNC:
            os.fdatasync(self.stream.fileno())
            self.waiting = 0


def write_text(file: Path, text: str) -> None:
    with whole_file(file) as stream:
        write_all(stream, text.encode())


def begin(directory: Path, fingerprint: str) -> bool:
    """Makes `directory` ready for the conversion that `fingerprint` identifies, new or resumed.

    True if that very conversion is finished there. ValueError if the directory holds anything else.
    """
    directory.mkdir(parents=True, exist_ok=True)
    journal = directory / JOURNAL
    if journal.exists():
        found = json.loads(journal.read_text())
        if found["fingerprint"] != fingerprint:
            raise ValueError(
                f"{directory} holds a conversion of another source or with other options; delete "
                "it, or give another --dst"
            )
        return found["finished"]
    if found := sorted(f.name for f in directory.iterdir() if f.suffix != ".partial"):
        raise ValueError(f"{directory} is not empty ({found[0]}); give another --dst")
    write_text(journal, json.dumps({"fingerprint": fingerprint, "finished": False}))
    return False


def finish(directory: Path) -> None:
    """The conversion into `directory` is complete."""
    for rest in directory.glob("*.partial"):
        rest.unlink()
    journal = directory / JOURNAL
    write_text(journal, json.dumps(json.loads(journal.read_text()) | {"finished": True}))


def header(specs: Sequence[Spec]) -> bytes:
    """The head of a safetensors file that holds `specs` one after the other."""
    entries, at = {"__metadata__": {"format": "pt"}}, 0
    for spec in specs:
        if spec.dtype not in SAFE_NAMES:
            raise ValueError(f"tensor {spec.name!r}: safetensors has no dtype {spec.dtype}")
        entries[spec.name] = {
            "dtype": SAFE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [at, at + spec.nbytes],
        }
        at += spec.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def plan_shards(specs: Iterable[Spec], size: int, together: str = TOGETHER) -> list[list[Spec]]:
    """Tensors -> shards of at most `size` bytes (but for a larger tensor), order kept.

    Those whose name matches `together` come last and share a shard if one can hold them all.
    """
    specs = list(specs)
    group = [s for s in specs if re.fullmatch(together, s.name)]
    units = [[s] for s in specs if not re.fullmatch(together, s.name)]
    fits = sum(s.nbytes for s in group) <= size
    units += [group] if group and fits else [[s] for s in group]
    shards: list[list[Spec]] = [[]]
    room = size
    for unit in units:
        need = sum(s.nbytes for s in unit)
        if shards[-1] and need > room:
            shards.append([])
            room = size
        shards[-1] += unit
        room -= need
    return shards


class HfWriter:
    """Sharded safetensors in `directory`, one tensor at a time, in the order of `order`.

    The same tensors always give the same bytes. Shards that an earlier run finished are kept, and
    `order` leaves their tensors out.
    """

    def __init__(self, directory: Path, specs: Sequence[Spec], shard_size: int):
        shards = plan_shards(specs, shard_size)
        n = len(shards)
        names = [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
        self.directory = directory
        self.shards = dict(zip(["model.safetensors"] if n == 1 else names, shards, strict=True))
        self._left = {f: s for f, s in self.shards.items() if not self._is_finished(f, s)}

    def _is_finished(self, file: str, specs: Sequence[Spec]) -> bool:
        path, head = self.directory / file, header(specs)
        if not path.exists() or path.stat().st_size != len(head) + sum(s.nbytes for s in specs):
            return False
        with open(path, "rb") as stream:
            return stream.read(len(head)) == head

    @property
    def index(self) -> str:
        """The text of the index file: total size, and the shard of every tensor."""
        where = {s.name: file for file, specs in self.shards.items() for s in specs}
        total = sum(s.nbytes for specs in self.shards.values() for s in specs)
        value = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        return json.dumps(value, indent=2) + "\n"

    def order(self) -> list[Spec]:
        """What is still to be written, in order."""
        return [spec for specs in self._left.values() for spec in specs]

    def write(self, tensors: Iterable[tuple[Spec, np.ndarray]]) -> None:
        """Takes the tensors of `order`, and writes the index behind them."""
        tensors = iter(tensors)
        for file, specs in self._left.items():
            with whole_file(self.directory / file) as stream:
                steadily = Steadily(stream)
                steadily.write(header(specs))
                for spec in specs:
                    got, array = next(tensors)
                    check_given(file, spec, got, array)
                    steadily.write(as_bytes(array))
                    del array  # its memory is for the next one
        write_text(self.directory / "model.safetensors.index.json", self.index)
