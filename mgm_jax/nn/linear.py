"""The only places that create kernels: Linear, Embed and Conv.

Kernels are two-dimensional, `[in, out]`, and applied by one `jnp.dot` (heads are split by a reshape
afterwards), so that conversion is a transpose and one pair of logical axes describes each matrix.
`axes` are logical names (see `layout.RULES`).

The parameter tree decides what a Linear computes: beside its kernel there may be an adapter
(`mgm_jax.lora`), and a kernel may be there quantised (`mgm_jax.quantize`). Neither is made by
`init`; without them there is no trace of either.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgm_jax.nn.layout import RULES
from mgm_jax.ops import quant, ring


def _param(module: nn.Module, name: str, init: Callable, axes: tuple, shape: tuple) -> jax.Array:
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def weight(module: nn.Module, name: str, init: Callable, axes: tuple, shape: tuple):
    """The parameter of that name, or the `quant.Quantized` that the tree has in its place."""
    found = _quantized(module, name)
    return _param(module, name, init, axes, shape) if found is None else found


def _quantized(module: nn.Module, name: str) -> quant.Quantized | None:
    for scheme in quant.SCHEMES:
        if module.has_variable("params", f"{name}_{scheme}"):
            parts = (f"{name}_{scheme}", f"{name}_{scheme}_scale")
            return quant.Quantized(*(module.get_variable("params", n) for n in parts), scheme)
    return None


def as_array(kernel, dtype):
    """What `weight` gave, as an array."""
    if isinstance(kernel, quant.Quantized):
        return quant.dequantize(kernel, dtype)
    return kernel.astype(dtype)


def matmul(x, kernel, axes: tuple[str | None, str | None] = (None, None)):
    """x [..., in], kernel [in, out] or Quantized -> [..., out] in x's dtype, one flat product.

    Flat on purpose: XLA's CPU backend runs the weight gradient of a flat product three times as
    fast as that of one with several leading axes. `axes`: the kernel's, by which its gradient may
    be summed in rings (`ops.ring`).
    """
    flat = x.reshape(-1, x.shape[-1])
    if isinstance(kernel, quant.Quantized):
        y = quant.matmul(flat, kernel)
    elif (side := _ring_side(axes, kernel.shape, len(flat))) is not None:
        y = ring.product(flat, kernel.astype(x.dtype), side, ring.grid())
    else:
        y = jnp.dot(flat, kernel.astype(x.dtype))
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _ring_side(axes: tuple, shape: tuple, rows: int) -> int | None:
    """Which axis of a kernel lies on the mesh's `fsdp`, if its gradient can be summed in rings."""
    parts = math.prod(ring.grid())
    if parts == 1 or rows % parts:
        return None
    sides = (i for i, axis in enumerate(axes) if axis and RULES[axis] == "fsdp")
    return next((i for i in sides if ring.fits(shape[i])), None)


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
    """x [..., in] -> [..., features] in x's dtype: `x . kernel (+ x . A . B) (+ bias)`.

    A and B are `lora_a` [in, r] and `lora_b` [r, features] (arXiv 2106.09685), where the tree has
    them; B carries the adapter's scale (`lora.adapters.active`). Where there is a `lora_dropout`
    [], a rate, and a random number generator "dropout", A sees x with so much of it dropped.
    """

    features: int
    axes: tuple[str | None, str | None]
    use_bias: bool = True
    kernel_init: Callable = torch_linear_init

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1], self.features)
        y = matmul(x, weight(self, "kernel", self.kernel_init, self.axes, shape), self.axes)
        if self.has_variable("params", "lora_a"):
            a, b = self._adapter()
            y = y + matmul(matmul(self._dropped(x), a), b)
        if self.use_bias:
            bias = _param(self, "bias", nn.initializers.zeros, self.axes[1:], (self.features,))
            y = y + bias.astype(x.dtype)
        return y

    def whole_kernel(self, dtype):
        """kernel (+ A . B) as one matrix [in, features], for who multiplies by it elsewhere."""
        kernel = _quantized(self, "kernel")
        if kernel is None:
            kernel = self.get_variable("params", "kernel")
        kernel = as_array(kernel, dtype)
        if self.has_variable("params", "lora_a"):
            kernel = kernel + jnp.dot(*self._adapter()).astype(dtype)
        return kernel

    def _adapter(self):
        return (self.get_variable("params", name) for name in ("lora_a", "lora_b"))

    def _dropped(self, x):
        if not (self.has_variable("params", "lora_dropout") and self.has_rng("dropout")):
            return x
        keep = 1 - self.get_variable("params", "lora_dropout")
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
        return jnp.where(kept, x / keep, 0).astype(x.dtype)


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
        y = matmul(x, kernel, self.axes)
        if self.use_bias:
            bias = _param(self, "bias", nn.initializers.zeros, self.axes[1:], (self.features,))
            y = y + bias.astype(x.dtype)
        return y
