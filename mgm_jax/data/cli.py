"""`mgm-jax data COMMAND`: one module each."""

from __future__ import annotations

import argparse
import importlib

# command -> (module with `add_arguments(parser)` and `main(args)`, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "recipes": ("mgm_jax.data.recipe_check", "what the published training data needs"),
    "check": ("mgm_jax.data.check", "read everything and say what is wrong"),
    "build": (
        "mgm_jax.data.build",
        "make one data set of records and pictures: ArrayRecord shards",
    ),
    "tfds": ("mgm_jax.data.tfds_build", "make a TFDS data set of records and pictures"),
    "preview": ("mgm_jax.data.preview", "a page of the rows, tokens and pictures of a batch"),
    "replay": ("mgm_jax.data.replay", "rebuild the batch of any step and say what is in it"),
    "bench": ("mgm_jax.data.bench", "how fast pictures are read and how full rows are packed"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mgm-jax data", description="Check, build, look at and measure training data."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        found = importlib.import_module(module)
        command = commands.add_parser(name, help=text, description=found.__doc__)
        found.add_arguments(command)
        command.set_defaults(main=found.main)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs one command; its errors are ValueErrors and OSErrors."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not hasattr(args, "rest"):  # a run's config can be changed by more arguments
        parser.error(f"unknown argument {rest[0]!r}")
    args.rest = rest
    args.main(args)
