"""Reads every record and decodes every picture of data sets, and says what is wrong with them.

An error is what training would stop at, judged by training's own code with its default switches; a
warning is what training takes but perhaps was not meant. With --tokenizer lengths are judged too.
Each finding names file, record and what was found; counts by kind and by folder follow, and the
last line printed is JSON. The exit code is 1 if there are errors, 0 otherwise. Only the files that
--write-skip, --html and --json name are written.

  mgm-jax data check train.json --images pictures --html report.html --write-skip skip.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from mgm_jax.data.check_page import page
from mgm_jax.data.check_record import Judge, Rules
from mgm_jax.data.check_report import Report, totals
from mgm_jax.data.files import write_whole
from mgm_jax.data.findings import KINDS
from mgm_jax.data.parallel import parallel_map
from mgm_jax.data.pipeline import Encoder
from mgm_jax.data.skip import read_skip_list, write_skip_list
from mgm_jax.data.sources import ArrayRecords, open_source
from mgm_jax.models.config import ImageSpec
from mgm_jax.text import TEMPLATES, load_tokenizer, tokenizer_from_hf
from mgm_jax.text.tokenizer_files import CONFIG_FILE

SHOWN = 3  # findings of each kind in the summary
FEW = 256  # records that are checked before worker processes have started
PILLOW_LIMIT = 2 * Image.MAX_IMAGE_PIXELS  # Pillow refuses to decode more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="LLaVA JSON or JSONL, a folder of `data build` or of TFDS; several are checked as one",
    )
    parser.add_argument("--images", metavar="DIR", help="the folder that picture paths start from")
    parser.add_argument("--skip", metavar="FILE", help="leave out the records of this skip list")
    parser.add_argument(
        "--write-skip", metavar="FILE", help="write a skip list of the records with errors"
    )
    parser.add_argument(
        "--error",
        action="append",
        default=[],
        choices=[kind.name for kind in KINDS.values() if kind.level == "warning"],
        metavar="KIND",
        help="count this warning as an error, so that it goes on the skip list; may be repeated: "
        "%(choices)s",
    )
    text = parser.add_argument_group("lengths")
    text.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="count tokens with this tokenizer (ours, or a Hugging Face folder)",
    )
    text.add_argument(
        "--template", choices=sorted(TEMPLATES), metavar="NAME", help="the chat template"
    )
    text.add_argument("--length", type=int, metavar="T", help="most tokens of a record")
    text.add_argument(
        "--visual-tokens", type=int, metavar="N", help="tokens of a picture (default: 576)"
    )
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument("--no-pictures", action="store_true", help="do not open any picture")
    pictures.add_argument(
        "--max-pixels",
        type=int,
        default=PILLOW_LIMIT,
        metavar="P",
        help="larger pictures are errors and not decoded (default: %(default)s, Pillow's limit)",
    )
    pictures.add_argument(
        "--hr-size",
        type=int,
        default=768,
        metavar="PX",
        help="side of the model's high-resolution picture (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="W", help="processes (default: as many as cores)"
    )
    parser.add_argument("--html", metavar="FILE", help="write a page with pictures to FILE")
    parser.add_argument("--json", metavar="FILE", help="write the last line to FILE too")


def main(args: argparse.Namespace) -> None:
    """Prints the report, and one line of JSON; leaves with 1 if there is an error."""
    rules = _rules(args)
    sources = tuple(open_source(path, args.images, lenient=True) for path in args.sources)
    if len(sources) > 1 and (args.skip or args.write_skip):
        raise ValueError(
            f"found {len(sources)} sources, but a skip list belongs to one: check them one by one"
        )
    for file in filter(None, (args.html, args.json, args.write_skip)):
        epath.Path(file).parent.mkdir(parents=True, exist_ok=True)
    skipped = read_skip_list(args.skip, sources[0]) if args.skip else {}
    levels = {name: "error" if name in args.error else kind.level for name, kind in KINDS.items()}

    began = time.perf_counter()
    report = Report(
        _places(sources, skipped),
        args.sources if len(sources) > 1 else [epath.Path(args.sources[0]).name],
        levels,
        keep_reasons=bool(args.write_skip),
    )
    check(report, sources, rules, args.workers)
    seconds = time.perf_counter() - began
    head = {"command": "data check", "skipped": len(skipped)}
    rate = round(len(report.places) / seconds, 1)
    summary = head | report.summary() | {"seconds": round(seconds, 1), "records_per_s": rate}

    line = json.dumps(summary)
    written = []
    if args.write_skip:
        found = {number: text for (_, number), text in report.reasons.items()}
        write_skip_list(args.write_skip, sources[0], skipped | found)
        before = f", {len(skipped):,} from {args.skip}" if skipped else ""
        written.append(f"{args.write_skip}: {len(found):,} records with errors{before}")
    if args.html:
        write_whole(args.html, page(summary, report, sources, args.sources).encode())
        written.append(args.html)
    if args.json:
        write_whole(args.json, f"{line}\n".encode())
    _print(summary, report)
    for text in written:
        print(f"wrote {text}")
    print(line)
    if summary["errors"]:
        sys.exit(1)


def check(report: Report, sources: tuple, rules: Rules, workers: int | None) -> None:
    """Fills the report from all records of `report.places`, and from the shards of data sets."""
    for number, source in enumerate(sources):
        if isinstance(source, ArrayRecords):
            for text in source.verify(workers):
                report.add_shard(number, text)
    judge, count = Judge(sources, report.places, rules), len(report.places)
    if workers is None and count < FEW:
        workers = 0
    facts = parallel_map(judge, count, workers=workers, name="check")
    with contextlib.closing(facts):
        for i, found in enumerate(facts):
            report.add(i, found)
    report.finish()


def _rules(args: argparse.Namespace) -> Rules:
    for name, least in (("length", 2), ("visual_tokens", 1), ("max_pixels", 1), ("hr_size", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, expected at least {least}")
    if args.max_pixels > PILLOW_LIMIT:
        raise ValueError(
            f"--max-pixels is {args.max_pixels}, expected at most {PILLOW_LIMIT}: Pillow, which "
            "training decodes with, takes no larger pictures"
        )
    encoder = None
    if args.tokenizer:
        if not args.template:
            raise ValueError("--tokenizer needs --template: lengths depend on it")
        ours = (epath.Path(args.tokenizer) / CONFIG_FILE).exists()
        tokenizer = (load_tokenizer if ours else tokenizer_from_hf)(args.tokenizer)
        # What is too long is found after encoding, with its length.
        encoder = Encoder(args.template, tokenizer, args.visual_tokens or 576, sys.maxsize)
    elif args.template or args.length or args.visual_tokens:
        raise ValueError("--template, --length and --visual-tokens need --tokenizer")
    spec = ImageSpec(lr_size=336, hr_size=args.hr_size)
    return Rules(spec, args.max_pixels, encoder, args.length, not args.no_pictures)


def _places(sources, skipped) -> np.ndarray:
    """int64 [records, 2]: source and record number of all records that are not skipped."""
    places = [
        np.stack([np.full(len(source), s), np.arange(len(source))], 1)
        for s, source in enumerate(sources)
    ]
    found = np.concatenate(places).astype(np.int64)
    return found[~np.isin(found[:, 1], list(skipped))]


def _print(summary: Mapping[str, Any], report: Report) -> None:
    for kind, count in summary["kinds"].items():
        row = KINDS[kind]
        print(f"\n{report.levels[kind]:8} {kind}: {count:,}. {row.meaning}")
        for finding in report.examples[kind][:SHOWN]:
            print(f"{'':9}{finding.text}")
        if count > SHOWN:
            print(f"{'':9}... and {count - SHOWN:,} more")
        print(f"{'':9}do: {row.remedy}")
    print()
    for name, value in totals(summary):
        print(f"{name:18}{value}")
    print(f"\n{'folder':32}{'records':>10}{'pictures':>10}{'errors':>10}{'warnings':>10}")
    for name, counts in summary["sources"].items():
        print(f"{name:32}" + "".join(f"{count:10,}" for count in counts.values()))
    print()
