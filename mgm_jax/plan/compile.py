"""Compiles a job for TPUs in a process of its own, and keeps what came out.

The compiler takes a lock of the machine and ends its process where it fails, so a child compiles:
`python -m mgm_jax.plan.compile JOB DIRECTORY`. Results are found again by what was lowered.
"""

from __future__ import annotations

import dataclasses
import fcntl
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from mgm_jax.plan.job import Job
from mgm_jax.topologies import LIBTPU_LOCK

CACHE = Path("~/.cache/mgm_jax/plan")
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
VERSIONS = ("jax", "jaxlib", "libtpu")


class PlanError(ValueError):
    """A program that could not be compiled, for a reason other than memory."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler said of one program.

    `memory`: bytes a chip, `arguments`, `outputs`, `alias`, `temporaries`, `code`, or, where it
    does not fit, `peak` alone (`oom` is then the compiler's message and there is no `hlo`).
    `kinds`: bytes of arguments by kind; `seconds`: of the compile; `hlo`: scheduled text, gzipped;
    `coords`: of the chips in the order of the program; `slices`: which slice each is in.
    """

    name: str
    memory: dict[str, int]
    kinds: dict[str, int]
    oom: str | None
    seconds: float
    versions: dict[str, str]
    coords: list[list[int]]
    slices: list[int]
    mesh: dict[str, int]
    hlo: Path

    @property
    def peak(self) -> int:
        """Bytes a chip."""
        m = self.memory
        if self.oom:
            return m["peak"]
        return m["arguments"] + m["outputs"] - m["alias"] + m["temporaries"] + m["code"]

    def text(self) -> str:
        return gzip.decompress(self.hlo.read_bytes()).decode()


def leave_the_compiler_alone() -> None:
    """For a process that asks for compiles: it works on the CPU. One that looked for TPUs would
    keep libtpu from its own children."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def compile_job(job: Job, say: Callable[[str], None] | None = None) -> list[Compiled]:
    """The compiled programs of a job, from the cache where they are there.

    `say` gets a line of progress every second. PlanError for what cannot be compiled.
    """
    with tempfile.TemporaryDirectory(prefix="mgm_jax_plan_") as directory:
        out = Path(directory)
        command = [sys.executable, "-m", "mgm_jax.plan.compile", job.dumps(), directory]
        log = out / "log"
        begin = time.monotonic()
        with open(log, "w") as stderr:
            child = subprocess.Popen(
                command, env=os.environ | ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=stderr
            )
            try:
                while child.poll() is None:
                    time.sleep(0.2)
                    if say:
                        doing = out / "doing"
                        what = doing.read_text() if doing.exists() else "starting"
                        say(f"{what}, {time.monotonic() - begin:.0f} s")
            finally:
                child.kill()
                child.wait()
        done = out / "done"
        if child.returncode or not done.exists():
            raise PlanError(_reason(log.read_text(errors="replace"), child.returncode))
        return [_load(Path(path)) for path in json.loads(done.read_text())]


def _reason(log: str, code: int) -> str:
    """The one line of a child's log that says what was wrong."""
    lines = [line for line in log.splitlines() if line.strip()]
    wrong = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    last = (wrong or lines or ["no message"])[-1]
    if "ModuleNotFoundError" in last and "libtpu" in last or "TPU library" in log:
        return "the TPU compiler is missing: pip install 'mgm-jax[plan]'"
    if "multi-process lockfile" in last:
        return (
            "another process on this machine uses libtpu: wait for it, or run it under "
            "JAX_PLATFORMS=cpu"
        )
    last = re.sub(r"^[\w.]*(?:TrainingError|ValueError|PlanError): ", "", last)
    return f"{last}" if wrong else f"the compiler ended with code {code}: {last}"


def _load(directory: Path) -> Compiled:
    values = json.loads((directory / "result.json").read_text())
    return Compiled(**values, hlo=directory / "program.hlo.gz")


# ------------------------------------------------------------------------------------- the child


