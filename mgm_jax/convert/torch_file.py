"""Writing PyTorch's `.bin` without torch: a zip of a pickle and raw storages, tensor by tensor.

The file is what `torch.save` makes of a flat dict of contiguous CPU tensors: `torch.load` and
`convert.pickles` read it. The same tensors always give the same bytes.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mgm_jax.convert.pickles import STORAGES
from mgm_jax.convert.writers import Spec, as_bytes, check_given, whole_file, write_all

ROOT = "archive"  # torch asks only that all members lie in one folder
NAMES = {np.dtype(kind): name for name, kind in STORAGES.items()}
REBUILD, ORDERED = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"


def _text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return pickle.BININT + struct.pack("<i", value)
    data = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(data)]) + data


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _tensor(spec: Spec, key: int) -> bytes:
    """The pickle of one tensor: how torch rebuilds it from the storage `key`."""
    steps = [int(np.prod(spec.shape[i + 1 :], dtype=np.int64)) for i in range(len(spec.shape))]
    count = int(np.prod(spec.shape, dtype=np.int64))
    storage = _tuple(
        _text("storage"),
        b"ctorch\n" + NAMES[spec.dtype].encode() + b"\n",
        _text(str(key)),
        _text("cpu"),
        _integer(count),
    )
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _integer(0),
        _tuple(*map(_integer, spec.shape)),
        _tuple(*map(_integer, steps)),
        pickle.NEWFALSE,
        ORDERED + pickle.EMPTY_TUPLE + pickle.REDUCE,
    )
    return REBUILD + arguments + pickle.REDUCE


def state_dict_pickle(specs: Sequence[Spec]) -> bytes:
    """The pickle of {name: tensor} whose storages are numbered as `specs` are.

    ValueError for a dtype that torch has no storage class for.
    """
    for spec in specs:
        if spec.dtype not in NAMES:
            raise ValueError(f"tensor {spec.name!r}: a .bin file has no dtype {spec.dtype}")
    items = b"".join(_text(spec.name) + _tensor(spec, i) for i, spec in enumerate(specs))
    head = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT
    return head + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


class TorchWriter:
    """One `.bin` file, one tensor at a time, in the order of `order`; whole or not there at all."""

    def __init__(self, file: Path, specs: Sequence[Spec]):
        self.file, self.specs = file, list(specs)
        self.pickle = state_dict_pickle(specs)

    def order(self) -> list[Spec]:
        """What is still to be written: everything, or nothing if an earlier run finished it."""
        return [] if self.file.exists() else self.specs

    def write(self, tensors: Iterable[tuple[Spec, np.ndarray]]) -> None:
        """Takes the tensors of `order`."""
        if not self.order():
            return
        with whole_file(self.file) as stream, zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(_member("data.pkl"), self.pickle)
            archive.writestr(_member("byteorder"), b"little")
            for i, (spec, array) in enumerate(tensors):
                check_given(self.file, self.specs[i], spec, array)
                with archive.open(_member(f"data/{i}"), "w", force_zip64=True) as member:
                    write_all(member, as_bytes(array))
                del array  # its memory is for the next one
            archive.writestr(_member("version"), b"3\n")


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"{ROOT}/{name}")  # dated 1980: equal tensors give equal bytes
