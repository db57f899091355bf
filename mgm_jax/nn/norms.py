"""LayerNorm and RMSNorm. Statistics in float32; eps always comes from the caller's config."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


def standardise(x, eps: float):
    """(x - mean) / sqrt(var + eps) over the last axis, float32 (float64 stays)."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + eps)


def _vector(module: nn.Module, name: str, init, size: int, axis: str | None):
    return module.param(name, nn.with_logical_partitioning(init, (axis,)), (size,), jnp.float32)


class LayerNorm(nn.Module):
    """x [..., D] -> [..., D] in x's dtype, with scale and bias."""

    eps: float
    axis: str | None = None

    @nn.compact
    def __call__(self, x):
        scale = _vector(self, "scale", nn.initializers.ones, x.shape[-1], self.axis)
        bias = _vector(self, "bias", nn.initializers.zeros, x.shape[-1], self.axis)
        return (standardise(x, self.eps) * scale + bias).astype(x.dtype)


class RMSNorm(nn.Module):
    """x [..., D] -> x / rms(x) cast to x's dtype, then times scale (MGM_SPEC 2.6).

    `zero_centred` multiplies by 1 + scale, both in x's dtype, as Gemma does.
    """

    eps: float
    axis: str | None = None
    zero_centred: bool = False

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.zeros if self.zero_centred else nn.initializers.ones
        scale = _vector(self, "scale", init, x.shape[-1], self.axis).astype(x.dtype)
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * (1 + scale if self.zero_centred else scale)
