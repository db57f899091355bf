"""Weight-only quantisation of matrices: int8, int4 and NF4 (arXiv 2305.14314), symmetric.

A matrix [..., in, out] becomes small integers of its shape and float32 scales [..., groups, out]:
one scale for each output channel, or for each `group` of neighbouring inputs of it. Leading axes
(layers, experts) are separate matrices, so a stack is right by construction. (qwix's
`quantize_params` is not: it takes a stack for one matrix, and its arrays have no names of their
own.)

I inputs, O outputs, G groups.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mgm_jax.ops import quant_kernel
from mgm_jax.ops.mesh import AXES, axis_size, on_tpu

# The levels of NF4: quantiles of a normal distribution, as QLoRA publishes them.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """`dtype` of the integers; the largest absolute value of a group becomes `bound`."""

    dtype: str
    bound: float


# Half a step beyond the largest positive integer: the largest value then errs no more than others.
SCHEMES = {
    "int8": Scheme("int8", 127.5),
    "int4": Scheme("int4", 7.5),
    "nf4": Scheme("int4", 1.0),  # values are indices into NF4, less 8
}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "scale"],
    meta_fields=["scheme"],
)
@dataclasses.dataclass(frozen=True)
class Quantized:
    """values [..., I, O] int, scale [..., G, O] float32, a name of `SCHEMES`."""

    values: jax.Array
    scale: jax.Array
    scheme: str


def quantize(w, scheme: str, group: int = 0) -> Quantized:
    """w [..., I, O], any float dtype; `group`: inputs that share a scale, 0: all of them.

    ValueError where I does not divide into groups, or for an unknown scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"quantisation scheme {scheme!r}, expected one of {list(SCHEMES)}")
    *lead, i, o = w.shape
    group = group or i
    if i % group:
        raise ValueError(f"{i} inputs do not divide into quantisation groups of {group}")
    kind = SCHEMES[scheme]
    w = w.astype(jnp.float32).reshape(*lead, i // group, group, o)
    scale = jnp.abs(w).max(-2, keepdims=True) / kind.bound
    scaled = w / jnp.where(scale == 0, 1, scale)
    if scheme == "nf4":
        levels = jnp.asarray(NF4, jnp.float32)
        values = jnp.searchsorted((levels[1:] + levels[:-1]) / 2, scaled) - 8
    else:
        info = jnp.iinfo(kind.dtype)
        values = jnp.clip(jnp.round(scaled), info.min, info.max)
    return Quantized(values.astype(kind.dtype).reshape(*lead, i, o), scale.squeeze(-2), scheme)


def dequantize(q: Quantized, dtype=jnp.float32):
    """-> [..., I, O]; the product with the scale is float32."""
    *lead, i, o = q.values.shape
    groups = q.scale.shape[-2]
    levels = levels_of(q.values, q.scheme).reshape(*lead, groups, i // groups, o)
    return (levels * q.scale[..., None, :]).reshape(q.values.shape).astype(dtype)


def levels_of(values, scheme: str):
    """The values before their scale, float32."""
    if scheme != "nf4":
        return values.astype(jnp.float32)
    # A tree of selections: elementwise, so a compiler fuses it into the product (a gather it
    # does not).
    index, found = values.astype(jnp.int32) + 8, list(NF4)
    for bit in range(4):
        odd = (index >> bit) & 1 == 1
        found = [jnp.where(odd, b, a) for a, b in zip(found[::2], found[1::2], strict=True)]
    return found[0].astype(jnp.float32)


def matmul(x, q: Quantized):
    """x [t, I] . the matrix that q stands for -> [t, O], in x's dtype.

    The gradient is that of x alone, q being frozen; backwards the matrix is made again, so that
    only q and never a layer's float matrix is kept.
    """
    return _matmul(x, q.values, q.scale, q.scheme)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _matmul(x, values, scale, scheme: str):
    if scheme != "nf4" and scale.shape[-2] == 1:  # one scale a channel goes behind the product
        return jnp.dot(x, values.astype(x.dtype)) * scale.astype(x.dtype)
    kind = SCHEMES[scheme].dtype
    if kind == "int4" and on_tpu() and axis_size(*AXES) == 1 and quant_kernel.fits(values, scale):
        levels = functools.partial(levels_of, scheme=scheme)
        return quant_kernel.matmul(x, values, scale, levels)
    return jnp.dot(x, dequantize(Quantized(values, scale, scheme), x.dtype))


def _forward(x, values, scale, scheme: str):
    return _matmul(x, values, scale, scheme), (values, scale)


def _backward(scheme: str, saved, g):
    return jnp.dot(g, dequantize(Quantized(*saved, scheme), g.dtype).T), None, None


_matmul.defvjp(_forward, _backward)
