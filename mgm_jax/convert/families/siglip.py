"""SigLIP and ViT towers in two sets of names: Hugging Face's, and big_vision's `.npz` keys.

Of big_vision's layouts the table knows one, a set of arrays for each layer, without a prefix;
`convert.big_vision_source` and `convert.npz` make that of all others.
"""

from __future__ import annotations

from mgm_jax.convert.families.clip import encoder_rules, stacks
from mgm_jax.convert.rules import CONV, Rule, norm, patches
from mgm_jax.models.config import ClipConfig

BLOCK = "Transformer/encoderblock_{i}"
ATTENTION = "MultiHeadDotProductAttention_0"
DENSE = {"Dense_0": "fc1", "Dense_1": "fc2"}  # in MlpBlock_0


def hf_rules(cfg: ClipConfig, prefix: str) -> list[Rule]:
    """transformers' SiglipVisionModel; `prefix` is what its names start with.

    A class token, which no such model has, goes by CLIP's name.
    """
    patch = f"{prefix}embeddings.patch_embedding"
    cls = [Rule(f"{prefix}embeddings.class_embedding", "clip/cls")] if cfg.kind == "vit" else []
    return cls + [
        Rule(f"{patch}.weight", "clip/patch/kernel", CONV, shapes=patches(cfg.patch_size, 3)),
        Rule(f"{patch}.bias", "clip/patch/bias"),
        Rule(f"{prefix}embeddings.position_embedding.weight", "clip/positions"),
        *norm(f"{prefix}post_layernorm", final_norm(cfg)),
        *encoder_rules(cfg, prefix),
    ]


def final_norm(cfg: ClipConfig) -> str:
    """Our name of the norm behind the layers, which tells whether it runs."""
    return "clip/post_norm" if cfg.final_norm else "clip/unused_norm"


def big_vision_rules(cfg: ClipConfig) -> list[Rule]:
    """big_vision's ViT without heads. Attention kernels are [D, N, H] there, [D, N*H] here."""
    d, n, f, p = cfg.width, cfg.heads, cfg.mlp_dim, cfg.patch_size
    h, grid = d // n, cfg.grid**2
    patch = (p, p, 3, d), (p * p * 3, d)
    table = [
        Rule("embedding/kernel", "clip/patch/kernel", shapes=patch),
        Rule("embedding/bias", "clip/patch/bias", shapes=((d,), (d,))),
        Rule("pos_embedding", "clip/positions", shapes=((1, grid, d), (grid, d))),
        *_norm("Transformer/encoder_norm", final_norm(cfg), d),
    ]
    if cfg.kind == "vit":
        table.append(Rule("cls", "clip/cls", shapes=((1, 1, d), (d,))))
    for ours, where in stacks(cfg):
        for i in (0, 1):
            table += _norm(f"{BLOCK}/LayerNorm_{i}", f"{ours}/norm{i + 1}", d, **where)
        attention = f"{BLOCK}/{ATTENTION}"
        for theirs, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            split = ((d, n, h), (d, d)), ((n, h), (d,))
            table += _dense(f"{attention}/{theirs}", f"{ours}/attn/{name}", *split, **where)
        merge = ((n, h, d), (d, d)), ((d,), (d,))
        table += _dense(f"{attention}/out", f"{ours}/attn/out_proj", *merge, **where)
        for (theirs, name), (a, b) in zip(DENSE.items(), ((d, f), (f, d)), strict=True):
            same = ((a, b), (a, b)), ((b,), (b,))
            table += _dense(f"{BLOCK}/MlpBlock_0/{theirs}", f"{ours}/mlp/{name}", *same, **where)
    return table


def _dense(theirs: str, ours: str, kernel, bias, **where) -> list[Rule]:
    return [
        Rule(f"{theirs}/kernel", f"{ours}/kernel", shapes=kernel, **where),
        Rule(f"{theirs}/bias", f"{ours}/bias", shapes=bias, **where),
    ]


def _norm(theirs: str, ours: str, d: int, **where) -> list[Rule]:
    same = (d,), (d,)
    return [
        Rule(f"{theirs}/{leaf}", f"{ours}/{leaf}", shapes=same, **where)
        for leaf in ("scale", "bias")
    ]
