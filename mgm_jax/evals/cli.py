"""`mgm-jax eval score BENCHMARK`: scores a file of predictions. Needs no accelerator and no jax.

Prints what the original's scorer prints; the last line is JSON. Without `score` the arguments are
those of `mgm_jax.evaluate`.
"""

from __future__ import annotations

import argparse
import json
import sys

from etils import epath

from mgm_jax.evals import BENCHMARKS, get
from mgm_jax.evals.common import Benchmark, Scores
from mgm_jax.evals.files import write_json
from mgm_jax.evals.judge_args import add_judge_arguments, make_judge
from mgm_jax.evals.report.args import add_report_arguments, report_main

COMMANDS = ("score", "report")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mgm-jax eval", description="Benchmarks and their scores."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    score = commands.add_parser(
        "score", help="score a file of predictions", description=__doc__.split("\n\n")[0]
    )
    score.add_argument("benchmark", metavar="BENCHMARK", help=", ".join(BENCHMARKS))
    score.add_argument(
        "--predictions", required=True, metavar="FILE", help="as the original's runners write them"
    )
    score.add_argument(
        "--annotations", metavar="FILE", help="the benchmark's file or folder of answers"
    )
    score.add_argument("--json", metavar="FILE", help="write the last line to FILE too")
    score.add_argument(
        "--verdicts", metavar="FILE", help="write how each prediction was read and judged, as JSON"
    )
    score.add_argument(
        "--submission", metavar="FILE", help="write what the benchmark's server takes, and no score"
    )
    score.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the benchmark, such as split=dev; may be repeated",
    )
    add_judge_arguments(score)
    add_report_arguments(
        commands.add_parser("report", help="a page of an evaluation, or of two against each other")
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs one command; its errors are ValueErrors and OSErrors."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] and argv[0] not in COMMANDS:
        from mgm_jax import evaluate

        evaluate.main(argv)
        return
    args = build_parser().parse_args(argv)
    if args.command == "report":
        report_main(args)
        return
    benchmark = get(args.benchmark)
    options = parse_options(benchmark, args.set)
    path = epath.Path(args.predictions)
    judge = make_judge(args, path.with_suffix(".judge"))
    if args.submission:
        if judge is not None:
            raise ValueError("--submission asks no judge: leave out --judge-url")
        write_submission(benchmark, args, options)
        return
    if path.is_dir() and not benchmark.folders:
        files = sorted(path.glob("*.jsonl"))
        if not files:
            raise FileNotFoundError(f"{path}: found no *.jsonl")
    else:
        files = [path]
    found = {f.name: benchmark.run(f, args.annotations, judge, **options) for f in files}
    for scores in found.values():
        show(scores)
    results = {name: as_json(benchmark, scores) for name, scores in found.items()}
    result = results if path.is_dir() and not benchmark.folders else results[path.name]
    if args.json:
        write_json(args.json, result)
    if args.verdicts:
        write_json(args.verdicts, [v for s in found.values() for v in s.verdicts], indent=1)
    print(json.dumps(result, ensure_ascii=False))


def parse_options(benchmark: Benchmark, pairs: list[str]) -> dict:
    """NAME=VALUE texts as values of the types of the benchmark's options."""
    given = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair}: expected NAME=VALUE")
        given[name] = _value(benchmark.options.get(name), text)
    return benchmark.chosen(given)


def _value(default, text: str):
    """`text` as JSON where the option is no text: 32, true, null."""
    if isinstance(default, str):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def write_submission(benchmark: Benchmark, args, options: dict) -> None:
    """Writes the server's file and says where."""
    if benchmark.submission is None:
        raise ValueError(f"{benchmark.name} has no server to submit to: leave out --submission")
    if benchmark.needs and args.annotations is None:
        raise ValueError(f"{benchmark.name} needs --annotations: {benchmark.needs}")
    records = benchmark.read(args.predictions)
    if not records:
        raise ValueError(f"{args.predictions}: found no prediction")
    benchmark.submission(records, args.annotations, args.submission, options)
    print(json.dumps({"submission": args.submission, "predictions": len(records)}))


def as_json(benchmark: Benchmark, scores: Scores) -> dict:
    """The original's keys, and beside them what is ours: benchmark, summary, printed, notes."""
    ours = {
        "benchmark": benchmark.name,
        "summary": benchmark.summary(scores.verdicts),
        "printed": scores.printed,
        "notes": scores.notes,
    }
    return scores.result | ours


def show(scores: Scores) -> None:
    """Prints the scores, and notes to stderr."""
    print(scores.printed, end="")
    for note in scores.notes:
        print(f"note: {note}", file=sys.stderr)
