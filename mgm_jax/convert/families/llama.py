"""LLaMA-family decoders in Hugging Face names (MGM_SPEC 3.1)."""

from __future__ import annotations

from mgm_jax.convert.rules import Rule, linear, norm
from mgm_jax.models.config import DecoderConfig


def rules(cfg: DecoderConfig) -> list[Rule]:
    table = [
        Rule("model.embed_tokens.weight", "llm/embed/embedding"),
        *norm("model.norm", "llm/norm", bias=False),
    ]
    if not cfg.tied_embeddings:
        table += linear("lm_head", "llm/lm_head", bias=False)
    layer, where = "model.layers.{i}.", {"depth": cfg.layers, "bias": False}
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        table += linear(f"{layer}self_attn.{name}", f"llm/layers/attn/{name}", **where)
    for name in ("gate_proj", "up_proj", "down_proj"):
        table += linear(f"{layer}mlp.{name}", f"llm/layers/mlp/{name}", **where)
    table += norm(f"{layer}input_layernorm", "llm/layers/attn_norm", **where)
    table += norm(f"{layer}post_attention_layernorm", "llm/layers/mlp_norm", **where)
    return table
