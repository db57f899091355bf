"""`mgm-jax eval report OUT`: its arguments, and what it prints."""

from __future__ import annotations

import argparse
import json

from mgm_jax.evals.files import write_json
from mgm_jax.evals.report import THUMBNAIL, write_report
from mgm_jax.evals.report.bootstrap import DRAWS


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """OUT, --against, --paper, --draws, --thumbnail, --json."""
    parser.description = (
        "Writes OUT/report.html (opens from a disk, without a network), OUT/table.md for a model "
        "card, and intervals into OUT/results.json. The last line printed is JSON."
    )
    parser.add_argument("out", metavar="OUT", help="the --out of a finished evaluation")
    parser.add_argument("--against", metavar="OUT", help="a second evaluation to compare with")
    parser.add_argument("--paper", metavar="MODEL", help="a published model, such as MGM-7B")
    parser.add_argument(
        "--draws",
        type=int,
        default=DRAWS,
        metavar="N",
        help="of the bootstrap; default: %(default)s",
    )
    parser.add_argument(
        "--thumbnail",
        type=int,
        default=THUMBNAIL,
        metavar="PIXELS",
        help="longer side of the pictures on the page, 0: none; default: %(default)s",
    )
    parser.add_argument("--json", metavar="FILE", help="write the last line to FILE too")


def report_main(args: argparse.Namespace) -> None:
    """Writes the report; ValueErrors and OSErrors name what is missing."""
    found = write_report(
        args.out, args.against, paper=args.paper, draws=args.draws, thumbnail=args.thumbnail
    )
    if args.json:
        write_json(args.json, found)
    print(json.dumps(found, ensure_ascii=False))
