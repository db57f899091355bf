"""The states of a run that is not finished: kept by step, restored onto any mesh.

`workdir/state/STEP/` holds `state/` (trainable parameters and optimizer, an orbax tree) and `run/`
(JSON: step, configuration, data, frozen bases, measurements). It is written beside the training and
counts from the moment its last byte is there: locally it is renamed then, in a bucket it gets a
commit file then. So a kill leaves the state before it, and a leftover that is never taken for one.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from mgm_jax.checkpoint import (
    CheckpointError,
    first_line,
    place,
    restore_tree,
    why_unwritten,
    writing,
)
from mgm_jax.distributed import anywhere, first_process_does
from mgm_jax.settings import fingerprint

LEFTOVER = ".orbax-checkpoint-tmp"  # in the name of what is not whole, or is being removed
COMMIT = "commit_success.txt"  # in a bucket, the last file of a state
TIMEOUT = 300  # seconds that the processes of a run wait for each other's writing


class TrainingState:
    """The states of a run by step.

    Frozen parameters are not stored: they come from the run's `init` again. `fingerprint` (the
    run's configuration) must be the same when a run is resumed. `keep`: newest states that stay;
    `keep_every`: those of its multiples stay for ever; `best`: (name of a measurement, "min" or
    "max"), whose best state stays too. `retries`: seconds from each failed saving in a row to the
    next try.

    With several processes all of them call `clear`, `restore_newest`, `save` and `close`.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        fingerprint: str,
        keep: int = 1,
        keep_every: int | None = None,
        best: tuple[str, str] | None = None,
        retries: tuple[float, ...] = (2, 10, 60),
    ):
        self.directory = place(directory)
        self.fingerprint = fingerprint
        self._rules = {"keep": keep, "keep_every": keep_every, "best": best}
        self._retries = retries
        self._metrics: dict[int, Mapping[str, float]] = {}
        self._damaged: set[int] = set()
        self._writing: tuple[int, Future] | None = None  # the step that is being written
        self._attempts = 0
        self._failed, self._why = False, "another process could not write its part"
        self._failures, self._again_at = 0, math.inf

    # ------------------------------------------------------------------------------------ reading

    def steps(self) -> list[int]:
        """Steps of the whole states, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(ocp.utils.checkpoint_steps(self.directory))

    def latest(self) -> tuple[int, dict | None]:
        """The newest step whose `run` can be read, and what its data were (`save`); or (0, None).

        CheckpointError if another configuration made it, or no state can be read.
        """
        if self._writing:
            self._writing[1].exception()
        steps = self.steps()
        for step in reversed(steps):
            with contextlib.suppress(CheckpointError):
                found = self._run(step)
                break
        else:
            if steps:
                self._run(steps[-1])
            return 0, None
        if found["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{self.directory / str(step)} belongs to a run with another configuration; use "
                "another workdir, or delete it to start anew"
            )
        return step, found["data"]

    def _run(self, step: int) -> dict:
        with self._reading(step) as where:
            found = ocp.JsonCheckpointHandler().restore(where / "run")
            return {key: found[key] for key in ("step", "fingerprint", "data", "metrics")}

    def restore(self, step: int, abstract):
        """The state at `step`, placed as the ShapeDtypeStructs of `abstract` say.

        `abstract`: the whole state, or some entries of it: no others are read then.
        """
        self._run(step)
        with self._reading(step) as where:
            return restore_tree(where / "state", abstract)

    def restore_newest(self, abstract):
        """(step, state) of the newest state that can be read; says so if that is not the newest.

        CheckpointError if there is none.
        """
        for step in reversed(self.steps()):
            state, error = None, None
            try:
                state = self._twice(step, abstract)
            except CheckpointError as e:
                error = e
            if not anywhere(error is not None):
                return step, state
            if error:
                say(f"WARNING: {error}; going on from an older state, and losing steps with that")
            self._damaged.add(step)
        raise CheckpointError(
            f"{self.directory}: none of its states can be read; delete it to start anew"
        )

    def _twice(self, step: int, abstract):
        """`restore`; tried again once, in case a disk or a bucket had a weak moment."""
        with contextlib.suppress(CheckpointError):
            return self.restore(step, abstract)
        time.sleep(1)
        return self.restore(step, abstract)

    @contextlib.contextmanager
    def _reading(self, step: int):
        where = self.directory / str(step)
        try:
            yield where
        except Exception as e:  # whatever a damaged file makes orbax and its parts raise
            raise CheckpointError(f"{where}: unreadable training state ({first_line(e)})") from e

    # ------------------------------------------------------------------------------------- saving

    def clear(self) -> None:
        """Makes the directory, and removes what a killed run has left in it. CheckpointError."""
        with writing(self.directory, "training states"):
            first_process_does(self._clear)

    def _clear(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for step in self._damaged:
            self._remove(step)
        self._damaged.clear()
        whole = {str(step) for step in self.steps()}
        for entry in list(self.directory.iterdir()):
            if LEFTOVER in entry.name or (entry.name.isdigit() and entry.name not in whole):
                entry.rmtree(missing_ok=True)

    def save(
        self,
        step: int,
        state,
        data: dict,
        metrics: Mapping[str, float] | None = None,
        *,
        last: bool = False,
    ) -> None:
        """Copies the state from the devices, and writes it while training goes on.

        data: what the run's data are, as JSON (`Run.identity`). metrics: the newest measurements.
        A failure is said, and no error: `again` tells when to save once more. With `last` the state
        is written on return, after several tries if need be; CheckpointError if they all fail.
        """
        self._finish()
        if not anywhere(step not in self.steps() or step in self._damaged):
            return  # a run that had come to its end is run again
        for wait in (*(self._retries if last else ()), None):
            self._begin(step, state, data, dict(metrics or {}))
            if not last or self._finish():
                return
            if wait is not None:
                time.sleep(wait)
        raise CheckpointError(
            f"{self.directory}: the state of step {step} could not be saved ({self._why}); the "
            f"newest saved one is of step {max(self.steps(), default=0)}; mend it, and run the "
            "same command again"
        )

    def _begin(self, step: int, state, data: dict, metrics: dict) -> None:
        self._attempts += 1
        run = {"step": step, "fingerprint": self.fingerprint, "data": data, "metrics": metrics}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        self._metrics[step], done = metrics, Future()
        try:
            first_process_does(self._clear)
            checkpointer = ocp.AsyncCheckpointer(
                ocp.CompositeCheckpointHandler(),
                timeout_secs=TIMEOUT,
                # A barrier that some have left in the middle is never met again.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=f"state{self._attempts}"
                ),
            )
            checkpointer.save(self.directory / str(step), args=args)
            threading.Thread(
                target=_resolve, args=(done, checkpointer.wait_until_finished), daemon=True
            ).start()
        except Exception as e:  # orbax, tensorstore and file systems have errors of their own
            done.set_exception(e)
        self._writing, self._again_at = (step, done), math.inf

    def again(self) -> bool:
        """Whether to save once more what could not be saved: True once for each try. Waits for
        nothing, and says that a writing has failed: to be called after every step."""
        self._note()
        if time.monotonic() < self._again_at:
            return False
        self._again_at = math.inf
        return True

    def _note(self) -> bool:
        """Takes in how the writing has ended, if it has; whether the last one failed here."""
        if not self._writing or not self._writing[1].done():
            return self._failed
        (step, done), self._writing = self._writing, None
        error = done.exception()
        if error is None:
            self._failures = 0
            return False
        self._failed, self._why = True, why_unwritten(error) or first_line(error)
        if self._failures < len(self._retries):  # after that only where a saving is due anyway
            self._again_at = time.monotonic() + self._retries[self._failures]
        self._failures += 1
        say(
            f"WARNING: {self.directory}: the state of step {step} was not saved ({self._why}); it "
            "will be tried again"
        )
        return True

    def _finish(self) -> bool:
        """Waits for the writing in the background; False if it failed in any process."""
        step = self._writing and self._writing[0]
        if not anywhere(self._note()) and self._writing:  # where one failed, others wait in vain
            self._writing[1].exception()
        failed = anywhere(self._note())
        self._writing, self._failed = None, False
        if step and not failed and jax.process_index() == 0:
            with contextlib.suppress(OSError):  # what cannot be removed now is removed next time
                self._prune()
        return not failed

    def close(self) -> None:
        """Waits for what is being written."""
        self._finish()

    # ------------------------------------------------------------------------------- what is kept

    def _prune(self) -> None:
        steps = self.steps()
        if self._rules["best"]:
            for step in steps:
                if step not in self._metrics:
                    with contextlib.suppress(CheckpointError):
                        self._metrics[step] = self._run(step)["metrics"]
        for step in set(steps) - kept(steps, self._metrics, **self._rules):
            self._remove(step)

    def _remove(self, step: int) -> None:
        """A kill in the middle leaves a leftover, never half a state."""
        where = self.directory / str(step)
        if "://" in str(where):
            (where / COMMIT).unlink(missing_ok=True)
        else:
            where = where.rename(self.directory / f"{step}{LEFTOVER}-removed")
        where.rmtree()


def open_states(config: ConfigDict, workdir: epath.PathLike) -> TrainingState:
    """The states of the run that a config describes."""
    rules = config.checkpoint
    return TrainingState(
        place(workdir) / "state",
        fingerprint=fingerprint(config),
        keep=rules.keep,
        keep_every=rules.keep_every,
        best=(rules.best, rules.best_mode) if rules.best else None,
        retries=rules.retries,
    )


def kept(
    steps: Iterable[int],
    metrics: Mapping[int, Mapping[str, float]],
    *,
    keep: int,
    keep_every: int | None,
    best: tuple[str, str] | None,
) -> set[int]:
    """Which steps stay: the newest `keep`, multiples of `keep_every`, and the best by metric (the
    newest of equals; one that was not measured, or is NaN, does not compete)."""
    steps = sorted(steps)
    found = set(steps[-keep:])
    if keep_every:
        found |= {step for step in steps if step % keep_every == 0}
    if best:
        name, mode = best
        values = {s: metrics.get(s, {}).get(name, math.nan) for s in steps}
        sign = 1 if mode == "max" else -1
        if values := {s: sign * v for s, v in values.items() if not math.isnan(v)}:
            found.add(max(values, key=lambda s: (values[s], s)))
    return found


def _resolve(future: Future, work: Callable[[], object]) -> None:
    try:
        future.set_result(work())
    except BaseException as e:
        future.set_exception(e)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
