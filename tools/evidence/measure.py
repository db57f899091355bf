"""What a command costs: seconds and peak resident memory; and what a plain copy costs."""

from __future__ import annotations

import dataclasses
import os
import subprocess
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


def run(command: Sequence[str], log: Path) -> Cost:
    """Runs a command to its end, its output in `log`. RuntimeError if it fails."""
    with open(log, "wb") as stream:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-4000:]}")
    return Cost(seconds, usage.ru_maxrss * 1024)


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
