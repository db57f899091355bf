"""Tensors of any supported format, lazily: safetensors, PyTorch zip, `.npz`, our own `params/`.

A file's format is told by its first bytes, never by its name. A directory is read through its
index if it has one, else as all files of the first of these kinds that it has.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from mgm_jax.convert.extents import Extent, TensorSource, check_inside, merge
from mgm_jax.convert.pickles import data_offset, torch_extents

SAFE_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
MAX_HEADER = 100 << 20  # bytes
KINDS = (("*.safetensors",), ("*.bin", "*.pt", "*.pth"), ("*.npz",))
NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def _no_duplicates(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate tensor {next(n for n in names if names.count(n) > 1)!r}")
    return found


def safetensors_extents(file: Path) -> dict[str, Extent]:
    """name -> Extent of a safetensors file. ValueError: truncated, or a header that is wrong."""
    size = os.path.getsize(file)
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise ValueError(
                f"{file}: not a safetensors file, or truncated: its header claims {length} bytes "
                f"of a file of {size}"
            )
        try:
            header = json.loads(stream.read(length), object_pairs_hook=_no_duplicates)
            header.pop("__metadata__", None)
        except (ValueError, AttributeError, TypeError) as e:
            raise ValueError(f"{file}: bad safetensors header ({e})") from e
    start, extents, end = 8 + length, {}, 0
    for name, entry in header.items():
        try:
            dtype = SAFE_DTYPES[entry["dtype"]]
            shape = tuple(int(n) for n in entry["shape"])
            first, last = (int(n) for n in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(f"{file}: bad header entry of tensor {name!r} ({e!r})") from e
        extent = Extent(file, start + first, shape, dtype)
        if min(shape, default=0) < 0 or first < 0 or last - first != extent.nbytes:
            raise ValueError(
                f"{file}: tensor {name!r} of shape {shape} and {dtype} has {last - first} bytes, "
                f"expected {extent.nbytes}"
            )
        extents[name] = check_inside(name, extent, size)
        end = max(end, last)
    if start + end != size:
        raise ValueError(f"{file}: {size} bytes, expected {start + end} by its header")
    return extents


def npz_extents(file: Path) -> dict[str, Extent]:
    """name -> Extent of a `.npz` archive, as big_vision writes them (`|V2` is bfloat16).

    ValueError: damaged, or an array of Python objects, which would be a pickle.
    """
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as e:
        raise ValueError(f"{file}: truncated or damaged .npz ({e})") from e
    extents = {}
    with archive, open(file, "rb") as stream:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            try:
                with archive.open(member) as array:
                    version = np.lib.format.read_magic(array)
                    read = np.lib.format.read_array_header_1_0
                    if version != (1, 0):
                        read = np.lib.format.read_array_header_2_0
                    shape, fortran, dtype = read(array)
                    offset = array.tell()
            except (ValueError, zipfile.BadZipFile, EOFError) as e:
                raise ValueError(f"{file}: member {member.filename!r} is no array ({e})") from e
            if dtype.hasobject:
                raise ValueError(f"{file}: refused: {name!r} holds Python objects")
            dtype = np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype
            strides = None
            if fortran:
                steps = np.cumprod([1, *shape[:-1]]) if shape else ()
                strides = tuple(int(n) for n in steps)
            stored = member.compress_type == zipfile.ZIP_STORED
            start = data_offset(stream, member) if stored else 0
            inside = None if stored else member.filename
            extent = Extent(file, start + offset, tuple(shape), dtype, strides, inside)
            extents[name] = check_inside(name, extent, start + member.file_size)
    return extents


def file_extents(file: Path) -> dict[str, Extent]:
    """name -> Extent of a file of any supported format, told by its contents."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    with open(file, "rb") as stream:
        start = stream.read(16)
    if start[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as e:
            raise ValueError(f"{file}: truncated or damaged zip ({e})") from e
        arrays = names and all(name.endswith(".npy") for name in names)
        return npz_extents(file) if arrays else torch_extents(file)
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:9] != b"{":
        raise ValueError(
            f"{file}: PyTorch's old format (before 1.6) or a bare pickle, which is not read; load "
            "it where it is trusted and save it again with torch.save"
        )
    return safetensors_extents(file)


def index_extents(index: Path) -> dict[str, Extent]:
    """The tensors of every shard that a `*.index.json` names.

    FileNotFoundError names an absent shard; ValueError a tensor that is not where the index says,
    or that two shards hold.
    """
    try:
        where = json.loads(index.read_text())["weight_map"]
        shards = {name: index.parent / str(file) for name, file in where.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{index}: not an index of shards ({e!r})") from e
    files = sorted(set(shards.values()))
    if absent := [f for f in files if not f.is_file()]:
        lost = sum(f == absent[0] for f in shards.values())
        raise FileNotFoundError(f"{index} names {absent[0].name}, which is absent ({lost} tensors)")
    extents = merge((f, file_extents(f)) for f in files)
    for name, file in shards.items():
        if name not in extents or extents[name].file != file:
            raise ValueError(f"{index}: tensor {name!r} is not in {file.name}, where it should be")
    return extents


def open_source(path: str | Path) -> TensorSource:
    """A file, an index, a directory of either, or one of our checkpoints -> its tensors.

    FileNotFoundError if there is nothing to read, ValueError for what is damaged.
    """
    path = Path(path)
    if path.is_file():
        read = index_extents if path.name.endswith(".index.json") else file_extents
        return TensorSource(read(path), path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is missing")
    for params in (path / "params", path):
        if (params / "_METADATA").is_file():
            from mgm_jax.convert.params import ParamsSource

            return ParamsSource(params)
    for kind in KINDS:
        for index in sorted(path.glob(kind[0] + ".index.json")):
            return TensorSource(index_extents(index), path)
        files = sorted(f for pattern in kind for f in path.glob(pattern))
        if files := [f for f in files if f.name not in NOT_WEIGHTS]:
            return TensorSource(merge((f, file_extents(f)) for f in files), path)
    wanted = ", ".join(pattern for kind in KINDS for pattern in kind)
    raise FileNotFoundError(f"{path}: no weights, expected one of {wanted} or params/")
