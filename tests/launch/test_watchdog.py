"""The watchdog with commands that crash, hang, give up, and are told to stop."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.watchdog import DONE, GIVEN_UP, USED_UP, End, Heartbeat, Rules, verdict, wait_before

ROOT = Path(__file__).parents[2]
QUICK = ("--first-wait=0.1", "--too-soon=1", "--failures=5")


def watchdog(*options, script, **kwargs):
    """A watchdog over `python -c script`, as a process."""
    command = [
        sys.executable,
        "-m",
        "launch.watchdog",
        *options,
        "--",
        sys.executable,
        "-c",
        script,
    ]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


CRASH_TWICE = """
import os, sys
n = os.path.getsize({file!r}) if os.path.exists({file!r}) else 0
open({file!r}, "a").write("x")
print("run", n, flush=True)
if n == 0: os.kill(os.getpid(), 9)
if n == 1: raise RuntimeError("DEADLINE_EXCEEDED")
"""


def test_what_crashes_is_restarted_until_it_is_done(tmp_path):
    script = CRASH_TWICE.format(file=str(tmp_path / "runs"))
    code, out, err = finish(watchdog(*QUICK, script=script))
    assert (code, out.count("run")) == (DONE, 3)
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d watchdog: SIGKILL after 0 s", err, re.M), err
    assert "exit code 1 after" in err and "restart in" in err


@pytest.mark.parametrize(
    "script",
    [
        "import sys; sys.exit('error: config.steps is 0, expected at least 1')",
        "import sys; print('usage: train'); sys.exit(2)",
    ],
)
def test_a_mistake_is_given_up_at_once_with_its_last_lines(script):
    code, out, err = finish(watchdog(*QUICK, script=script))
    assert code == GIVEN_UP and err.count(": start ") == 1
    assert err.rstrip().endswith(("expected at least 1", "usage: train"))


def test_a_command_that_is_not_there_is_given_up():
    command = [sys.executable, "-m", "launch.watchdog", "--", "no-such-command"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == GIVEN_UP and "no-such-command: No such file" in done.stderr


def test_a_bucket_that_cannot_be_read_is_no_hang():
    class Away(Exception):
        """Not an OSError, like those of a bucket's client."""

    class Path:
        error = FileNotFoundError()

        def stat(self):
            raise self.error

    heartbeat = Heartbeat("there")
    heartbeat.path = Path()
    heartbeat.changed -= 100
    assert heartbeat.still_for() > 99 and heartbeat.moved is False
    heartbeat.path.error = Away()
    assert heartbeat.still_for() < 1 and heartbeat.moved is False
    heartbeat.path.error = ImportError("Please install gcsfs")
    with pytest.raises(ValueError, match="cannot be read .Please install gcsfs"):
        heartbeat.still_for()


def test_quick_failures_in_a_row_are_given_up():
    options = ("--first-wait=0.1", "--failures=3")
    code, _, err = finish(watchdog(*options, script="print(1/0)"))
    assert code == GIVEN_UP and err.count(": start ") == 3
    assert "ZeroDivisionError" in err.splitlines()[-1]


def test_the_restarts_of_a_supervised_command_are_none():
    code, _, err = finish(watchdog("--restarts=0", script="import os; os.abort()"))
    assert code == USED_UP and "SIGABRT" in err


def test_a_hang_shows_its_stacks_and_is_restarted(tmp_path):
    script = f"""
import pathlib, time
def stuck_in_a_collective(): time.sleep(100)
runs = pathlib.Path({str(tmp_path / "runs")!r})
runs.touch()
runs.write_text(runs.read_text() + "x")
pathlib.Path({str(tmp_path / "heartbeat")!r}).write_text("step")
if runs.read_text() == "x": stuck_in_a_collective()
"""
    options = (f"--heartbeat={tmp_path / 'heartbeat'}", "--hang-minutes=0.03", *QUICK)
    code, out, err = finish(watchdog(*options, script=script))
    assert code == DONE, err
    assert "stuck_in_a_collective" in out and "hung, SIGABRT" in err


SAVES = """
import signal, subprocess, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, {handler})
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print("worker", worker.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("handler", ["save", "signal.SIG_IGN"])
def test_sigterm_goes_on_and_nothing_is_left(handler, tmp_path):
    pids = tmp_path / "pids"
    script = SAVES.format(handler=handler)
    process = watchdog("--grace=1", f"--pids={pids}", script=script)
    line = process.stdout.readline()
    assert pids.read_text().split()[0] == str(process.pid)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 143 and ("saved" in out) == (handler == "save"), err
    assert ("SIGKILL" in err) == (handler != "save") and "stopped by SIGTERM" in err
    assert not pids.exists()
    time.sleep(0.1)
    with pytest.raises(ProcessLookupError):  # a worker dies with it
        _running(int(line.split()[1]))


def _running(number):
    os.kill(number, 0)
    if " Z " in Path(f"/proc/{number}/stat").read_text():
        raise ProcessLookupError


def test_a_second_watchdog_of_a_run_is_refused(tmp_path):
    pids = tmp_path / "pids"
    pids.write_text(f"{os.getpid()} 0\n")  # an old file, with a number that is another's by now
    first = watchdog(
        f"--pids={pids}", script="print(1, flush=True); input()", stdin=subprocess.PIPE
    )
    assert first.stdout.readline() == "1\n"
    code, _, err = finish(watchdog(f"--pids={pids}", script=""))
    assert code == 1
    assert err == f"error: {pids}: process {first.pid} is at work already; stop it first\n"
    assert first.communicate("\n", timeout=60)[0] == "" and first.returncode == DONE


def end(code=1, *lines, seconds=1000.0, moved=None, hung=False):
    return End(code, lines, seconds, moved, hung)


@pytest.mark.parametrize(
    "ends, expected",
    [
        ([end(0)], DONE),
        ([end(1, "Traceback", "XlaRuntimeError: ABORTED")], None),
        ([end(-9)], None),
        ([end(134)], None),
        ([end(1, "error: no such key")], GIVEN_UP),
        ([end(1, "error: bucket is away", moved=True)], None),
        ([end(1, "error: bucket is away", moved=True)] * 2, GIVEN_UP),
        ([end(1, "error: loss is nan", moved=True), end(1, "error: other", moved=True)], None),
        ([end(-9, moved=False)] * 3, GIVEN_UP),  # however long it waited for the other hosts
        ([end(-9, seconds=1), end(-9), end(-9, seconds=1)], None),
        ([end(-6, hung=True, moved=True)], None),
    ],
)
def test_verdicts(ends, expected):
    assert verdict(ends, Rules()) == expected


def test_waits_double_and_start_again_after_a_long_run():
    rules = Rules(first_wait=5, longest_wait=30)
    short = end(-9, seconds=1)
    assert [wait_before([short] * n, rules) for n in (1, 2, 3, 4)] == [5, 10, 20, 30]
    assert wait_before([short, short, end(-9)], rules) == 5
