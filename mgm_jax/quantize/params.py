"""Quantised parameters in the tree: in the place of `kernel` [..., in, out] lie `kernel_int4` of
its shape and `kernel_int4_scale` [..., groups, out], where `nn.linear.weight` finds them.

Stacks of layers and of experts are quantised matrix by matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mgm_jax.ops import quant
from mgm_jax.quantize.config import NAME, QuantConfig
from mgm_jax.tree import flatten, unflatten


def matched(shapes: Mapping, config: QuantConfig) -> list[str]:
    """The parameters of a flat tree that are to be quantised. ValueError if there are none, or for
    one that is no matrix or does not divide into groups."""
    found = [n for n in shapes if re.fullmatch(config.targets, n)]
    if not found:
        raise ValueError(f"quant.targets {config.targets!r} matches no parameter")
    for name in found:
        if not re.fullmatch(r".*/(kernel|w_\w+)", name):
            raise ValueError(f"quant.targets matches {name}, which is not the matrix of a Linear")
        inputs = shapes[name].shape[-2]
        if config.group and inputs % config.group:
            raise ValueError(
                f"{name} has {inputs} inputs, which do not divide into groups of quant.group "
                f"{config.group}"
            )
    return found


def abstract(shapes: Mapping, axes: Mapping, config: QuantConfig):
    """Shapes and logical axes of a parameter tree -> those of the quantised tree."""
    flat, flat_axes = flatten(shapes), flatten(axes)
    for name in matched(flat, config):
        shape, spec = flat.pop(name), PartitionSpec(*flat_axes.pop(name))
        made = jax.eval_shape(lambda w: quant.quantize(w, config.scheme, config.group), shape)
        for leaf, array in leaves(name, made).items():
            flat[leaf], flat_axes[leaf] = array, spec
    return unflatten(flat), unflatten(flat_axes)


def leaves(name: str, q: quant.Quantized) -> dict:
    """The parameters that stand for the parameter `name`."""
    return {f"{name}_{q.scheme}": q.values, f"{name}_{q.scheme}_scale": q.scale}


def quantize_one(name: str, array, config: QuantConfig, shardings: Mapping | None = None) -> dict:
    """The parameters (flat) that stand for `name`; a stack is worked on a layer at a time."""

    def work(w):
        one = lambda m: quant.quantize(m, config.scheme, config.group)  # noqa: E731
        return leaves(name, one(w) if w.ndim == 2 else jax.lax.map(one, w))

    return jax.jit(work, out_shardings=shardings)(array)


def quantize(params: Mapping, config: QuantConfig) -> dict:
    """A parameter tree with the matrices that `config` names quantised."""
    flat = flatten(params)
    for name in matched(flat, config):
        flat |= quantize_one(name, flat.pop(name), config)
    return unflatten(flat)


def dequantize(params: Mapping, dtype=jnp.bfloat16) -> dict:
    """The plain tree that a quantised one stands for."""
    flat = flatten(params)
    for name in quantized(flat):
        module, scheme, _ = NAME.fullmatch(name).groups()
        q = quant.Quantized(flat.pop(name), flat.pop(f"{name}_scale"), scheme)
        flat[module] = jax.jit(quant.dequantize, static_argnums=1)(q, dtype)
    return unflatten(flat)


def quantized(names: Iterable[str]) -> list[str]:
    """Those of the names that are the integers of a quantised parameter."""
    return [n for n in names if (match := NAME.fullmatch(n)) and not match[3]]
