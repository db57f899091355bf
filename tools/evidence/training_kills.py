"""Kills training runs at random moments, lets them go on, and compares with one left alone.

    python -m tools.evidence.training_kills --workdir DIR --kills 20 --json FILE

A tiny model of the demo trains with frequent states. It is killed (SIGKILL) at random moments from
its start to its end, `--kills` times, and goes on each time, in two ways: always as one process,
and alternating one process and two (of all devices, or half of them each). A run that comes to its
end before the kills are used up is followed by another. Every end of the first way must have the
same parameters, bit by bit; of the second the same batches, hash by hash, and parameters that agree
to 1e-5 relative to the largest of each array. Fails where that does not hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

from launch.local_multiprocess import started

DEVICES = 2
TOLERANCE = 1e-5


def build(root: Path) -> str:
    """The data and base model of a demo; the config of its stage 2."""
    from mgm_jax.configs import demo as config

    from mgm_jax.demo import run

    if not (root / "mining_stage1").exists():
        root.mkdir(parents=True, exist_ok=True)
        demo = run.Demo(root, seed=0, size="smoke")
        demo.build_data()
        demo.build_tokenizer()
        demo._save_base("mining", {})
        shutil.copytree(root / "base_mining", root / "mining_stage1" / "model")
    return f"{config.__file__}:stage=2,size=smoke,root={root}"


def recording(out: str) -> None:
    """A process of the run: trains, and writes the sha256 of each batch that it made to `out`."""
    import jax
    from jax.experimental import multihost_utils

    from mgm_jax import distributed, sharding

    distributed.initialize()
    place = sharding.place_batch

    def recorded(batch, mesh, groups, held):
        placed = place(batch, mesh, groups, held)
        whole = multihost_utils.process_allgather(placed, tiled=True)
        digest = hashlib.sha256(b"".join(whole[name].tobytes() for name in sorted(whole)))
        if jax.process_index() == 0:
            with open(out, "a") as file:
                file.write(digest.hexdigest() + "\n")
        return placed

    sharding.place_batch = recorded
    runpy.run_module("mgm_jax.train", run_name="__main__")


class Runs:
    """Starts a run's processes, and kills them after `seconds` if they still run."""

    def __init__(self, arguments: list[str], workdir: Path):
        self.workdir = workdir
        self.hashes = workdir / "hashes"
        module = [sys.executable, "-m", "tools.evidence.training_kills", "--record"]
        self.command = [*module, str(self.hashes), *arguments, f"--workdir={workdir}"]
        workdir.mkdir(parents=True)

    def once(self, processes: int, seconds: float | None) -> tuple[bool, float, list[str]]:
        """-> (whether it was killed, seconds that it ran, hashes of the batches it made)."""
        self.hashes.unlink(missing_ok=True)
        logs = [self.workdir / f"process-{i}.log" for i in range(processes)]
        begun = time.monotonic()
        with started(self.command, logs, DEVICES // processes, grace=0) as running:
            while any(p.poll() is None for p in running):
                if seconds is not None and time.monotonic() - begun > seconds:
                    for process in running:
                        process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.01)
        codes = [p.wait() for p in running]
        if any(codes) and -signal.SIGKILL not in codes:
            raise RuntimeError(f"{codes}: {logs[0].read_text()[-4000:]}")
        found = self.hashes.read_text().split("\n")[:-1] if self.hashes.exists() else []
        return any(codes), time.monotonic() - begun, found

    def newest(self) -> int:
        state = self.workdir / "state"
        names = [d.name for d in state.iterdir()] if state.exists() else []
        return max((int(name) for name in names if name.isdigit()), default=0)


def same_batches(whole: list[str], found: list[str], start: int) -> bool:
    return found == whole[start : start + len(found)]


def difference(one: Path, other: Path) -> tuple[bool, float]:
    """(bit by bit the same, largest difference relative to the largest value of an array)."""
    import jax
    import numpy as np

    from mgm_jax.checkpoint import load_checkpoint
    from mgm_jax.tree import flatten

    a, b = (
        flatten(jax.tree.map(np.asarray, load_checkpoint(d / "model").params)) for d in (one, other)
    )
    same = a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)
    worst = 0.0
    for name in a:
        x, y = (v[name].astype(np.float64) for v in (a, b))
        worst = max(worst, float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-30)))
    return same, worst


