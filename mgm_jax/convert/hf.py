"""Reading an MGM checkpoint in the original's Hugging Face layout.

config.json tells the language model; sizes of the towers come from the tensors' shapes and the
facts that MGM fixes (MGM_SPEC 1.3, 1.4), so that no folder name decides anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgm_jax.convert.families import mgm
from mgm_jax.convert.families.mgm import AUX, CLIP
from mgm_jax.convert.llm_config import decoder_config
from mgm_jax.convert.overrides import split_overrides, with_overrides
from mgm_jax.convert.rules import import_params, their_names
from mgm_jax.convert.towers import HEADS, clip_facts, places, with_towers
from mgm_jax.models.config import ClipConfig, ConvNextConfig, ImageSpec, MgmConfig
from mgm_jax.text import Tokenizer, tokenizer_from_hf

SELECT_LAYER = -2  # of every MGM (MGM_SPEC 1.3); base weights do not say
MINING_EPS = 1e-5  # torch's LayerNorm default


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
        values = json.loads(file.read_text())
    except ValueError as e:
        raise ValueError(f"{file}: not JSON ({e})") from e
    if not isinstance(values, dict):
        raise ValueError(f"{file}: found a {type(values).__name__}, expected an object")
    return Required(values, "key", file)


def read_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face directory; None if it has no vocabulary file."""
    if not any((directory / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        return None
    return tokenizer_from_hf(directory)


def find_tower(directory: Path, name: str | None) -> Path | None:
    """The folder that config.json names: relative to the checkpoint, its parent, or here."""
    return next((path for path in places(directory, name) if path.is_dir()), None)


def _clip_heads(directory: Path, config: dict, width: int) -> int:
    """Heads from the tower folder's config.json; without one, 64 channels each (OpenAI's CLIPs)."""
    folder = find_tower(directory, config.get("mm_vision_tower"))
    tower = clip_facts(folder)
    if tower.get("hidden_size", width) != width:
        raise ValueError(
            f"{folder / 'config.json'}: hidden_size is {tower['hidden_size']}, expected "
            f"{width}, the width of the CLIP tower in {directory}"
        )
    heads = tower.get("num_attention_heads")
    if not heads and width % 64:
        raise ValueError(
            f"{directory}: CLIP is {width} wide, which tells no number of heads (64 channels "
            "each); its folder needs a config.json that has num_attention_heads"
        )
    return heads or width // 64


def _count(tensors: dict, pattern: str) -> int:
    n = 0
    while pattern.format(n) in tensors:
        n += 1
    return n


def _shapes(tensors: dict) -> tuple[dict[str, int], int]:
    """Sizes of a vision tower that its tensors' shapes tell, and the number of its positions."""
    width, _, patch, _ = tensors[f"{CLIP}embeddings.patch_embedding.weight"].shape
    sizes = {
        "patch_size": patch,
        "width": width,
        "layers": _count(tensors, CLIP + "encoder.layers.{}.layer_norm1.weight"),
        "mlp_dim": len(tensors[f"{CLIP}encoder.layers.0.mlp.fc1.weight"]),
    }
    return sizes, len(tensors[f"{CLIP}embeddings.position_embedding.weight"])


def _clip(tensors: dict, config: dict, heads: int) -> ClipConfig:
    sizes, positions = _shapes(tensors)
    return ClipConfig(
        **sizes,
        image_size=int((positions - 1) ** 0.5) * sizes["patch_size"],
        heads=heads,
        norm_eps=1e-5,
        act="quick_gelu",
        select_layer=config["mm_vision_select_layer"],
    )


# What a SigLIP's config.json leaves out is transformers' default, as Google's own files do.
SIGLIP = {
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
    "mm_vision_select_layer": -1,
}
SIGLIP_ACTS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}


def _siglip(tensors: dict, config: dict, where: str) -> ClipConfig:
    """ValueError without a config.json, or for an activation or a size that does not fit."""
    if not config:
        raise ValueError(f"{where}: a SigLIP tower needs its config.json, for its number of heads")
    given = SIGLIP | config.get("vision_config", config)
    sizes, positions = _shapes(tensors)
    patch, grid = sizes["patch_size"], math.isqrt(positions)
    size = given.get("image_size", grid * patch)
    if size // patch != grid:
        raise ValueError(
            f"{where}: config.json has image_size {size}, which is {size // patch} patches of "
            f"{patch} a side, but there are positions for {grid}"
        )
    if given["hidden_act"] not in SIGLIP_ACTS:
        raise ValueError(
            f"{where}: config.json has hidden_act {given['hidden_act']!r}, expected one of "
            f"{sorted(SIGLIP_ACTS)}"
        )
    return ClipConfig(
        **sizes,
        image_size=size,
        heads=given["num_attention_heads"],
        norm_eps=given["layer_norm_eps"],
        act=SIGLIP_ACTS[given["hidden_act"]],
        select_layer=given["mm_vision_select_layer"],
        kind="siglip",
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


def mgm_config(
    directory: str | Path, config: dict, tensors: dict, *, clip_heads: int | None = None
) -> MgmConfig:
    """config.json's values and the tensors (only their shapes are read) -> the model's config."""
    directory = Path(directory)
    if (feature := config.get("mm_vision_select_feature", "patch")) != "patch":
        raise ValueError(
            f"{directory}: mm_vision_select_feature is {feature!r}, expected 'patch' (the class "
            "token is not used)"
        )
    if type(hr := config["image_size_aux"]) is not int:
        raise ValueError(f"{directory}: image_size_aux is {hr!r}, expected a number of pixels")
    width = tensors[f"{CLIP}embeddings.class_embedding"].shape[0]
    clip = _clip(tensors, config, clip_heads or _clip_heads(directory, config, width))
    aux = config.get("mm_vision_tower_aux") or any(n.startswith(AUX) for n in tensors)
    return MgmConfig(
        image=ImageSpec(
            lr_size=clip.image_size,
            hr_size=hr,
            aspect=config.get("image_aspect_ratio") or "square",
            grid=config.get("image_grid") or 1,
            use_global=config.get("image_global") or False,
        ),
        clip=clip,
        convnext=_convnext(tensors) if aux else None,
        llm=decoder_config(config, str(directory / "config.json")),
        mining_eps=MINING_EPS,
        projector=config["mm_projector_type"],
    )


def parts_config(
    directory: str | Path, config: dict, tensors: dict, *, clip_heads: int | None = None
) -> dict[str, Any]:
    """What `tensors` hold of a model -> key of MgmConfig to its value (`models.config.read_parts`).

    ValueError if they hold nothing of one, or a language model without its config.json.
    """
    directory, parts = Path(directory), {}

    def holds(head):
        return any(name.startswith(head) for name in tensors)

    if holds(CLIP):
        if f"{CLIP}embeddings.patch_embedding.bias" in tensors:
            parts["clip"] = _siglip(tensors, config, str(directory))
        else:
            known = {"mm_vision_select_layer": SELECT_LAYER} | config
            width = tensors[f"{CLIP}embeddings.class_embedding"].shape[0]
            heads = clip_heads or _clip_heads(directory, config, width)
            parts["clip"] = _clip(tensors, known, heads)
    if holds(AUX):
        parts["convnext"] = _convnext(tensors)
    if holds(HEADS["llm"]):
        config = config or read_config(directory)
        parts["llm"] = decoder_config(config, str(directory / "config.json"))
    if holds("model.mm_projector."):
        config = config or read_config(directory)
        parts["projector"] = config["mm_projector_type"]
    if holds("model.vlm_uni_"):
        parts["mining_eps"] = MINING_EPS
    if not parts:
        example = next(iter(tensors), "nothing")
        raise ValueError(f"{directory}: no weights of a Mini-Gemini inside (found {example!r} ...)")
    return parts


def load_hf(
    directory: str | Path,
    *,
    clip_heads: int | None = None,
    overrides: Mapping[str, Any] | None = None,
):
    """An MGM directory (config.json and weights) -> (MgmConfig, parameter tree of numpy arrays).

    Towers that are not inside come from the folders that config.json names (`convert.towers`).
    `clip_heads`: heads of the CLIP tower, which no tensor's shape tells; without it they are those
    of the tower folder that config.json names, or else 64 channels a head, as in every OpenAI CLIP.
    `overrides` replace values of config.json or of the MgmConfig (`convert.overrides`). ValueError
    or FileNotFoundError for what is missing or unknown.
    """
    directory = Path(directory)
    config = read_config(directory)
    theirs, ours = split_overrides(overrides or {}, config)
    config.update(theirs)
    source, _, whole = with_towers(directory, config, {})
    if not whole:
        raise ValueError(
            f"{directory} is not a whole MGM ({config['mm_projector_type']}): no language model "
            "inside"
        )
    tensors = Required({name: source.read(name) for name in source}, "tensor", directory)
    cfg = mgm_config(directory, config, tensors, clip_heads=clip_heads)
    cfg = with_overrides(cfg, ours)
    table = mgm.rules(cfg)
    params = import_params(tensors, table, str(directory))
    expected = {n for rule in table for n in their_names(rule)}
    unmatched = (n for n in sorted(set(tensors) - expected) if not mgm.ignored(cfg, n))
    if name := next(unmatched, None):
        raise ValueError(f"{directory}: tensor {name!r} is not part of an MGM model")
    return cfg, params
