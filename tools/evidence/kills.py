"""Kills conversions, finishes them, and compares the result with that of one left alone.

    python -m tools.evidence.kills SRC WORKDIR --files --random 30

`--files` kills as soon as a certain file appears, for every kind of file that a conversion makes;
`--random N` at N moments spread over its whole time; both in both directions. Each kill begins in
an empty directory. Prints a line of JSON for each direction and way; fails where one byte differs.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mgm_jax.convert.checkpoints import from_hf, to_hf

# What appears in the directory, in order: the phases of a conversion, each of which may be cut off.
PHASES = {
    "from-hf": (
        ".convert.json.partial",
        ".convert.json",
        "params.unfinished/llm.embed.embedding/.zarray",
        "params.unfinished/llm.embed.embedding/0.0.partial",
        "params.unfinished/llm.layers.mlp.up_proj.kernel/0.0.0",
        "params.unfinished/mining.value.kernel/0.0",
        "params.unfinished/_METADATA.partial",
        "params.unfinished/_METADATA",
        "params",
        "tokenizer",
        "tokenizer/mgm_tokenizer.json",
        "mgm.json.partial",
        "mgm.json",
    ),
    "to-hf": (
        ".convert.json",
        "model-00001*.safetensors.partial",
        "model-00001*.safetensors",
        "model-00002*.safetensors.partial",
        "model-00002*.safetensors",
        "model.safetensors.index.json.partial",
        "model.safetensors.index.json",
        "config.json.partial",
        "config.json",
        "tokenizer.model",
        "tokenizer_config.json.partial",
        "tokenizer_config.json",
    ),
}


def begun(work: Callable[[], object]) -> int:
    """A child that does the work; its id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Waits for a child: 0 if it did its work, -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(work: Callable[[], object], now: Callable[[], bool]) -> bool:
    """Kills the work when `now()` holds; False if it ended before."""
    pid = begun(work)
    while not now():
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
    os.kill(pid, signal.SIGKILL)
    return ended(pid) == -signal.SIGKILL


def digests(directory: Path) -> dict[str, str]:
    """sha256 of every file."""
    found = {}
    for file in sorted(f for f in directory.rglob("*") if f.is_file()):
        with open(file, "rb", buffering=0) as stream:
            name = str(file.relative_to(directory))
            found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def phase(directory: Path, names: tuple[str, ...]) -> str:
    """The last of the names that has appeared."""
    return next((n for n in reversed(names) if any(directory.glob(n))), "nothing")


def trial(work, dst: Path, now, expected: Mapping[str, str], names) -> str | None:
    """One kill and its mending. The phase that it cut off, or None if the work was done before."""
    hit = killed(work, now)
    where = phase(dst, names)
    if code := ended(begun(work)):
        raise RuntimeError(f"killed after {where}, the second run failed with {code}")
    found = digests(dst)
    if found != expected:
        differ = [n for n in expected.keys() | found if expected.get(n) != found.get(n)]
        raise RuntimeError(f"killed after {where}, {sorted(differ)[:5]} differ")
    shutil.rmtree(dst)
    return where if hit else None


def soak(work: Callable[[Path], object], names, workdir: Path, *, files: bool, moments: int, rng):
    """(way, tried, {phase: kills}) for each way; `work(directory)` converts into it."""
    undisturbed, dst = workdir / "undisturbed", workdir / "killed"
    for place in (undisturbed, dst):  # the first one also warms up
        start = time.perf_counter()
        if ended(begun(lambda place=place: work(place))):
            raise RuntimeError("the undisturbed conversion failed")
        seconds, expected = time.perf_counter() - start, digests(place)
    if expected != digests(undisturbed):
        raise RuntimeError("two undisturbed conversions differ")
    shutil.rmtree(dst)

    def after(delay):
        start = []

        def now():
            start.append(time.perf_counter())
            return start[-1] - start[0] >= delay or time.sleep(1e-3)

        return now

    ways = {
        "files": [lambda n=name: any(dst.glob(n)) for name in names] if files else [],
        "random": [None] * moments,
    }
    for way, conditions in ways.items():
        hits = collections.Counter()
        for now in conditions:
            now = now or after(rng.uniform(0, seconds))
            hits[trial(lambda: work(dst), dst, now, expected, names)] += 1
        if conditions:
            before = hits.pop(None, 0)
            yield {"way": way, "seconds": round(seconds, 2), "kills": hits, "too late": before}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("src", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--files", action="store_true")
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--shard-size", type=int, default=5 * 10**9)
    args = parser.parse_args(argv)
    ours, options = args.workdir / "ours", {"progress": False}
    works = {
        "from-hf": lambda dst: from_hf(args.src, dst, **options),
        "to-hf": lambda dst: to_hf(ours, dst, shard_size=args.shard_size, **options),
    }
    for direction, work in works.items():
        place = args.workdir / direction
        place.mkdir(parents=True)
        done = soak(
            work,
            PHASES[direction],
            place,
            files=args.files,
            moments=args.random,
            rng=random.Random(direction),
        )
        for result in done:
            print(json.dumps({"direction": direction, **result}), flush=True)
        if direction == "from-hf":
            (place / "undisturbed").rename(ours)


if __name__ == "__main__":
    main()
