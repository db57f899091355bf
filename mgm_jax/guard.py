"""What keeps watch over the loss: a step that is not finite ends a run, a spike is written down."""

from __future__ import annotations

import collections
import contextlib
import json
import math

import jax
import numpy as np
from etils import epath

from mgm_jax.data.stream import Stream
from mgm_jax.json_lines import JsonLines
from mgm_jax.settings import TrainingError
from mgm_jax.training_state import TrainingState

WINDOW, SIGMAS, LEAST = 100, 6.0, 20  # of the losses that a spike is measured by
SMALL = 0.01  # of the mean: deviations below count as this much


class NotFinite(TrainingError):
    """A loss or gradient that is NaN or infinite, after `step` steps."""

    def __init__(self, text: str, step: int):
        super().__init__(text)
        self.step = step


class Guard:
    """Looks at the metrics of every step while the next one runs, so that no step waits for it.

    In `workdir` go spikes.jsonl (a loss more than SIGMAS standard deviations above the mean of the
    last WINDOW) and, when a step is not finite, failure/step_N.json: its metrics, the records of
    its batch, and the largest absolute value of every trained parameter before the step and of its
    gradient. All processes decide alike; process 0 writes.
    """

    def __init__(self, workdir: epath.Path, stream: Stream, states: TrainingState):
        self._workdir, self._stream, self._states = workdir, stream, states
        self._waiting: tuple[int, dict] | None = None
        self._losses: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self._writes = jax.process_index() == 0

    def see(self, step: int, values: dict) -> None:
        """Takes the metrics of `step`, still on their way; looks at those of the step before."""
        self.settle()
        self._waiting = step, values

    def settle(self) -> None:
        """Looks at what was last seen. NotFinite if it is not to go on from."""
        if self._waiting is None:
            return
        (step, values), self._waiting = self._waiting, None
        loss, norm = float(values["loss"]), float(values["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._failed(step, loss, norm, values)
        spike = self._spike(loss)
        self._losses.append(loss)
        if spike and self._writes:
            row = {"step": step, "loss": loss} | spike | {"records": self._records(step)}
            # A note on the side, which a full disk need not end a run for.
            with contextlib.suppress(OSError):
                with contextlib.closing(JsonLines(self._workdir / "spikes.jsonl")) as rows:
                    rows.write(row)

    def _spike(self, loss: float) -> dict | None:
        if len(self._losses) < LEAST:
            return None
        mean, std = float(np.mean(self._losses)), float(np.std(self._losses))
        above = loss > mean + SIGMAS * max(std, SMALL * abs(mean))
        return {"mean": mean, "std": std} if above else None

    def _records(self, step: int) -> list:
        """[source, record] of the examples in each row of the batch that `step` took."""
        return [[list(m[:2]) for m in row] for row in self._stream.members(step - 1)]

    def _failed(self, step: int, loss: float, norm: float, values: dict) -> NotFinite:
        text = (
            f"loss is {loss}, grad_norm {norm} at step {step}; the newest state in "
            f"{self._states.directory} is of step {self._states.latest()[0]}"
        )
        largest = {
            kind: {name: float(x) for name, x in sorted(values[kind].items())}
            for kind in ("largest_params", "largest_grads")
        }
        bad = [n for n, x in largest["largest_grads"].items() if not math.isfinite(x)]
        if bad:
            text += f"; {len(bad)} gradients are not finite, {bad[0]} among them"
        if self._writes:
            file = self._workdir / "failure" / f"step_{step}.json"
            found = {"step": step, "loss": loss, "grad_norm": norm} | largest
            found = jax.tree.map(_number, found) | {"records": self._records(step)}
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(found, indent=1))
                text += f"; {file} says which records and parameters"
            except OSError as error:
                text += f"; {file} could not be written ({error.strerror})"
        return NotFinite(text, step)


def _number(x):
    """As JSON has it, which knows no NaN: those are strings."""
    return x if math.isfinite(x) else str(x)