def soak(arguments: list[str], workdir: Path, whole, counts: tuple[int, ...], kills: int, seed):
    """Kills until `kills` have hit; a run that ends before that is compared, and begun anew."""
    rng = random.Random(seed)
    runs, log, ends, since = Runs(arguments, workdir), [], [], 0
    hashes, uninterrupted, seconds = whole
    while len(log) < kills:
        start, processes = runs.newest(), counts[len(log) % len(counts)]
        # Starting takes most of a run's time: kills are spread over that and a few states.
        killed, ran, found = runs.once(processes, rng.uniform(0.2, 1) * seconds[processes])
        if not same_batches(hashes, found, start):
            raise RuntimeError(f"kill {len(log)}: other batches after step {start}")
        if not killed:
            if len(log) > since:
                ends.append((len(log) - since, *difference(uninterrupted, workdir)))
            since = len(log)
            shutil.rmtree(workdir)
            workdir.mkdir()
            continue
        log.append(
            {"processes": processes, "after_s": round(ran, 2), "from": start, "to": runs.newest()}
        )
        print(json.dumps(log[-1]), file=sys.stderr, flush=True)
    start, processes = runs.newest(), counts[len(log) % len(counts)]
    _, _, found = runs.once(processes, None)
    ends.append((len(log) - since, *difference(uninterrupted, workdir)))
    same, worst = all(e[1] for e in ends), max(e[2] for e in ends)
    result = {
        "processes": list(counts),
        "kills": kills,
        "kills_of_each_run": [e[0] for e in ends],
        "states_written_between_kills": sum(k["to"] > k["from"] for k in log),
        "same_batches": same_batches(hashes, found, start),
        "bit_identical": same,
        "largest_relative_difference": worst,
        "log": log,
    }
    result["ok"] = result["same_batches"] and (same if len(counts) == 1 else worst <= TOLERANCE)
    return result


def main() -> None:
    if sys.argv[1:2] == ["--record"]:
        out = sys.argv[2]
        sys.argv[1:] = sys.argv[3:]
        return recording(out)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=2, help="steps from state to state")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    workdir = args.workdir.absolute()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(workdir / "cache"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PLATFORMS"] = "cpu"
    data = "--config.data"
    arguments = [
        f"--config={build(workdir / 'demo')}",
        *(f"--config.steps={args.steps}", f"--config.checkpoint.every={args.every}"),
        *(f"{data}.workers=0", f"{data}.threads=0", f"{data}.cache_features="),
        "--config.log_every=1",
    ]
    hashes, seconds = None, {}
    for processes in (1, 2):  # the first of each fills the compilation cache
        for name in ("warm", "whole"):
            place = workdir / f"{name}{processes}"
            _, seconds[processes], found = Runs(arguments, place).once(processes, None)
        hashes = hashes or found
        if found != hashes:
            raise RuntimeError("one process and two make other batches")
    whole = (hashes, workdir / "whole1", seconds)
    results = [
        soak(arguments, workdir / f"killed{len(c)}", whole, c, args.kills, args.seed)
        for c in ((1,), (1, 2))
    ]
    for r in results:
        print(
            f"{r['kills']} kills ({r['kills_of_each_run']} of each run that came to its end), "
            f"processes {r['processes']}: states written between kills "
            f"{r['states_written_between_kills']}, same batches {r['same_batches']}, bit-identical "
            f"{r['bit_identical']}, largest relative difference "
            f"{r['largest_relative_difference']:.2e}: {'ok' if r['ok'] else 'FAILED'}"
        )
    summary = {"steps": args.steps, "every": args.every, "devices": DEVICES, "results": results}
    line = json.dumps({"seconds": seconds} | summary)
    print(line)
    if args.json:
        args.json.write_text(line + "\n")
    sys.exit(not all(r["ok"] for r in results))


if __name__ == "__main__":
    main()
