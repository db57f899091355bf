"""OpenCLIP ConvNeXt, the high-resolution encoder (MGM_SPEC 1.4). B pictures, C channels."""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mgm_jax.models.config import ConvNextConfig
from mgm_jax.nn.layout import split_pictures
from mgm_jax.nn.linear import Conv, Linear, fan_in_init, normal_init
from mgm_jax.nn.norms import LayerNorm
from mgm_jax.nn.stack import stack
from mgm_jax.ops import mesh
from mgm_jax.ops.activations import activation
from mgm_jax.ops.depthwise import depthwise
from mgm_jax.ops.resize import resize_bilinear

HIDDEN = 2 << 20  # bytes of an MLP's hidden layer that a CPU's cache holds


class Depthwise(nn.Module):
    """k x k depthwise convolution with bias; kernel [k*k, C]."""

    kernel_size: int

    @nn.compact
    def __call__(self, x):
        c, taps = x.shape[-1], self.kernel_size**2
        init = normal_init(taps**-0.5)
        kernel = self.param(
            "kernel", nn.with_logical_partitioning(init, (None, "conv_out")), (taps, c)
        )
        bias = self.param(
            "bias", nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)), (c,)
        )
        # Parameters are made outside any mesh, where a kernel cannot be partitioned.
        form = "conv" if self.is_initializing() else "auto"
        return depthwise(x, kernel.astype(x.dtype), form) + bias.astype(x.dtype)


class Block(nn.Module):
    """Depthwise conv, LayerNorm, MLP, layer scale: [B, h, w, C] -> the same.

    With `rate` (a scalar) each picture leaves the block out with that probability; where it stays,
    it counts 1 / (1 - rate).
    """

    cfg: ConvNextConfig
    gamma_init: float = 1e-6

    @nn.compact
    def __call__(self, x, shared, rate):
        c = x.shape[-1]
        y = Depthwise(self.cfg.kernel_size, name="dw")(x)
        y = LayerNorm(self.cfg.norm_eps, name="norm")(y)
        y = self._mlp(y)
        init = nn.with_logical_partitioning(nn.initializers.constant(self.gamma_init), ("conv_in",))
        y = y * self.param("gamma", init, (c,)).astype(x.dtype)
        if rate is not None:
            stays = jax.random.bernoulli(self.make_rng("drop_path"), 1 - rate, (len(x), 1, 1, 1))
            y = y * (stays / (1 - rate)).astype(x.dtype)
        return split_pictures(x + y), None

    def _mlp(self, y):
        """By all rows at once, but on a CPU by parts whose hidden layer stays in the cache."""

        def mlp(block, _, y):
            linear, c = partial(Linear, kernel_init=fan_in_init), y.shape[-1]
            y = activation("gelu")(linear(4 * c, ("conv_in", "conv_out"), name="pw1")(y))
            return None, linear(c, ("conv_out", "conv_in"), name="pw2")(y)

        c = y.shape[-1]
        parts = max(1, 4 * y.nbytes // HIDDEN) if mesh.on_one_cpu() else 1
        parts = math.gcd(parts, y.size // c)
        if parts == 1 or self.is_initializing():
            return mlp(self, None, y)[1]
        scanned = nn.scan(mlp, variable_broadcast="params", split_rngs={"params": False})
        return scanned(self, None, y.reshape(parts, -1, c))[1].reshape(y.shape)


class ConvNext(nn.Module):
    """pictures [B, H, W, 3], normalised -> tuple of stage outputs [B, h_s, w_s, C_s].

    Given random numbers ("drop_path"), blocks are left out at rates that grow linearly from 0 at
    the first to `drop_path` at the last of all stages (MGM_SPEC 1.4).
    """

    cfg: ConvNextConfig
    scan: bool = True
    gamma_init: float = 1e-6
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, pictures):
        cfg = self.cfg
        conv = partial(Conv, axes=(None, "conv_out"))
        rates = [None] * len(cfg.depths)
        if self.drop_path and self.has_rng("drop_path"):
            ends = np.cumsum(cfg.depths)
            rates = np.split(np.linspace(0, self.drop_path, ends[-1], dtype=np.float32), ends[:-1])
        x, stages = pictures, []
        for s, (width, depth) in enumerate(zip(cfg.widths, cfg.depths, strict=True)):
            if s == 0:
                x = conv(width, cfg.patch_size, name="stem")(x)
                x = LayerNorm(cfg.norm_eps, name="stem_norm")(x)
            else:
                x = LayerNorm(cfg.norm_eps, name=f"down_norm_{s}")(x)
                x = conv(width, 2, name=f"down_{s}")(x)
            blocks = stack(Block, depth, scan=self.scan)(cfg, self.gamma_init, name=f"stages_{s}")
            x, _ = blocks(split_pictures(x), None, rates[s])
            stages.append(x)
        return tuple(stages)


def fuse_stages(stages):
    """Stage outputs -> one map [B, h_0, w_0, sum C_s]: the others resized to the first, in float32.

    Bilinear, align_corners=False, no antialias; cast back to the first stage's dtype.
    """
    size = stages[0].shape[1:3]
    resized = [resize_bilinear(s, size).astype(s.dtype) for s in stages[1:]]
    # Without the barrier XLA computes the resized stages again for each use of the map.
    return jax.lax.optimization_barrier(jnp.concatenate([stages[0], *resized], axis=-1))
