"""A whole MGM checkpoint in the original's names (MGM_SPEC 3.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mgm_jax.convert.families import clip, convnext, llama, siglip
from mgm_jax.convert.rules import MATRIX, Rule, linear, norm
from mgm_jax.models.config import MgmConfig
from mgm_jax.models.projector import projector_depth

CLIP = "model.vision_tower.vision_tower.vision_model."
AUX = "model.vision_tower_aux."
BUFFERS = r".*\.(rotary_emb\.inv_freq|embeddings\.position_ids)"  # computed, not learned


def ignored(cfg: MgmConfig, name: str) -> bool:
    """Whether a file may hold the tensor `name` although the model has no such parameter."""
    tied_head = cfg.llm.tied_embeddings and name == "lm_head.weight"
    return tied_head or re.fullmatch(BUFFERS, name) is not None


def rules(cfg: MgmConfig | Mapping[str, Any]) -> list[Rule]:
    """Of a whole model, or of the parts that a mapping names (`models.config.read_parts`)."""
    parts = cfg if isinstance(cfg, Mapping) else vars(cfg)
    table = llama.rules(parts["llm"]) if "llm" in parts else []
    for i in range(projector_depth(parts["projector"]) if "projector" in parts else 0):
        index = "" if parts["projector"] == "linear" else f".{2 * i}"  # GELUs take the odd places
        table += linear(f"model.mm_projector{index}", f"projector/fc{i + 1}")
    if "clip" in parts:
        tower = clip.rules if parts["clip"].kind == "clip" else siglip.hf_rules
        table += tower(parts["clip"], CLIP)
    if parts.get("convnext"):
        table += convnext.rules(parts["convnext"], f"{AUX}vision_stem", f"{AUX}vision_stages")
    if "mining_eps" in parts and parts.get("convnext", True):
        table += _mining()
    return table


def _mining() -> list[Rule]:
    query = "model.vlm_uni_query_projector"
    table = [*norm(f"{query}.0", "mining/query/norm"), *linear(f"{query}.1", "mining/query/proj")]
    for theirs, ours in (("aux", "mining/key"), ("val", "mining/value")):
        pair = f"model.vlm_uni_{theirs}_projector"
        table += [
            Rule(f"{pair}.0.weight", f"{ours}/norm_scale"),
            Rule(f"{pair}.0.bias", f"{ours}/norm_bias"),
            Rule(f"{pair}.1.weight", f"{ours}/kernel", MATRIX),
            Rule(f"{pair}.1.bias", f"{ours}/bias"),
        ]
    return table
