"""The options `--judge-*`: a table of what `judge.HttpJudge` has, and back."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os

from mgm_jax.evals.judge import HttpJudge

OPTIONS = (  # (field, type of its text, placeholder, help)
    ("url", str, "URL", "an OpenAI-compatible API, such as http://localhost:8000/v1"),
    ("model", str, "NAME", "the model that judges"),
    ("key_env", str, "NAME", "the environment variable that holds the key"),
    (
        "cache",
        str,
        "DIR",
        "replies are kept here, and not asked for again (beside the predictions)",
    ),
    ("concurrency", int, "N", "requests at a time"),
    ("attempts", int, "N", "for each question, with growing pauses"),
    ("timeout", float, "SECONDS", "for a reply"),
    ("price_in", float, "DOLLARS", "for a million tokens of prompts"),
    ("price_out", float, "DOLLARS", "for a million tokens of replies"),
    ("budget", float, "DOLLARS", "ask nothing if the estimate is above; needs both prices"),
    ("body", str, "JSON", "more fields of a request; null takes one away"),
)
DEFAULTS = {f.name: f.default for f in dataclasses.fields(HttpJudge)}


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    """`--judge-url`, `--judge-model` and the others, as `judge_url`, ... of the namespace."""
    group = parser.add_argument_group("judge", "a language model that reads answers")
    for name, kind, placeholder, text in OPTIONS:
        default = DEFAULTS[name]
        if isinstance(default, str | int | float):
            text += f"; default: {default}"
        group.add_argument(_flag(name), type=kind, metavar=placeholder, help=text)
    group.add_argument(
        _flag("keep_unread"),
        action="store_true",
        help="replies that cannot be read count as the benchmark counts them, and are no error",
    )


def make_judge(args: argparse.Namespace, cache) -> HttpJudge | None:
    """The judge that the arguments describe, or None; `cache`: the folder if none is given.

    ValueError for options without a URL, a URL without a model, a key's variable that is not set.
    """
    names = [name for name, *_ in OPTIONS] + ["keep_unread"]
    given = {name: getattr(args, f"judge_{name}") for name in names}
    given = {name: value for name, value in given.items() if value not in (None, False)}
    if not given:
        return None
    for name in ("url", "model"):
        if name not in given:
            raise ValueError(f"{_flag(next(iter(given)))} is given, but not {_flag(name)}")
    if "key_env" in given and not os.environ.get(given["key_env"]):
        raise ValueError(f"--judge-key-env {given['key_env']}: this variable is not set")
    if "body" in given:
        given["body"] = _object(given["body"])
    return HttpJudge(**{"cache": cache, **given})


def _object(text: str) -> dict:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--judge-body: not JSON: {error.msg}: {text}") from None
    if not isinstance(value, dict):
        raise ValueError(f"--judge-body: found {text}, expected a JSON object")
    return value


def _flag(name: str) -> str:
    return f"--judge-{name.replace('_', '-')}"
