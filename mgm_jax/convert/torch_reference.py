"""The model run by independent PyTorch modules, as the reference of `convert verify`.

Towers and language model are those of transformers; mining, projector and the merge of pictures
and text are restated here from MGM_SPEC 2.2 to 2.4 in their literal form. Float32, on the CPU;
needs the extra `test`. One part is in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from mgm_jax.convert.llm_config import family
from mgm_jax.convert.probes import Probe
from mgm_jax.convert.towers import AUX, CLIP
from mgm_jax.convert.weights import StoredModel
from mgm_jax.models.config import DecoderConfig, MgmConfig
from mgm_jax.models.projector import projector_depth
from mgm_jax.text import IMAGE_ID

ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
}
VISION_CLASSES = {
    "clip": ("CLIPVisionConfig", "CLIPVisionModel"),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel"),
}
CONVNEXT_NAMES = (  # transformers' -> MGM's, which are timm's
    ("embeddings.patch_embeddings", "vision_stem.0"),
    ("embeddings.layernorm", "vision_stem.1"),
    ("encoder.stages", "vision_stages"),
    ("downsampling_layer", "downsample"),
    (".layers.", ".blocks."),
    ("dwconv", "conv_dw"),
    (".layernorm.", ".norm."),
    ("pwconv", "mlp.fc"),
    ("layer_scale_parameter", "gamma"),
)
Read = Callable[[str], np.ndarray]


def modules():
    """torch and transformers; ValueError with the extra to install where they are missing."""
    try:
        import torch
        import transformers
    except ImportError as e:
        raise ValueError(
            f"--against torch needs PyTorch and transformers ({e}): pip install 'mgm-jax[test]'"
        ) from None
    return torch, transformers


def fill(model, read: Callable) -> None:
    """Copies `read(parameter's name)` into every parameter of a PyTorch model."""
    torch, _ = modules()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = np.ascontiguousarray(read(name), np.float32)
            if value.shape != tuple(parameter.shape):
                raise ValueError(
                    f"{name}: PyTorch has {tuple(parameter.shape)}, the weights {value.shape}"
                )
            parameter.copy_(torch.from_numpy(value.copy()))
    model.eval()


def clip_features(cfg: MgmConfig, read: Read, lr):
    """Pictures [P, 3, h, w] -> patch features [P, n, C] of the selected layer.

    ValueError for a ViT of big_vision, which transformers does not have.
    """
    torch, transformers = modules()
    clip, more = cfg.clip, {"attn_implementation": "eager"}
    if clip.kind not in VISION_CLASSES:
        raise ValueError(f"clip.kind is {clip.kind!r}: PyTorch's side has {sorted(VISION_CLASSES)}")
    if clip.kind == "siglip":
        more["vision_use_head"] = False
    config_class, model_class = (getattr(transformers, n) for n in VISION_CLASSES[clip.kind])
    model = model_class(
        config_class(
            hidden_size=clip.width,
            intermediate_size=clip.mlp_dim,
            num_hidden_layers=clip.layers,
            num_attention_heads=clip.heads,
            image_size=clip.image_size,
            patch_size=clip.patch_size,
            hidden_act=ACTIVATIONS[clip.act],
            layer_norm_eps=clip.norm_eps,
            **more,
        )
    )
    fill(model, lambda name: read(CLIP + name.removeprefix("vision_model.")))
    with torch.no_grad():
        out = model(lr, output_hidden_states=True)
    if clip.final_norm:
        return out.last_hidden_state
    return out.hidden_states[clip.select_layer][:, int(clip.kind == "clip") :]


def convnext_map(cfg: MgmConfig, read: Read, hr):
    """Pictures [P, 3, H, W] -> all stages on the first one's grid [P, C', h, w]."""
    torch, transformers = modules()
    aux = cfg.convnext
    model = transformers.ConvNextModel(
        transformers.ConvNextConfig(
            hidden_sizes=list(aux.widths),
            depths=list(aux.depths),
            patch_size=aux.patch_size,
            num_stages=len(aux.widths),
        )
    )
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = aux.norm_eps
        if hasattr(module, "dwconv"):
            c, k = module.dwconv.in_channels, aux.kernel_size
            module.dwconv = torch.nn.Conv2d(c, c, k, padding=k // 2, groups=c)
    model.layernorm = torch.nn.Identity()  # of the pooled output, which MGM does without

    def theirs(name):
        for old, new in CONVNEXT_NAMES:
            name = name.replace(old, new)
        return read(AUX + name)

    fill(model, theirs)
    with torch.no_grad():
        hidden = model(hr, output_hidden_states=True).hidden_states
    stages = hidden[-len(aux.widths) :]
    size = stages[0].shape[-2:]
    resized = [torch.nn.functional.interpolate(s, size, mode="bilinear") for s in stages[1:]]
    return torch.cat([stages[0], *resized], dim=1)


def mine(cfg: MgmConfig, read: Read, x, hr_map):
    """x [V, n, C], maps [V, C', h, w] -> mined [V, n, C]: keys and values of whole regions."""
    torch, _ = modules()
    functional = torch.nn.functional

    def project(y, name):
        name = f"model.vlm_uni_{name}_projector"
        weights = [
            torch.from_numpy(np.array(read(f"{name}.{i}.{kind}"), np.float32))
            for i in (0, 1)
            for kind in ("weight", "bias")
        ]
        y = functional.layer_norm(y, y.shape[-1:], *weights[:2], eps=cfg.mining_eps)
        return functional.linear(y, *weights[2:])

    v, n, _ = x.shape
    grid = int(n**0.5)
    side = hr_map.shape[-1] // grid
    queries, mined = project(x, "query"), []
    for i in range(v):  # a view at a time: projected maps are large
        regions = hr_map[i].movedim(0, -1).reshape(grid, side, grid, side, -1)
        regions = regions.transpose(1, 2).reshape(n, side * side, -1)
        k, value = project(regions, "aux"), project(regions, "val")
        logits = queries[i][:, None] @ (k.mT / k.shape[-1] ** 0.5)
        mined.append((torch.nan_to_num(logits).softmax(-1) @ value)[:, 0])
    return torch.stack(mined)


def project_tokens(cfg: MgmConfig, read: Read, x):
    """Vision tokens [..., C] -> the language model's width [..., D]."""
    torch, _ = modules()
    for i in range(projector_depth(cfg.projector)):
        name = "model.mm_projector" + ("" if cfg.projector == "linear" else f".{2 * i}")
        weight, bias = (
            torch.from_numpy(np.array(read(f"{name}.{kind}"), np.float32))
            for kind in ("weight", "bias")
        )
        x = torch.nn.functional.linear(torch.nn.functional.gelu(x) if i else x, weight, bias)
    return x


def views_of(hr_map, cfg: MgmConfig):
    """Maps [P, C', g*h, g*w] -> of each view [P, R, C', h, w]: tiles by rows, then the whole."""
    torch, _ = modules()
    g = cfg.image.grid
    h = hr_map.shape[-1] // g
    tiles = [
        hr_map[..., i * h : (i + 1) * h, j * h : (j + 1) * h] for i in range(g) for j in range(g)
    ]
    if cfg.image.use_global:
        scale = 1 / g
        tiles.append(torch.nn.functional.interpolate(hr_map, scale_factor=scale, mode="bilinear"))
    return torch.stack(tiles, dim=1)


def encode(cfg: MgmConfig, read: Read, lr, hr):
    """One picture's views (lr [R, h, w, 3], hr [1, H, W, 3]) -> named features, as our own."""
    torch, _ = modules()
    lr, hr = (torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1))) for x in (lr, hr))

    def in_order(x):  # the global view's tokens come first (MGM_SPEC 2.2 step 9)
        x = torch.cat([x[-1:], x[:-1]]) if cfg.image.use_global else x
        return x.reshape(1, -1, x.shape[-1])

    clip = clip_features(cfg, read, lr)
    tokens = in_order(clip)
    out = {"clip_features": clip[None] if cfg.image.grid > 1 else clip}
    if cfg.convnext:
        hr_map = convnext_map(cfg, read, hr)
        out["convnext_map"] = hr_map.movedim(1, -1)
        out["mined"] = in_order(mine(cfg, read, clip, views_of(hr_map, cfg)[0]))
        tokens = tokens + out["mined"]
    out["tokens"], out["image_features"] = tokens, project_tokens(cfg, read, tokens)
    return out


