"""Several ways to do the same, each a process of its own, which take turns on the same cores."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

CORES = 2


class Sides:
    """Processes `python -m MODULE --side NAME`, in which `answer` runs; used in a `with` block."""

    def __init__(self, module: str, names: Sequence[str]):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # of children, too
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        command = [sys.executable, "-m", module, "--side"]
        self._processes = {name: subprocess.Popen([*command, name], **pipes) for name in names}

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *_) -> None:
        for process in self._processes.values():
            process.stdin.close()
            process.wait()

    def ask(self, side: str, task) -> dict:
        """What a side's function gives for a task, and the `seconds` that it took."""
        process = self._processes[side]
        print(json.dumps(task), file=process.stdin, flush=True)
        if not (line := process.stdout.readline()):
            raise SystemExit(f"error: the process of {side} has ended")
        return json.loads(line)

    def race(self, task, repeats: int) -> dict[str, list[float]]:
        """Seconds of each side in each of its turns."""
        turns = [{s: self.ask(s, task)["seconds"] for s in self._processes} for _ in range(repeats)]
        return {s: [turn[s] for turn in turns] for s in self._processes}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times as fast the second is: the median over the turns."""
    return round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 2)


def answer(run: Callable[[object], dict]) -> None:
    """Be a side: a task a line on stdin, seconds and what `run` gives on stdout."""
    for line in sys.stdin:
        begin = time.perf_counter()
        found = run(json.loads(line))
        print(json.dumps({"seconds": time.perf_counter() - begin} | found), flush=True)
