"""Runs a command until it is done: restarts it when it crashes or hangs.

    python -m launch.watchdog [--heartbeat WORKDIR/heartbeat] -- python -m mgm_jax.train ...

How the command ended decides what happens; the waits between restarts double up to --longest-wait:

    exit code 0                   done
    1, last line "error: ..."     a mistake in the configuration or data: given up, unless the run
                                  had got going (its heartbeat moved) and it is a new error
    2, 126, 127                   a wrong command line, a command that cannot be run: given up
    anything else, any signal     restarted

It is also given up after --failures ends in a row that came too soon: within --too-soon seconds,
or before the heartbeat moved. A heartbeat that stands still for --hang-minutes means that the
command hangs: it is told to show its stacks (SIGABRT; Python does so under PYTHONFAULTHANDLER,
which is set), and restarted.

SIGTERM and SIGINT go on to the command, which has --grace seconds to save its state and is not
restarted. Training ends with exit code 75 when it was told to stop and has saved: not done. If that
signal did not come from here, it is restarted like after a crash.

The watchdog's own exit codes: 0 done; 64 given up: restarting cannot mend it (or what
--given-up-code says); 75 not done, but it can go on: it was told to stop and has saved, or it
failed and --restarts are used up; 143 or 130 it was told to stop and has not saved.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import psutil
from etils import epath

from launch.commands import at_least, finish
from mgm_jax.distributed import STOPPED

DONE, GIVEN_UP, USED_UP = 0, 64, STOPPED  # of sysexits.h: usage, temporary failure
HOPELESS = (2, 126, 127)
TAIL, LINES = 2**14, 20  # bytes that are kept of the output; lines of them that are shown
POLL, STACKS = 0.2, 10  # seconds: between two looks; for the stacks to be written


@dataclasses.dataclass(frozen=True)
class Rules:
    """When to restart what. Times in seconds, but for `hang_minutes`."""

    restarts: int = 1000
    failures: int = 3
    too_soon: int = 60
    first_wait: float = 5
    longest_wait: float = 300
    grace: int = 300
    hang_minutes: float = 30


@dataclasses.dataclass(frozen=True)
class End:
    """How a command ended: its exit code (-N: signal N), its last output, how long it ran, whether
    its heartbeat moved (None: it has none), whether it was killed since it hung."""

    code: int
    lines: tuple[str, ...]
    seconds: float
    moved: bool | None = None
    hung: bool = False

    @property
    def error(self) -> str | None:
        """The last line, where it is all that a command says that ends by a clear error."""
        last = self.lines[-1] if self.lines else ""
        return last if self.code == 1 and last.startswith("error: ") else None

    def __str__(self) -> str:
        how = f"exit code {self.code}" if self.code >= 0 else signal.Signals(-self.code).name
        return f"{'hung, ' if self.hung else ''}{how} after {self.seconds:.0f} s"


def verdict(ends: Sequence[End], rules: Rules) -> int | None:
    """What to do after these ends, newest last: an exit code of the watchdog, or None: restart."""
    last = ends[-1]
    if last.code == 0 and not last.hung:
        return DONE
    repeated = len(ends) > 1 and ends[-2].error == last.error
    if last.code in HOPELESS or (last.error and (not last.moved or repeated)):
        return GIVEN_UP
    recent = ends[-rules.failures :]
    soon = [e.seconds < rules.too_soon or e.moved is False for e in recent]
    if len(ends) > rules.restarts:
        return USED_UP
    return GIVEN_UP if len(recent) == rules.failures and all(soon) else None


def wait_before(ends: Sequence[End], rules: Rules) -> float:
    """Seconds before the next start: doubled for each end in a row that came too soon."""
    soon = 0
    while soon < len(ends) and ends[-1 - soon].seconds < rules.too_soon:
        soon += 1
    return min(rules.first_wait * 2 ** max(soon - 1, 0), rules.longest_wait)


class Heartbeat:
    """A file whose time of change says that work goes on. No clock of another host is trusted:
    only that the time is another one than before, and when we saw that."""

    def __init__(self, path: str | None):
        self.path = path and epath.Path(path)
        self.changed, self.seen = time.monotonic(), None
        self.moved = False if path else None
        if path:
            self.seen = self._time()

    def _time(self) -> float | None:
        try:
            return self.path.stat().mtime
        except FileNotFoundError:
            return None
        except ImportError as error:
            raise ValueError(f"{self.path}: cannot be read ({error})") from error
        except Exception:  # a bucket's client has errors of its own; they do not mean a hang
            self.changed = time.monotonic()
            return self.seen

    def still_for(self) -> float:
        """Seconds since it moved, or since the start; 0 where there is none."""
        if not self.path:
            return 0
        now = self._time()
        if now != self.seen:
            self.seen, self.moved, self.changed = now, True, time.monotonic()
        return time.monotonic() - self.changed


class Output(threading.Thread):
    """Copies a pipe to our stdout as it comes, and keeps its end."""

    def __init__(self, pipe):
        super().__init__(daemon=True)
        self.pipe, self.tail = pipe, b""
        self.start()

    def run(self) -> None:
        while block := os.read(self.pipe.fileno(), 2**16):
            self.tail = (self.tail + block)[-TAIL:]
            sys.stdout.buffer.write(block)
            sys.stdout.flush()

    def lines(self) -> tuple[str, ...]:
        text = self.tail.decode(errors="replace")
        return tuple([line for line in text.splitlines() if line.strip()][-LINES:])


class Watchdog:
    """`run()` returns the exit code. `pids`: a file that holds our number and the command's."""

    def __init__(self, command, rules: Rules, heartbeat: str | None = None, pids=None):
        self.command, self.rules, self.heartbeat, self.pids = command, rules, heartbeat, pids
        self.stopped: int | None = None  # the signal that told us to
        self.woken = threading.Event()

    def stop(self, number: int, frame=None) -> None:
        """A signal handler: run() will pass the signal on, and come to an end."""
        self.stopped = number
        self.woken.set()

    def run(self) -> int:
        ends: list[End] = []
        while not self.stopped:
            say(f"start {len(ends) + 1}: {shlex.join(self.command)}")
            ends.append(self._once())
            say(str(ends[-1]))
            code = verdict(ends, self.rules)
            if self.stopped:
                break
            if code == DONE:
                return DONE
            if code is not None:
                why = "restarting cannot mend this" if code == GIVEN_UP else "no restarts are left"
                say(f"given up: {why}; its last lines were:")
                print("\n".join(ends[-1].lines), file=sys.stderr)
                return code
            seconds = wait_before(ends, self.rules)
            say(f"restart in {seconds:.0f} s")
            self.woken.wait(seconds)
        saved = bool(ends) and ends[-1].code == STOPPED
        how = "; its state is saved" if saved else ""
        say(f"stopped by {signal.Signals(self.stopped).name}{how}")
        return STOPPED if saved else 128 + self.stopped

    def _once(self) -> End:
        begun, heartbeat, hung = time.monotonic(), Heartbeat(self.heartbeat), False
        try:
            process = subprocess.Popen(
                self.command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that all that it starts can be ended with it
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            )
        except OSError as error:
            return End(127, (f"{self.command[0]}: {error.strerror}",), 0)
        if self.pids:
            self.pids.write_text(f"{os.getpid()} {process.pid}\n")
        output = Output(process.stdout)
        looked = 0.0
        while process.poll() is None and not self.stopped and not hung:
            self.woken.wait(POLL)
            if time.monotonic() - looked > min(self.rules.hang_minutes * 6, 10):
                looked = time.monotonic()
                hung = heartbeat.still_for() > self.rules.hang_minutes * 60
        if hung:
            say(f"no heartbeat for {self.rules.hang_minutes:g} minutes: its stacks, then SIGKILL")
            end(process, signal.SIGABRT, STACKS)
        else:
            end(process, self.stopped, self.rules.grace)
        output.join(timeout=5)
        heartbeat.still_for()
        return End(
            process.returncode, output.lines(), time.monotonic() - begun, heartbeat.moved, hung
        )


