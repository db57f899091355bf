"""Measures the data pipeline on this machine: how full rows and picture slots get and what planning
costs, on drawn indexes; and how many pictures a second a core prepares, on JPEGs of about one
megapixel that are made from photos which packages ship, beside a PyTorch DataLoader that does the
same work in turn with it. The last line printed is JSON."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import tempfile

from etils import epath
from tqdm import tqdm

from mgm_jax.data.bench_packing import CASES, fills, planning_cost
from mgm_jax.data.bench_photos import make_photos
from mgm_jax.data.bench_pictures import compare
from mgm_jax.data.files import write_whole
from mgm_jax.models.config import ImageSpec

HEADLINE = "A 2048"  # the case whose fills and cost are the result
FILL_EXAMPLES = 100_000  # of each case
PLANNED = (10_000, 100_000)  # besides --examples: does the cost grow linearly?
LR_SIZE = 336


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def add(name, default, text):
        parser.add_argument(
            name, type=_positive, default=default, help=f"{text}; default: %(default)s"
        )

    add("--pictures", 2000, "JPEGs to make and read")
    add("--workers", os.cpu_count(), "worker processes, of both ways")
    add("--hr-size", 768, "side of the prepared pictures, pixels")
    add("--examples", 1_500_000, "examples to plan; 10,000 and 100,000 are planned too")
    add("--length", 2048, "tokens of a row where the cost of planning is measured")
    parser.add_argument("--workdir", metavar="DIR", help="keep the JPEGs here for the next time")
    parser.add_argument("--no-torch", action="store_true", help="leave the DataLoader out")
    parser.add_argument("--json", metavar="FILE", help="write the last line to FILE too")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return int(text)


def main(args: argparse.Namespace) -> None:
    if args.json:
        epath.Path(args.json).parent.mkdir(parents=True, exist_ok=True)
    packing = bench_packing(args.examples, args.length)
    print_packing(packing)
    pictures = bench_pictures(args)
    print_pictures(pictures)
    headline = packing["cases"][HEADLINE]
    result = {
        "command": "data bench",
        "token_fill": headline["token_fill"],
        "slot_fill": headline["slot_fill"],
        "plan_seconds": packing["planning"][-1]["seconds"],
        "plan_peak_gb": packing["planning"][-1]["peak_gb"],
    }
    line = json.dumps(result | pictures | packing)
    if args.json:
        write_whole(args.json, f"{line}\n".encode())
    print(line)


def bench_packing(examples: int, length: int) -> dict:
    """{"cases": name -> `fills`, "planning": `planning_cost` by number of examples, ascending}."""
    planned = dataclasses.replace(CASES[HEADLINE], length=length)
    numbers = sorted({n for n in PLANNED if n < examples} | {examples})
    with tqdm(total=len(numbers) + len(CASES), desc="packing", unit="case") as bar:
        planning = []
        for n in numbers:
            seconds, peak = planning_cost(planned, n)
            planning.append({"examples": n, "seconds": seconds, "peak_gb": peak})
            bar.update()
        cases = {}
        for name, case in CASES.items():
            cases[name] = fills(case, min(examples, FILL_EXAMPLES))
            bar.update()
    return {"cases": cases, "planning": planning}


def bench_pictures(args: argparse.Namespace) -> dict:
    """`compare` on photos that are made first, in --workdir or for this run alone."""
    torch = not args.no_torch and importlib.util.find_spec("torch") is not None
    if not torch:
        why = "--no-torch was given" if args.no_torch else "torch is not installed"
        print(f"{why}: no DataLoader to compare with")
    with contextlib.ExitStack() as stack:
        folder = args.workdir or stack.enter_context(tempfile.TemporaryDirectory())
        photos = make_photos(folder, args.pictures, workers=args.workers)
        spec = ImageSpec(LR_SIZE, args.hr_size)
        found = compare(photos, spec, workers=args.workers, torch=torch)
    return found | {"workers": args.workers, "pictures": len(photos), "hr_size": args.hr_size}


def print_packing(found: dict) -> None:
    print(
        f"{'index':10} {'token fill':>10} {'slot fill':>9} {'slots':>5} {'best fit':>8} "
        f"{'padded':>6} {'seconds':>7}"
    )
    for name, case in found["cases"].items():
        print(
            f"{name:10} {case['token_fill']:10.4f} {case['slot_fill']:9.4f} {case['slots']:5} "
            f"{case['best_fit']:8.4f} {case['padded']:6.4f} {case['seconds']:7.2f}"
        )
    print("(slots: of a group of 4 rows; best fit: tokens alone; padded: the original's way)")
    for cost in found["planning"]:
        print(
            f"planning {cost['examples']:9,} examples: {cost['seconds']:6.2f} s, "
            f"peak {cost['peak_gb']:.2f} GB"
        )


def print_pictures(found: dict) -> None:
    print("pictures for each second of processor time, round by round")
    for name, values in found["rounds"].items():
        print(f"{name:8}" + "".join(f" {value:7.2f}" for value in values))
    if found["images_ratio"]:
        print(
            f"ours / torch: {found['images_ratio']:.2f}, by the clock "
            f"{found['images_ratio_wall']:.2f} ({found['images_per_s']:.1f} / "
            f"{found['torch_images_per_s']:.1f} a second, {found['workers']} workers)"
        )
        print("(torch_lr: with the LR view, which the original makes on the host too)")
