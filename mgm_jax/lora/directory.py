"""Adapter directories: PEFT's two files, and `mgm_adapter.json`, which says what they belong to.

    {"format": 1, "base": {"path": DIR, "hash": `checkpoint.content_hash`}, "template": ...,
     "image": `models.config.ImageSpec`, "provenance": {...}}

`mgm_adapter.json` is written last, so a directory that has one is whole. A directory without one is
an adapter as PEFT or LLaVA's trainer made it; its base has to be named, or lie where it says.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from mgm_jax.checkpoint import CheckpointError, content_hash, place, writing
from mgm_jax.lora import peft
from mgm_jax.lora.config import LoraConfig
from mgm_jax.models.config import ImageSpec, MgmConfig, build

FORMAT = 1
RECORD = "mgm_adapter.json"


@dataclasses.dataclass(frozen=True)
class Base:
    """The model directory that an adapter belongs to, and its `content_hash` (None: unknown)."""

    path: str
    hash: str | None


def is_adapter(directory: epath.PathLike) -> bool:
    """Whether it holds an adapter, and not a whole model too (which is then read without it)."""
    directory = epath.Path(directory)
    if (directory / RECORD).exists():
        return True
    whole = ("mgm.json", "model*.safetensors", "pytorch_model*.bin")
    if any(any(directory.glob(pattern)) for pattern in whole):
        return False
    return (directory / peft.CONFIG).exists()


def write(
    directory: epath.PathLike,
    params: Mapping[str, Any],
    cfg: MgmConfig,
    lora: LoraConfig,
    base: Base,
    template: str | None,
    provenance: Mapping[str, Any],
) -> None:
    """Writes an adapter directory; an older one at that place is replaced. `params` as of
    `peft.save`; `cfg` and `template` as it was trained. CheckpointError where it cannot be
    written."""
    directory = place(directory)
    record = {"format": FORMAT, "base": dataclasses.asdict(base), "template": template}
    record |= {"image": dataclasses.asdict(cfg.image), "provenance": provenance}
    with writing(directory, "the adapter"), tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)  # a bucket takes whole files only
        peft.save(here, params, cfg, lora, base.path)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / RECORD).unlink(missing_ok=True)
        for name in (peft.WEIGHTS, peft.CONFIG):
            (directory / name).write_bytes((here / name).read_bytes())
        (directory / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def read_record(directory: epath.PathLike) -> dict[str, Any]:
    """`mgm_adapter.json`, or what stands for it where PEFT made the directory. CheckpointError if
    it cannot be read."""
    file = epath.Path(directory) / RECORD
    if not file.exists():
        named = peft.read_config(Path(directory)).get("base_model_name_or_path") or ""
        base = {"path": named, "hash": None}
        return {"format": FORMAT, "base": base, "template": None, "image": None, "provenance": {}}
    try:
        record = json.loads(file.read_text())
        Base(**record["base"]), record["template"], record["image"], record["provenance"]
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{file}: unreadable ({e!r})") from e
    if record["format"] != FORMAT:
        raise CheckpointError(f"{file}: format is {record['format']!r}, expected {FORMAT}")
    return record


def as_trained(directory: epath.PathLike, cfg: MgmConfig, template: str):
    """The base's config and template -> those that the adapter was trained with: how pictures are
    laid out and the chat template may be its own."""
    record = read_record(directory)
    if record["image"]:
        image = build(ImageSpec, record["image"], f"{epath.Path(directory) / RECORD}: image")
        cfg = dataclasses.replace(cfg, image=image)
    return cfg, record["template"] or template


def find_base(directory: epath.PathLike, given: epath.PathLike | None = None) -> epath.Path:
    """The base's model directory: `given`, or where the record says.

    CheckpointError where there is none, and, with both hashes, where it is not the one that the
    adapter was trained on.
    """
    base = Base(**read_record(directory)["base"])
    path = epath.Path(given or base.path or "?")
    if not any((path / name).exists() for name in ("mgm.json", "config.json")):
        raise CheckpointError(
            f"{directory} is an adapter of {base.path or 'an unnamed model'}, but no model is in "
            f"{path}; say where its base is (--base DIR, or base=DIR)"
        )
    if base.hash and (found := content_hash(path)) != base.hash:
        raise CheckpointError(
            f"{directory} is an adapter of {base.path}, whose content is {base.hash}, but that of "
            f"{path} is {found}: it is another model, or has changed"
        )
    return path


def read(directory: epath.PathLike, cfg: MgmConfig) -> tuple[LoraConfig, dict[str, Any]]:
    """(config, tree of numpy arrays) of the adapter, for a base of config `cfg`: see `peft.load`.

    A directory in a bucket is copied first.
    """
    directory = epath.Path(directory)
    if "://" not in str(directory):
        return peft.load(Path(directory), cfg)
    with tempfile.TemporaryDirectory() as scratch:
        for file in directory.iterdir():
            if file.suffix in (".json", ".safetensors", ".bin"):
                (Path(scratch) / file.name).write_bytes(file.read_bytes())
        return peft.load(Path(scratch), cfg)
