"""Whole checkpoints: an original's directory -> a self-describing one of ours, and back.

Nothing of the source is copied but its tokenizer and the text of its config.json, which the way
back starts from (MGM_SPEC 3.1, 3.6).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mgm_jax.checkpoint import (
    Checkpoint,
    CheckpointError,
    describe,
    refuse_quantized,
    write_description,
)
from mgm_jax.convert import hf
from mgm_jax.convert.extents import TensorSource
from mgm_jax.convert.families import mgm
from mgm_jax.convert.hashes import Hashes
from mgm_jax.convert.hf_config import hf_config
from mgm_jax.convert.llm_config import template_of
from mgm_jax.convert.params import ParamsSource
from mgm_jax.convert.plan import as_dtype
from mgm_jax.convert.rules import Rule
from mgm_jax.convert.stream import export_stream, import_stream
from mgm_jax.convert.torch_file import TorchWriter
from mgm_jax.convert.towers import clip_facts, with_towers
from mgm_jax.convert.writers import HfWriter, write_text
from mgm_jax.models.config import MgmConfig, read_parts, to_dict
from mgm_jax.text import get_template

LICENCE = (
    "The weights keep the licences of their sources (the language model's, CLIP's, OpenCLIP's and "
    "Mini-Gemini's); read them before use."
)
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"
WHOLE = {f.name for f in dataclasses.fields(MgmConfig)}
TIED_HEAD = Rule(HEAD, "llm/embed/embedding")  # a tied head that the source stored all the same


def same_tensor(source: TensorSource, a: str, b: str, rows: int = 4096) -> bool:
    """Whether two matrices are equal bit for bit, compared some rows at a time."""
    if (source[a].shape, source[a].dtype) != (source[b].shape, source[b].dtype):
        return False
    for start in range(0, len(source[a]), rows):
        part = (start, min(start + rows, len(source[a])))
        x, y = (source.read_rows(name, *part) for name in (a, b))
        if not np.array_equal(x.view(np.uint8), y.view(np.uint8)):
            return False
    return True


def write_tokenizer(directory: Path, dst: Path) -> None:
    """A checkpoint's tokenizer in Hugging Face's layout: the vocabulary file and its options."""
    options = json.loads((directory / "mgm_tokenizer.json").read_text())
    file, kind = {
        "sentencepiece": ("tokenizer.model", "LlamaTokenizer"),
        "json": ("tokenizer.json", "PreTrainedTokenizerFast"),
    }[options["kind"]]
    known = {"add_bos_token": options["add_bos"], "legacy": options["legacy"]}
    (dst / file).write_bytes((directory / file).read_bytes())
    write_text(dst / "tokenizer_config.json", json.dumps(known | {"tokenizer_class": kind}) + "\n")


def from_hf(
    src: str | Path,
    dst: str | Path | None,
    *,
    dtype=None,
    max_ram: int | None = None,
    dry_run: bool = False,
    towers: Mapping[str, str | Path] | None = None,
    template: str | None = None,
    progress: bool = True,
) -> list[str]:
    """An original's `src` -> our model directory `dst`. Returns the mapping's lines.

    `src` is a directory or a file: a whole MGM; base weights (CLIP, ConvNeXt, a language model); or
    what stage 1 or LoRA save beside the language model (`mm_projector.bin`,
    `non_lora_trainables.bin`). All but the first give a checkpoint of parts, for a run's init.
    `towers`: clip, convnext or llm -> path that overrides the checkpoint's own weights. `template`:
    the chat template to record. Options and errors as of `stream.import_stream`, and
    FileNotFoundError or ValueError for what `src` lacks. Resumable.
    """
    src = Path(src)
    home = src if src.is_dir() else src.parent
    config = hf.read_config(home) if (home / "config.json").exists() else {}
    source, used, whole = with_towers(src, config, towers or {})
    own_folder = None if "mm_projector_type" in config else home  # its config.json is CLIP's own
    heads = clip_facts(used.get("clip", own_folder)).get("num_attention_heads")
    read = hf.mgm_config if whole else hf.parts_config
    cfg = read(home, config, source, clip_heads=heads)
    llm = cfg.llm if whole else cfg.get("llm")
    if template or llm:
        template = get_template(template or template_of(config, str(home / "config.json"))).name
    tied = bool(llm and llm.tied_embeddings and HEAD in source)
    if tied and not same_tensor(source, HEAD, EMBED):
        raise ValueError(f"{src}: config.json ties {HEAD!r} to {EMBED!r}, but they differ")
    if tied:
        source.extents.pop(HEAD)
    provenance = {
        "source": "huggingface",
        "config.json": dict(config) or None,
        "tied_head_stored": tied,
        "dtype": as_dtype(dtype).name if dtype else None,
        "licence": LICENCE,
    }
    hashes = Hashes(source.files)

    def close():
        found = provenance | {"sha256": hashes.result()}
        tokenizer = hf.read_tokenizer(home) if llm else None
        write_description(Path(dst), Checkpoint(cfg, {}, tokenizer, template, found))

    if not dry_run:
        if dst is None:
            raise ValueError("no destination: give --dst, or --dry-run")
        hashes.start()
    return import_stream(
        source,
        mgm.rules(cfg),
        dst or ".",
        dtype,
        max_ram=max_ram,
        dry_run=dry_run,
        expected={"llm/embed/embedding": (llm.vocab_size, llm.dim)} if llm else {},
        tag=json.dumps([provenance, template, to_dict(cfg)]),
        progress=progress,
        close=close,
    )


def to_hf(
    src: str | Path,
    dst: str | Path | None,
    *,
    dtype=None,
    shard_size: int = 5_000_000_000,
    max_ram: int | None = None,
    dry_run: bool = False,
    adapter: bool = False,
    progress: bool = True,
) -> list[str]:
    """Our model directory `src` -> the original's layout in `dst`. Returns the mapping's lines.

    Writes config.json, sharded safetensors with their index, and the tokenizer's files; or with
    `adapter`, what the original's stage 1 saves and its stage 2 begins from: `mm_projector.bin`
    (all but the language model, MGM_SPEC 3.3) and config.json. Options and errors as of
    `stream.export_stream`, and CheckpointError if `src` lacks a part of that. Resumable.
    """
    src = Path(src)
    description = describe(src)
    refuse_quantized(src, description)
    cfg, provenance = read_parts(description["model"]), description["provenance"]
    source = ParamsSource(src / "params")
    held = set(to_dict(cfg))
    tower = cfg.get("clip") if isinstance(cfg, dict) else cfg.clip
    if tower and tower.kind != "clip":
        raise CheckpointError(
            f"{src}: its clip.kind is {tower.kind!r}, but the original has no vision tower but "
            "CLIP; to-bv writes the tower for big_vision"
        )
    if lacking := sorted(({"clip", "projector"} if adapter else WHOLE) - held):
        needed = "mm_projector.bin" if adapter else "a whole model"
        what = f"{src} holds only {', '.join(sorted(held))}: {needed} also needs {lacking[0]}"
        if "projector" in held and not adapter:
            what += "; with --adapter it becomes mm_projector.bin"
        raise CheckpointError(what)
    if adapter:
        kept = {n: a for n, a in source.extents.items() if not n.startswith("llm/")}
        source.extents = kept
        parts = cfg if isinstance(cfg, dict) else vars(cfg)
        rules = mgm.rules({k: v for k, v in parts.items() if k != "llm"})
    else:
        rules = mgm.rules(cfg)
        if cfg.llm.tied_embeddings and provenance.get("tied_head_stored"):
            rules = [*rules, TIED_HEAD]
    config = provenance.get("config.json") or {}
    if "mm_projector_type" not in config:
        config = hf_config(cfg, config)
    if dtype:
        config = config | {"torch_dtype": as_dtype(dtype).name}

    def close():
        write_text(Path(dst) / "config.json", json.dumps(config, indent=2) + "\n")
        if description["tokenizer"] and not adapter:
            write_tokenizer(src / description["tokenizer"], Path(dst))

    if dst is None and not dry_run:
        raise ValueError("no destination: give --dst, or --dry-run")
    return export_stream(
        source,
        rules,
        dst or ".",
        dtype,
        writer=lambda place, specs: (
            TorchWriter(place / "mm_projector.bin", specs)
            if adapter
            else HfWriter(place, specs, shard_size)
        ),
        max_ram=max_ram,
        dry_run=dry_run,
        tag=json.dumps([config, provenance.get("tied_head_stored"), adapter, shard_size]),
        progress=progress,
        close=close,
    )
