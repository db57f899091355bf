"""A Mini-Gemini from independent PyTorch modules, to hold ours against (`convert verify`).

The towers and language models are transformers'; mining and projector are written out as
MGM_SPEC 2.2 and 2.3 have them, literally: every candidate projected, nothing re-associated.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mgm_jax.convert.families.mgm import AUX, CLIP
from mgm_jax.convert.llm_config import HF_ACTIVATIONS
from mgm_jax.models.config import DecoderConfig, MgmConfig

TIMM_NAMES = (  # what MGM stores -> transformers'
    ("vision_stem.0.", "embeddings.patch_embeddings."),
    ("vision_stem.1.", "embeddings.layernorm."),
    ("vision_stages.", "encoder.stages."),
    (".downsample.", ".downsampling_layer."),
    (".blocks.", ".layers."),
    (".conv_dw.", ".dwconv."),
    (".norm.", ".layernorm."),
    (".mlp.fc", ".pwconv"),
    (".gamma", ".layer_scale_parameter"),
)


def _need_torch():
    try:
        import torch
        import transformers
    except ImportError as e:
        raise ValueError(
            f"--against torch needs the extra `test` (torch, transformers): {e}"
        ) from e
    return torch, transformers


def _load(model, state):
    """Strictly, in float32, ready to be asked."""
    torch, _ = _need_torch()
    tensors = {n: torch.from_numpy(np.array(a, np.float32)) for n, a in state.items()}
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def _clip(cfg, tensors):
    _, transformers = _need_torch()
    config = transformers.CLIPVisionConfig(
        hidden_size=cfg.width,
        intermediate_size=cfg.mlp_dim,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        image_size=cfg.image_size,
        patch_size=cfg.patch_size,
        hidden_act=cfg.act,
        layer_norm_eps=cfg.norm_eps,
    )
    model = transformers.CLIPVisionModel(config)
    names = model.state_dict()
    prefix = "vision_model." if any(n.startswith("vision_model.") for n in names) else ""
    state = {prefix + n.removeprefix(CLIP): a for n, a in tensors.items() if n.startswith(CLIP)}
    return _load(model, state)


def _convnext(cfg, tensors):
    _, transformers = _need_torch()
    if cfg.kernel_size != 7:
        raise ValueError(f"convnext.kernel_size is {cfg.kernel_size}, transformers has 7 only")
    config = transformers.ConvNextConfig(
        hidden_sizes=list(cfg.widths),
        depths=list(cfg.depths),
        patch_size=cfg.patch_size,
        num_stages=len(cfg.widths),
    )
    model = transformers.ConvNextModel(config)
    state = {n: a for n, a in model.state_dict().items() if n.startswith("layernorm.")}  # unused
    for name, array in tensors.items():
        if name.startswith(AUX):
            name = name.removeprefix(AUX)
            for timm, theirs in TIMM_NAMES:
                name = name.replace(timm, theirs)
            state[name] = array
    return _load(model, state)


def _decoder(cfg: DecoderConfig, tensors):
    """transformers' Gemma, Mixtral or LLaMA (whose arithmetic Mistral and Yi share)."""
    _, transformers = _need_torch()
    values = dict(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.dim,
        intermediate_size=cfg.mlp_dim,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.kv_heads,
        head_dim=cfg.head_dim,
        hidden_act=HF_ACTIVATIONS[cfg.act],
        rms_norm_eps=cfg.norm_eps,
        tie_word_embeddings=cfg.tied_embeddings,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta},
        pad_token_id=None,
    )
    if cfg.zero_centred_norm:
        config = transformers.GemmaConfig(**(values | {"hidden_act": "gelu_pytorch_tanh"}))
        config.hidden_act = HF_ACTIVATIONS[cfg.act]  # the constructor would turn "gelu" into tanh
        model = transformers.GemmaForCausalLM(config)
    elif cfg.experts:
        counts = {
            "num_local_experts": cfg.experts.count,
            "num_experts_per_tok": cfg.experts.per_token,
            "sliding_window": None,
        }
        model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**values, **counts))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
    state = {n: a for n, a in tensors.items() if n.startswith(("model.layers.", "lm_head."))}
    state |= {n: tensors[n] for n in ("model.embed_tokens.weight", "model.norm.weight")}
    if cfg.tied_embeddings:
        state["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    if cfg.experts:
        state = _fused_experts(state, cfg)
    return _load(model, state)


def _fused_experts(state: Mapping, cfg: DecoderConfig) -> dict:
    """The original's expert tensors as newer versions of transformers stack them."""
    out = {n: a for n, a in state.items() if ".block_sparse_moe." not in n}
    for i in range(cfg.layers):
        moe, mlp = f"model.layers.{i}.block_sparse_moe", f"model.layers.{i}.mlp"
        parts = [
            [state[f"{moe}.experts.{e}.{w}.weight"] for e in range(cfg.experts.count)]
            for w in ("w1", "w3", "w2")
        ]
        gate, up, down = (np.stack(part) for part in parts)
        out[f"{mlp}.gate.weight"] = state[f"{moe}.gate.weight"]
        out[f"{mlp}.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        out[f"{mlp}.experts.down_proj"] = down
    return out


class TorchMgm:
    """The float path's `encode_images` and `forward_ids` for one unpadded row, in PyTorch.

    `tensors`: the original's names -> arrays. ValueError without torch and transformers, or for a
    part that they cannot do.
    """

    def __init__(self, cfg: MgmConfig, tensors: Mapping[str, np.ndarray]):
        self.torch, _ = _need_torch()
        self.cfg = cfg
        self.clip = _clip(cfg.clip, tensors)
        self.convnext = _convnext(cfg.convnext, tensors) if cfg.convnext else None
        self.llm = _decoder(cfg.llm, tensors)
        heads = ("model.mm_projector", "model.vlm_uni_")
        self.t = {
            n: self.torch.from_numpy(np.array(a, np.float32))
            for n, a in tensors.items()
            if n.startswith(heads)
        }

    def _linear(self, x, name):
        return self.torch.nn.functional.linear(x, self.t[f"{name}.weight"], self.t[f"{name}.bias"])

    def _project(self, x, name):
        """LayerNorm, then Linear (MGM_SPEC 2.3)."""
        name = f"model.vlm_uni_{name}_projector"
        w, b = (self.t[f"{name}.0.{p}"] for p in ("weight", "bias"))
        x = self.torch.nn.functional.layer_norm(x, x.shape[-1:], w, b, self.cfg.mining_eps)
        return self._linear(x, f"{name}.1")

    def _mine(self, x, hr_map):
        """x [N, C], hr_map [C', h, w] of its view -> mined [N, C]."""
        grid, c = int(len(x) ** 0.5), hr_map.shape[0]
        side = hr_map.shape[-1] // grid
        regions = hr_map.permute(1, 2, 0).reshape(grid, side, grid, side, c).permute(0, 2, 1, 3, 4)
        regions = regions.reshape(grid * grid, side * side, c)
        q, k, v = (
            self._project(y, n) for y, n in ((x, "query"), (regions, "aux"), (regions, "val"))
        )
        scores = (q[:, None] @ (k.transpose(1, 2) / k.shape[-1] ** 0.5)).softmax(-1)
        return (scores @ v)[:, 0]

    def encode_images(self, lr, hr):
        """One picture: lr [1, (R,) h, w, 3], hr [1, H, W, 3] -> as `LoadedModel.encode_images`."""
        torch, spec = self.torch, self.cfg.image
        with torch.no_grad():
            views = torch.from_numpy(np.moveaxis(lr.reshape(-1, *lr.shape[-3:]), -1, 1).copy())
            hidden = self.clip(views, output_hidden_states=True).hidden_states
            clip = hidden[self.cfg.clip.select_layer][:, 1:]  # [R, n, C]
            out = {"clip_features": clip if spec.grid > 1 else clip[:1]}
            x = clip.roll(1, 0) if spec.use_global else clip
            tokens = x.reshape(1, -1, x.shape[-1])
            if self.convnext:
                hr = torch.from_numpy(np.moveaxis(hr, -1, 1).copy())
                stages = self.convnext(hr, output_hidden_states=True).hidden_states
                stages = stages[-len(self.cfg.convnext.widths) :]
                fused = [self._resize(s, size=stages[0].shape[-2:]) for s in stages]
                fused = torch.cat(fused, 1)[0]  # [C', h, w]
                rows = fused.chunk(spec.grid, 1)
                maps = [tile for row in rows for tile in row.chunk(spec.grid, 2)]
                if spec.use_global:
                    maps.insert(0, self._resize(fused[None], scale_factor=1 / spec.grid)[0])
                mined = torch.stack([self._mine(*pair) for pair in zip(x, maps, strict=True)])
                mined = mined.reshape(tokens.shape)
                tokens = tokens + mined
                out |= {"convnext_map": fused.permute(1, 2, 0)[None], "mined": mined}
            out["tokens"] = tokens
            features = self._projector(tokens)
        found = {k: v.numpy() for k, v in out.items()}
        if spec.grid > 1:
            found["clip_features"] = found["clip_features"][None]
        return features.numpy(), found

    def _resize(self, x, **size):
        return self.torch.nn.functional.interpolate(x, mode="bilinear", align_corners=False, **size)

    def _projector(self, x):
        if "model.mm_projector.weight" in self.t:
            return self._linear(x, "model.mm_projector")
        depth = sum(n.endswith(".weight") and "mm_projector" in n for n in self.t)
        for i in range(depth):
            x = self.torch.nn.functional.gelu(x) if i else x
            x = self._linear(x, f"model.mm_projector.{2 * i}")
        return x

    def forward_ids(self, input_ids, lr, hr):
        """One row of ids with -200 -> {"inputs_embeds", "logits"}, each [1, L, ...]."""
        torch, (ids,) = self.torch, input_ids
        ids = np.asarray(ids)
        pictures = [] if lr is None else [self.encode_images(*p)[0] for p in _each(lr, hr)]
        parts, shown = [], iter(pictures)
        with torch.no_grad():
            table = self.llm.get_input_embeddings().weight
            for piece in np.split(ids, np.flatnonzero((ids == -200) | (np.roll(ids, 1) == -200))):
                if len(piece) and piece[0] == -200:
                    parts.append(torch.from_numpy(next(shown))[0])
                    piece = piece[1:]
                parts.append(table[torch.from_numpy(piece)])
            embeds = torch.cat(parts)[None]
            scaled = embeds
            if self.cfg.llm.embed_scale and not self._llm_scales():
                scaled = embeds * self.cfg.llm.dim**0.5
            logits = self.llm(inputs_embeds=scaled).logits
        return {"inputs_embeds": embeds.numpy(), "logits": logits.numpy()}

    def _llm_scales(self) -> bool:
        """Whether transformers' Gemma multiplies `inputs_embeds` itself (versions differ)."""
        torch = self.torch
        with torch.no_grad():
            ids = torch.tensor([[1, 2, 3]])
            raw = self.llm.get_input_embeddings().weight[ids]
            direct = self.llm(input_ids=ids).logits
            return bool(torch.allclose(self.llm(inputs_embeds=raw).logits, direct, atol=1e-5))


def _each(lr, hr):
    return [(lr[i : i + 1], hr[i : i + 1]) for i in range(len(hr))]
