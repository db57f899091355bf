"""Compiles the recommended run of every variant for its slice -> docs/evidence/plans.

`python -m tools.evidence.plans [--only 7B]`: two minutes a compile on two cores, 8 GB of memory;
what has been compiled before comes from `plan`'s cache. Then the table of all is written.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from mgm_jax import topologies
from mgm_jax.plan.cli import describe
from mgm_jax.plan.compile import PlanError, compile_job, leave_the_compiler_alone
from mgm_jax.plan.job import Job

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "evidence" / "plans"
# (variant, arguments of its config, topology, overrides of the config)
ALL, KEPT, MOST, MORE, SOME, LITTLE = (
    f"--config.remat={name}"
    for name in (
        *("dots+attention+weights", "dots+attention", "attention+gate+up", "qkv+gate", "qkv"),
        "attention",
    )
)
PARTS = "--config.accumulate=16"  # of 128 rows on 8 chips: one row a chip at a time
PLANS = [
    ("2B", "stage=2", "v5e-16", (LITTLE,)),
    ("7B", "stage=2", "v5e-64", (MOST,)),
    ("7B", "stage=2", "v5p-64", (ALL,)),
    ("7B", "stage=2,batch=512", "v5p-256", (ALL,)),
    ("7B", "stage=1", "v5e-64", (LITTLE,)),
    ("7B", "stage=1", "v5p-64", (ALL,)),
    ("7B", "stage=2,hd", "v5p-64", (ALL,)),
    ("13B", "stage=2", "v5p-64", (ALL,)),
    ("8B", "stage=2", "v5e-64", (SOME,)),
    ("34B", "stage=2", "v5p-128", (KEPT,)),
    ("34B", "stage=2,hd", "v5p-128", (SOME,)),
    ("34B", "stage=2,batch=256", "v5e-256", ()),
    ("8x7B", "stage=2", "v5p-128", (KEPT,)),
    ("8x7B", "stage=2,batch=256", "v5e-256", (MORE,)),
    ("2B", "stage=2,lora=16", "v5e-8", (PARTS,)),
    ("7B", "stage=2,lora=16,quant=nf4", "v5e-8", (PARTS,)),
]


def name_of(variant: str, args: str, topology: str) -> str:
    stage = "hd" if "hd" in args else f"stage{args.split('=')[1][0]}"
    adapter = "_qlora" if "quant" in args else "_lora" if "lora" in args else ""
    return f"{variant.lower()}_{stage}{adapter}_{topology}"


def plan(variant: str, args: str, topology: str, overrides: tuple[str, ...]) -> dict:
    """The report of one of `PLANS`, written to its file."""
    config = f"configs/mgm_{variant.lower()}.py"
    job = Job(f"{ROOT / config}:{args}", topology, overrides)
    found = describe(job, topologies.topology(topology), compile_job(job))
    words = ["mgm-jax plan", f"--config {config}:{args}", f"--topology {topology}", *overrides]
    found = {"command": " ".join(words)} | found
    file = OUT / f"{name_of(variant, args, topology)}.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    return found


def table(reports: dict[str, dict]) -> str:
    """All reports as a page of Markdown."""
    lines = [
        "# What each variant needs",
        "",
        "From the TPU compiler, ahead of time; nothing ran on a TPU. Written by "
        "`python -m tools.evidence.plans`; a row's file has the command that makes it. Times are "
        "estimates, and MFU counts useful FLOPs (docs/plan.md says what both are worth). "
        "Chip-hours are for one pass over the published data, 1.2 M examples of stage 1 or 1.5 M "
        "of stage 2.",
        "",
        "| run | topology | chips | mesh | remat | rows | HBM GiB, of | step s | MFU | waits for "
        "collectives | chip-hours | compile s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in reports.items():
        mesh = " ".join(f"{k} {v}" for k, v in r["mesh"].items() if v > 1)
        seconds = r["step_seconds_estimate"]
        timed = (
            f"{seconds:.2f} | {r['mfu_estimate']:.1%} | {r['exposed_collective_fraction']:.1%} | "
            f"{r['epoch']['chip_hours']:,.0f}"
            if seconds
            else "- | - | - | -"
        )
        fits = "" if r["fits"] else " **does not fit**"
        lines.append(
            f"| [{name.rsplit('_', 1)[0]}]({name}.json) | {r['topology']} | {r['chips']} | {mesh} "
            f"| {r['remat']} | {r['batch']['rows']} x {r['batch']['length']} "
            f"| {r['hbm_peak_gib']:.1f}, {r['hbm_limit_gib']}{fits} | {timed} "
            f"| {r['compile_seconds']:.0f} |"
        )
    versions = ", ".join(f"{k} {v}" for k, v in next(iter(reports.values()))["versions"].items())
    return "\n".join([*lines, "", f"{versions}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names that contain this")
    args = parser.parse_args()
    leave_the_compiler_alone()
    OUT.mkdir(parents=True, exist_ok=True)
    for item in PLANS:
        name = name_of(*item[:3])
        if args.only.lower() not in name:
            continue
        begin = time.monotonic()
        try:
            r = plan(*item)
        except PlanError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            continue
        print(
            f"{name}: {'fits' if r['fits'] else 'does not fit'}, {r['hbm_peak_gib']} GiB, "
            f"{r['step_seconds_estimate']} s, MFU {r['mfu_estimate']}, "
            f"{time.monotonic() - begin:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    names = [name_of(*item[:3]) for item in PLANS]
    files = {name: OUT / f"{name}.json" for name in names}
    found = {n: json.loads(f.read_text()) for n, f in files.items() if f.exists()}
    (OUT / "README.md").write_text(table(found))


if __name__ == "__main__":
    main()
