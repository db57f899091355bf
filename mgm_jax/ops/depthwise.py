"""Depthwise convolution, stride 1, same padding, in the form that the backend runs best.

XLA's lowering of a grouped convolution is slow on CPUs (and slower still backwards) and on TPUs. So
on CPUs the convolution is k*k shifted multiply-adds, with a weight gradient of its own, on TPUs a
kernel, elsewhere and where a map does not divide into tiles `lax.conv_general_dilated`. All compute
the same sums; the kernel's are float32, whatever x is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mgm_jax.ops import depthwise_kernel, mesh


def depthwise(x, kernel, form: str = "auto"):
    """x [B, H, W, C], kernel [k*k, C] (row-major taps, k odd) -> [B, H, W, C].

    form: "shift", "conv", "kernel" (off a TPU it is interpreted, for tests), or "auto": by backend
    and shape.
    """
    form = _best(x, kernel) if form == "auto" else form
    return {"shift": _shift, "conv": _conv, "kernel": _kernel}[form](x, kernel)


def _best(x, kernel) -> str:
    if not mesh.on_tpu():
        return "shift" if jax.default_backend() == "cpu" else "conv"
    pictures, *size = x.shape
    whole = pictures % mesh.axis_size(*mesh.PICTURE_AXES) == 0
    fits = depthwise_kernel.fits(*size, _side(kernel), x.dtype.itemsize)
    return "kernel" if whole and fits else "conv"


def _side(kernel) -> int:
    return round(kernel.shape[0] ** 0.5)


def _conv(x, kernel):
    k = _side(kernel)
    return jax.lax.conv_general_dilated(
        x,
        kernel.reshape(k, k, 1, -1),
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


# --------------------------------------------------------------------------------- on CPUs: shifts


def _shifts(x, k: int):
    """The k*k shifted views of x, in tap order."""
    r = k // 2
    padded = jnp.pad(x, [(0, 0), (r, r), (r, r), (0, 0)])
    h, w = x.shape[1:3]
    return [padded[:, i : i + h, j : j + w] for i in range(k) for j in range(k)]


@jax.custom_vjp
def _shift(x, kernel):
    return sum(view * tap for view, tap in zip(_shifts(x, _side(kernel)), kernel, strict=True))


def _shift_fwd(x, kernel):
    return _shift(x, kernel), (x, kernel)


def _shift_bwd(residuals, g):
    x, kernel = residuals
    dx = _shift(g, kernel[::-1])  # the transpose of a correlation is the flipped one
    views = _shifts(x, _side(kernel))
    return dx, jnp.stack([jnp.einsum("bhwc,bhwc->c", view, g) for view in views])


_shift.defvjp(_shift_fwd, _shift_bwd)


# ------------------------------------------------------------------------------- on TPUs: a kernel


@jax.custom_vjp
def _kernel(x, kernel):
    def part(x, kernel):
        return depthwise_kernel.depthwise(x, kernel, interpret=not mesh.on_tpu())

    pictures = PartitionSpec(mesh.PICTURE_AXES)
    return mesh.split(part, (pictures, PartitionSpec()), pictures)(x, kernel)


def _kernel_fwd(x, kernel):
    return _kernel(x, kernel), (x, kernel)


def _kernel_bwd(residuals, g):
    x, kernel = residuals
    _, weights = jax.vjp(lambda kernel: _conv(x, kernel), kernel)
    return _kernel(g, kernel[::-1]), weights(g)[0]


_kernel.defvjp(_kernel_fwd, _kernel_bwd)
