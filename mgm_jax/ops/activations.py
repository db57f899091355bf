"""Activations by the names that Hugging Face configs use."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

# p's coefficients where erf(x / sqrt(2)) is tanh(x * p(min(x^2, 25))), fitted to x * erf.
ERF_BY_TANH = (7.974905e-1, 3.702945e-2, -3.591987e-4, 6.235979e-7)


def gelu(x):
    """x * Phi(x). In bfloat16 within 3e-5 of it before the result is rounded, as TPUs have a tanh:
    their erf takes as long as a third of ConvNeXt's products (docs/performance.md)."""
    if x.dtype != jnp.bfloat16:
        return jax.nn.gelu(x, approximate=False)
    y = x.astype(jnp.float32)
    square, p = jnp.minimum(y * y, 25), 0.0
    for coefficient in reversed(ERF_BY_TANH):
        p = p * square + coefficient
    return (0.5 * y * (1 + jnp.tanh(y * p))).astype(x.dtype)


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def activation(name: str):
    """The function called `name`; a ValueError lists the known ones."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown, expected one of {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]
