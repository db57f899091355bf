"""Sizes and shapes against each other: pictures, tokens, and every array of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from mgm_jax.convert.families import mgm
from mgm_jax.doctor.finding import Finding, error, ok
from mgm_jax.models.config import MgmConfig
from mgm_jax.tree import flatten

CELLS = 8  # HR cells along the side of one LR token, in every Mini-Gemini (MGM_SPEC 1.3 to 1.5)
SOURCES = {  # where the published towers come from (MGM_SPEC 1.3, 1.4)
    "clip": "openai/clip-vit-large-patch14-336",
    "convnext": "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
}
THEIR_KEYS = ("image_size_aux", "image_grid", "image_global", "config.json")
OUR_KEYS = ("model.image.hr_size", "model.image.grid", "model.image.use_global", "mgm.json")
CAUSES = {  # of arrays that do not fit, by the first part of their names
    "clip": "another CLIP than config.json and the other weights were made for",
    "convnext": "another ConvNeXt than the model was trained with",
    "mining": "mining weights for other towers",
    "projector": "a projector for another language model, whose width is not this one's",
    "llm": "the config is of a language model of another size than the weights",
}


def pictures(size, patch, hr, stem, grid, level, keys=THEIR_KEYS) -> Iterator[Finding]:
    """LR and HR picture sizes that fit each other: 8 x 8 HR cells for each LR token.

    `size` and `patch` are CLIP's, `stem` the stride of ConvNeXt's stem, `keys` how the file that is
    to be edited calls things.
    """
    tokens, unit = size // patch * grid, stem * CELLS
    key, grid_key, global_key, file = keys
    if hr == tokens * unit:
        yield ok(f"sizes: LR {size} px x {grid}, HR {hr} px: {CELLS} x {CELLS} HR cells a token")
    elif grid > 1 and hr < tokens * unit:
        yield Finding(
            level,
            f"an HD config ({grid_key} {grid}: {grid} x {grid} crops of {size} px) with {key} {hr}",
            f"{key} is that of the model without HD; {grid} x {grid} crops need {tokens * unit}",
            f'set "{key}": {tokens * unit} in {file}, or "{grid_key}": 1 and "{global_key}": false',
        )
    else:
        fits = hr % (unit * grid) == 0
        wanted = hr // (unit * grid) * patch
        yield Finding(
            level,
            f"CLIP's position embedding is for {size} px pictures, but {key} {hr} goes "
            f"with a {wanted if fits else 'another'} px CLIP",
            f"a {size} px CLIP in a {wanted if fits else 'larger'} px slot (the folder or --tower "
            "holds another CLIP than the model was trained with)",
            f"use {SOURCES['clip']}, or the CLIP of the training run (--tower clip=PATH)",
        )


def room(cfg: MgmConfig, limit: int | None) -> Iterator[Finding]:
    """Whether text behind a picture is within `tokenizer_model_max_length` (MGM_SPEC 2.4)."""
    tokens = cfg.visual_tokens
    if isinstance(limit, int) and tokens >= limit:
        wanted = 2 ** (tokens + 512).bit_length()
        yield error(
            f"a picture takes {tokens} tokens, but tokenizer_model_max_length cuts at {limit}: "
            "no text behind a picture is ever read",
            "the limit is that of a model with fewer tokens a picture (2048; HD models have 4096)",
            f'set "tokenizer_model_max_length": {wanted} in config.json',
        )


def describe_model(cfg: MgmConfig) -> Iterator[Finding]:
    """The model's sizes, as facts."""
    llm, image = cfg.llm, cfg.image
    experts = f", {llm.experts.count} experts" if llm.experts else ""
    yield ok(
        f"language model: {llm.layers} layers of {llm.dim}, {llm.heads} heads ({llm.kv_heads} for "
        f"keys), vocabulary {llm.vocab_size}{experts}"
    )
    views = f"{image.crops} views of " if image.grid > 1 else ""
    high = f", HR {image.hr_size} px" if cfg.convnext else ", no HR encoder"
    yield ok(f"pictures: {views}{image.lr_size} px{high}, {cfg.visual_tokens} tokens each")


def arrays(cfg: MgmConfig, layouts: Callable, remedy: str, quant=None) -> Iterator[Finding]:
    """Names and shapes of arrays (`layouts(rules)`, by our names) against the module's own."""
    from mgm_jax.program import abstract_run

    try:
        expected = {n: s.shape for n, s in flatten(abstract_run(cfg, quant=quant)[2]).items()}
        found = layouts(mgm.rules(cfg))
    except (ValueError, KeyError, TypeError) as e:
        yield error(e, "another model's weights, or an incomplete set", remedy)
        return
    wrong: dict[str, list[str]] = {}
    for name, shape in expected.items():
        has = tuple(found[name].shape) if name in found else "nothing"
        if has != tuple(shape):
            line = f"{name}: found {has}, expected {tuple(shape)}"
            wrong.setdefault(name.split("/")[0], []).append(line)
    for part, lines in wrong.items():
        what = [f"{len(lines)} arrays do not fit the config ({part}):", *lines[:10]]
        more = [f"... and {len(lines) - 10} more"] if len(lines) > 10 else []
        yield error("\n         ".join(what + more), CAUSES[part], remedy)
    if not wrong:
        parts: dict[str, int] = {}
        for name, shape in expected.items():
            root = name.split("/")[0]
            parts[root] = parts.get(root, 0) + math.prod(shape)
        kinds = ", ".join(sorted({layout.dtype.name for layout in found.values()}))
        each = ", ".join(f"{part} {count:,}" for part, count in sorted(parts.items()))
        yield ok(
            f"weights: {sum(parts.values()):,} parameters ({kinds}), every name and shape fits"
        )
        yield ok(f"parameters of each part: {each}")
