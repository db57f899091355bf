"""Several hosts simulated on this machine: processes joined by `jax.distributed`.

    python -m launch.local_multiprocess --processes 2 --devices 4 --config F --workdir DIR ...

Each process has its own simulated devices and writes to DIR/logs/process-N.log; what process 0 says
is shown as well. If one fails, all are stopped, and its last lines are shown. Ctrl-C and SIGTERM go
on to all of them: they have --grace seconds to save their state, and the exit code is then 75: not
done, the same command goes on. Everything that is not named below goes to the
module, whose `mgm_jax.distributed.initialize()` joins them.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.commands import TRAIN, at_least, finish, simulated
from mgm_jax.distributed import COORDINATOR, PROCESS, PROCESSES, STOPPED

POLL, LINES = 0.1, 20  # seconds; lines of a log to show


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def started(command: Sequence[str], logs: Sequence[Path], devices: int, grace: float) -> Iterator:
    """One process for each log, joined; on leaving, those that still run are ended."""
    joined = {COORDINATOR: f"localhost:{free_port()}", PROCESSES: str(len(logs))}
    processes = []
    try:
        for i, log in enumerate(logs):
            env = simulated(os.environ, devices) | joined | {PROCESS: str(i)}
            with log.open("wb") as file:
                # A session of its own: Ctrl-C comes to us, and we tell it on.
                processes.append(
                    subprocess.Popen(
                        command,
                        env=env,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield processes
    finally:
        stop(processes, grace)


def stop(processes: Sequence[subprocess.Popen], grace: float) -> None:
    """SIGTERM to all that run; SIGKILL, to all that they have started, after `grace` seconds."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    end = time.monotonic() + grace
    try:
        while any(p.poll() is None for p in processes) and time.monotonic() < end:
            time.sleep(POLL)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def watch(processes: Sequence[subprocess.Popen], log: Path, grace: float) -> int | None:
    """Shows `log` as it grows, until all have ended well (None) or one has failed: its number.

    Where one has been told to stop, the others are about to: they have `grace` seconds for it."""
    end = math.inf
    with log.open("rb") as file:
        while True:
            codes = [process.poll() for process in processes]
            while block := file.read(2**16):
                sys.stderr.buffer.write(block)
                sys.stderr.flush()
            failed = sorted((code == STOPPED, i) for i, code in enumerate(codes) if code)
            if failed and failed[0][0]:
                end = min(end, time.monotonic() + grace)
            if failed and (not failed[0][0] or None not in codes or time.monotonic() > end):
                return failed[0][1]
            if None not in codes:
                return None
            time.sleep(POLL)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.local_multiprocess",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=at_least(1), default=2, help="default: %(default)s")
    parser.add_argument("--devices", type=at_least(1), default=4, help="of each; %(default)s")
    parser.add_argument("--workdir", required=True, help="a local folder; goes to the module too")
    parser.add_argument("--module", default=TRAIN, help="what to run; default: %(default)s")
    parser.add_argument(
        "--grace", type=at_least(0), default=60, help="seconds from SIGTERM to SIGKILL; %(default)s"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or that of the process that failed (128 + N for signal N)."""
    args, rest = build_parser().parse_known_args(argv)
    if "://" in args.workdir:
        raise ValueError(f"--workdir is {args.workdir}, expected a local folder: logs go there")
    folder = Path(args.workdir) / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"process-{i}.log" for i in range(args.processes)]
    command = [sys.executable, "-m", args.module, f"--workdir={args.workdir}", *rest]
    print(f"{args.processes} x {shlex.join(command)}\nlogs: {folder}", file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with started(command, logs, args.devices, args.grace) as processes:
            failed = watch(processes, logs[0], args.grace)
            code = 0 if failed is None else processes[failed].returncode
    except KeyboardInterrupt:
        if all(process.returncode == STOPPED for process in processes):
            print("stopped, not done: the same command goes on", file=sys.stderr)
            return STOPPED
        print("interrupted: all processes were ended", file=sys.stderr)
        return 128 + signal.SIGINT
    if code == STOPPED:
        print("stopped, not done: the same command goes on", file=sys.stderr)
        return code
    if failed is not None:
        how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        print(f"process {failed} failed ({how}); all were stopped", file=sys.stderr)
    if failed:  # what process 0 says has been shown
        lines = logs[failed].read_text(errors="replace").splitlines()[-LINES:]
        print("\n".join([f"{logs[failed]} ends:", *lines]), file=sys.stderr)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    finish(main)
