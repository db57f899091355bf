"""Decoders in Hugging Face names: LLaMA, Yi, Mistral, Gemma; Mixtral's experts (MGM_SPEC 3.1).

Gemma's tied head may be in a file all the same; it is `embed_tokens` once more, and not read.
"""

from __future__ import annotations

from mgm_jax.convert.rules import MATRIX, Rule, linear, norm
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
    if cfg.experts:
        moe, ours = f"{layer}block_sparse_moe", "llm/layers/moe"
        table += linear(f"{moe}.gate", f"{ours}/router", **where)
        stacks = {"depth": cfg.layers, "experts": cfg.experts.count}
        for theirs, name in (("w1", "w_gate"), ("w3", "w_up"), ("w2", "w_down")):
            theirs = f"{moe}.experts.{{e}}.{theirs}.weight"
            table.append(Rule(theirs, f"{ours}/{name}", MATRIX, **stacks))
    else:
        for name in ("gate_proj", "up_proj", "down_proj"):
            table += linear(f"{layer}mlp.{name}", f"llm/layers/mlp/{name}", **where)
    table += norm(f"{layer}input_layernorm", "llm/layers/attn_norm", **where)
    table += norm(f"{layer}post_attention_layernorm", "llm/layers/mlp_norm", **where)
    return table
