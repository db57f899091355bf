"""Renders a batch script for GPUs to stdout; --execute submits it.

    python -m launch.slurm --name run1 --nodes 2 --gpus 8 --workdir /shared/run1 \\
        --config configs/mgm_2b.py:stage=2 > run1.sbatch

To be submitted from the repository's root, on a disk that all nodes share. The run saves its state
before its time is over, is queued again, and goes on. Arguments that are not named below go to
mgm_jax.train.
"""

from __future__ import annotations

import argparse
import dataclasses

from launch.commands import add_execute, at_least, check_has_config, finish, hand_over
from launch.slurm.sbatch import SlurmRun, sbatch


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.slurm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--name", required=True, help="of the job")
    parser.add_argument("--workdir", required=True, help="on a disk that all nodes share")
    for name, text in {
        "nodes": "how many",
        "gpus": "of a node",
        "cpus": "of a process",
        "notice": "seconds before the end at which the state is saved",
        "requeues": "how often it may begin again",
    }.items():
        default = getattr(SlurmRun, name)
        parser.add_argument(
            f"--{name}", type=at_least(1), default=default, help=f"{text}; default: %(default)s"
        )
    parser.add_argument("--per", choices=("node", "gpu"), default="node", help="one process a ...")
    parser.add_argument("--time", default=SlurmRun.time, help="default: %(default)s")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--python", default=SlurmRun.python, help="default: %(default)s")
    parser.add_argument(
        "--prologue", action="append", default=[], metavar="LINE", help="module load cuda; repeated"
    )
    add_execute(parser, "sbatch it")
    return parser


def main(argv: list[str] | None = None) -> int:
    args, rest = build_parser().parse_known_args(argv)
    check_has_config(rest)
    known = {f.name for f in dataclasses.fields(SlurmRun)}
    given = {k: v for k, v in vars(args).items() if k in known}
    given["prologue"] = tuple(given["prologue"])
    script = sbatch(SlurmRun(**given, arguments=tuple(rest)))
    return hand_over(script, ["sbatch"], args.execute)


if __name__ == "__main__":
    finish(main)