LLM_CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "gemma": ("GemmaConfig", "GemmaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM"),
}


def llm_family(cfg: DecoderConfig, provenance) -> str:
    """Which class of transformers computes this decoder."""
    if cfg.experts or cfg.zero_centred_norm:
        return "mixtral" if cfg.experts else "gemma"
    known = provenance.get("config.json")
    return family(known, "config.json") if known else "llama"


def language_model(stored: StoredModel):
    """The language model with the stored weights."""
    torch, transformers = modules()
    cfg, kind = stored.config.llm, llm_family(stored.config.llm, stored.provenance)
    more = {}
    if cfg.experts:
        more["num_local_experts"] = cfg.experts.count
        more["num_experts_per_tok"] = cfg.experts.per_token
    if kind in ("mistral", "mixtral"):
        more["sliding_window"] = None
    config_class, model_class = (getattr(transformers, name) for name in LLM_CLASSES[kind])
    act = ACTIVATIONS[cfg.act]
    model = model_class(
        config_class(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.dim,
            intermediate_size=cfg.mlp_dim,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            num_key_value_heads=cfg.kv_heads,
            head_dim=cfg.head_dim,
            hidden_act=act,
            rms_norm_eps=cfg.norm_eps,
            tie_word_embeddings=cfg.tied_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta},
            attn_implementation="eager",
            pad_token_id=None,
            **more,
        )
    )
    for layer in model.model.layers:  # transformers makes every Gemma's GELU the tanh one
        if hasattr(layer.mlp, "act_fn"):
            layer.mlp.act_fn = transformers.activations.ACT2FN[act]

    def theirs(name):
        name = name.replace(".mlp.gate.", ".block_sparse_moe.gate.") if cfg.experts else name
        if match := re.fullmatch(r"(.*)\.mlp\.experts\.(gate_up_proj|down_proj)", name):
            first = f"{match[1]}.block_sparse_moe.experts"
            parts = ("w1", "w3") if match[2] == "gate_up_proj" else ("w2",)
            each = [[stored.read(f"{first}.{e}.{w}.weight") for w in parts] for e in range(count)]
            return np.stack([np.concatenate(group) for group in each])
        return stored.read(name)

    count = cfg.experts.count if cfg.experts else 0
    fill(model, theirs)
    return model


