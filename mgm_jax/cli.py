"""The command `mgm-jax` (also `python -m mgm_jax.cli`)."""

from __future__ import annotations

import argparse
import sys

from mgm_jax import __version__
from mgm_jax.convert import cli as convert_cli
from mgm_jax.lora import cli as lora_cli
from mgm_jax.quantize import cli as quantize_cli
from mgm_jax.serve import cli as serve_cli


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

    commands.add_parser(
        "data", help="check, build, look at and measure training data", add_help=False
    )

    commands.add_parser(
        "eval",
        help="benchmarks of a checkpoint; scores of files (eval score); a page (eval report)",
        add_help=False,
    )

    convert_cli.add_arguments(
        commands.add_parser("convert", help="weights of the original in and out; inspect files")
    )

    commands.add_parser(
        "plan", help="memory, time and cost of a run on a TPU slice, without a TPU", add_help=False
    )

    lora_cli.add_arguments(
        commands.add_parser("lora", help="adapters: merge them, import and export PEFT's")
    )

    quantize_cli.add_arguments(
        commands.add_parser(
            "quantize",
            help="a model with its weights in int8, int4 or NF4",
            description="Writes the model with the matrices of its language model quantised. "
            "The last line printed is JSON.",
        )
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

    commands.add_parser("predict", help="answers to a file of requests", add_help=False)

    chat = commands.add_parser(
        "chat",
        help="talk with a model about pictures, in the terminal",
        description="A conversation: /help lists its commands. Ctrl-C stops an answer.",
    )
    chat.add_argument("directory", help="a model, ours or the original's, or an adapter")
    chat.add_argument("--base", metavar="DIR", help="the model that the adapter is of")
    chat.add_argument("--image", action="append", default=[], metavar="FILE", help="repeatable")
    chat.add_argument("--question", help="answer this and leave")
    chat.add_argument("--system", metavar="TEXT", help="instead of the template's system text")
    chat.add_argument("--max-new-tokens", type=int, default=512, help="default: %(default)s")
    chat.add_argument("--temperature", type=float, default=0.0, help="default: 0, no chance")
    chat.add_argument("--top-p", type=float, default=1.0, help="default: 1, off")
    chat.add_argument("--top-k", type=int, default=0, help="default: 0, off")
    chat.add_argument(
        "--max-length",
        type=int,
        default=4096,
        help="tokens of a conversation with its pictures and the answer; default: %(default)s",
    )
    chat.add_argument(
        "--seed", type=int, help="of answers (default: 0) and pictures (default: any)"
    )
    chat.add_argument(
        "--allow-urls", action="store_true", help="/image fetches public http(s) URLs"
    )
    chat.add_argument("--ocr", action="store_true", help="text read in pictures as a hint")
    chat.add_argument("--ocr-tokens", type=int, default=256, help="at most; default: %(default)s")
    chat.add_argument("--gen", action="store_true", help="let the model prompt for pictures")
    chat.add_argument(
        "--gen-backend",
        default="diffusers",
        metavar="NAME",
        help="what paints: diffusers (default), openai_http or placeholder",
    )
    chat.add_argument(
        "--gen-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the back end, such as url=http://localhost:8000/v1; repeatable",
    )
    chat.add_argument("--gen-dir", default="pictures", help="of painted pictures; %(default)s")
    chat.add_argument(
        "--loop", type=int, default=0, metavar="N", help="looks of the model at what was painted"
    )
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

    serve_cli.add_arguments(
        commands.add_parser("serve", help="an OpenAI-compatible server, and a web page (--web)")
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs one command. Expected failures are one line on stderr and exit code 1."""
    args, rest = build_parser().parse_known_args(argv)
    if rest and args.command not in ("train", "data", "eval", "plan", "predict"):
        build_parser().error(f"unknown argument {rest[0]!r}")
    if args.command != "eval":  # scoring is light: it imports no jax
        from mgm_jax.checkpoint import hush_stragglers

        hush_stragglers()
    try:
        if args.command == "train":
            from mgm_jax import train

            train.main(rest)
        elif args.command == "data":
            from mgm_jax.data import cli as data_cli

            data_cli.main(rest)
        elif args.command == "eval":
            from mgm_jax.evals import cli as eval_cli

            eval_cli.main(rest)
        elif args.command == "demo":
            from mgm_jax.demo import run

            run.main(args)
        elif args.command == "convert":
            convert_cli.main(args)
        elif args.command == "lora":
            lora_cli.main(args)
        elif args.command == "quantize":
            quantize_cli.main(args)
        elif args.command == "plan":
            from mgm_jax.plan import cli as plan_cli

            plan_cli.main(rest)
        elif args.command == "doctor":
            from mgm_jax import doctor

            doctor.main(args)
        elif args.command == "predict":
            from mgm_jax.generate import predict

            predict.main(rest)
        elif args.command == "chat":
            from mgm_jax.generate import terminal

            terminal.main(args)
        elif args.command == "serve":
            serve_cli.main(args)
    except (ValueError, OSError, KeyError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command again to go on")


if __name__ == "__main__":
    main()
