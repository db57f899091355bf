"""`mgm-jax quantize DIR OUT --scheme int4`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mgm_jax.quantize.config import GROUPS, TARGETS, make


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", help="a model directory (has mgm.json)")
    parser.add_argument("out", help="the directory to write")
    parser.add_argument("--scheme", choices=tuple(GROUPS), required=True)
    usual = ", ".join(f"{g or 'all of them'} for {s}" for s, g in GROUPS.items())
    parser.add_argument(
        "--group",
        type=int,
        metavar="N",
        help=f"inputs of a matrix that share a scale, 0: all of them; default: {usual}",
    )
    parser.add_argument(
        "--targets", default=TARGETS, help="regex of parameters; default: %(default)s"
    )
    parser.add_argument(
        "--report", action="store_true", help="measure both models on the records of --data"
    )
    parser.add_argument(
        "--data", metavar="FILE", help="what `mgm-jax train` reads: JSON, JSONL, ..."
    )
    parser.add_argument("--images", metavar="DIR", help="where the pictures of --data lie")
    parser.add_argument("--records", type=int, default=200, help="at most; default: %(default)s")
    parser.add_argument(
        "--length", type=int, default=2048, help="tokens of a record; default: 2048"
    )
    parser.add_argument("--json", metavar="FILE", help="write the last line to FILE too")


def main(args: argparse.Namespace) -> None:
    """Writes the model; the last line printed is JSON."""
    if args.report and not args.data:
        raise ValueError("--report needs --data FILE, the records to measure on")
    from mgm_jax.data.sources import open_source
    from mgm_jax.quantize.directory import quantize_directory
    from mgm_jax.quantize.report import compare

    config = make(args.scheme, args.group, args.targets)
    source = open_source(args.data, args.images) if args.report else None
    found = quantize_directory(
        args.directory, args.out, config, lambda text: print(text, file=sys.stderr)
    )
    if source is not None:
        records = [source[i] for i in range(min(len(source), args.records))]
        found |= compare(args.directory, args.out, records, length=args.length)
    line = json.dumps(found)
    if args.json:
        Path(args.json).write_text(line + "\n")
    print(line)
