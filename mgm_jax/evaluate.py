"""Evaluates a model: `mgm-jax eval --config configs/eval/FILE.py[:arg] --checkpoint DIR --out DIR`.

Answers the questions of a config's benchmarks, scores the answers, and writes all that there is to
see to OUT. Killed or stopped (Ctrl-C, SIGTERM: exit code 75), the same command goes on where it
was, on any number of hosts. The last line of stdout is OUT/results.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
import sys

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mgm_jax import distributed, sharding
from mgm_jax.api import load
from mgm_jax.checkpoint import CheckpointError, content_hash, first_line, hush_stragglers, place
from mgm_jax.compile_cache import keep_compiled
from mgm_jax.distributed import LOST, STOPPED
from mgm_jax.evals.common import Judge
from mgm_jax.evals.files import write_json
from mgm_jax.evals.follow import follow, table
from mgm_jax.evals.judge_args import add_judge_arguments, make_judge
from mgm_jax.evals.runner import Runner, Subject, checked_tasks, heed
from mgm_jax.preemption import Stopped, StopSignals
from mgm_jax.settings import read_config
from mgm_jax.switches import choose


def evaluate(
    config: ConfigDict, checkpoint: epath.PathLike, out: epath.PathLike, judge: Judge | None = None
) -> dict:
    """Evaluates a model directory by a config (`configs.common.eval_config`).

    Returns what OUT/results.json has; {} in all processes but the first. Raises ValueError and
    OSError, before any compile where possible; `preemption.Stopped` when a signal tells it to stop.
    """
    with StopSignals() as stop:
        tasks = checked_tasks(config)
        mesh = sharding.make_mesh(config.mesh.to_dict())
        subject = read_subject(config, mesh, checkpoint)
        with stop.patiently():
            return Runner(subject, config, heed(stop, mesh))(tasks, place(out), judge)


def read_subject(config: ConfigDict, mesh: Mesh, checkpoint: epath.PathLike) -> Subject:
    """The model in a directory, ours or the original's, on a mesh."""
    switches = {name: config.switches[name] for name in choose(("model", "load"))}
    model = load(checkpoint, mesh=mesh, dtype=config.dtype, switches=switches)
    if model.tokenizer is None:
        raise CheckpointError(f"{checkpoint} has no tokenizer, which questions need")
    module = dataclasses.replace(model.module, tower_batch=config.tower_batch)
    model = dataclasses.replace(model, module=module)
    content = hashlib.sha256(f"{content_hash(checkpoint)} {model.config}".encode()).hexdigest()
    return Subject(model, mesh, place(checkpoint).name, content, str(checkpoint))


# ---------------------------------------------------------------------------------- command line


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mgm-jax eval",
        description=__doc__,
        epilog="configs/common.py lists the keys of a config. Files of predictions are scored by "
        "`mgm-jax eval score`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="benchmarks and settings; further arguments --config.KEY=VALUE change its keys",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", metavar="DIR", help="a model directory to evaluate")
    what.add_argument(
        "--follow",
        metavar="WORKDIR",
        help="of a training run: each state that it saves is evaluated, into OUT/step_N, until the "
        "run has come to its end",
    )
    parser.add_argument(
        "--poll", type=float, default=30.0, help="seconds between looks at --follow; %(default)s"
    )
    parser.add_argument(
        "--out",
        "--workdir",  # as launch.* calls it
        required=True,
        metavar="DIR",
        help="where answers and scores go; one that all hosts share",
    )
    parser.add_argument("--json", metavar="FILE", help="write the last line to FILE too")
    add_judge_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Exit code 1, after all is written, where questions could not be asked."""
    hush_stragglers()
    args, rest = build_parser().parse_known_args(argv)
    try:
        distributed.initialize()
        keep_compiled()
        config = read_config(args.config, rest, "benchmarks")
        judge = make_judge(args, place(args.out) / "judge")
        if args.follow:
            results = follow(config, args.follow, args.out, judge, poll=args.poll)
        else:
            results = evaluate(config, args.checkpoint, args.out, judge)
    except Stopped as stopped:
        if jax.process_index() == 0:
            print(f"eval: {stopped.text}", file=sys.stderr)
        raise
    except (AttributeError, KeyError, ValueError, OSError) as error:
        if jax.process_count() > 1:
            distributed.leave(1, f"error: {error}")
        raise SystemExit(f"error: {error}") from error
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not re.search(LOST, str(error)):
            raise
        line = f"eval: another process of this run was lost ({first_line(error)})"
        distributed.leave(STOPPED, f"{line}; run the same command again to go on")
    if results:
        print(table(results["steps"]) if args.follow else lines(results))
        if args.json:
            write_json(args.json, results)
        print(json.dumps(results, ensure_ascii=False), flush=True)
    if errors := results.get("errors"):
        raise SystemExit(
            f"error: {errors} questions could not be asked (items.jsonl says why); the same "
            "command tries those again"
        )


def lines(results: dict) -> str:
    """A line for each benchmark, and what a reader of it should know."""
    found = []
    for name, scores in results["benchmarks"].items():
        numbers = (f"{key} {value:.2f}" for key, value in scores["summary"].items())
        found.append(
            f"{name}: {', '.join(numbers) or 'no score'} ({scores['questions']} questions)"
        )
        found += [f"  note: {note}" for note in scores["notes"]]
    return "\n".join(found)


if __name__ == "__main__":
    main()
