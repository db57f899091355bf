"""CLIP ViT, the low-resolution encoder (MGM_SPEC 1.3).

B pictures, N = grid*grid patches (row-major), D width, H heads.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from mgm_jax.models.config import ClipConfig
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
    """Pre-LN transformer block: [B, 1 + N, D] -> the same."""

    cfg: ClipConfig

    @nn.compact
    def __call__(self, x, shared, layer):
        eps = self.cfg.norm_eps
        x = x + Attention(self.cfg, name="attn")(LayerNorm(eps, name="norm1")(x))
        x = x + Mlp(self.cfg, name="mlp")(LayerNorm(eps, name="norm2")(x))
        return x, None


class ClipVit(nn.Module):
    """pictures [B, H, W, 3], normalised -> patch features [B, N, D] of the selected layer.

    Layers after the selected one (and the final norm) have parameters, because an export needs
    them, but never run.
    """

    cfg: ClipConfig
    scan: bool = True

    @nn.compact
    def __call__(self, pictures):
        cfg = self.cfg
        d, n = cfg.width, cfg.grid**2
        init = normal_init(d**-0.5)
        x = Conv(d, cfg.patch_size, (None, "vis_embed"), use_bias=False, name="patch")(pictures)
        x = x.reshape(x.shape[0], n, d)
        cls = self.param("cls", nn.with_logical_partitioning(init, ("vis_embed",)), (d,))
        positions = self.param(
            "positions", nn.with_logical_partitioning(init, (None, "vis_embed")), (n + 1, d)
        )
        cls = jnp.broadcast_to(cls.astype(x.dtype), (x.shape[0], 1, d))
        x = jnp.concatenate([cls, x], axis=1) + positions.astype(x.dtype)  # [B, 1 + N, D]
        x = LayerNorm(cfg.norm_eps, name="pre_norm")(x)
        x, _ = stack(Block, cfg.layers_run, scan=self.scan)(cfg, name="layers")(x, None, None)
        if self.is_initializing():
            rest = cfg.layers - cfg.layers_run
            if rest:
                stack(Block, rest)(cfg, name="unused_layers")(x, None, None)
            LayerNorm(cfg.norm_eps, name="unused_norm")(x)
        return x[:, 1:]
