"""Adapters as a part of the parameter tree: beside a Linear's `kernel` [in, out] of rank r
`lora_a` [in, r] and `lora_b` [r, out], which `nn.linear.Linear` finds there. Stacks of layers have
stacks of adapters, so scan, sharding, checkpoints and optimizers treat them as any parameter.

In a tree that is stored or trained, B is as PEFT has it; `active` multiplies the scale into it, for
a tree that is computed with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mgm_jax.lora.config import TOWERS, LoraConfig
from mgm_jax.nn.linear import Linear, torch_linear_init
from mgm_jax.tree import flatten, unflatten


def linears(model: nn.Module, example) -> list[str]:
    """The names of a model's Linears, which are what can have an adapter; computes nothing."""
    found = set()

    def watch(call, args, kwargs, context):
        if isinstance(context.module, Linear):
            found.add("/".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        jax.eval_shape(lambda: model.init(jax.random.key(0), example))
    return sorted(name for name in found if "/unused_" not in name)


def matched(names: Iterable[str], lora: LoraConfig, others: Iterable[str] = ()) -> list[str]:
    """Those of the Linears `names` that `lora.targets` matches, the towers' only if it names them.

    ValueError if there is none, which says which of the parameters `others` it matches instead.
    """
    pattern = lora.targets

    def asked(name):
        tower = name.split("/")[0]
        return tower not in TOWERS or tower in pattern

    if found := [n for n in names if asked(n) and re.fullmatch(pattern, n)]:
        return found
    wrong = next((n for n in others if re.fullmatch(pattern, n)), None)
    reason = f"; {wrong} is no Linear, and takes no adapter" if wrong else ""
    if wrong and "/moe/" in wrong:
        reason = f"; {wrong} are the kernels of experts, which take no adapter"
    raise ValueError(f"lora.targets {pattern!r} matches no Linear of the model{reason}")


def add(shapes: Mapping, axes: Mapping, names: Iterable[str], lora: LoraConfig):
    """Shapes and logical axes of a parameter tree -> the same with adapters on the Linears that
    match: (shapes, axes). ValueError as of `matched`, and for dropout on the output head."""
    flat, flat_axes = flatten(shapes), flatten(axes)
    modules = matched(names, lora, flat)
    if lora.dropout and "llm/lm_head" in modules:
        raise ValueError(
            f"lora.dropout is {lora.dropout}, but lora.targets match llm/lm_head, whose logits are "
            "never whole: there is no dropout there, expected 0"
        )
    for module in modules:
        *lead, inputs, outputs = flat[f"{module}/kernel"].shape
        *above, first, last = flat_axes[f"{module}/kernel"]
        for leaf, shape, names_ in (
            ("lora_a", (*lead, inputs, lora.rank), (*above, first, None)),
            ("lora_b", (*lead, lora.rank, outputs), (*above, None, last)),
        ):
            flat[f"{module}/{leaf}"] = jax.ShapeDtypeStruct(shape, jnp.float32)
            flat_axes[f"{module}/{leaf}"] = PartitionSpec(*names_)
    return unflatten(flat), unflatten(flat_axes)


def create(key: jax.Array, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Adapters that do nothing yet, as PEFT begins: A uniform in +-1/sqrt(in), B zero. Flat."""

    def one(name, shape):
        if name.endswith("/lora_b"):
            return jnp.zeros(shape.shape, shape.dtype)
        own = jax.random.fold_in(key, sorted(shapes).index(name))
        *lead, inputs, rank = shape.shape
        each = jax.vmap(lambda k: torch_linear_init(k, (inputs, rank), shape.dtype))
        layers = jax.random.split(own, max(1, *lead)) if lead else own[None]
        return each(layers).reshape(shape.shape)

    shardings = {n: s.sharding for n, s in shapes.items()}
    return jax.jit(lambda: {n: one(n, s) for n, s in shapes.items()}, out_shardings=shardings)()


def active(params: Mapping, lora: LoraConfig, *, dropout: bool = False) -> dict:
    """A tree that is stored -> the one that is computed with. `dropout`: as in training."""
    flat = flatten(params)
    for name in [n for n in flat if n.endswith("/lora_b")]:
        b = flat[name]
        flat[name] = b * lora.scale
        if dropout and lora.dropout:
            rates = jnp.full(b.shape[:-2], lora.dropout, jnp.float32)
            flat[name.replace("lora_b", "lora_dropout")] = rates
    return unflatten(flat)


def merge(params: Mapping, lora: LoraConfig) -> dict:
    """The tree without adapters that computes the same: kernel + scale * A B, the sum in float32,
    in the kernel's dtype."""
    flat = flatten(params)
    for name in [n for n in flat if n.endswith("/lora_a")]:
        module = name.removesuffix("/lora_a")
        a, b, kernel = flat.pop(name), flat.pop(f"{module}/lora_b"), flat[f"{module}/kernel"]
        update = jnp.matmul(jnp.float32(a), jnp.float32(b), precision="highest") * lora.scale
        flat[f"{module}/kernel"] = (jnp.float32(kernel) + update).astype(kernel.dtype)
    return unflatten(flat)


def adapted(names: Iterable[str]) -> list[str]:
    """The Linears that have an adapter, from the names of a tree."""
    return [n.removesuffix("/lora_a") for n in names if n.endswith("/lora_a")]
