"""Makes one data set out of a data file and its pictures: ArrayRecord shards that hold both.

Training then reads a few big files in place of a million small ones. Picture files are copied byte
for byte; --max-size makes larger ones smaller. Each picture is decoded once, and the build stops at
the first that is broken and not on the skip list. When it was killed, the same command goes on:
finished shards are kept if their SHA-256 is right. The last line printed is JSON.

  mgm-jax data build train.json --images pictures --out built --skip skip.json
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import time

from etils import epath

from mgm_jax.data.array_record import FORMAT, VERSION, File, Index
from mgm_jax.data.build_shard import BuildShard, Options
from mgm_jax.data.files import read_json, write_json, write_whole
from mgm_jax.data.parallel import parallel_map
from mgm_jax.data.records import Source
from mgm_jax.data.sources import open_source

QUALITY = 95  # of JPEG pictures that --max-size makes smaller


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="SOURCE", help="LLaVA JSON or JSONL, or any data set")
    parser.add_argument("--images", metavar="DIR", help="the folder that picture paths start from")
    parser.add_argument("--out", metavar="DIR", required=True, help="a new or empty folder")
    parser.add_argument("--skip", metavar="FILE", help="leave out the records of this skip list")
    parser.add_argument(
        "--max-size", type=int, metavar="PX", help="make pictures with a longer side smaller"
    )
    parser.add_argument(
        "--quality",
        type=int,
        metavar="Q",
        help=f"of JPEG pictures made smaller (default: {QUALITY}); others become PNG",
    )
    parser.add_argument(
        "--records-per-shard",
        type=int,
        default=Options.records_per_shard,
        metavar="N",
        help="default: %(default)s; readers keep all shards open, so not too few",
    )
    parser.add_argument("--workers", type=int, metavar="W", help="processes (default: all cores)")
    parser.add_argument("--json", metavar="FILE", help="write the last line to FILE too")


def main(args: argparse.Namespace) -> None:
    began = time.perf_counter()
    options = _options(args)
    source = open_source(args.source, args.images, args.skip)
    description = build(source, args.source, args.out, options, args.workers)
    summary = {
        "command": "data build",
        "records": description["records"],
        "pictures": description["pictures"],
        "shards": len(description["shards"]),
        "bytes": sum(shard["bytes"] for shard in description["shards"]),
        "seconds": round(time.perf_counter() - began, 2),
    }
    line = json.dumps(summary)
    if args.json:
        write_whole(args.json, (line + "\n").encode())
    print(line)


def _options(args) -> Options:
    if args.quality is not None and args.max_size is None:
        raise ValueError("--quality needs --max-size: without it pictures are copied as they are")
    quality = QUALITY if args.quality is None and args.max_size else args.quality
    limits = (
        ("--max-size", args.max_size, 1, 2**16),
        ("--quality", quality, 1, 100),
        ("--records-per-shard", args.records_per_shard, 1, 2**31),
        ("--workers", args.workers, 0, 2**16),
    )
    for name, value, least, most in limits:
        if value is not None and not least <= value <= most:
            raise ValueError(f"{name} is {value}, expected {least} to {most}")
    return Options(args.images or "", args.max_size, quality, args.records_per_shard)


def build(source: Source, path, out, options: Options, workers: int | None = None) -> dict:
    """Writes the data set of `source` (which lies at `path`) to `out`; returns its description.

    ValueError, naming record and picture, at the first that cannot be read, and for a folder that
    holds another data set or other files.
    """
    root = epath.Path(out)
    _claim(root, {"source": source.fingerprint} | dataclasses.asdict(options))
    shards = -(-len(source) // options.records_per_shard)
    shard = BuildShard(source, os.fspath(root), options, shards)
    found = parallel_map(shard, shards, workers=workers, chunk=1, name="build", unit="shard")
    files, parts = [], []
    for entry in found:
        files.append(entry["file"])
        parts.append(Index.of(entry["index"]))
    index = Index.join(parts)
    data = index.dump()
    write_whole(root / "index.npz", data)
    index_file = File("index.npz", 0, len(data), hashlib.sha256(data).hexdigest())
    description = {
        "format": FORMAT,
        "version": VERSION,
        "records": len(source),
        "pictures": int(index.pictures.sum()),
        "shards": files,
        "index": dataclasses.asdict(index_file),
        "source": {"path": os.fspath(path), "fingerprint": source.fingerprint},
        "options": dataclasses.asdict(options),
    }
    write_json(root / "dataset.json", description)
    return description


def _claim(root, plan: dict) -> None:
    """Makes `root` the folder of this plan, or finds that it is; clears what a kill left behind."""
    journal = root / "journal"
    file = journal / "plan.json"
    if not file.exists():
        if root.exists() and any(child.name != journal.name for child in root.iterdir()):
            raise ValueError(f"{root}: holds other files, expected a new or empty folder")
        journal.mkdir(parents=True, exist_ok=True)
        write_json(file, plan)
    found = read_json(file, "plan of a build")
    differ = [key for key in plan if found.get(key) != plan[key]]
    if differ:
        values = ", ".join(f"{key} {found.get(key)} (now {plan[key]})" for key in differ)
        raise ValueError(
            f"{root}: holds a data set made with another {values}; choose another --out, or remove "
            "this folder"
        )
    for folder in (root, journal):
        for partial in folder.glob("*.partial"):
            partial.unlink()
