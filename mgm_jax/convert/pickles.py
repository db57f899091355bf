"""PyTorch's `.bin` and `.pt` files without torch: a zip of a pickle and raw storages.

The pickle runs through an unpickler that knows a dozen names, none of which can do anything but
describe a tensor; whatever else a file asks for is refused by name. Storages are never loaded
here: a tensor becomes an Extent, a strided view of its storage's bytes in the zip.
"""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mgm_jax.convert.extents import Extent, check_inside

STORAGES = {  # of torch, by element type
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")
WRAPPERS = ("state_dict", "model", "module")  # keys under which a file may keep its tensors
MAX_PICKLE = 256 << 20  # bytes; names and shapes of the largest models take a few MB


class _Storage(NamedTuple):  # tuples: a pickle cannot change what it has built
    member: zipfile.ZipInfo
    dtype: np.dtype


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError(f"a tensor of shape {shape!r} and strides {strides!r}")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_):
    return tensor


def _allowed() -> dict[tuple[str, str], object]:
    names = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch", "Size"): tuple,
    }
    return names | {("torch", name): name for name in (*STORAGES, *DTYPES)}


class _Unpickler(pickle.Unpickler):
    allowed = _allowed()

    def __init__(self, stream, file: Path, root: str, members: dict[str, zipfile.ZipInfo]):
        super().__init__(stream)
        self.file, self.root, self.members = file, root, members

    def find_class(self, module, name):
        try:
            return self.allowed[module, name]
        except KeyError:
            raise ValueError(
                f"{self.file}: refused: its pickle asks for {module}.{name}, which is no part of a "
                "tensor"
            ) from None

    def persistent_load(self, pid):
        kind, dtype, key = pid[:3]
        member = self.members.get(f"{self.root}data/{key}")
        if kind != "storage" or dtype not in STORAGES:
            raise ValueError(f"{self.file}: unknown kind of storage {pid[:2]!r}")
        if member is None:
            raise ValueError(f"{self.file}: storage {key!r} is missing from the zip")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{self.file}: storage {key!r} is compressed, expected stored")
        return _Storage(member, np.dtype(STORAGES[dtype]))


def data_offset(stream, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin in its file; ValueError if the header is damaged."""
    stream.seek(member.header_offset)
    header = stream.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"{stream.name}: damaged zip (no member at byte {member.header_offset})")
    name, extra = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + name + extra


def _tensors(value) -> dict[str, _Tensor]:
    """The named tensors of a file's object, from under a wrapper if there is one."""
    if not isinstance(value, dict):
        return {}
    found = {k: v for k, v in value.items() if isinstance(v, _Tensor) and isinstance(k, str)}
    for key in WRAPPERS:
        found = found or _tensors(value.get(key))
    if found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): t for name, t in found.items()}
    return found


def torch_extents(file: Path) -> dict[str, Extent]:
    """name -> Extent of every tensor of a PyTorch zip file (MGM_SPEC 3.3, 3.5).

    A `state_dict` or `model` wrapper and a `module.` prefix are taken off. ValueError: not such a
    file, truncated, big-endian, or a pickle that asks for anything but tensors.
    """
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as e:
        raise ValueError(f"{file}: truncated or damaged PyTorch file ({e})") from e
    with archive, open(file, "rb") as stream:
        members = {m.filename: m for m in archive.infolist()}
        pickles = [n for n in members if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{file}: {len(pickles)} data.pkl inside, expected one")
        root = pickles[0].removesuffix("data.pkl")
        if members[pickles[0]].file_size > MAX_PICKLE:
            raise ValueError(f"{file}: its pickle is larger than {MAX_PICKLE} bytes")
        try:
            order = archive.read(root + "byteorder") if root + "byteorder" in members else b"little"
            data = archive.read(pickles[0])
        except (zipfile.BadZipFile, EOFError) as e:
            raise ValueError(f"{file}: damaged PyTorch file ({e})") from e
        if order != b"little":
            raise ValueError(f"{file}: byte order is {order!r}, expected little")
        try:
            found = _tensors(_Unpickler(io.BytesIO(data), file, root, members).load())
        except ValueError as e:
            raise e if str(e).startswith(str(file)) else ValueError(f"{file}: {e}") from e
        except Exception as e:  # whatever a damaged or hostile pickle makes the unpickler raise
            raise ValueError(f"{file}: unreadable pickle ({type(e).__name__}: {e})") from e
        starts: dict[str, int] = {}
        extents = {}
        for name, tensor in found.items():
            member, dtype = tensor.storage.member, tensor.storage.dtype
            if member.filename not in starts:
                starts[member.filename] = data_offset(stream, member)
            start = starts[member.filename]
            at = start + tensor.offset * dtype.itemsize
            extent = Extent(file, at, tensor.shape, dtype, tensor.strides)
            extents[name] = check_inside(name, extent, start + member.file_size)
    return extents
