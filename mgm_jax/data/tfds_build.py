"""Make a TFDS data set, stored as ArrayRecord, of records and their pictures' original bytes.

  mgm-jax data tfds train.json --images pictures --data-dir out --name mine

gives out/mgm_llava/mine/1.0.0, which training takes as a source and TFDS's users read with
`tfds.data_source("mgm_llava/mine", data_dir="out")`. Needs the extra `tfds`, not TensorFlow.
The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import time

from mgm_jax.data.files import write_whole
from mgm_jax.data.sources import open_source
from mgm_jax.data.tfds import import_tfds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", help="LLaVA-format JSON or JSONL, or another data set")
    parser.add_argument("--images", metavar="DIR", help="the folder that picture paths start from")
    parser.add_argument("--skip", metavar="FILE", help="a skip list of `mgm-jax data check`")
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="TFDS's data folder")
    parser.add_argument("--name", required=True, help="the data set will be mgm_llava/NAME")
    parser.add_argument("--version", default="1.0.0", help="default: %(default)s")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that read pictures; default: this one"
    )
    parser.add_argument("--json", metavar="FILE", help="write the last line to FILE too")


def main(args: argparse.Namespace) -> None:
    import_tfds()
    from mgm_jax.data.tfds_llava import build_tfds

    started = time.monotonic()
    source = open_source(args.source, args.images, args.skip)
    options = {"root": args.images, "workers": args.workers}
    folder = build_tfds(source, args.data_dir, args.name, args.version, **options)
    seconds = round(time.monotonic() - started, 1)
    result = {"command": "data tfds", "folder": folder, "records": len(source), "seconds": seconds}
    line = json.dumps(result)
    if args.json:
        write_whole(args.json, (line + "\n").encode())
    print(line)
