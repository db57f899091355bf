"""Renders a run on GKE: a JobSet (to stdout, or `kubectl apply` with --execute), or xpk's command.

    python -m launch.gke jobset --name run1 --image IMAGE --workdir gs://mine/run1 \\
        --accelerator v5litepod-64 --config configs/mgm_7b.py:stage=2 > run1.yaml
    python -m launch.gke xpk --cluster mine --zone us-west4-a --name run1 ...

The image holds the repository as its working folder, installed with the extras tpu and gcs.
Arguments that are not named below go to mgm_jax.train.
"""

from __future__ import annotations

import argparse
import dataclasses

from launch.commands import add_execute, at_least, check_has_config, finish, hand_over, run_all
from launch.gke.jobset import GkeRun, jobset, xpk


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}, expected NAME=VALUE")
    return name, value


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.gke",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (("jobset", "a JobSet for kubectl"), ("xpk", "a command for xpk")):
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("--name", required=True, help="of the run: a DNS label")
        sub.add_argument("--image", required=True, help="of the container")
        sub.add_argument("--workdir", required=True, help="in a bucket")
        sub.add_argument("--accelerator", default=GkeRun.accelerator, help="%(default)s")
        sub.add_argument(
            "--num-slices", dest="slices", type=at_least(1), default=1, help="%(default)s"
        )
        sub.add_argument("--restarts", type=at_least(0), default=GkeRun.restarts, help="at most")
        sub.add_argument("--grace", type=at_least(1), default=GkeRun.grace, help="s to save state")
        sub.add_argument("--spot", action="store_true", help="cheaper; may be taken away")
        sub.add_argument("--reservation", help="its name")
        sub.add_argument("--env", action="append", type=_variable, default=[], metavar="NAME=VALUE")
        if name == "jobset":
            sub.add_argument("--queue", help="a LocalQueue of Kueue")
            sub.add_argument("--service-account", help="of the pods, which may use the bucket")
            add_execute(sub, "kubectl apply it")
        else:
            sub.add_argument("--cluster", required=True)
            sub.add_argument("--zone", required=True)
            sub.add_argument("--project", help="default: gcloud's own")
            add_execute(sub, "start it")
    return parser


def main(argv: list[str] | None = None) -> int:
    args, rest = build_parser().parse_known_args(argv)
    check_has_config(rest)
    known = {f.name for f in dataclasses.fields(GkeRun)}
    given = {k: tuple(v) if k == "env" else v for k, v in vars(args).items() if k in known}
    run = GkeRun(**given, arguments=tuple(rest))
    if args.command == "xpk":
        return run_all([xpk(run, args.cluster, args.zone, args.project)], args.execute)
    return hand_over(jobset(run), ["kubectl", "apply", "-f", "-"], args.execute)


if __name__ == "__main__":
    finish(main)
