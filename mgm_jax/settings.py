"""What a training run's config has to satisfy before anything is built from it."""

from __future__ import annotations

import argparse
import ast
import hashlib
import pprint
import re
from collections.abc import Sequence

from etils import epath
from ml_collections import ConfigDict

from mgm_jax.checkpoint import describe
from mgm_jax.data.files import write_whole
from mgm_jax.models.config import MgmConfig, read_parts
from mgm_jax.switches import choose
from mgm_jax.tree import flatten

LENGTHS = ("steps", "epochs")  # of a run: one of them
# Where they are set: at least 1.
MAYBE = ("data/group_rows", "data/slots", "checkpoint/keep_every", "tower_batch")
LEAST = {
    "accumulate": 1,
    "log_every": 1,
    "checkpoint/every": 1,
    "checkpoint/keep": 1,
    "eval/every": 1,
    "data/batch": 1,
    "data/length": 2,
    "data/microbatch": 1,
    "data/threads": 0,
    "data/workers": 0,
    "data/window": 1,
    "optim/lr": 0,
    "optim/wd": 0,
}
MODES = ("min", "max")
MEASURED = ("loss", "grad_norm")  # what every step measures, and a state can be the best of
DTYPES = ("float32", "bfloat16")
BOARDS = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # what they need
# What may change when a run is resumed.
FREE = "checkpoint/.*|mesh/.*|log_every|accumulate|remat|tower_batch|attention|moe|gradients"
FREE += "|data/(threads|workers|index)|boards|profile|stall_minutes|max_replicated|eval/.*"


CONFIG = "config.txt"  # in a run's working directory


class TrainingError(ValueError):
    """A run that cannot start or go on: says which key or step, what was found, what to do."""


def check_numbers(config: ConfigDict) -> None:
    """TrainingError for a count that is too small, or a dtype that there is not."""
    flat = flatten(config.to_dict())
    given = {key: flat[key] for key in LENGTHS if flat[key]}
    if len(given) != 1 or next(iter(given.values())) < 1:
        raise TrainingError(
            f"config.steps is {flat['steps']} and config.epochs {flat['epochs']}, expected one of "
            "them, at least 1"
        )
    for key, least in (LEAST | {key: 1 for key in MAYBE if flat[key] is not None}).items():
        if not flat[key] >= least:
            name = key.replace("/", ".")
            raise TrainingError(f"config.{name} is {flat[key]}, expected at least {least}")
    if config.checkpoint.best_mode not in MODES:
        found = config.checkpoint.best_mode
        raise TrainingError(f"config.checkpoint.best_mode is {found!r}, expected one of {MODES}")
    if not all(seconds >= 0 for seconds in config.checkpoint.retries):
        raise TrainingError(
            f"config.checkpoint.retries is {config.checkpoint.retries}, expected seconds from 0 on"
        )
    asked = config.eval.configs or config.eval.loss.path
    known = (None, *MEASURED)
    if config.checkpoint.best not in known and not (
        asked and config.checkpoint.best.startswith("eval")  # `Validation` knows which there are
    ):
        raise TrainingError(
            f"config.checkpoint.best is {config.checkpoint.best!r}, expected one of {MEASURED}"
        )
    if config.stall_minutes is not None and not config.stall_minutes > 0:
        raise TrainingError(
            f"config.stall_minutes is {config.stall_minutes}, expected more than 0, or None"
        )
    if unknown := [name for name in config.boards if name not in BOARDS]:
        raise TrainingError(
            f"config.boards has {unknown[0]!r}, expected some of {', '.join(BOARDS)}"
        )
    window = tuple(config.profile)
    if window and not (len(window) == 2 and 0 < window[0] < window[1]):
        raise TrainingError(
            f"config.profile is {window}, expected (first step, step behind the last), or ()"
        )
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


def keep_config(config: ConfigDict, workdir: epath.Path) -> None:
    """Writes the config to `workdir`, as a Python literal: tuples stay what they are. OSError."""
    text = pprint.pformat(config.to_dict(), sort_dicts=False, width=100)
    write_whole(workdir / CONFIG, f"{text}\n".encode())


def kept_config(workdir: epath.PathLike) -> ConfigDict:
    """The config of the run in `workdir`; TrainingError if there is none."""
    file = epath.Path(workdir) / CONFIG
    try:
        return ConfigDict(ast.literal_eval(file.read_text()))
    except FileNotFoundError:
        raise TrainingError(f"{file} does not exist: no training run has begun there") from None
    except (ValueError, SyntaxError) as error:
        raise TrainingError(f"{file}: unreadable ({error}), expected a run's config") from error


def read_model_config(config: ConfigDict) -> tuple[MgmConfig, str, str]:
    """The model's config, the tokenizer's directory and the chat template: the run's own, or else
    those of the first checkpoint in its init that has them (one that holds parts of a model has no
    whole config)."""
    paths = [path for _, path in config.init if path is not None]
    found = {path: describe(path) for path in paths}
    model, tokenizer = config.model and config.model.to_dict(), config.tokenizer
    template = config.data.template
    for path, description in found.items():
        if not model and isinstance(read_parts(description["model"]), MgmConfig):
            model = description["model"]
        if not tokenizer and description["tokenizer"]:
            tokenizer = str(epath.Path(path) / description["tokenizer"])
        template = template or description["template"]
    needed = {"model": model, "tokenizer": tokenizer, "data.template": template}
    for key, value in needed.items():
        if not value:
            none = f"{', '.join(paths)} has none"
            where = none if paths else "config.init names no checkpoint"
            raise TrainingError(f"config.{key} is not set, and {where}")
    return MgmConfig.from_dict(model), tokenizer, template


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """`--config`, for `read_config`; whoever parses puts what is left over into `args.rest`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="a config of a training run, its argument after a colon; further arguments "
        "--config.KEY=VALUE change its keys",
    )
    parser.set_defaults(rest=[])


def read_config(file: str, overrides: Sequence[str] = (), key: str = "steps") -> ConfigDict:
    """The config of FILE[:ARG] after the overrides ("--config.key=value"). TrainingError, in one
    line, for a file that cannot be read, an unknown key or argument, or a value of another type.
    `key`: one that every config of the kind has."""
    from absl import flags
    from ml_collections import config_flags

    argv = ["mgm-jax", f"--config={file}", *overrides]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", None, "a file of configs/", flag_values=values, sys_argv=argv
    )
    try:
        left = values(argv)[1:]
        config.value[key]  # a file that could not be read only now says so
    except (flags.Error, AttributeError, KeyError, ValueError, OSError) as error:
        raise TrainingError(config_error(error)) from error
    if left:
        raise TrainingError(f"found {left[0]!r}, expected --config.KEY=VALUE")
    return config.value


def config_error(error: Exception) -> str:
    """One line of what ml_collections says in several, or with a traceback."""
    if isinstance(error, AttributeError) and isinstance(error.__context__, KeyError):
        return "config has no key " + " ".join(str(error.__context__.args[0]).split())
    head, trace, lines = str(error).partition("Traceback (most recent call last)")
    if trace:
        head = f"{head.split(': Error whilst')[0]}: {lines.strip().splitlines()[-1]}"
    return " ".join(head.split())
