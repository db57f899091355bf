"""The low-resolution encoder: OpenAI's CLIP ViT (MGM_SPEC 1.3), SigLIP, or big_vision's ViT.

B pictures, N = grid*grid patches (row-major), D width, H heads.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from mgm_jax.models.config import ClipConfig
from mgm_jax.nn.layout import split_pictures
from mgm_jax.nn.linear import Conv, Linear, fan_in_init, normal_init
from mgm_jax.nn.norms import LayerNorm
from mgm_jax.nn.stack import stack
from mgm_jax.ops.activations import activation
from mgm_jax.ops.attention import attend

linear = partial(Linear, kernel_init=fan_in_init)


class Attention(nn.Module):
    cfg: ClipConfig

    @nn.compact
    def __call__(self, x):
        b, n, d = x.shape
        split = (b, n, self.cfg.heads, d // self.cfg.heads)
        q = linear(d, ("vis_embed", "vis_heads"), name="q_proj")(x).reshape(split)
        k = linear(d, ("vis_embed", "vis_heads"), name="k_proj")(x).reshape(split)
        v = linear(d, ("vis_embed", "vis_heads"), name="v_proj")(x).reshape(split)
        out = attend(q, k, v).reshape(b, n, d)
        return linear(d, ("vis_heads", "vis_embed"), name="out_proj")(out)


class Mlp(nn.Module):
    cfg: ClipConfig

    @nn.compact
    def __call__(self, x):
        h = linear(self.cfg.mlp_dim, ("vis_embed", "vis_mlp"), name="fc1")(x)
        h = activation(self.cfg.act)(h)
        return linear(x.shape[-1], ("vis_mlp", "vis_embed"), name="fc2")(h)


class Block(nn.Module):
    """Pre-LN transformer block: [B, N or 1 + N, D] -> the same."""

    cfg: ClipConfig

    @nn.compact
    def __call__(self, x, shared, layer):
        eps = self.cfg.norm_eps
        x = x + Attention(self.cfg, name="attn")(LayerNorm(eps, name="norm1")(x))
        x = x + Mlp(self.cfg, name="mlp")(LayerNorm(eps, name="norm2")(x))
        return split_pictures(x), None


class ClipVit(nn.Module):
    """pictures [B, H, W, 3], normalised -> patch features [B, N, D] of the selected layer.

    Layers after the selected one (and the final norm where it is not used) have parameters,
    because an export needs them, but never run. `ClipConfig.kind` tells the kinds apart; `remat`
    is as of `nn.stack`.
    """

    cfg: ClipConfig
    scan: bool = True
    remat: str = "none"

    @nn.compact
    def __call__(self, pictures):
        cfg = self.cfg
        clip, d, n = cfg.kind == "clip", cfg.width, cfg.grid**2
        init = normal_init(d**-0.5)

        def learned(name, axes, shape):
            init_axes = nn.with_logical_partitioning(init, axes)
            return self.param(name, init_axes, shape).astype(pictures.dtype)

        x = Conv(d, cfg.patch_size, (None, "vis_embed"), use_bias=not clip, name="patch")(pictures)
        x = x.reshape(x.shape[0], n, d)
        cls = learned("cls", ("vis_embed",), (d,)) if cfg.kind != "siglip" else None
        positions = learned("positions", (None, "vis_embed"), (n + clip, d))
        x = x if clip else x + positions
        if cls is not None:
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, d)), x], axis=1)
        if clip:
            x = LayerNorm(cfg.norm_eps, name="pre_norm")(x + positions)  # [B, 1 + N, D]
        x = split_pictures(x)
        layers = stack(Block, cfg.layers_run, remat=self.remat, scan=self.scan)
        x, _ = layers(cfg, name="layers")(x, None, None)
        if cfg.final_norm:
            x = LayerNorm(cfg.norm_eps, name="post_norm")(x)
        elif self.is_initializing():
            rest = cfg.layers - cfg.layers_run
            if rest:
                stack(Block, rest)(cfg, name="unused_layers")(x, None, None)
            LayerNorm(cfg.norm_eps, name="unused_norm")(x)
        return x[:, -n:]
