"""`mgm-jax plan`: what a config costs on a TPU slice, from the TPU compiler, without a TPU."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mgm_jax import topologies
from mgm_jax.plan import page, report, search, serving, vision
from mgm_jax.plan.compile import Compiled, compile_job, leave_the_compiler_alone
from mgm_jax.plan.job import Job, Serve, Vision, locate
from mgm_jax.settings import add_config_argument


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mgm-jax plan",
        description="Compiles a config's training step (or, with --serve, its serving path) for a "
        "TPU slice, and says whether it fits, how long it takes and what dominates. "
        "The last line printed is JSON.",
    )
    add_config_argument(parser)
    parser.add_argument("--topology", required=True, help="v5e-16, v5p-64, 2xv5e-256, ...")
    parser.add_argument("--serve", action="store_true", help="prefill and decoding, not training")
    parser.add_argument(
        "--module", choices=vision.MODULES, help="a module of vision by itself, forward"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=8,
        help="requests of --serve, or pictures a chip of --module; default: 8",
    )
    parser.add_argument("--prompt", type=int, default=1024, help="their tokens; default: 1024")
    parser.add_argument("--new", type=int, default=256, help="tokens of an answer; default: 256")
    parser.add_argument("--read", type=int, default=0, help="prompts read at a time; default: all")
    parser.add_argument("--text-only", action="store_true", help="the language model alone")
    parser.add_argument("--fit", action="store_true", help="search mesh, remat and accumulation")
    parser.add_argument("--minutes", type=float, default=20, help="of --fit; default: 20")
    parser.add_argument("--json", metavar="FILE", help="write the last line to FILE too")
    parser.add_argument("--dump-hlo", metavar="FILE", help="write the scheduled HLO to FILE")
    parser.add_argument("--html", metavar="FILE", help="write a page with charts to FILE")
    args, rest = parser.parse_known_args(argv)
    args.rest = rest
    for name in ("batch", "prompt", "new"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}, expected at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    """Prints a table and, as the last line, JSON."""
    leave_the_compiler_alone()
    args = parse(argv)
    place = topologies.topology(args.topology)
    locate(args.config)
    if args.read < 0 or (args.read and args.batch % args.read):
        raise ValueError(f"--read is {args.read}, expected a divisor of --batch {args.batch}")
    serve = Serve(args.batch, args.prompt, args.new, args.read) if args.serve else None
    look = Vision(args.module, args.batch) if args.module else None
    job = Job(args.config, args.topology, tuple(args.rest), serve, args.text_only, look)
    asked = [
        f"--{name}"
        for name in ("serve", "fit", "text-only", "module")
        if vars(args)[name.replace("-", "_")]
    ]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} do not go together: each asks for other programs")
    if args.fit:
        found, compiled = search.fit(job, place, args.minutes, progress)
    else:
        compiled = compile_job(job, progress)
        found = describe(job, place, compiled)
    progress("")
    print(report.table(found))
    if args.fit:
        print(search.table(found["candidates"]))
    if args.dump_hlo:
        _dump(compiled, Path(args.dump_hlo))
    if args.html:
        page.write(args.html, Path(args.config.partition(":")[0]).stem, found)
    line = json.dumps(found)
    if args.json:
        Path(args.json).write_text(line + "\n")
    print(line)


def describe(job: Job, place: topologies.Topology, compiled: list[Compiled]) -> dict:
    """The report of a compiled job."""
    config, cfg = job.read()
    if job.serve:
        return serving.report(compiled, place, cfg, job.serve)
    if job.vision:
        return vision.report(compiled, place, cfg, job.vision)
    return report.training_report(compiled[0], place, config, cfg, job.text_only)


def _dump(compiled: list[Compiled], path: Path) -> None:
    """The text of each program; with several, decoding's in `path` and prefill's beside it."""
    for c in compiled:
        if c.oom:
            raise ValueError(f"--dump-hlo: {c.name} did not compile, there is no HLO of it")
        place = path if c is compiled[-1] else path.with_name(f"{path.stem}.{c.name}{path.suffix}")
        place.write_text(c.text())


_said = [""]


def progress(text: str) -> None:
    """One line on stderr that is written over; where it is no terminal, one for each thing done."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
    elif (what := text.partition(",")[0]) and what != _said[-1]:
        _said.append(what)
        print(f"plan: {text}", file=sys.stderr, flush=True)
