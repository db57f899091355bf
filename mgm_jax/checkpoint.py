"""Checkpoints: a self-describing model directory, and the training state of a run.

Model directory: `mgm.json` (format, model config, template, provenance), `tokenizer/`, `params/`
(orbax). `mgm.json` is written last, so a directory that has one is whole. Nothing is ever decided
from the name of a file or folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mgm_jax.convert.families import mgm
from mgm_jax.models.config import MgmConfig, read_parts, to_dict
from mgm_jax.text import load_tokenizer
from mgm_jax.tree import diff, flatten, unflatten

FORMAT = 1
SMALL = 8 << 20  # bytes of an array that is stored as one chunk whatever its layers
KEYS = ("model", "template", "tokenizer", "provenance")  # of mgm.json, beside "format"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written: names the file and what is wrong."""


@dataclasses.dataclass
class Checkpoint:
    """What a model directory holds; `params` is a tree of numpy or jax arrays.

    `tokenizer` is None if the weights came without one. `config` is a dict when the parameters are
    parts of a model (`models.config.read_parts`), and `template` None without a language model.
    """

    config: MgmConfig | dict[str, Any]
    params: dict[str, Any]
    tokenizer: Any
    template: str | None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def writing(directory: str | Path, what: str = "the checkpoint"):
    """Turns a full disk or a read-only place into one CheckpointError that names it."""
    try:
        yield
    except OSError as e:
        reason = os.strerror(e.errno) if e.errno else str(e)
        raise CheckpointError(f"{directory}: cannot write {what} ({reason})") from e
    except (ValueError, RuntimeError) as e:  # tensorstore reports the same failures as these
        if "os_error_code" in str(e):
            line = str(e).splitlines()[0]
            raise CheckpointError(f"{directory}: cannot write {what} ({line})") from e
        raise


@functools.cache
def hush_stragglers() -> None:
    """For commands: a failed checkpoint is one error, without the tracebacks on the way to it.

    Orbax logs what it raises, and leaves an array's siblings running when it fails; later they
    report to an event loop that is gone, or to nobody.
    """
    show = sys.unraisablehook

    def hook(event):
        if str(event.exc_value) != "Event loop is closed":
            show(event)

    sys.unraisablehook = hook

    def keep(record):
        return not record.exc_info or not re.search("/(orbax|asyncio)/", record.pathname)

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(keep)


def layer_chunks(config: MgmConfig | dict[str, Any], params) -> dict[str, Any]:
    """How orbax shall store a parameter tree: one chunk for each layer (and expert) of a big stack.

    So a reader, such as the export, needs no more than a layer in memory.
    """
    stacked = {rule.ours: rule.stacked for rule in mgm.rules(config)}

    def one(name, array):
        axes = stacked.get(name, 0) if array.nbytes > SMALL else 0
        return ocp.SaveArgs(shard_axes=tuple(range(axes)))

    return unflatten({name: one(name, array) for name, array in flatten(params).items()})


def save_checkpoint(directory: str | Path, checkpoint: Checkpoint) -> None:
    """Writes a model directory; an older one at that place is replaced."""
    directory = Path(directory).absolute()
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "mgm.json").unlink(missing_ok=True)
        for part in ("params", "tokenizer"):
            shutil.rmtree(directory / part, ignore_errors=True)
        with ocp.StandardCheckpointer() as checkpointer:
            chunks = layer_chunks(checkpoint.config, checkpoint.params)
            checkpointer.save(directory / "params", checkpoint.params, save_args=chunks)
        write_description(directory, checkpoint)


def write_description(directory: Path, checkpoint: Checkpoint) -> None:
    """Writes all of a model directory but `params/`, and `mgm.json` last."""
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer.save(directory / "tokenizer")
    description = {
        "format": FORMAT,
        "model": to_dict(checkpoint.config),
        "template": checkpoint.template,
        "tokenizer": "tokenizer" if checkpoint.tokenizer is not None else None,
        "provenance": checkpoint.provenance,
    }
    _write_json(directory, description)


def _write_json(directory: Path, description: dict[str, Any]) -> None:
    partial = directory / "mgm.json.partial"
    partial.write_text(json.dumps(description, indent=2) + "\n")
    partial.rename(directory / "mgm.json")


