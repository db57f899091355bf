"""The language model's part of a Hugging Face config.json -> DecoderConfig (MGM_SPEC 1.2, 2.6)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from mgm_jax.models.config import DecoderConfig, ExpertsConfig

SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers"),
    *("num_attention_heads", "intermediate_size"),
)
ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}  # the way back


@dataclasses.dataclass(frozen=True)
class Family:
    """What Hugging Face's config class assumes when config.json does not say, and the template that
    the original evaluates the family with (MGM_SPEC 1.1)."""

    rope_theta: float
    tied: bool
    template: str


FAMILIES = {
    "llama": Family(1e4, False, "v1"),
    "gemma": Family(1e4, True, "gemma"),
    "mistral": Family(1e4, False, "mistral_instruct"),
    "mixtral": Family(1e6, False, "mistral_instruct"),
}
LLAMA_TEMPLATES = {128256: "llama_3", 64000: "chatml_direct"}  # by vocabulary: LLaMA-3, Yi


def family(config: Mapping, where: str) -> str:
    """ "llama", "gemma", "mistral" or "mixtral", by `architectures`, or else by `model_type`.

    Published files lack `model_type` and carry older class names (MGM_SPEC 1.1).
    """
    pattern = r"(?:mgm|minigemini)?_?(llama|gemma|mistral|mixtral)?(?:forcausallm|model)?"
    names = [*(config.get("architectures") or ()), config.get("model_type") or ""]
    for name in filter(None, names):
        if match := re.fullmatch(pattern, name.lower()):
            return match[1] or "llama"
    raise ValueError(
        f"{where}: architectures and model_type are {names}, expected one of LLaMA, Gemma, "
        "Mistral, Mixtral or their MGM classes"
    )


def template_of(config: Mapping, where: str) -> str:
    """The chat template that the original evaluates such a model with."""
    name = family(config, where)
    found = LLAMA_TEMPLATES.get(config["vocab_size"]) if name == "llama" else None
    return found or FAMILIES[name].template


def decoder_config(config: Mapping, where: str) -> DecoderConfig:
    """Reads config.json's values; ValueError naming `where` for what this decoder cannot do.

    Gemma's activation is exact GELU unless a non-null `hidden_activation` says otherwise, whatever
    newer versions of transformers make of it (MGM_SPEC 2.6).
    """
    name = family(config, where)
    gemma, heads, dim = name == "gemma", config["num_attention_heads"], config["hidden_size"]
    act = (gemma and config.get("hidden_activation")) or config["hidden_act"]
    for key in SIZES:
        if type(config[key]) is not int or config[key] < 1:
            raise ValueError(f"{where}: {key} is {config[key]!r}, expected a number of at least 1")
    if act not in ACTIVATIONS:
        raise ValueError(f"{where}: hidden_act is {act!r}, expected one of {sorted(ACTIVATIONS)}")
    for key in ("attention_bias", "rope_scaling"):
        if config.get(key):
            raise ValueError(f"{where}: {key} is {config[key]!r}, expected none: not implemented")
    window, length = config.get("sliding_window"), config.get("tokenizer_model_max_length")
    if name in ("mistral", "mixtral") and window and window < (length or float("inf")):
        raise ValueError(
            f"{where}: sliding_window is {window}, expected null or at least "
            f"tokenizer_model_max_length ({length})"
        )
    return DecoderConfig(
        vocab_size=config["vocab_size"],
        dim=dim,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config["head_dim"] if gemma else config.get("head_dim") or dim // heads,
        mlp_dim=config["intermediate_size"],
        act=ACTIVATIONS[act],
        norm_eps=config["rms_norm_eps"],
        rope_theta=float(config.get("rope_theta") or FAMILIES[name].rope_theta),
        tied_embeddings=config.get("tie_word_embeddings", FAMILIES[name].tied),
        zero_centred_norm=gemma,
        embed_scale="exact" if gemma else None,
        experts=_experts(config) if name == "mixtral" else None,
    )


def _experts(config: Mapping) -> ExpertsConfig:
    used = config.get("output_router_logits", False)  # without them HF computes no router loss
    return ExpertsConfig(
        count=config["num_local_experts"],
        per_token=config["num_experts_per_tok"],
        router_loss=float(config["router_aux_loss_coef"]) if used else 0.0,
    )
