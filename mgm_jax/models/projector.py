"""The projector from vision width to the language model's: `linear`, `mlp{N}x_gelu`, `identity`."""

from __future__ import annotations

import re

import flax.linen as nn

from mgm_jax.nn.linear import Linear
from mgm_jax.ops.activations import activation


def projector_depth(kind: str) -> int:
    """Number of Linear layers of a projector type (MGM_SPEC 1.5); ValueError if unknown."""
    if kind == "identity":
        return 0
    if kind == "linear":
        return 1
    if match := re.fullmatch(r"mlp([1-9]\d*)x_gelu", kind):
        return int(match[1])
    raise ValueError(f"projector is {kind!r}, expected 'identity', 'linear' or 'mlp<N>x_gelu'")


class Projector(nn.Module):
    """x [..., C] -> [..., features], exact GELU between the layers."""

    kind: str
    features: int

    @nn.compact
    def __call__(self, x):
        for i in range(projector_depth(self.kind)):
            if i:
                x = activation("gelu")(x)
            x = Linear(
                self.features, ("vis_embed" if i == 0 else "mlp", "embed"), name=f"fc{i + 1}"
            )(x)
        return x
