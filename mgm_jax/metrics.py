"""Progress (a bar with rate and ETA on stderr) and measurements (one JSON line a log step)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from tqdm import tqdm

from mgm_jax.boards import Board
from mgm_jax.checkpoint import writing
from mgm_jax.json_lines import JsonLines


class Metrics:
    """Writes `metrics.jsonl` (step, seconds since start, values) and drives a progress bar.

    Rows after step `start`, which a killed run has left, are dropped: they will be written again.
    `file` None: another process of the run writes and shows them. `boards` get the values too.
    """

    def __init__(
        self,
        file: epath.Path | None,
        *,
        start: int,
        total: int,
        name: str,
        boards: Sequence[Board] = (),
    ):
        self._file = file
        self._boards = boards
        self._rows = None
        if file:
            with writing(file, "the metrics"):
                self._rows = JsonLines(file, lambda row: row["step"] <= start)
        options = dict(unit="step", mininterval=2, dynamic_ncols=True, disable=not file)
        self._bar = tqdm(initial=start, total=total, desc=name, **options)
        self._begin = time.monotonic()

    def advance(self) -> None:
        self._bar.update()

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self._rows:
            return
        row = {"step": step, "seconds": round(time.monotonic() - self._begin, 3)} | values
        with writing(self._file, "the metrics"):
            self._rows.write(row)
        for write_to, _ in self._boards:
            write_to(step, values)
        self._bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()}, refresh=False)

    def close(self) -> None:
        self._bar.close()
        for _, close in self._boards:
            close()
        with contextlib.suppress(OSError):  # a row that did not fit has been reported
            if self._rows:
                self._rows.close()


class DataMeter:
    """What the data pipeline does between two log steps; `scale`: groups of all hosts to ours."""

    def __init__(self, scale: float = 1.0):
        self._scale = scale
        self._begin = time.monotonic()
        self._steps, self._waited, self._sums = 0, 0.0, np.zeros(4)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what the loop waits for: the next batch."""
        begin = time.monotonic()
        yield
        self._waited += time.monotonic() - begin

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Around what is no part of a step."""
        begin = time.monotonic()
        yield
        self._begin += time.monotonic() - begin

    def add(self, counts: np.ndarray) -> None:
        """A step's `batch_counts`."""
        self._steps += 1
        self._sums += counts

    def read(self) -> dict[str, float]:
        """Means since the last reading: ms of a step and ms waited in it, shares filled, tokens and
        pictures a second (padding not counted)."""
        seconds, steps = time.monotonic() - self._begin, max(self._steps, 1)
        tokens, places, pictures, slots = self._sums
        found = {
            "step_ms": seconds / steps * 1e3,
            "data_wait_ms": self._waited / steps * 1e3,
            "token_fill": tokens / max(places, 1),
            "slot_fill": pictures / max(slots, 1),
            "tokens_per_s": tokens * self._scale / seconds,
            "images_per_s": pictures * self._scale / seconds,
        }
        self.__init__(self._scale)
        return {name: float(f"{value:.4g}") for name, value in found.items()}


def batch_counts(batch) -> np.ndarray:
    """[tokens, places for tokens, pictures, slots] of a batch on the host."""
    segments, mask = batch["segments"], batch["image_mask"]
    return np.array([np.count_nonzero(segments), segments.size, np.count_nonzero(mask), mask.size])
