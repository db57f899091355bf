"""Checks of a model directory of ours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mgm_jax.checkpoint import CheckpointError, describe, quantization_of, whole_model
from mgm_jax.convert.families import mgm
from mgm_jax.convert.params import ParamsSource, chunk_file
from mgm_jax.doctor.finding import Finding, error, ok
from mgm_jax.doctor.shapes import OUR_KEYS, arrays, describe_model, pictures
from mgm_jax.doctor.vocabulary import pieces
from mgm_jax.lora import directory as adapter_directory
from mgm_jax.lora.adapters import adapted
from mgm_jax.models.config import MgmConfig, read_parts
from mgm_jax.text import get_template, load_tokenizer
from mgm_jax.tree import flatten

AGAIN = "write it again (mgm-jax convert, or the training run that made it)"


def ours(directory: Path) -> Iterator[Finding]:
    """Every finding about a directory that has a mgm.json."""
    try:
        description = describe(directory)
        config = read_parts(description["model"])
    except (ValueError, TypeError) as e:
        yield error(e, "a damaged file, or another version's", AGAIN)
        return
    whole = isinstance(config, MgmConfig)
    if whole:
        yield ok("mgm.json: a whole model")
        yield from describe_model(config)
    else:
        yield Finding(
            "warning",
            f"mgm.json: holds only {', '.join(config)}",
            "base weights or what stage 1 trains",
            "name it in a training run's init; `load` and `chat` need a whole model",
        )
    llm = config.llm if whole else config.get("llm")
    if llm:
        yield _template(description["template"])
        yield from _tokenizer(directory, description["tokenizer"], llm.vocab_size)
    if whole and config.convnext:
        image, clip, stem = config.image, config.clip, config.convnext.patch_size
        sizes = (clip.image_size, clip.patch_size, image.hr_size, stem, image.grid)
        yield from pictures(*sizes, "warning", OUR_KEYS)
    try:
        source = ParamsSource(directory / "params")
    except CheckpointError as e:
        yield error(e, "params/ is damaged or was not copied whole", AGAIN)
        return
    yield from chunks(source)
    if whole:
        quant = quantization_of(description)
        yield from arrays(config, lambda rules: source.extents, AGAIN, quant)
    else:
        expected = {rule.ours for rule in mgm.rules(config)}
        if lost := sorted(expected - set(source)):
            yield error(f"params/ lacks {lost[0]} ({len(lost)} arrays)", "a bad copy", AGAIN)


def own_adapter(directory: Path) -> Iterator[Finding]:
    """An adapter directory of ours: whether its base is there and the adapter fits it."""
    try:
        base = adapter_directory.find_base(directory)
        lora, params = adapter_directory.read(directory, whole_model(base))
    except (ValueError, OSError) as e:
        where = "name the base where a command takes --base DIR; or copy the adapter again"
        yield error(e, "the base was moved or has changed, or a file is damaged", where)
        return
    count = sum(a.size for a in flatten(params).values())
    matrices = len(adapted(flatten(params)))
    yield ok(
        f"an adapter of {base}: rank {lora.rank}, scale {lora.scale:g}, {matrices} stacks of "
        f"matrices, {count:,} parameters in all"
    )


def chunks(source: ParamsSource) -> Iterator[Finding]:
    """Chunk files that are absent or too short, of arrays that are stored as they are."""
    wrong = []
    for name, array in source.items():
        if array.raw is None:
            continue
        grid = [-(-n // c) if c else 1 for n, c in zip(array.shape, array.chunk, strict=True)]
        size = math.prod(array.chunk) * array.dtype.itemsize
        for index in np.ndindex(*grid):
            file = array.raw / chunk_file(index, len(array.shape))
            if not file.is_file():
                wrong.append(f"{name}: chunk {file.name} is absent")
            elif file.stat().st_size != size:
                has = file.stat().st_size
                wrong.append(f"{name}: chunk {file.name} has {has} bytes, expected {size}")
    if wrong:
        more = [f"... and {len(wrong) - 10} more"] if len(wrong) > 10 else []
        what = [f"{len(wrong)} pieces of params/ are damaged:", *wrong[:10], *more]
        yield error("\n         ".join(what), "the copy was not complete, or the disk full", AGAIN)


def _template(name) -> Finding:
    try:
        get_template(name)
    except (ValueError, KeyError, TypeError) as e:
        return error(e, "a wrong edit of mgm.json", 'set "template" in mgm.json to one of these')
    return ok(f"template: {name}")


def _tokenizer(directory: Path, folder, rows: int) -> Iterator[Finding]:
    if not folder:
        yield error(
            "no tokenizer",
            "the source of the conversion had none",
            "put its tokenizer files beside the source's weights, and convert again",
        )
        return
    try:
        tokenizer = load_tokenizer(directory / folder)
    except (ValueError, OSError, KeyError) as e:
        yield error(e, "tokenizer/ is damaged or was not copied", "copy it again")
        return
    yield from pieces(tokenizer, rows)