def main(argv: list[str]) -> None:
    job, out = Job.loads(argv[0]), Path(argv[1])
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def doing(text: str) -> None:
        (out / "doing").write_text(text)

    with open(Path(tempfile.gettempdir()) / "mgm_jax_libtpu.lock", "a") as lock:
        doing("waiting for another compile on this machine")
        fcntl.flock(lock, fcntl.LOCK_EX)
        while _busy(Path(LIBTPU_LOCK)):
            doing("waiting for another program that uses libtpu (JAX_PLATFORMS=cpu keeps it out)")
            time.sleep(1)
        doing("tracing")
        paths = [str(_compile(*item, doing)) for item in _lower(job)]
    (out / "done").write_text(json.dumps(paths))


def _busy(lock: Path) -> bool:
    """Whether another process holds this file, as libtpu does with its own from loading on."""
    if not lock.exists():
        return False
    with open(lock, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _end_with(parent: int) -> None:
    """Ends this process, and frees the compiler's lock, when the one that asked is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _lower(job: Job):
    """(part, lowered, mesh) of each program of a job."""
    import jax

    from mgm_jax import sharding, topologies
    from mgm_jax.plan import job as jobs
    from mgm_jax.plan import serving, vision

    place = topologies.topology(job.topology)
    config, cfg = job.read()
    shape = dict(config.mesh.to_dict())
    if job.serve:
        shape = serving.mesh_shape(config, cfg, place, job.serve.batch)
    if place.slices > 1 and shape.get("data", 1) == 1:
        shape["data"] = place.slices  # slices lie along data, whatever else is asked for
    mesh = sharding.make_mesh(shape, topologies.devices(place))
    if job.serve:
        parts = serving.parts(config, cfg, mesh, job.serve)
    elif job.vision:
        parts = vision.parts(config, cfg, mesh, job.vision)
    else:
        parts = jobs.training(config, cfg, mesh, job.text_only)
    for part in parts:
        # Not set_mesh: there is no device that a concrete operation could run on.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            lowered = part.function.lower(*part.args)
        yield part, lowered, mesh


def _compile(part, lowered, mesh, doing) -> Path:
    """The cache's directory of a lowered program, compiled now if it is not there."""
    from mgm_jax import xla_flags

    versions = {name: metadata.version(name) for name in VERSIONS}
    options = xla_flags.options(mesh)  # of the program, whose text does not show them
    flags = {k: os.environ.get(k, "") for k in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    devices = mesh.devices.ravel().tolist()
    coords = [list(d.coords) for d in devices]
    slices = [getattr(d, "slice_index", 0) for d in devices]
    kinds = part.bytes_by_kind()
    program = (lowered.as_text(), versions, flags, sorted(options.items()), coords, slices)
    key = repr((*program, sorted(kinds.items())))
    digest = hashlib.sha256(key.encode()).hexdigest()[:24]
    directory = CACHE.expanduser() / digest
    if (directory / "result.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    doing(f"compiling {part.name}")
    begin, oom, memory = time.monotonic(), None, {}
    try:
        compiled = lowered.compile()
    except Exception as error:  # jax's error types differ by version; the message is what counts
        oom = str(error)
        if "RESOURCE_EXHAUSTED" not in oom:
            raise
        memory = {"peak": _used(oom)}
    else:
        stats = compiled.memory_analysis()
        names = ("argument", "output", "alias", "temp", "generated_code")
        ours = ("arguments", "outputs", "alias", "temporaries", "code")
        sizes = [getattr(stats, f"{n}_size_in_bytes") for n in names]
        memory = dict(zip(ours, sizes, strict=True))
        text = compiled.as_text().encode()
        (directory / "program.hlo.gz").write_bytes(gzip.compress(text, 1))
    result = dict(
        name=part.name,
        memory=memory,
        kinds=kinds,
        oom=oom,
        seconds=round(time.monotonic() - begin, 1),
        versions=versions,
        coords=coords,
        slices=slices,
        mesh=dict(mesh.shape),
    )
    written = directory / "result.json.new"
    written.write_text(json.dumps(result))
    written.rename(directory / "result.json")
    return directory


def _used(message: str) -> int:
    """Bytes that a program would need, from the compiler's message that it does not fit."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"Used ([\d.]+)([KMGT]?) of", message)
    found = found or re.search(r"memory required[^(]*\(([\d.]+)([KMGT]?)\)", message)
    return int(float(found[1]) * units[found[2]]) if found else 0


if __name__ == "__main__":
    main(sys.argv[1:])
