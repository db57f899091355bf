"""TPU VMs by gcloud's queued resources: ask for them, send the code, train, stop, delete.

    python -m launch.tpu_vm create --name run1 --zone us-west4-a --accelerator v5litepod-64 --spot
    python -m launch.tpu_vm status|push|setup|tail|stop|delete --name run1 --zone us-west4-a
    python -m launch.tpu_vm preflight|run --name run1 --zone us-west4-a --bucket gs://mine \\
        --config F ...

Every command is only printed, until --execute. A run's state goes to BUCKET/NAME: where a spot
slice is taken away, delete, create, push, setup and run the same again, and it goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.accelerators import find_slice
from launch.commands import (
    TRAIN,
    add_execute,
    at_least,
    check_has_config,
    check_name,
    finish,
    run_all,
)

CODE = "mgm_jax_code"  # the folder of the code, in the home of every worker
PYTHON = "3.11"  # the images bring an older one
HARD = 15  # seconds that a stop waits, beyond the grace


@dataclasses.dataclass(frozen=True)
class TpuVm:
    """A queued resource, and the run that it is for."""

    name: str
    zone: str
    project: str | None = None
    accelerator: str = "v5litepod-16"
    slices: int = 1
    spot: bool = False
    reserved: bool = False
    valid_until: str | None = None
    service_account: str | None = None
    bucket: str | None = None
    ref: str = "HEAD"
    grace: int = 300

    def __post_init__(self):
        check_name(self.name)
        find_slice(self.accelerator)
        if self.spot and self.reserved:
            raise ValueError("--spot and --reserved were both given, expected one of them")
        if self.bucket and not self.bucket.startswith("gs://"):
            raise ValueError(f"--bucket is {self.bucket!r}, expected gs://...")

    @property
    def workdir(self) -> str:
        if not self.bucket:
            raise ValueError("--bucket is not set: the hosts of a slice share no disk")
        return f"{self.bucket.rstrip('/')}/{self.name}"

    @property
    def log(self) -> str:
        return f"{self.name}.log"

    @property
    def pids(self) -> str:
        return f"{self.name}.pids"


def _gcloud(vm: TpuVm, verb: str, *args: str) -> list[str]:
    where = [f"--zone={vm.zone}"] + ([f"--project={vm.project}"] if vm.project else [])
    return ["gcloud", "compute", "tpus", "queued-resources", verb, *args, *where]


def _on_workers(vm: TpuVm, command: str, *, everywhere: bool = True) -> list[str]:
    who = "all" if everywhere else "0"
    return _gcloud(vm, "ssh", vm.name, f"--node={who}", f"--worker={who}", f"--command={command}")


def create(vm: TpuVm, rest: Sequence[str] = ()) -> list[list[str]]:
    """One node, or several of the same kind: a multislice."""
    runtime = find_slice(vm.accelerator).generation.runtime
    one = [f"--node-id={vm.name}"]
    several = [f"--node-count={vm.slices}", f"--node-prefix={vm.name}"]
    options = {
        "--spot": vm.spot,
        "--reserved": vm.reserved,
        f"--valid-until-duration={vm.valid_until}": vm.valid_until,
        f"--service-account={vm.service_account}": vm.service_account,
    }
    return [
        _gcloud(
            vm,
            "create",
            vm.name,
            f"--accelerator-type={vm.accelerator}",
            f"--runtime-version={runtime}",
            *(one if vm.slices == 1 else several),
            *(option for option, wanted in options.items() if wanted),
        )
    ]


def status(vm: TpuVm, rest: Sequence[str] = ()) -> list[list[str]]:
    return [_gcloud(vm, "describe", vm.name, "--format=yaml(name,state,tpu.nodeSpec)")]


def push(vm: TpuVm, rest: Sequence[str] = ()) -> list[list[str]]:
    """The committed tree, to every worker; what is not in it any more goes."""
    archive = str(Path(tempfile.gettempdir()) / f"{vm.name}.tar.gz")
    unpack = f"rm -rf {CODE}.new && mkdir {CODE}.new && tar -xzf {vm.name}.tar.gz -C {CODE}.new"
    # The virtual environment of an earlier setup stays.
    keep = f"if [ -d {CODE}/.venv ]; then mv {CODE}/.venv {CODE}.new/; fi"
    swap = f"rm -rf {CODE} && mv {CODE}.new {CODE}"
    return [
        ["git", "archive", "--format=tar.gz", f"--output={archive}", vm.ref],
        _gcloud(vm, "scp", archive, f"{vm.name}:", "--node=all", "--worker=all"),
        _on_workers(vm, f"{unpack} && {keep} && {swap}"),
    ]


def setup(vm: TpuVm, rest: Sequence[str] = ()) -> list[list[str]]:
    """A virtual environment with a Python that is new enough, and what constraints.txt names."""
    steps = [
        f"cd {CODE}",
        "python3 -m pip install --quiet --user uv",
        f"~/.local/bin/uv venv --quiet --allow-existing --python {PYTHON} .venv",
        "~/.local/bin/uv pip install --quiet --constraint constraints.txt --editable '.[tpu,gcs]'",
        ".venv/bin/python -c 'import jax; print(jax.__version__)'",
    ]
    return [_on_workers(vm, " && ".join(steps))]


def preflight(vm: TpuVm, rest: Sequence[str] = ()) -> list[list[str]]:
    """`launch.preflight` on all workers at once."""
    command = [".venv/bin/python", "-m", "launch.preflight", *rest, f"--workdir={vm.workdir}"]
    return [_on_workers(vm, f"cd {CODE} && {shlex.join(command)}")]


def run(vm: TpuVm, rest: Sequence[str] = ()) -> list[list[str]]:
    """Training on all workers, detached, each under its watchdog; its log in the home folder."""
    train = [".venv/bin/python", "-m", TRAIN, *rest, f"--workdir={vm.workdir}"]
    watchdog = [
        *(".venv/bin/python", "-m", "launch.watchdog"),
        f"--heartbeat={vm.workdir}/heartbeat",
        f"--grace={vm.grace}",
    ]
    # Numbers and log lie in the home folder, which the shell knows.
    command = f'{shlex.join(watchdog)} --pids="$HOME/{vm.pids}" -- {shlex.join(train)}'
    return [
        _on_workers(vm, f"cd {CODE} && (setsid nohup {command} >>~/{vm.log} 2>&1 </dev/null &)")
    ]


def tail(vm: TpuVm, rest: Sequence[str] = ()) -> list[list[str]]:
    return [_on_workers(vm, f"tail -n 100 -F {vm.log}", everywhere=False)]


def stop(vm: TpuVm, rest: Sequence[str] = ()) -> list[list[str]]:
    """SIGTERM to the watchdogs, which let training save its state; SIGKILL to what is left."""
    command = (
        f"[ -f {vm.pids} ] || {{ echo nothing runs; exit 0; }}; "
        f"read -r watchdog train <{vm.pids}; "
        # After a restart of the host the number may be another process's.
        f"grep -qz launch.watchdog /proc/$watchdog/cmdline || {{ rm {vm.pids}; "
        "echo nothing runs; exit 0; }; kill -TERM $watchdog; "
        f"for i in $(seq {vm.grace + HARD}); do kill -0 $watchdog 2>/dev/null || break; "
        f"sleep 1; done; kill -KILL -$train $watchdog 2>/dev/null; rm -f {vm.pids}; echo stopped"
    )
    return [_on_workers(vm, command)]


def delete(vm: TpuVm, rest: Sequence[str] = ()) -> list[list[str]]:
    """The queued resource and its nodes."""
    return [_gcloud(vm, "delete", vm.name, "--force", "--quiet")]


# command -> (what renders it, what it does)
COMMANDS: dict[str, tuple[Callable[..., list[list[str]]], str]] = {
    "create": (create, "ask for the slices"),
    "status": (status, "has the request been granted"),
    "push": (push, "copy the committed code to all workers"),
    "setup": (setup, "install Python and packages on all workers"),
    "preflight": (preflight, "check all workers; further arguments go to launch.preflight"),
    "run": (run, "train on all workers; further arguments go to mgm_jax.train"),
    "tail": (tail, "follow the log of worker 0"),
    "stop": (stop, "let all workers save their state and stop"),
    "delete": (delete, "give the slices back"),
}
FURTHER = ("preflight", "run")  # they take further arguments


def check_clean(ref: str) -> None:
    """ValueError if the tree has changes that a push of HEAD would leave behind."""
    command = ["git", "status", "--porcelain", "--untracked-files=no"]
    changed = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    if changed and ref == "HEAD":
        raise ValueError(
            f"{changed[0][3:]} has changes that are not committed, and push sends a commit; "
            "commit them, or name the commit that is meant with --ref"
        )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.tpu_vm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (render, text) in COMMANDS.items():
        sub = commands.add_parser(
            name, help=text, description=render.__doc__ or text, allow_abbrev=False
        )
        sub.add_argument("--name", required=True, help="of the queued resource and the run")
        sub.add_argument("--zone", required=True)
        sub.add_argument("--project", help="default: gcloud's own")
        add_execute(sub, f"really {text}")
        if name == "create":
            sub.add_argument("--accelerator", default=TpuVm.accelerator, help="%(default)s")
            sub.add_argument(
                "--num-slices", dest="slices", type=at_least(1), default=1, help="%(default)s"
            )
            sub.add_argument("--spot", action="store_true", help="cheaper; may be taken away")
            sub.add_argument("--reserved", action="store_true", help="from a reservation")
            sub.add_argument("--valid-until", help="how long to wait for them, such as 6h")
            sub.add_argument("--service-account")
        if name == "push":
            sub.add_argument("--ref", default=TpuVm.ref, help="the commit; default: %(default)s")
        if name in FURTHER:
            sub.add_argument("--bucket", required=True, help="gs://...; the run is BUCKET/NAME")
        if name in ("run", "stop"):
            sub.add_argument(
                "--grace", type=at_least(1), default=TpuVm.grace, help="seconds to save its state"
            )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in FURTHER:
        parser.error(f"unknown argument {rest[0]!r}")
    known = {f.name for f in dataclasses.fields(TpuVm)}
    vm = TpuVm(**{k: v for k, v in vars(args).items() if k in known})
    if args.command == "run":
        check_has_config(rest)
    if any(a.partition("=")[0] == "--workdir" for a in rest):
        raise ValueError(f"--workdir was given; the run's name fixes it: {vm.workdir}")
    if args.command == "push" and args.execute:
        check_clean(vm.ref)
    return run_all(COMMANDS[args.command][0](vm, rest), args.execute)


if __name__ == "__main__":
    finish(main)
