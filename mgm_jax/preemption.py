"""Being told to stop: SIGTERM (a preemption, a time limit) and SIGINT (Ctrl-C).

The first signal lets the step that runs come to its end; the loop then saves, and the process ends
with exit code 75 (EX_TEMPFAIL: not done, try again). A second one ends it at once.

The processes of a run must save at the same step, but get their signals at different moments, or
only some of them do. So they vote: after each step every process hands in what it knows, as a tiny
array over all devices that is reduced between two steps, and reads the result of the step before,
which the devices have at hand by then. All read the same result after the same step, no clock and
no server is involved, and no step waits for it; the price is that a stop comes one step later.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mgm_jax.distributed import STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A run that was told to stop, and has kept what it did. Ends the process with code 75."""

    def __init__(self, text: str):
        super().__init__(STOPPED)
        self.text = text


class StopSignals:
    """While entered, handles `SIGNALS` (in the main thread; elsewhere Python cannot).

    `told`: the signal that has come, or None. It ends the run by `Stopped` at once, but not inside
    of `patiently`, where the loop looks at `told` after each step.
    """

    def __init__(self):
        self.told: signal.Signals | None = None
        self._patient = False
        self._before = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, before in self._before.items():
            # None: a handler that is not Python's, which Python cannot put back
            signal.signal(number, signal.SIG_DFL if before is None else before)

    @contextlib.contextmanager
    def patiently(self) -> Iterator[None]:
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def _handle(self, number: int, frame) -> None:
        again, self.told = self.told, signal.Signals(number)
        if again:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._patient:
            write(f"{self.told.name}: the run stops after this step; once more ends it at once")
        else:
            raise self.stopped("outside of a step, which loses nothing")

    def stopped(self, how: str) -> Stopped:
        """The error to end by, with the line that the user reads."""
        told = self.told.name if self.told else "a signal to another process"
        return Stopped(f"stopped by {told} {how}; run the same command again to go on")


def write(text: str) -> None:
    """To stderr, past Python's buffers, which a signal handler may have interrupted."""
    os.write(2, f"\n{text}\n".encode())


class Votes:
    """What any process of a run says; see the module. `count` questions."""

    def __init__(self, mesh: Mesh, count: int):
        self._several = jax.process_count() > 1
        self._count, self._result = count, None
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._shape = (mesh.size, count)
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._any = jax.jit(lambda votes: votes.any(0), out_shardings=everywhere)

    def __call__(self, *flags: bool) -> tuple[bool, ...]:
        """Hands in this process's answers; one process: they are the result. Several: whether any
        process answered so the time before (the first time: no)."""
        if not self._several:
            return flags
        mine = np.array([flags])
        votes = jax.make_array_from_callback(self._shape, self._sharding, lambda index: mine)
        before, self._result = self._result, self._any(votes)
        return (False,) * self._count if before is None else tuple(map(bool, np.asarray(before)))
