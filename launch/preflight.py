"""Looks at every host of a run before it begins. The last line printed is JSON; exit code 1 if a
check fails.

    python -m launch.preflight --workdir gs://mine/run1 --config F [--accelerator v5litepod-64]

To be started as training is: on every host (they are compared, and the first one reports), or on
one. Checks: versions and code (the same on all hosts), devices, who holds the TPU, the workdir
(write, read, delete), free disk, clocks; whether the config can be read, its mesh fits the devices,
its batch divides.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from etils import epath

from launch.accelerators import find_slice
from launch.commands import at_least, finish
from mgm_jax.topologies import LIBTPU_LOCK

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
DEVICE_FILES = ("/dev/accel", "/dev/vfio/")
CLOCKS = 5.0  # seconds that hosts may differ by
BYTES = 2**16  # of a host's findings, as JSON


@dataclasses.dataclass(frozen=True)
class Check:
    """One row of the table. `same`: a value that all hosts must have in common."""

    name: str
    ok: bool
    found: str
    same: str = ""


def versions() -> Iterator[Check]:
    """Of Python and the packages; of mgm_jax, a hash over its files."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "-"
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    yield Check("versions", found["jax"] != "-", text, text)
    import mgm_jax

    root = Path(mgm_jax.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    code = digest.hexdigest()[:12]
    yield Check("code", True, f"mgm_jax {mgm_jax.__version__}, {code} ({root})", code)


def holders(proc: str = "/proc") -> dict[int, str]:
    """Process number -> name, of other processes that have a TPU's device file or libtpu's lock
    open; those of other users are seen by root alone."""
    found = {}
    for folder in Path(proc).glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        try:
            files = [os.readlink(fd) for fd in (folder / "fd").iterdir()]
            # /dev/vfio/vfio is the driver's; groups have numbers.
            if any(f.startswith(DEVICE_FILES) or f == LIBTPU_LOCK for f in files):
                found[int(folder.name)] = (folder / "comm").read_text().strip()
        except OSError:  # it has ended, or is another user's
            continue
    return found


def tpu() -> Check:
    """Whether the TPU is free; before JAX takes it."""
    names = [
        str(p)
        for prefix in DEVICE_FILES
        for p in sorted(Path(prefix).parent.glob(f"{Path(prefix).name}*"))
        if not p.is_dir()
    ]
    if not names:
        return Check("tpu is free", True, "no TPU here")
    held = holders()
    text = ", ".join(f"process {n} ({name})" for n, name in held.items())
    if held:
        return Check("tpu is free", False, f"held by {text}; stop it")
    if os.path.exists(LIBTPU_LOCK) and not os.access(LIBTPU_LOCK, os.W_OK):
        return Check("tpu is free", False, f"{LIBTPU_LOCK} is another user's; remove it")
    return Check("tpu is free", True, f"{len(names)} device files")


def devices(expected: int | None, kind: str | None) -> Check:
    """How many, of which kind, in how many processes; against what was said to be expected."""
    import jax

    try:
        found = jax.devices()
    except RuntimeError as error:
        return Check("devices", False, " ".join(str(error).split()))
    kinds = sorted({d.device_kind for d in found})
    text = f"{len(found)} x {', '.join(kinds)} in {jax.process_count()} processes"
    wanted = " x ".join(str(x) for x in (expected, kind) if x is not None)
    ok = expected in (None, len(found)) and (kind is None or kinds == [kind])
    return Check("devices", ok, text if ok else f"{text}, expected {wanted}")


def workdir(path: str) -> Check:
    """A file of its own is written there, read and deleted."""
    folder = epath.Path(path)
    file = folder / f"preflight-{socket.gethostname()}-{os.getpid()}"
    text, step = str(time.time()), "written"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        step = "read"
        same = file.read_text() == text
        step = "deleted"
        file.unlink()
    except Exception as error:  # a bucket's client has errors of its own
        why = " ".join(str(error).split()) or type(error).__name__
        return Check("workdir", False, f"{path}: a file cannot be {step} ({why})")
    found = "written, read, deleted" if same else "a file was read with other contents"
    return Check("workdir", same, f"{path}: {found}")


def disk(path: str, least: int) -> Iterator[Check]:
    """Free space for temporary files, and in the workdir if it is on a disk."""
    places = [tempfile.gettempdir()] + ([path] if "://" not in path else [])
    for place in places:
        there = next(
            p for p in (Path(place).absolute(), *Path(place).absolute().parents) if p.exists()
        )
        free = shutil.disk_usage(there).free / 2**30
        text = f"{place}: {free:.1f} GiB free"
        yield Check("disk", free >= least, text if free >= least else f"{text}, expected {least}")


def config(file: str, overrides: Sequence[str]) -> Iterator[Check]:
    """Whether it can be read, its mesh fits the devices, and its batch divides over the mesh."""
    from mgm_jax.settings import check_numbers, fingerprint, read_config
    from mgm_jax.sharding import batch_shards, make_mesh

    try:
        read = read_config(file, overrides)
        check_numbers(read)
    except (ValueError, AttributeError, KeyError) as error:
        yield Check("config", False, str(error))
        return
    yield Check("config", True, file, fingerprint(read))
    try:
        mesh = make_mesh(read.mesh.to_dict())
    except ValueError as error:
        yield Check("mesh", False, str(error))
        return
    shards, batch = batch_shards(mesh), read.data.batch
    divides = batch % shards == 0
    text = f"config.data.batch {batch} {'divides' if divides else 'does not divide'} into {shards}"
    yield Check("mesh", divides, f"{dict(mesh.shape)}, {text}")


def gather(report: dict) -> list[dict]:
    """Every process's report, in order."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return [report]
    data = json.dumps(report).encode()
    if len(data) > BYTES:
        raise ValueError(f"the findings of a host have {len(data)} bytes, expected {BYTES} at most")
    every = multihost_utils.process_allgather(
        np.frombuffer(data.ljust(BYTES), np.uint8).astype(np.int32)
    )
    return [json.loads(bytes(row.astype(np.uint8))) for row in np.asarray(every)]


def compare(reports: Sequence[dict]) -> Iterator[Check]:
    """What must be the same on all hosts."""
    for name in dict.fromkeys(c["name"] for r in reports for c in r["checks"] if c["same"]):
        by_value: dict[str, list[str]] = {}
        for report in reports:
            for check in report["checks"]:
                if check["name"] == name:
                    by_value.setdefault(check["same"], []).append(report["host"])
        groups = "; ".join(f"{', '.join(hosts)}: {v}" for v, hosts in by_value.items())
        same = len(by_value) == 1
        text = f"the same on all {len(reports)} hosts" if same else groups
        yield Check(f"{name} agree", same, text)
    times = [r["time"] for r in reports]
    apart = max(times) - min(times)
    yield Check("clocks agree", apart <= CLOCKS, f"{apart:.1f} s apart")


def attempt(name: str, check: Callable, *args) -> list[Check]:
    """The rows of a check; one that says why, if it could not be made."""
    try:
        found = check(*args)
        return [found] if isinstance(found, Check) else list(found)
    except Exception as error:  # one check must not hide what the others find
        return [Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")]


def look(args: argparse.Namespace, overrides: Sequence[str]) -> dict:
    """This host's report."""
    import jax

    from mgm_jax import distributed

    checks = attempt("tpu is free", tpu)  # before JAX takes it
    distributed.initialize()
    expected = kind = None
    if args.accelerator:
        found = find_slice(args.accelerator)
        expected, kind = found.chips * args.slices, found.generation.kind
    checks += attempt("versions", versions)
    checks += attempt("devices", devices, args.devices or expected, kind)
    checks += attempt("workdir", workdir, args.workdir)
    checks += attempt("disk", disk, args.workdir, args.free_gib)
    if args.config:
        checks += attempt("config", config, args.config, overrides)
    rows = [dataclasses.asdict(c) for c in checks]
    host = f"{jax.process_index()} {socket.gethostname()}"  # several may be on one host
    return {"host": host, "checks": rows, "time": time.time()}


def table(rows: Sequence[tuple[str, Check]]) -> str:
    """A line a check: ok or FAIL, the host, its name, what was found."""
    hosts, names = max(len(h) for h, _ in rows), max(len(c.name) for _, c in rows)
    return "\n".join(
        f"{'ok  ' if c.ok else 'FAIL'}  {host:{hosts}}  {c.name:{names}}  {c.found}"
        for host, c in rows
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.preflight",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, help="of the run")
    parser.add_argument("--config", metavar="FILE[:ARG]", help="of the run; --config.KEY=VALUE too")
    parser.add_argument("--accelerator", help="the slice that was asked for, such as v5p-64")
    parser.add_argument("--num-slices", dest="slices", type=at_least(1), default=1)
    parser.add_argument("--devices", type=at_least(1), help="how many are expected in all")
    parser.add_argument(
        "--free-gib", type=at_least(0), default=20, help="of disk; default: %(default)s"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if wrong := [a for a in rest if not a.startswith("--config.")]:
        parser.error(f"unknown argument {wrong[0]!r}")
    import jax

    reports = gather(look(args, rest))
    if jax.process_index():
        return 0
    rows = [(r["host"], Check(**c)) for r in reports for c in r["checks"]]
    if len(reports) > 1:
        rows += [("all", check) for check in compare(reports)]
    ok = all(check.ok for _, check in rows)
    print(table(rows))
    failed = [f"{host}: {check.name}" for host, check in rows if not check.ok]
    print(json.dumps({"ok": ok, "failed": failed, "hosts": reports}), flush=True)
    return 0 if ok else 1


if __name__ == "__main__":
    finish(main)
