"""Checks of a directory in the original's layout, whole or of parts, and of an adapter."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from mgm_jax.convert import hf, plan
from mgm_jax.convert.extents import TensorSource
from mgm_jax.convert.families import mgm
from mgm_jax.convert.llm_config import family, template_of
from mgm_jax.convert.readers import open_source
from mgm_jax.convert.towers import (
    AUX,
    CLIP,
    FOLDERS,
    HEADS,
    MGM,
    PREFIX,
    clip_facts,
    places,
    renamed,
    whole_names,
)
from mgm_jax.doctor.files import gather
from mgm_jax.doctor.finding import Finding, error, ok
from mgm_jax.doctor.shapes import SOURCES, arrays, describe_model, pictures, room
from mgm_jax.doctor.vocabulary import vocabulary

COMPARE = "compare config.json and the weights with the published ones; `mgm-jax convert inspect`"
TYPES = (ValueError, OSError, KeyError, TypeError)  # what reading a wrong file or value raises


def adapter(directory: Path) -> Iterator[Finding]:
    """A directory with an adapter_config.json: an adapter, unless a whole model lies beside it."""
    tensors, _ = gather(directory)
    if any(n.startswith(HEADS["llm"]) for n in tensors):
        yield Finding(
            "warning",
            "an adapter_config.json beside a whole model, which is read without it",
            "an adapter was saved into the model's directory, or merged into it",
            "move the adapter's files away",
        )
        yield from original(directory)
        return
    try:
        values = json.loads((directory / "adapter_config.json").read_text())
        base = values.get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    yield lora(base)


def lora(base: str | None) -> Finding:
    return error(
        "this is a LoRA adapter, not a model",
        f"training saved only what it added to the base model {base!r}",
        "use it with its base, a model directory of ours: mgm-jax chat DIR --base MODEL, or "
        "mgm-jax lora merge DIR OUT --base MODEL",
    )


def original(directory: Path) -> Iterator[Finding]:
    """Every finding about a directory that has no mgm.json."""
    named, damaged = (directory / "config.json").exists(), []
    config: Mapping = {}
    if named:
        try:
            config = hf.read_config(directory)
        except ValueError as e:
            damaged.append(error(e, "a damaged config.json", "download it again"))
    tensors, wrong = gather(directory)
    tensors = whole_names({n.removeprefix(PREFIX): x for n, x in tensors.items()})
    if not named and not any(n.startswith((*HEADS.values(), *MGM)) for n in tensors):
        yield error(
            f"{directory} has neither mgm.json nor config.json",
            "not a checkpoint, or config.json was not downloaded",
            "download config.json of the model into it, or give the checkpoint's directory itself",
        )
        return
    yield from damaged + wrong
    if damaged:
        yield from vocabulary(directory, config, tensors)
    elif any("lora_" in n for n in tensors) and not any(
        n.startswith(HEADS["llm"]) for n in tensors
    ):
        yield lora(None)
    elif "mm_projector_type" in config:
        yield from _model(directory, config, tensors, bool(wrong))
    elif any(n.startswith(MGM) for n in tensors) and any(
        n.startswith(HEADS["llm"]) for n in tensors
    ):
        yield error(
            "the weights are a Mini-Gemini's, but config.json is not (no mm_projector_type)"
            if named
            else "the weights are a Mini-Gemini's, but there is no config.json",
            "config.json is that of the language model alone, or was not downloaded",
            "download config.json of the Mini-Gemini into the directory",
        )
        yield from vocabulary(directory, config, tensors)
    elif tensors or not wrong:
        yield from _parts(directory, config, tensors, bool(wrong))


def _model(directory, config, tensors: dict, damaged: bool) -> Iterator[Finding]:
    """A Mini-Gemini by its config.json."""
    try:
        name = family(config, str(directory / "config.json"))
        yield ok(f"config.json: {name}, image {config.get('image_size_aux')} px")
    except TYPES as e:
        yield error(e, "config.json of another kind of model", COMPARE)
    has_llm = any(n.startswith(HEADS["llm"]) for n in tensors)
    for tower in FOLDERS:
        yield from _tower(directory, config, tensors, tower, damaged)
    if has_llm or damaged:
        yield from vocabulary(directory, config, tensors)
    yield from _sizes(config, tensors)
    if damaged:
        yield Finding(
            "warning",
            "names and shapes of the weights were not checked",
            "some files cannot be read",
            "repair the files first, and run doctor again",
        )
    elif has_llm:
        yield from _whole(directory, config, TensorSource(tensors, directory))
    else:
        yield error(
            "no language model inside, only what lies beside it: "
            + ", ".join(sorted({n.split(".")[1] for n in tensors if n.startswith("model.")})),
            "this is what stage 1 or LoRA training saves, not a whole model",
            "as it is, it can begin a training run: mgm-jax convert from-hf --src DIR --dst OUT; "
            "with the language model it is whole: ... --tower llm=PATH",
        )


def _parts(directory, config, tensors: dict, damaged: bool) -> Iterator[Finding]:
    """Base weights, or stage 1's file: parts of a model."""
    if damaged:
        return
    source = TensorSource(tensors, directory)
    try:
        heads = (
            None
            if "mm_projector_type" in config
            else clip_facts(directory).get("num_attention_heads")
        )
        parts = hf.parts_config(directory, config, source, clip_heads=heads)
        rules = mgm.rules(parts)
        plan.unmatched(source, {p.theirs: p.rule.ours for p in plan.pairs(rules)}, plan.IGNORABLE)
        plan.layouts(source, rules, None)
    except TYPES as e:
        yield error(e, "not a Mini-Gemini, or a part of one that is not whole", COMPARE)
        return
    yield Finding(
        "warning",
        f"not a whole Mini-Gemini: holds only {', '.join(parts)}",
        "base weights, or what stage 1 trains",
        "mgm-jax convert from-hf --src DIR --dst OUT makes a checkpoint that a training run's init "
        "can name; a tower can also complete a model (--tower clip=DIR, convnext=DIR, llm=DIR)",
    )
    if "llm" in parts:
        yield from vocabulary(directory, config, tensors)


