"""A config.json in the original's words, for a model that never had one (MGM_SPEC 1.1, 3.6)."""

from __future__ import annotations

from collections.abc import Mapping

from mgm_jax.convert.llm_config import HF_ACTIVATIONS, family
from mgm_jax.models.config import MgmConfig

CLASSES = {  # of the original, by family (MGM_SPEC 1.1): architectures and model_type
    "llama": ("MGMLlamaForCausalLM", "mgm"),
    "gemma": ("MGMGemmaForCausalLM", "mgm_gemma"),
    "mistral": ("MGMMistralForCausalLM", "mgm_mistral"),
    "mixtral": ("MGMMixtralForCausalLM", "mgm_mixtral"),
}


def hf_config(cfg: MgmConfig, base: Mapping | None = None) -> dict:
    """A config.json for a model that never had one (MGM_SPEC 3.6).

    `base`: the language model's own, if there is one. ValueError if the family cannot say the head
    size.
    """
    llm, base = cfg.llm, base or {}
    name = "gemma" if llm.zero_centred_norm else "mixtral" if llm.experts else "llama"
    if base and name == "llama":
        name = family(base, "provenance")
    if name != "gemma" and llm.dim != llm.heads * llm.head_dim:
        raise ValueError(
            f"llm.head_dim is {llm.head_dim}, expected {llm.dim // llm.heads} (dim / heads): the "
            f"original's {name} config cannot say it"
        )
    architecture, kind = CLASSES[name]
    values = {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_act": HF_ACTIVATIONS[llm.act],
        "hidden_size": llm.dim,
        "intermediate_size": llm.mlp_dim,
        "num_attention_heads": llm.heads,
        "num_hidden_layers": llm.layers,
        "num_key_value_heads": llm.kv_heads,
        "rms_norm_eps": llm.norm_eps,
        "rope_theta": llm.rope_theta,
        "tie_word_embeddings": llm.tied_embeddings,
        "vocab_size": llm.vocab_size,
        "image_aspect_ratio": cfg.image.aspect,
        "image_global": cfg.image.use_global,
        "image_grid": cfg.image.grid,
        "image_size_aux": cfg.image.hr_size,
        "mm_hidden_size": cfg.clip.width,
        "mm_hidden_size_aux": sum(cfg.convnext.widths) if cfg.convnext else None,
        "mm_projector_type": cfg.projector,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": cfg.clip.select_layer,
        "mm_vision_tower": None,
        "mm_vision_tower_aux": None,
        "tokenizer_padding_side": "right",
        "use_mm_proj": True,
    }
    if name == "gemma":
        values["head_dim"] = llm.head_dim
        values["hidden_activation"] = HF_ACTIVATIONS[llm.act] if llm.act == "gelu_tanh" else None
    if llm.experts:
        values["num_local_experts"] = llm.experts.count
        values["num_experts_per_tok"] = llm.experts.per_token
        values["router_aux_loss_coef"] = llm.experts.router_loss
        values["output_router_logits"] = llm.experts.router_loss > 0
    return {**base, **values}
