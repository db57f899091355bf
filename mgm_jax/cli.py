"""The command `mgm-jax` (also `python -m mgm_jax.cli`)."""

from __future__ import annotations

import argparse
import sys

from mgm_jax import __version__
from mgm_jax.convert import cli as convert_cli


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mgm-jax", description="Mini-Gemini on TPU pods, in JAX.")
    parser.add_argument("--version", action="version", version=f"mgm-jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train a small Mini-Gemini from nothing and show what mining is good for",
        description="Builds a dataset, pretrains two tiny towers, runs stage 1 and stage 2 with "
        "mining and without, evaluates both and draws what was mined. Resumes when it is run "
        "again. The last line printed is JSON.",
    )
    demo.add_argument("--workdir", default="workdir/demo", help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=0, help="of the whole pipeline; default: 0")
    demo.add_argument(
        "--size", choices=("full", "smoke"), default="full", help="smoke: a minute, learns nothing"
    )
    demo.add_argument("--json", metavar="FILE", help="write the last line to FILE too")

    commands.add_parser(
        "train",
        help="train from a config file",
        description="--config FILE[:arg] --workdir DIR [--config.key=value ...]",
        add_help=False,
    )

    convert_cli.add_arguments(
        commands.add_parser("convert", help="weights of the original in and out; inspect files")
    )

    doctor = commands.add_parser(
        "doctor",
        help="what a checkpoint holds, what is wrong with it, and what to do",
        description="Reads names, shapes and small files of a model directory (ours or the "
        "original's) and says what is there, what is missing or does not fit, the likely cause and "
        "the remedy. The last line printed is JSON. Exit code 1 if there is an error.",
    )
    doctor.add_argument("directory")
    doctor.add_argument("--json", metavar="FILE", help="write the last line to FILE too")

    chat = commands.add_parser("chat", help="talk with a model about pictures, in the terminal")
    chat.add_argument("directory", help="a model directory (has mgm.json)")
    chat.add_argument("--image", action="append", metavar="FILE", help="may be repeated")
    chat.add_argument("--question", help="answer this and leave")
    chat.add_argument("--max-new-tokens", type=int, default=64, help="default: %(default)s")
    chat.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s"
    )
    chat.add_argument(
        "--switch",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one of mgm_jax.switches: gemma_act, gemma_scale_rounding, infer_truncate, "
        "llama3_released_prompt, cli_eos, cli_auto_template; may be repeated",
    )
    chat.add_argument("--faithful", action="store_true", help="the original's side of all of them")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs one command. Expected failures are one line on stderr and exit code 1."""
    args, rest = build_parser().parse_known_args(argv)
    if rest and args.command != "train":
        build_parser().error(f"unknown argument {rest[0]!r}")
    from mgm_jax.checkpoint import hush_stragglers

    hush_stragglers()
    try:
        if args.command == "train":
            from mgm_jax import train

            train.main(rest)
        elif args.command == "demo":
            from mgm_jax.demo import run

            run.main(args)
        elif args.command == "convert":
            convert_cli.main(args)
        elif args.command == "doctor":
            from mgm_jax import doctor

            doctor.main(args)
        elif args.command == "chat":
            from mgm_jax.generate import chat

            chat.main(args)
    except (ValueError, OSError, KeyError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command again to go on")


if __name__ == "__main__":
    main()
