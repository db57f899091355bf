"""Changing a loaded checkpoint's configuration: `load(dir, overrides={...})`.

A key is one of ours, nested (`{"llm": {"act": "gelu_tanh"}}`) or dotted (`"llm.act"`); or a switch
about Gemma (`gemma_act`, `gemma_scale_rounding`; see `mgm_jax.switches`); or, for a Hugging Face
directory, a key of config.json (`"hidden_activation"`, `"image_global"`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mgm_jax.models.config import MgmConfig
from mgm_jax.switches import BY_NAME
from mgm_jax.tree import flatten

GEMMA = {  # switch: (our key, value of the switch -> ours)
    "gemma_act": ("llm/act", {"erf": "gelu", "tanh": "gelu_tanh"}),
    "gemma_scale_rounding": ("llm/embed_scale", {"exact": "exact", "rounded": "rounded"}),
}
OURS = {f.name for f in dataclasses.fields(MgmConfig)}
THEIRS = {  # keys that are read from config.json, though a file may lack them
    "head_dim",
    "hidden_activation",
    "image_aspect_ratio",
    "image_global",
    "image_grid",
    "num_key_value_heads",
    "optimize_vision_tower",
    "optimize_vision_tower_aux",
    "output_router_logits",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
}


def split_overrides(overrides: Mapping[str, Any], config: Mapping[str, Any]):
    """-> (values for config.json, flat "a/b" values for our config); ValueError if neither's."""
    theirs, ours = {}, {}
    for key, value in overrides.items():
        if key in GEMMA:
            name, known = GEMMA[key]
            if value not in known:
                expected = " or ".join(map(repr, known))
                raise ValueError(f"overrides: {key} is {value!r}, expected {expected}")
            ours[name] = known[value]
        elif key.split(".")[0] in OURS:
            ours |= flatten({key.replace(".", "/"): value})
        elif key in config or (config and key in THEIRS):
            theirs[key] = value
        else:
            raise ValueError(
                f"overrides: unknown key {key!r}, expected one of {[*GEMMA, *sorted(OURS)]}"
                + (" or a key of config.json" if config else "")
            )
    return theirs, ours


def with_overrides(cfg: MgmConfig, flat: Mapping[str, Any]) -> MgmConfig:
    """Our config with the flat "a/b" values in place; checked as mgm.json is."""
    values = cfg.to_dict()
    for name, value in flat.items():
        *path, leaf = name.split("/")
        node = values
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ValueError(f"overrides: {'.'.join(path)} is not a part of this model")
        node[leaf] = value
    return MgmConfig.from_dict(values)


def with_switches(cfg: MgmConfig, switches: Mapping[str, Any], prefix: str = "") -> MgmConfig:
    """Our config with the switches about Gemma in place; a switch that is None changes nothing.

    No other family has what they are about, so there only the faithful values pass: ValueError.
    """
    changes = {}
    for key, (name, known) in GEMMA.items():
        value = switches.get(key)
        if value is None:
            continue
        if cfg.llm.embed_scale is not None:
            changes[name] = known[value]
        elif value != BY_NAME[key].faithful:
            raise ValueError(f"{prefix}{key} is {value!r}, but the language model is no Gemma")
    return with_overrides(cfg, changes) if changes else cfg