def end(process: subprocess.Popen, number: int | None, grace: float) -> None:
    """Sends the signal, if the process still runs; after `grace` seconds it is killed, with all
    that it has started."""
    if process.poll() is None:
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace)
        if process.poll() is None:
            say(f"it did not end in {grace} s: SIGKILL")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} watchdog: {text}", file=sys.stderr, flush=True)


def check_alone(pids: epath.Path) -> None:
    """ValueError if the watchdog that wrote this file still runs."""
    try:
        number = int(pids.read_text().split()[0])
        words = psutil.Process(number).cmdline()
    except (OSError, ValueError, IndexError, psutil.Error):
        return
    if "launch.watchdog" not in words:  # an old file: the number is another process's by now
        return
    raise ValueError(f"{pids}: process {number} is at work already; stop it first")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.watchdog",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--heartbeat", metavar="FILE", help="what training touches at each step")
    parser.add_argument("--pids", metavar="FILE", help="to write process numbers to, for a stop")
    for field in dataclasses.fields(Rules):
        kind = float if field.type == "float" else at_least(0 if field.name == "restarts" else 1)
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=field.default, help="default: %(default)s")
    parser.add_argument(
        "--given-up-code", type=at_least(1), default=GIVEN_UP, help="default: %(default)s"
    )
    parser.add_argument("command", nargs="+", metavar="-- COMMAND")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    rules = Rules(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Rules)})
    pids = args.pids and epath.Path(args.pids)
    if pids:
        check_alone(pids)
    watchdog = Watchdog(args.command, rules, args.heartbeat, pids)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, watchdog.stop)
    try:
        code = watchdog.run()
        return args.given_up_code if code == GIVEN_UP else code
    finally:
        if pids:
            pids.unlink(missing_ok=True)


if __name__ == "__main__":
    finish(main)
