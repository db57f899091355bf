"""The only places that create kernels: Linear, Embed and Conv.

Kernels are two-dimensional, `[in, out]`, and applied by one `jnp.dot` (heads are split by a reshape
afterwards), so that conversion is a transpose, one pair of logical axes describes each matrix and
adapters can intercept every multiplication. `axes` are logical names (see `sharding.RULES`).
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def _param(module: nn.Module, name: str, init: Callable, axes: tuple, shape: tuple) -> jax.Array:
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def matmul(x, kernel):
    """x [..., in], kernel [in, out] -> [..., out] in x's dtype, as one two-dimensional product.

    Flat on purpose: XLA's CPU backend runs the weight gradient of a flat product three times as
    fast as that of one with several leading axes.
    """
    y = jnp.dot(x.reshape(-1, x.shape[-1]), kernel.astype(x.dtype))
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def torch_linear_init(key, shape, dtype=jnp.float32):
    """U(+-1/sqrt(fan_in)): PyTorch's default for Linear weights (Kaiming uniform, a = sqrt(5))."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def normal_init(std: float) -> Callable:
    return nn.initializers.normal(std)


def fan_in_init(key, shape, dtype=jnp.float32):
    """N(0, 1/fan_in): keeps the variance of what passes through; for towers made from scratch."""
    return jax.random.normal(key, shape, dtype) * shape[0] ** -0.5


class Linear(nn.Module):
    """x [..., in] -> [..., features] in x's dtype: `x . kernel (+ bias)`."""

    features: int
    axes: tuple[str | None, str | None]
    use_bias: bool = True
    kernel_init: Callable = torch_linear_init

    @nn.compact
    def __call__(self, x):
        kernel = _param(self, "kernel", self.kernel_init, self.axes, (x.shape[-1], self.features))
        y = matmul(x, kernel)
        if self.use_bias:
            bias = _param(self, "bias", nn.initializers.zeros, self.axes[1:], (self.features,))
            y = y + bias.astype(x.dtype)
        return y


class Embed(nn.Module):
    """ids [...] int -> rows of the table [..., features] in `dtype`."""

    rows: int
    features: int
    axes: tuple[str | None, str | None]
    embedding_init: Callable = normal_init(0.02)

    def setup(self):
        shape = (self.rows, self.features)
        self.embedding = _param(self, "embedding", self.embedding_init, self.axes, shape)

    def __call__(self, ids, dtype=jnp.float32):
        return jnp.take(self.embedding, ids, axis=0, mode="clip").astype(dtype)

    def logits(self, x):
        """x [..., features] -> [..., rows]: the tied output head."""
        return jnp.dot(x, self.embedding.T.astype(x.dtype))


class Conv(nn.Module):
    """Convolution whose stride is its kernel size p: [B, H, W, C] -> [B, H/p, W/p, features].

    It is a matrix product over patches: the kernel is stored as `[p*p*C, features]` (row-major over
    patch row, patch column, channel), and the patches are cut by a reshape.
    """

    features: int
    patch: int
    axes: tuple[str | None, str | None]
    use_bias: bool = True
    kernel_init: Callable = fan_in_init

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        p = self.patch
        x = x[:, : h - h % p, : w - w % p]  # as a strided convolution does
        x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, h // p, w // p, p * p * c)
        kernel = _param(self, "kernel", self.kernel_init, self.axes, (p * p * c, self.features))
        y = matmul(x, kernel)
        if self.use_bias:
            bias = _param(self, "bias", nn.initializers.zeros, self.axes[1:], (self.features,))
            y = y + bias.astype(x.dtype)
        return y
