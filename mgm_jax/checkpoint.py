"""Checkpoints: self-describing model directories.

Model directory: `mgm.json` (format, model config, template, provenance), `tokenizer/`, `params/`
(orbax). `mgm.json` is written last, so a directory that has one is whole. Nothing is ever decided
from the name of a file or folder. A directory is a local folder or a bucket's (gs://...).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mgm_jax.convert.families import mgm
from mgm_jax.distributed import first_process_does
from mgm_jax.models.config import MgmConfig, build, read_parts, to_dict
from mgm_jax.quantize.config import QuantConfig, plain_name
from mgm_jax.text import load_tokenizer
from mgm_jax.tree import diff, flatten, unflatten

FORMAT = 1
SMALL = 8 << 20  # bytes of an array that is stored as one chunk whatever its layers
SAMPLE = 64 << 10  # bytes at a file's begin, middle and end that `content_hash` reads
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
    quantization: QuantConfig | None = None


def place(path: epath.PathLike) -> epath.Path:
    """The absolute path. A bucket's is that already; `absolute()` would make it a local one."""
    path = epath.Path(path)
    return path if "://" in str(path) else path.absolute()


@contextlib.contextmanager
def writing(directory: epath.PathLike, what: str = "the checkpoint"):
    """Turns a full disk or a read-only place into one CheckpointError that names it."""
    try:
        yield
    except Exception as e:
        if (reason := why_unwritten(e)) is None:
            raise
        raise CheckpointError(f"{directory}: cannot write {what} ({reason})") from e


def why_unwritten(error: BaseException) -> str | None:
    """What the system said, if it is what kept a file from being written; tensorstore hides it in
    an error of another kind."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else first_line(error)
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(found[1]))
    return None


def first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), repr(error))


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
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)

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
        axes = stacked.get(plain_name(name), 0) if array.nbytes > SMALL else 0
        return ocp.SaveArgs(shard_axes=tuple(range(axes)))

    return unflatten({name: one(name, array) for name, array in flatten(params).items()})


def save_checkpoint(directory: epath.PathLike, checkpoint: Checkpoint) -> None:
    """Writes a model directory; an older one at that place is replaced.

    Every process of a run calls it: each writes the shards that its devices hold. CheckpointError
    where it cannot be written.
    """
    directory = place(directory)

    def clear():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "mgm.json").unlink(missing_ok=True)
        for part in ("params", "tokenizer"):
            (directory / part).rmtree(missing_ok=True)

    with writing(directory):
        first_process_does(clear)
        with ocp.StandardCheckpointer() as checkpointer:
            chunks = layer_chunks(checkpoint.config, checkpoint.params)
            checkpointer.save(directory / "params", checkpoint.params, save_args=chunks)
        first_process_does(lambda: write_description(directory, checkpoint))


def write_description(directory: epath.PathLike, checkpoint: Checkpoint) -> None:
    """Writes all of a model directory but `params/`, and `mgm.json` last."""
    directory = epath.Path(directory)
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer.save(directory / "tokenizer")
    description = {
        "format": FORMAT,
        "model": to_dict(checkpoint.config),
        "template": checkpoint.template,
        "tokenizer": "tokenizer" if checkpoint.tokenizer is not None else None,
        "provenance": checkpoint.provenance,
    }
    if checkpoint.quantization:
        description["quantization"] = dataclasses.asdict(checkpoint.quantization)
    _write_json(directory, description)


def _write_json(directory: epath.Path, description: dict[str, Any]) -> None:
    partial = directory / "mgm.json.partial"
    partial.write_text(json.dumps(description, indent=2) + "\n")
    partial.replace(directory / "mgm.json")


def rewrite_provenance(directory: epath.PathLike, provenance: dict[str, Any]) -> None:
    """Replaces what `mgm.json` says of the weights' origin, and nothing else."""
    _write_json(epath.Path(directory), describe(directory) | {"provenance": provenance})


def describe(directory: epath.PathLike) -> dict[str, Any]:
    """The contents of `mgm.json`; CheckpointError if missing, unreadable or of another format."""
    file = epath.Path(directory) / "mgm.json"
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


def quantization_of(description: dict[str, Any]) -> QuantConfig | None:
    """How the parameters of a model directory are quantised, from its `describe`. ValueError."""
    found = description.get("quantization")
    return build(QuantConfig, found, "quantization") if found else None