def _tower(directory, config, tensors: dict, tower: str, damaged: bool) -> Iterator[Finding]:
    """Where a tower's weights are, and whether the folder that config.json names is any use.

    Adds the tensors of that folder to `tensors` if it has to serve.
    """
    key, folder = FOLDERS[tower], config.get(FOLDERS[tower])
    inside = any(n.startswith(HEADS[tower]) for n in tensors)
    path = next((p for p in places(directory, folder) if p.exists()), None)
    if inside:
        yield ok(f"{tower} tower: inside the checkpoint")
    if path is None and folder:
        stale = f"config.json's {key} is {folder!r}, which does not exist"
        get = f"download {SOURCES[tower]} to {directory / folder}, or edit {key}"
        if inside or damaged:
            yield Finding(
                "warning",
                f"{stale} (here the weights {'inside' if inside else 'in other shards'} serve)",
                "a stale path of the machine that trained it; the original code needs the folder",
                get,
            )
        else:
            yield error(
                f"{tower} tower: no weights inside, and {stale}",
                "a stale path of the machine that trained it, and the tower was never saved",
                f"{get}; or convert with --tower {tower}=PATH",
            )
    if path is None and not folder and not inside and tower == "clip" and not damaged:
        yield error(
            f"{tower} tower: no weights inside, and config.json names no {key}",
            "the tower was left out when the checkpoint was saved",
            f"convert with --tower {tower}=PATH ({SOURCES[tower]})",
        )
    if path is None:
        return
    if not inside and not damaged:
        try:
            tensors |= renamed(open_source(path), tower)
            yield ok(f"{tower} tower: from {path}")
        except (ValueError, OSError) as e:
            yield error(e, "an empty or foreign folder", f"download {SOURCES[tower]}")
    if tower == "clip" and path.is_dir():
        yield from _clip_folder(path, tensors)


def _clip_folder(path: Path, tensors) -> Iterator[Finding]:
    """The folder's own files against the size that the weights have."""
    if not (path / "preprocessor_config.json").exists():
        yield Finding(
            "warning",
            f"{path} has no preprocessor_config.json",
            "only the weights were downloaded; the original cannot start without it (here "
            "Mini-Gemini's fixed mean, std and size are used)",
            f"download preprocessor_config.json of {SOURCES['clip']} into it",
        )
    size = _clip_size(tensors)
    for file in ("config.json", "preprocessor_config.json"):
        try:
            values = json.loads((path / file).read_text())
            values = values.get("vision_config", values)
            said = values.get("image_size") or values.get("crop_size")
            said = said.get("height") if isinstance(said, dict) else said
        except FileNotFoundError:
            continue
        except (ValueError, AttributeError) as e:
            yield error(f"{path / file}: not JSON ({e})", "damaged", "download it again")
            continue
        if said and size and said != size:
            yield error(
                f"CLIP's weights are for {size} px pictures, but {path / file} says {said}",
                f"a {size} px CLIP in a {said} px slot: another CLIP's weights or folder",
                f"use {SOURCES['clip']} for both (--tower clip=PATH)",
            )


def _size(tensors, name: str, axis: int) -> int | None:
    return tensors[name].shape[axis] if name in tensors and tensors[name].shape else None


def _clip_size(tensors) -> int | None:
    positions = _size(tensors, f"{CLIP}embeddings.position_embedding.weight", 0)
    patch = _size(tensors, f"{CLIP}embeddings.patch_embedding.weight", -1)
    return math.isqrt(positions - 1) * patch if positions and patch else None


def _sizes(config, tensors) -> Iterator[Finding]:
    """CLIP's size against the HR pictures' (MGM_SPEC 4)."""
    size, hr, grid = _clip_size(tensors), config.get("image_size_aux"), config.get("image_grid", 1)
    patch = _size(tensors, f"{CLIP}embeddings.patch_embedding.weight", -1)
    stem = _size(tensors, f"{AUX}vision_stem.0.weight", -1)
    if all(type(n) is int and n > 0 for n in (size, patch, hr, stem, grid)):
        yield from pictures(size, patch, hr, stem, grid, "error")


def _whole(directory, config, source: TensorSource) -> Iterator[Finding]:
    """Every name and shape against the model that config.json and the tensors describe."""
    try:
        cfg = hf.mgm_config(directory, config, source)
        template = template_of(config, str(directory / "config.json"))
    except TYPES as e:
        yield error(e, "config.json and the weights disagree, or one lacks it", COMPARE)
        return
    yield from describe_model(cfg)
    yield ok(f"template: {template}")
    yield from room(cfg, config.get("tokenizer_model_max_length"))
    if cfg.llm.tied_embeddings:
        source.extents.pop("lm_head.weight", None)
    yield from arrays(
        cfg, lambda rules: plan.layouts(_checked(source, rules), rules, None), COMPARE
    )


def _checked(source, rules) -> TensorSource:
    names = {p.theirs: p.rule.ours for p in plan.pairs(rules)}
    plan.unmatched(source, names, plan.IGNORABLE)
    return source
