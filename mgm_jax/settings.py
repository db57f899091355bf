"""What a training run's config has to satisfy before anything is built from it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from ml_collections import ConfigDict

from mgm_jax.checkpoint import describe
from mgm_jax.models.config import MgmConfig, read_parts
from mgm_jax.switches import choose
from mgm_jax.tree import flatten

LEAST = {
    "steps": 1,
    "log_every": 1,
    "checkpoint/every": 1,
    "checkpoint/keep": 1,
    "data/batch": 1,
    "data/length": 2,
    "data/microbatch": 1,
    "data/threads": 0,
    "optim/lr": 0,
    "optim/wd": 0,
}
DTYPES = ("float32", "bfloat16")
FREE = "checkpoint/.*|mesh/.*|log_every|data/threads"  # may change when a run is resumed


class TrainingError(ValueError):
    """A run that cannot start or go on: says which key or step, what was found, what to do."""


def check_numbers(config: ConfigDict) -> None:
    """TrainingError for a count that is too small, or a dtype that there is not."""
    flat = flatten(config.to_dict())
    for key, least in LEAST.items():
        if not flat[key] >= least:
            name = key.replace("/", ".")
            raise TrainingError(f"config.{name} is {flat[key]}, expected at least {least}")
    for key in ("dtype", "frozen_dtype"):
        if flat[key] not in DTYPES:
            raise TrainingError(f"config.{key} is {flat[key]!r}, expected one of {DTYPES}")


def check_switches(config: ConfigDict) -> dict:
    """`config.switches` with every value checked (ValueError) and what they need besides."""
    places = ("text", "training", "model")
    switches = choose(places, chosen=config.switches.to_dict(), prefix="config.switches.")
    rows, batch = config.data.microbatch, config.data.batch
    if switches["loss_reduction"] == "microbatch" and batch % rows:
        raise TrainingError(
            f"config.data.batch {batch} does not divide into micro-batches of "
            f"config.data.microbatch {rows} rows"
        )
    return switches


def fingerprint(config: ConfigDict) -> str:
    """What a resumed run must agree on: the configuration, but for what changes no result."""
    values = {k: v for k, v in flatten(config.to_dict()).items() if not re.fullmatch(FREE, k)}
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()


def read_model_config(config: ConfigDict) -> tuple[MgmConfig, str]:
    """The model's config and the tokenizer's directory: the run's own, or else those of the first
    checkpoint in its init that has them (one that holds parts of a model has no whole config)."""
    paths = [path for _, path in config.init if path is not None]
    found = {path: describe(path) for path in paths}
    model, tokenizer = config.model and config.model.to_dict(), config.tokenizer
    for path, description in found.items():
        if not model and isinstance(read_parts(description["model"]), MgmConfig):
            model = description["model"]
        if not tokenizer and description["tokenizer"]:
            tokenizer = str(Path(path) / description["tokenizer"])
    for key, value in (("model", model), ("tokenizer", tokenizer)):
        if not value:
            none = f"{', '.join(paths)} has none"
            where = none if paths else "config.init names no checkpoint"
            raise TrainingError(f"config.{key} is not set, and {where}")
    return MgmConfig.from_dict(model), tokenizer


def config_error(error: Exception) -> str:
    """One line of what ml_collections says in several, or with a traceback."""
    if isinstance(error, AttributeError) and isinstance(error.__context__, KeyError):
        return "config has no key " + " ".join(str(error.__context__.args[0]).split())
    head, trace, lines = str(error).partition("Traceback (most recent call last)")
    if trace:
        head = f"{head.split(': Error whilst')[0]}: {lines.strip().splitlines()[-1]}"
    return " ".join(head.split())
