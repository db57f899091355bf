"""What a command costs: seconds and peak resident memory; and what a plain copy costs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Cost:
    seconds: float
    peak: int  # bytes resident at most

    def rate(self, nbytes: int) -> float:
        """Bytes a second."""
        return nbytes / self.seconds


def own_peak() -> int:
    """Bytes that this process held resident at most. Unlike `ru_maxrss` it leaves out what the
    process that started it held."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


# A process that is small itself: the kernel counts what the parent held into the child's peak.
BETWEEN = """
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(child.pid, 0)
cost = {"seconds": time.perf_counter() - start, "peak": 1024 * usage.ru_maxrss}
with open(sys.argv[1], "w") as file:
    json.dump({"code": os.waitstatus_to_exitcode(status), "cost": cost}, file)
"""


def run(command: Sequence[str], log: Path) -> Cost:
    """Runs a command to its end, its output in `log`. RuntimeError if it fails."""
    outcome = log.with_suffix(".json")
    with open(log, "wb") as stream:
        between = [sys.executable, "-c", BETWEEN, str(outcome), *command]
        subprocess.run(between, stdout=stream, stderr=subprocess.STDOUT, check=True)
    found = json.loads(outcome.read_text())
    if found["code"]:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-4000:]}")
    return Cost(**found["cost"])


def files_of(directory: Path) -> list[Path]:
    return sorted(f for f in directory.rglob("*") if f.is_file())


def forget(directory: Path) -> None:
    """Drops the files' pages from memory, so that the next reader goes to the disk."""
    for file in files_of(directory):
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def copy(src: Path, dst: Path, piece: int = 16 << 20) -> float:
    """Seconds of a copy of every file, each synced to the disk."""
    start = time.perf_counter()
    for file in files_of(src):
        target = dst / file.relative_to(src)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "rb", buffering=0) as a, open(target, "wb", buffering=0) as b:
            while data := a.read(piece):
                b.write(data)
            os.fsync(b.fileno())
    return time.perf_counter() - start
