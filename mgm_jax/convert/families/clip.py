"""CLIP vision tower in Hugging Face names (MGM_SPEC 3.1, 3.5)."""

from __future__ import annotations

from mgm_jax.convert.rules import CONV, Rule, linear, norm, patches
from mgm_jax.models.config import ClipConfig


def rules(cfg: ClipConfig, prefix: str) -> list[Rule]:
    """`prefix` ends in `vision_model.`; the norm before the layers is spelt `pre_layrnorm`."""
    conv = patches(cfg.patch_size, 3)
    table = [
        Rule(f"{prefix}embeddings.class_embedding", "clip/cls"),
        Rule(f"{prefix}embeddings.patch_embedding.weight", "clip/patch/kernel", CONV, shapes=conv),
        Rule(f"{prefix}embeddings.position_embedding.weight", "clip/positions"),
        *norm(f"{prefix}pre_layrnorm", "clip/pre_norm"),
        *norm(f"{prefix}post_layernorm", "clip/unused_norm"),
    ]
    return table + encoder_rules(cfg, prefix)


def encoder_rules(cfg: ClipConfig, prefix: str) -> list[Rule]:
    """The transformer layers, which CLIP and SigLIP name alike."""
    table = []
    for ours, where in stacks(cfg):
        layer = f"{prefix}encoder.layers.{{i}}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            table += linear(f"{layer}self_attn.{name}", f"{ours}/attn/{name}", **where)
        for name in ("fc1", "fc2"):
            table += linear(f"{layer}mlp.{name}", f"{ours}/mlp/{name}", **where)
        for i in (1, 2):
            table += norm(f"{layer}layer_norm{i}", f"{ours}/norm{i}", **where)
    return table


def stacks(cfg: ClipConfig) -> list[tuple[str, dict[str, int]]]:
    """Our stacks of layers with the foreign indices they hold: those that run, those that don't."""
    run, rest = cfg.layers_run, cfg.layers - cfg.layers_run
    found = [("clip/layers", {"depth": run})]
    return found + ([("clip/unused_layers", {"depth": rest, "start": run})] if rest else [])
