"""Signs of life: a file that says that a run goes on, and stacks when it does not."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import signal
import sys
import tempfile
import threading
import time

from etils import epath

FIRST = 4  # times as long as later steps may the first one take, which is compiled


class Heartbeat:
    """Touches `file` as steps are done (`launch.watchdog` looks at it); a context.

    While entered, a thread writes the stacks of all threads to a file in `stacks` when no step was
    done for `minutes` (None: never), once a stall, and says so. SIGUSR1 shows them at any time, on
    stderr.
    """

    def __init__(self, file: epath.Path, stacks: epath.Path, minutes: float | None):
        self._file, self._stacks = file, stacks
        self._allowed = minutes and minutes * 60
        self._last, self._touched, self._beats = time.monotonic(), -1.0, 0
        self._over = threading.Event()

    def beat(self) -> None:
        """To be called at every step; the file is touched once a second at most."""
        self._last, self._beats = time.monotonic(), self._beats + 1
        if self._last - self._touched > 1:
            self._touched = self._last
            with contextlib.suppress(OSError):  # a full disk ends a run elsewhere
                self._file.touch()

    def __enter__(self) -> Heartbeat:
        with contextlib.suppress(AttributeError, ValueError, io.UnsupportedOperation):
            faulthandler.register(signal.SIGUSR1, all_threads=True)  # where there is such a signal
        if self._allowed:
            threading.Thread(target=self._watch, name="stall watch", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()

    def _watch(self) -> None:
        told = -1  # the beat after which a stall was told
        while not self._over.wait(min(self._allowed / 4, 10)):
            beats, still = self._beats, time.monotonic() - self._last
            if beats != told and still > self._allowed * (1 if beats else FIRST):
                told = beats
                self._tell(still)

    def _tell(self, seconds: float) -> None:
        file = self._stacks / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        stacks = all_stacks()
        where = f"; the stacks are in {file}"
        try:
            self._stacks.mkdir(parents=True, exist_ok=True)
            file.write_text(stacks)
        except OSError:
            where = f":\n{stacks}"
        print(f"\nno step was done for {seconds / 60:.1f} minutes{where}", file=sys.stderr)


def all_stacks() -> str:
    """The Python stacks of all threads."""
    with tempfile.TemporaryFile() as file:  # faulthandler writes to file descriptors only
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