def refuse_quantized(directory: epath.PathLike, description: dict[str, Any]) -> None:
    """CheckpointError for a quantised model, where plain weights are needed."""
    if found := quantization_of(description):
        raise CheckpointError(
            f"{directory} is quantised ({found.scheme}); this needs the model that it was made from"
        )


def whole_model(directory: epath.PathLike) -> MgmConfig:
    """The config in `mgm.json`; CheckpointError if the directory holds only parts of a model."""
    config = read_parts(describe(directory)["model"])
    if isinstance(config, MgmConfig):
        return config
    raise CheckpointError(
        f"{directory} holds only {', '.join(config)}, expected a whole model; a training run can "
        "begin from it by its config's init"
    )


def load_checkpoint(directory: epath.PathLike, shardings=None) -> Checkpoint:
    """Reads a model directory; `shardings` (a tree like the parameters) places them on a mesh."""
    directory = place(directory)
    description = describe(directory)
    config = read_parts(description["model"])
    tokenizer = description["tokenizer"]
    with _reading(directory / "params"):
        shapes = stored_shapes(directory)
        if shardings is None:
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            shardings = dict.fromkeys(shapes, here)
        else:
            shardings = flatten(shardings)
        wanted = {
            n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=shardings[n])
            for n, s in shapes.items()
        }
        params = restore_tree(directory / "params", unflatten(wanted))
    return Checkpoint(
        config=config,
        params=params,
        tokenizer=load_tokenizer(directory / tokenizer) if tokenizer else None,
        template=description["template"],
        provenance=description["provenance"],
        quantization=quantization_of(description),
    )


def load_some(
    directory: epath.PathLike, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Reads these parameters of a model directory, and nothing else of it.

    wanted: name -> shape, dtype (values are cast) and sharding. Each process reads what its own
    devices hold, straight into its place. CheckpointError with every parameter that is missing or
    of another shape.
    """
    directory = place(directory)
    describe(directory)
    with _reading(directory / "params"):
        shapes = stored_shapes(directory)
    there = {n: shapes[n] for n in wanted if n in shapes}
    check_params(unflatten(there), unflatten(wanted), str(directory))
    with _reading(directory / "params"):
        return flatten(restore_tree(directory / "params", unflatten(wanted)))


def stored_shapes(directory: epath.PathLike) -> dict[str, Any]:
    """name -> shape and dtype of the parameters of a model directory."""
    with ocp.StandardCheckpointer() as checkpointer:
        return flatten(checkpointer.metadata(place(directory) / "params").item_metadata.tree)


def restore_tree(directory: epath.Path, abstract):
    """Arrays of an orbax tree, placed and cast as these ShapeDtypeStructs say; what `abstract` does
    not have is not read.

    No process waits for another here: one that cannot read its shards must not leave the others at
    a barrier.
    """
    args = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.PyTreeCheckpointHandler().restore(
        directory, args=ocp.args.PyTreeRestore(abstract, restore_args=args, partial_restore=True)
    )


@contextlib.contextmanager
def _reading(directory: epath.Path):
    try:
        yield
    except Exception as e:  # whatever a damaged file makes orbax and its parts raise
        raise CheckpointError(f"{directory}: unreadable parameters ({first_line(e)})") from e


def content_hash(directory: epath.PathLike) -> str:
    """What tells the parameters of a model directory from others, without reading all of them.

    A sha256 over the name and size of each file of `params/` (of all files, if that is missing: an
    original's) and 64 KiB of its begin, middle and end: so it takes seconds also where 70 GB lie in
    a bucket. A copy of the files has the same one.
    """
    root = place(directory)
    root = root / "params" if (root / "params").is_dir() else root
    files = [epath.Path(d) / name for d, _, names in root.walk() for name in names]

    def sampled(file: epath.Path) -> tuple[str, int, str]:
        size, digest = file.stat().length, hashlib.sha256()
        with file.open("rb") as stream:
            for start in sorted({0, max(0, (size - SAMPLE) // 2), max(0, size - SAMPLE)}):
                stream.seek(start)
                digest.update(stream.read(SAMPLE))
        return str(file.relative_to(root)), size, digest.hexdigest()

    with _reading(root), ThreadPoolExecutor(32) as pool:
        found = sorted(pool.map(sampled, files))
    return hashlib.sha256(repr(found).encode()).hexdigest()


def check_params(found, expected, where: str) -> None:
    """CheckpointError with every missing, unexpected or misshapen parameter."""
    if lines := diff(flatten(expected), flatten(found)):
        raise CheckpointError(f"{where} does not fit the model:\n  " + "\n  ".join(lines))
