"""The converter at full size: memory, speed, equality, kills, dry runs, a real decoder.

    python -m tools.evidence.convert --workdir DIR [--out docs/evidence]

Needs 50 GB of disk. A run that was interrupted goes on with the step that it was at; results lie in
DIR/results.json. Writes convert.md and convert.json, and fails if a bound is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from mgm_jax.models.config import MgmConfig
from mgm_jax.models.presets import MODELS
from tools.evidence import measure, report
from tools.evidence.synthetic import write_checkpoint

ROOT = Path(__file__).parents[2]
VOCABULARY = ROOT / "tests" / "golden" / "tokenizers" / "llama2" / "tokenizer.model"
FULL, DRY = "MGM-7B-HD", ("MGM-34B", "MGM-8x7B")
BOUNDS = {"peak": 3 * 10**9, "of copy": 0.3}  # bytes resident, share of copy + fsync
PACKAGES = ("mgm-jax", "jax", "numpy", "orbax-checkpoint", "tensorstore", "safetensors")
CONVERT = ("mgm-jax", "convert")


def shown(command: list[str], workdir: Path) -> str:
    """A command as a user would type it, in the working directory."""
    return " ".join(command).replace(f"{workdir}/", "")


def convert(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tools.convert_weights", *map(str, arguments)]


def with_tokenizer(directory: Path) -> None:
    shutil.copy(VOCABULARY, directory)
    options = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(options))


def fresh(*directories: Path) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def full_source(workdir: Path) -> dict:
    fresh(workdir / "hf")
    nbytes = write_checkpoint(MODELS[FULL], workdir / "hf")
    with_tokenizer(workdir / "hf")
    return {"model": FULL, "bytes": nbytes}


def conversion(workdir: Path, what: str, source: str, target: str) -> dict:
    """A copy and a conversion of the same bytes, neither of them in memory before."""
    src, dst, copied = workdir / source, workdir / target, workdir / "copy"
    fresh(dst, copied)
    nbytes = sum(f.stat().st_size for f in measure.files_of(src))
    measure.forget(src)
    copy = measure.copy(src, copied)
    fresh(copied)
    measure.forget(src)
    command = convert(what, "--src", src, "--dst", dst)
    cost = measure.run(command, workdir / "log.txt")
    return {
        "command": shown([*CONVERT, *command[3:]], workdir),
        "bytes": nbytes,
        "seconds": cost.seconds,
        "copy seconds": copy,
        "rate": nbytes / cost.seconds,
        "copy rate": nbytes / copy,
        "of copy": copy / cost.seconds,
        "peak": cost.peak,
    }


def comparison(workdir: Path) -> dict:
    """Every tensor there and back, bit for bit, as the `safetensors` package reads them."""
    from safetensors import safe_open

    def where(directory):
        index = json.loads((directory / "model.safetensors.index.json").read_text())
        return index["weight_map"]

    a, b = workdir / "hf", workdir / "back"
    before, after = where(a), where(b)
    if before.keys() != after.keys():
        raise SystemExit(f"names differ: {sorted(before.keys() ^ after.keys())[:5]}")
    opened = {d: {f: safe_open(d / f, "np") for f in set(where(d).values())} for d in (a, b)}
    for name in before:
        x, y = (opened[d][m[name]].get_tensor(name) for d, m in ((a, before), (b, after)))
        same = x.dtype == y.dtype and x.shape == y.shape
        if not same or not np.array_equal(x.view(np.uint8), y.view(np.uint8)):
            raise SystemExit(f"{name} differs")
    config = [json.loads((d / "config.json").read_text()) for d in (a, b)]
    tokenizer = [(d / "tokenizer.model").read_bytes() for d in (a, b)]
    if config[0] != config[1] or tokenizer[0] != tokenizer[1]:
        raise SystemExit("config.json or the tokenizer differs")
    return {"tensors": len(before), "bytes": sum((b / f).stat().st_size for f in opened[b])}


def dry_run(workdir: Path, model: str) -> dict:
    """A whole mapping from files that have their full size, but nothing on disk."""
    src, log = workdir / model, workdir / "log.txt"
    fresh(src)
    nbytes = write_checkpoint(MODELS[model], src, sparse=True)
    command = convert("from-hf", "--src", src, "--dry-run")
    cost = measure.run(command, log)
    lines = log.read_text().splitlines()
    mapped = [line for line in lines if " -> " in line]
    fresh(src)
    if lines[-1] != f"{len(mapped)} tensors":
        raise SystemExit(f"{model}: {len(mapped)} lines, but {lines[-1]!r}")
    return {
        "command": shown([*CONVERT, *command[3:]], workdir),
        "bytes": nbytes,
        "tensors": len(mapped),
        "seconds": cost.seconds,
        "peak": cost.peak,
        "first and last": [mapped[0], mapped[-1]],
    }


def small_model() -> MgmConfig:
    """The real towers and a small language model: 1.2 GB."""
    small = {"dim": 1024, "layers": 4, "heads": 8, "kv_heads": 8, "mlp_dim": 2752}
    cfg = MODELS[FULL]
    return dataclasses.replace(cfg, llm=dataclasses.replace(cfg.llm, **small))


def kills(workdir: Path, moments: int) -> dict:
    src, place = workdir / "small", workdir / "kills"
    fresh(src, place)
    nbytes = write_checkpoint(small_model(), src)
    with_tokenizer(src)
    options = ["--files", "--random", str(moments), "--shard-size", str(4 * 10**8)]
    command = [sys.executable, "-m", "tools.evidence.kills", str(src), str(place), *options]
    measure.run(command, workdir / "log.txt")
    results = [
        json.loads(x) for x in (workdir / "log.txt").read_text().splitlines() if x[:1] == "{"
    ]
    fresh(src, place)
    return {"command": shown(["python", *command[1:]], workdir), "bytes": nbytes, "ways": results}


def real_decoder(workdir: Path) -> dict:
    command = [sys.executable, "-m", "pytest", "-m", "slow", "-s", "tests/convert/test_smollm.py"]
    cost = measure.run(command, workdir / "log.txt")
    pattern = r"^\W*(.* -> .*|\(.*differ by.*|\d+ (?:passed|skipped).*)$"
    lines = re.findall(pattern, (workdir / "log.txt").read_text(), re.MULTILINE)
    return {"command": shown(["python", *command[1:]], workdir), "seconds": cost.seconds} | {
        "output": lines
    }


def machine() -> dict:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "processor": f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores",
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def missed(results: dict) -> list[str]:
    """The bounds that a result misses."""
    lines = []
    for name in ("from-hf", "to-hf"):
        found = results[name]
        if found["peak"] > BOUNDS["peak"]:
            lines.append(f"{name}: {found['peak']} bytes resident, at most {BOUNDS['peak']}")
        if found["of copy"] < BOUNDS["of copy"]:
            lines.append(f"{name}: {found['of copy']:.2f} of copy, at least {BOUNDS['of copy']}")
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=ROOT / "workdir" / "evidence")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "evidence")
    parser.add_argument("--kills", type=int, default=30, help="random moments in each direction")
    args = parser.parse_args(argv)
    workdir = args.workdir.absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    steps = {
        "machine": machine,
        "source": lambda: full_source(workdir),
        "from-hf": lambda: conversion(workdir, "from-hf", "hf", "ours"),
        "to-hf": lambda: conversion(workdir, "to-hf", "ours", "back"),
        "comparison": lambda: comparison(workdir),
        "clean-up": lambda: fresh(*(workdir / name for name in ("hf", "ours", "back", "copy"))),
        **{f"dry run {m}": lambda m=m: dry_run(workdir, m) for m in DRY},
        "kills": lambda: kills(workdir, args.kills),
        "real decoder": lambda: real_decoder(workdir),
    }
    journal = workdir / "results.json"
    results = json.loads(journal.read_text()) if journal.exists() else {}
    for name, step in steps.items():
        if name not in results:
            print(f"{name} ...", flush=True)
            results[name] = step()
            journal.write_text(json.dumps(results, indent=2) + "\n")
            print(json.dumps(results[name]), flush=True)
    report.write(args.out, results, BOUNDS)
    if lines := missed(results):
        raise SystemExit("\n".join(lines))
    fresh(workdir)


if __name__ == "__main__":
    main()
