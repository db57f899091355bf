"""Progress (a bar with rate and ETA on stderr) and measurements (one JSON line a log step)."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from mgm_jax.checkpoint import writing


class Metrics:
    """Writes `metrics.jsonl` (step, seconds since start, values) and drives a progress bar.

    Rows after step `start`, which a killed run has left, are dropped: they will be written again.
    """

    def __init__(self, file: Path, *, start: int, total: int, name: str):
        self._name = file
        with writing(file, "the metrics"):
            kept = "".join(_rows_until(file, start))
            partial = file.with_suffix(".partial")
            partial.write_text(kept, encoding="utf-8")
            partial.replace(file)
            self._file = open(file, "a", encoding="utf-8")
        self._bar = tqdm(
            initial=start, total=total, desc=name, unit="step", mininterval=2, dynamic_ncols=True
        )
        self._begin = time.monotonic()

    def advance(self) -> None:
        self._bar.update()

    def write(self, step: int, values: dict[str, float]) -> None:
        row = {"step": step, "seconds": round(time.monotonic() - self._begin, 3)} | values
        with writing(self._name, "the metrics"):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        self._bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()}, refresh=False)

    def close(self) -> None:
        self._bar.close()
        with contextlib.suppress(OSError):  # a row that did not fit has been reported
            self._file.close()


def _rows_until(file: Path, step: int) -> Iterator[str]:
    if not file.exists():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):  # the last row may be cut off
            if json.loads(line)["step"] <= step:
                yield line + "\n"
