"""Writing big_vision's `.npz`: what `np.savez` makes, array by array, layer by layer.

The same tensors always give the same bytes.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from mgm_jax.convert.writers import Spec, as_bytes, check_given, whole_file, write_all

LAYER = re.compile(r"(.*encoderblock)_(\d+)(/.*)")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def members(specs: Sequence[Spec], *, scan: bool) -> dict[str, list[Spec]]:
    """Name of each array in the file -> the tensors it holds, one after the other.

    With `scan`, the layers of a block are one array, in order. ValueError if they differ in dtype.
    """
    found: dict[str, list[tuple[int, Spec]]] = {}
    for spec in specs:
        match = LAYER.fullmatch(spec.name) if scan else None
        name, layer = (match[1] + match[3], int(match[2])) if match else (spec.name, 0)
        found.setdefault(name, []).append((layer, spec))
    for name, layers in found.items():
        if len(kinds := sorted({spec.dtype.name for _, spec in layers})) > 1:
            raise ValueError(
                f"{name} is one array, but its layers are {' and '.join(kinds)}; choose one dtype"
            )
    return {
        name: [spec for _, spec in sorted(layers, key=lambda pair: pair[0])]
        for name, layers in found.items()
    }


class NpzWriter:
    """One `.npz` file, one tensor at a time, in the order of `order`; whole or not there at all."""

    def __init__(self, file: Path, specs: Sequence[Spec], *, scan: bool):
        self.file, self.scan = file, scan
        self.members = members(specs, scan=scan)

    def order(self) -> list[Spec]:
        """Every tensor in the order of the file."""
        return [spec for specs in self.members.values() for spec in specs]

    def write(self, tensors: Iterable[tuple[Spec, np.ndarray]]) -> None:
        """Takes the tensors of `order`. ValueError when one is another or of another shape."""
        tensors = iter(tensors)
        with whole_file(self.file) as stream, zipfile.ZipFile(stream, "w") as archive:
            for name, specs in self.members.items():
                info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: equal arrays, equal bytes
                with archive.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, self._header(name, specs))
                    for spec in specs:
                        got, array = next(tensors)
                        check_given(self.file, spec, got, array)
                        write_all(member, as_bytes(array))

    def _header(self, name: str, specs: Sequence[Spec]) -> dict:
        first = specs[0]
        lead = (len(specs),) if self.scan and LAYER.fullmatch(first.name) else ()
        # numpy has no name for bfloat16: its arrays are stored as two bytes without a meaning
        descr = "|V2" if first.dtype == BFLOAT16 else np.lib.format.dtype_to_descr(first.dtype)
        return {"descr": descr, "fortran_order": False, "shape": lead + first.shape}
