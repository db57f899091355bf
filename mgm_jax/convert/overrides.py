"""Changing a loaded checkpoint's configuration: `load(dir, overrides={...})`.

A key is one of ours, nested (`{"llm": {"act": "gelu_tanh"}}`) or dotted (`"llm.act"`); or the
switch `gemma_act` ("erf" or "tanh"; MGM_SPEC appendix D); or, for a Hugging Face directory, a key
of config.json (`"hidden_activation"`, `"image_global"`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mgm_jax.models.config import MgmConfig
from mgm_jax.tree import flatten

GEMMA_ACT = {"erf": "gelu", "tanh": "gelu_tanh"}
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
        if key == "gemma_act":
            if value not in GEMMA_ACT:
                raise ValueError(f"overrides: gemma_act is {value!r}, expected 'erf' or 'tanh'")
            ours["llm/act"] = GEMMA_ACT[value]
        elif key.split(".")[0] in OURS:
            ours |= flatten({key.replace(".", "/"): value})
        elif key in config or (config and key in THEIRS):
            theirs[key] = value
        else:
            raise ValueError(
                f"overrides: unknown key {key!r}, expected gemma_act, one of {sorted(OURS)}"
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
