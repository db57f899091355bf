"""What the launchers share: a run's command line, simulated devices, and dry runs."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

TRAIN = "mgm_jax.train"
# On a busy machine simulated devices reach a collective far apart, which XLA takes for a hang.
SIMULATION = {
    "--xla_force_host_platform_device_count": None,
    "--xla_cpu_collective_call_terminate_timeout_seconds": "600",
}


def simulated(env: Mapping[str, str], devices: int) -> dict[str, str]:
    """`env` with that many simulated devices of the CPU in place of the real ones."""
    kept = [f for f in env.get("XLA_FLAGS", "").split() if f.partition("=")[0] not in SIMULATION]
    added = [f"{flag}={value or devices}" for flag, value in SIMULATION.items()]
    return {**env, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(kept + added)}


def check_name(name: str) -> str:
    """A run's name, where clusters want a DNS label."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise ValueError(
            f"--name is {name!r}, expected at most 40 of a-z, 0-9 and '-', beginning with a letter"
        )
    return name


def at_least(least: int) -> Callable[[str], int]:
    """A type of argparse: a whole number, not below `least`."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number from {least} on")
        return int(text)

    return whole_number


def add_execute(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--execute", action="store_true", help=f"{what}; without it, it is only printed"
    )


def check_has_config(arguments: Sequence[str]) -> None:
    """Training looks at its arguments itself; but without a config nothing should be rented."""
    if not any(a.partition("=")[0] == "--config" for a in arguments):
        raise ValueError("--config is not given: name the config to train")


def run_all(commands: Sequence[Sequence[str]], execute: bool) -> int:
    """Prints each command, runs it if `execute`; the exit code of the first that fails, or 0."""
    for command in commands:
        print(shlex.join(command), flush=True)
        if execute and (code := _run(command)):
            print(f"failed with exit code {code}: {shlex.join(command)}", file=sys.stderr)
            return code
    return _end(execute)


def hand_over(text: str, command: Sequence[str], execute: bool) -> int:
    """Prints a text, gives it to the command's stdin if `execute`; the exit code."""
    print(text, end="", flush=True)
    return _run(command, input=text, text=True) if execute else _end(execute)


def _end(execute: bool) -> int:
    if not execute:
        print("dry run: nothing was done; --execute does it", file=sys.stderr)
    return 0


def _run(command: Sequence[str], **kwargs) -> int:
    try:
        return subprocess.run(command, **kwargs).returncode
    except FileNotFoundError:
        raise ValueError(
            f"{command[0]}: this program is not installed; install it, or use what a dry run "
            "prints where it is"
        ) from None


def finish(main: Callable[[], int]) -> None:
    """Leaves the process with what `main` says; an expected error is one line, exit code 1."""
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
