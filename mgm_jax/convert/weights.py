"""A whole model on disk, ours or the original's, seen through the original's tensor names.

Nothing is loaded until a tensor is read, and then only that tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mgm_jax.checkpoint import describe, refuse_quantized, whole_model
from mgm_jax.convert import hf
from mgm_jax.convert.families import mgm
from mgm_jax.convert.llm_config import template_of
from mgm_jax.convert.params import ParamsSource
from mgm_jax.convert.plan import pairs
from mgm_jax.convert.rules import to_theirs
from mgm_jax.convert.stream import Blocks
from mgm_jax.convert.towers import with_towers
from mgm_jax.models.config import MgmConfig
from mgm_jax.text import load_tokenizer


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A model's description, and `read(name)` for the values of one of its `names`.

    `names` are the original's, in the order of the rules; `read` gives torch's layout in the dtype
    that is stored. `config`, `template`, `tokenizer` and `provenance` are as of `load`; `files` are
    those that hold the weights.
    """

    directory: Path
    ours: bool
    config: MgmConfig
    template: str
    tokenizer: Any
    provenance: Mapping[str, Any]
    names: tuple[str, ...]
    read: Callable[[str], np.ndarray]
    files: tuple[Path, ...]


def open_model(directory: str | Path) -> StoredModel:
    """A directory of ours (mgm.json) or of the original (config.json and weights), unread.

    CheckpointError, ValueError or FileNotFoundError as of `mgm_jax.load`: not a whole model, a
    tensor that its config needs is missing, damaged files.
    """
    directory = Path(directory)
    if not (directory / "mgm.json").exists() and (directory / "config.json").exists():
        return _theirs(directory)
    config, description = whole_model(directory), describe(directory)
    refuse_quantized(directory, description)
    source, places = ParamsSource(directory / "params"), {p.theirs: p for p in _pairs(config)}
    if absent := [p for p in places.values() if p.rule.ours not in source]:
        raise ValueError(f"{source.where}: array {absent[0].rule.ours!r} is missing")
    blocks = Blocks(source)

    def read(name):
        pair = places[name]
        return to_theirs(pair.rule, blocks.get(pair.rule.ours, pair.index))

    folder = description["tokenizer"]
    tokenizer = load_tokenizer(directory / folder) if folder else None
    about = (directory, True, config, description["template"], tokenizer, description["provenance"])
    return StoredModel(*about, tuple(places), read, tuple(source.files))


def _theirs(directory: Path) -> StoredModel:
    values = hf.read_config(directory)
    source, _, whole = with_towers(directory, values, {})
    if not whole:
        raise ValueError(f"{directory}: not a whole Mini-Gemini, which this needs")
    config = hf.mgm_config(directory, values, source)
    template = template_of(values, str(directory / "config.json"))
    names = tuple(p.theirs for p in _pairs(config))
    if absent := [n for n in names if n not in source]:
        raise ValueError(f"{directory}: tensor {absent[0]!r} is missing")
    provenance = {"config.json": dict(values)}
    about = (directory, False, config, template, hf.read_tokenizer(directory), provenance)
    return StoredModel(*about, names, source.read, tuple(source.files))


def _pairs(config: MgmConfig):
    return pairs(mgm.rules(config))