def rewrite_provenance(directory: str | Path, provenance: dict[str, Any]) -> None:
    """Replaces what `mgm.json` says of the weights' origin, and nothing else."""
    _write_json(Path(directory), describe(directory) | {"provenance": provenance})


def describe(directory: str | Path) -> dict[str, Any]:
    """The contents of `mgm.json`; CheckpointError if missing, unreadable or of another format."""
    file = Path(directory) / "mgm.json"
    try:
        description = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} is missing: not a checkpoint, or an unfinished one"
        ) from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as e:
        raise CheckpointError(f"{file}: unreadable ({e})") from e
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{file}: format is {found!r}, expected {FORMAT}")
    if missing := [k for k in KEYS if k not in description]:
        raise CheckpointError(f"{file}: missing key {missing[0]!r}")
    return description


def whole_model(directory: str | Path) -> MgmConfig:
    """The config in `mgm.json`; CheckpointError if the directory holds only parts of a model."""
    config = read_parts(describe(directory)["model"])
    if isinstance(config, MgmConfig):
        return config
    raise CheckpointError(
        f"{directory} holds only {', '.join(config)}, expected a whole model; a training run can "
        "begin from it by its config's init"
    )


def load_checkpoint(directory: str | Path, shardings=None) -> Checkpoint:
    """Reads a model directory; `shardings` (a tree like the parameters) places them on a mesh."""
    directory = Path(directory).absolute()
    description = describe(directory)
    config = read_parts(description["model"])
    tokenizer = description["tokenizer"]
    return Checkpoint(
        config=config,
        params=_load_params(directory / "params", shardings),
        tokenizer=load_tokenizer(directory / tokenizer) if tokenizer else None,
        template=description["template"],
        provenance=description["provenance"],
    )


def _load_params(directory: Path, shardings) -> dict[str, Any]:
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            shapes = checkpointer.metadata(directory).item_metadata.tree
            if shardings is None:
                here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
                shardings = jax.tree.map(lambda _: here, shapes)
            abstract = jax.tree.map(
                lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings
            )
            return checkpointer.restore(directory, abstract)
    except Exception as e:
        line = (str(e).splitlines() or [repr(e)])[0]
        raise CheckpointError(f"{directory}: unreadable parameters ({line})") from e


def check_params(found, expected, where: str) -> None:
    """CheckpointError with every missing, unexpected or misshapen parameter."""
    if lines := diff(flatten(expected), flatten(found)):
        raise CheckpointError(f"{where} does not fit the model:\n  " + "\n  ".join(lines))


class TrainingState:
    """The states of a run by step: trainable parameters, optimizer state, data position.

    Frozen parameters are not stored: they come from the run's `init` again. `fingerprint` (the
    run's configuration) must be the same when a run is resumed.
    """

    def __init__(self, directory: str | Path, *, keep: int, fingerprint: str):
        self.directory = Path(directory).absolute()
        self.fingerprint = fingerprint
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, enable_async_checkpointing=False
                ),
                item_names=("state", "run"),
            )

    def latest(self) -> int:
        """The newest step, 0 if there is none; CheckpointError if another configuration made it."""
        step = self._manager.latest_step()
        if step is None:
            return 0
        args = ocp.args.Composite(run=ocp.args.JsonRestore())
        with self._reading(step) as where:
            found = self._manager.restore(step, args=args)["run"]["fingerprint"]
        if found != self.fingerprint:
            raise CheckpointError(
                f"{where} belongs to a run with another configuration; use another workdir, or "
                "delete it to start anew"
            )
        return step

    def save(self, step: int, state) -> None:
        run = {"step": step, "fingerprint": self.fingerprint}
        with writing(self.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)
                ),
            )
            self._manager.wait_until_finished()

    def restore(self, step: int, abstract):
        """The state at `step`, placed as the ShapeDtypeStructs of `abstract` say."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        with self._reading(step):
            return self._manager.restore(step, args=args)["state"]

    @contextlib.contextmanager
    def _reading(self, step: int):
        where = self.directory / str(step)
        try:
            yield where
        except Exception as e:  # whatever a damaged file makes orbax and its parts raise
            line = (str(e).splitlines() or [repr(e)])[0]
            raise CheckpointError(
                f"{where}: unreadable training state ({line}); delete it to resume from an older "
                "one"
            ) from e

    def close(self) -> None:
        self._manager.close()
