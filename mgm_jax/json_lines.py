"""A file of JSON lines that grows, on a disk or in a bucket."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping

from etils import epath

from mgm_jax.data.files import write_whole


class JsonLines:
    """Rows for a file that may have some already; those that `keep` refuses, and a last one that
    was cut off, are dropped from it.

    On a disk rows are appended, and with `sync` they are safe there when `write` returns. An object
    in a bucket cannot grow: it is written anew, with all its rows. OSError where that fails.
    """

    def __init__(
        self,
        file: epath.PathLike,
        keep: Callable[[Mapping], bool] = lambda row: True,
        *,
        sync: bool = False,
    ):
        self._path = epath.Path(file)
        self._text = _kept(self._path, keep)
        write_whole(self._path, self._text.encode())
        self._file, self._sync = None, sync
        if "://" not in os.fspath(self._path):
            self._file = open(self._path, "a", encoding="utf-8")

    def write(self, *rows: Mapping) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        if self._file:
            self._file.write(lines)
            self._file.flush()
            if self._sync:
                os.fsync(self._file.fileno())
        else:
            self._text += lines
            write_whole(self._path, self._text.encode())

    def close(self) -> None:
        if self._file:
            self._file.close()


def _kept(file: epath.Path, keep: Callable[[Mapping], bool]) -> str:
    found = file.read_bytes().decode(errors="replace") if file.exists() else ""
    rows = []
    for line in found.splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # cut off by a kill
            continue
        if isinstance(row, dict) and keep(row):
            rows.append(line + "\n")
    return "".join(rows)
