"""Reading an MGM checkpoint in the original's Hugging Face layout, LLaMA family.

config.json tells the language model; sizes of the towers come from the tensors' shapes and the
facts that MGM fixes (MGM_SPEC 1.3, 1.4), so that no folder name decides anything.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mgm_jax.convert.families import mgm
from mgm_jax.convert.rules import import_params, their_names
from mgm_jax.models.config import ClipConfig, ConvNextConfig, DecoderConfig, ImageSpec, MgmConfig

CLIP = "model.vision_tower.vision_tower.vision_model."
AUX = "model.vision_tower_aux."


class Required(dict):
    """A dict whose missing keys are a ValueError that names the file or directory it came from."""

    def __init__(self, values: dict, kind: str, where: Path):
        super().__init__(values)
        self.kind, self.where = kind, where

    def __missing__(self, key):
        raise ValueError(f"{self.where}: {self.kind} {key!r} is missing")


def read_config(directory: Path) -> dict:
    """config.json. Missing or not JSON: one clear error."""
    file = directory / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing: not a Hugging Face checkpoint")
    try:
        return Required(json.loads(file.read_text()), "key", file)
    except ValueError as e:
        raise ValueError(f"{file}: not JSON ({e})") from e


def read_safetensors(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a directory's *.safetensors files. Missing or truncated: one clear error."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{directory}: no *.safetensors file, expected at least one")
    tensors = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except SafetensorError as e:
            raise ValueError(f"{file}: not a readable safetensors file ({e})") from e
    return Required(tensors, "tensor", directory)


def _decoder(config: dict) -> DecoderConfig:
    heads, dim = config["num_attention_heads"], config["hidden_size"]
    return DecoderConfig(
        vocab_size=config["vocab_size"],
        dim=dim,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=dim // heads,
        mlp_dim=config["intermediate_size"],
        act=config["hidden_act"],
        norm_eps=config["rms_norm_eps"],
        rope_theta=float(config.get("rope_theta", 10000.0)),  # as HF's LlamaConfig
        tied_embeddings=config.get("tie_word_embeddings", False),
    )


def _count(tensors: dict, pattern: str) -> int:
    n = 0
    while pattern.format(n) in tensors:
        n += 1
    return n


def _clip(tensors: dict, config: dict, heads: int) -> ClipConfig:
    width, _, patch, _ = tensors[f"{CLIP}embeddings.patch_embedding.weight"].shape
    positions = len(tensors[f"{CLIP}embeddings.position_embedding.weight"])
    return ClipConfig(
        image_size=int((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        width=width,
        layers=_count(tensors, CLIP + "encoder.layers.{}.layer_norm1.weight"),
        heads=heads,
        mlp_dim=len(tensors[f"{CLIP}encoder.layers.0.mlp.fc1.weight"]),
        norm_eps=1e-5,
        act="quick_gelu",
        select_layer=config["mm_vision_select_layer"],
    )


def _convnext(tensors: dict) -> ConvNextConfig:
    stages = _count(tensors, AUX + "vision_stages.{}.blocks.0.gamma")
    gamma = [tensors[f"{AUX}vision_stages.{s}.blocks.0.gamma"] for s in range(stages)]
    return ConvNextConfig(
        widths=tuple(len(g) for g in gamma),
        depths=tuple(
            _count(tensors, f"{AUX}vision_stages.{s}.blocks.{{}}.gamma") for s in range(stages)
        ),
        patch_size=tensors[f"{AUX}vision_stem.0.weight"].shape[-1],
        kernel_size=tensors[f"{AUX}vision_stages.0.blocks.0.conv_dw.weight"].shape[-1],
        norm_eps=1e-6,
    )


def load_hf(directory: str | Path, *, clip_heads: int | None = None):
    """An MGM directory (config.json + safetensors) -> (MgmConfig, parameter tree of numpy arrays).

    `clip_heads`: heads of the CLIP tower, which no tensor's shape tells; without it 64 channels a
    head, as in every OpenAI CLIP. ValueError or FileNotFoundError for what is missing or unknown.
    """
    directory = Path(directory)
    config = read_config(directory)
    tensors = read_safetensors(directory)
    width = tensors[f"{CLIP}embeddings.class_embedding"].shape[0]
    clip = _clip(tensors, config, clip_heads or width // 64)
    cfg = MgmConfig(
        image=ImageSpec(
            lr_size=clip.image_size,
            hr_size=config["image_size_aux"],
            aspect=config.get("image_aspect_ratio") or "square",
            grid=config.get("image_grid", 1),
            use_global=config.get("image_global", False),
        ),
        clip=clip,
        convnext=_convnext(tensors),
        llm=_decoder(config),
        mining_eps=1e-5,  # torch's LayerNorm default
        projector=config["mm_projector_type"],
    )
    table = mgm.rules(cfg)
    params = import_params(tensors, table, str(directory))
    expected = {n for rule in table for n in their_names(rule)}
    if unmatched := sorted(set(tensors) - expected):
        raise ValueError(f"{directory}: tensor {unmatched[0]!r} is not part of an MGM model")
    return cfg, params