def merge(ids: Sequence[int], embed, features: Sequence):
    """One prompt's ids with -200 and its pictures' tokens [N, D] -> embeddings [1, L, D]."""
    torch, _ = modules()
    pieces, text, shown = [], [], iter(features)
    for i in [*ids, None]:
        if i is None or i == IMAGE_ID:
            pieces.append(
                torch.nn.functional.embedding(torch.tensor(text, dtype=torch.long), embed)
            )
            text = []
            pieces += [next(shown)] if i is not None else []
        else:
            text.append(i)
    return torch.cat(pieces)[None]


def run_torch(stored: StoredModel, used: Sequence[Probe], pictures) -> dict[str, list[np.ndarray]]:
    """A stored model on probes and pictures (lr, hr), as `verify.run_ours`.

    ValueError if PyTorch or transformers is missing, or has a class of other parameters.
    """
    torch, transformers = modules()
    transformers.logging.set_verbosity_error()
    cfg = stored.config
    views = [
        (lr if cfg.image.grid > 1 else lr[None], hr[None]) for lr, hr in zip(*pictures, strict=True)
    ]
    encoded = [encode(cfg, stored.read, lr, hr) for lr, hr in views]
    features = [out["image_features"][0] for out in encoded]
    arrays = {key: [np.concatenate([out[key].numpy() for out in encoded])] for key in encoded[0]}
    arrays |= {"inputs_embeds": [], "logits": []}
    model = language_model(stored)
    embed = model.model.embed_tokens
    for probe in used:
        x = merge(probe.ids, embed.weight.detach(), [features[i] for i in probe.pictures])
        arrays["inputs_embeds"].append(x[0].numpy())
        # A Gemma scales its input embeddings; newer versions do it in the layer left out here.
        outside = cfg.llm.embed_scale and hasattr(embed, "embed_scale")
        with torch.no_grad():
            logits = model(inputs_embeds=x * cfg.llm.dim**0.5 if outside else x).logits
        arrays["logits"].append(logits[0].numpy())
    return arrays
