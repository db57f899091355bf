"""Progress (a bar with rate and ETA on stderr) and measurements (one JSON line a log step)."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tqdm import tqdm


class Metrics:
    """Writes `metrics.jsonl` (step, seconds since start, values) and drives a progress bar."""

    def __init__(self, file: Path, *, start: int, total: int, name: str):
        self._file = open(file, "a", encoding="utf-8")
        self._bar = tqdm(
            initial=start, total=total, desc=name, unit="step", mininterval=2, dynamic_ncols=True
        )
        self._begin = time.monotonic()

    def advance(self) -> None:
        self._bar.update()

    def write(self, step: int, values: dict[str, float]) -> None:
        row = {"step": step, "seconds": round(time.monotonic() - self._begin, 3)} | values
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()}, refresh=False)

    def close(self) -> None:
        self._file.close()
        self._bar.close()
