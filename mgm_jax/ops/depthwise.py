"""Depthwise convolution, stride 1, same padding, in the form that the backend runs best.

XLA's CPU lowering of a grouped convolution is slow (and slower still backwards), so on CPU the
convolution is k*k shifted multiply-adds, with a weight gradient of its own; elsewhere it is
`lax.conv_general_dilated`. Both compute the same sums.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def depthwise(x, kernel, form: str = "auto"):
    """x [B, H, W, C], kernel [k*k, C] (row-major taps, k odd) -> [B, H, W, C].

    form: "shift", "conv", or "auto" (by backend).
    """
    if form == "auto":
        form = "shift" if jax.default_backend() == "cpu" else "conv"
    return {"shift": _shift, "conv": _conv}[form](x, kernel)


def _conv(x, kernel):
    k = int(kernel.shape[0] ** 0.5)
    return jax.lax.conv_general_dilated(
        x,
        kernel.reshape(k, k, 1, -1),
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _shifts(x, k: int):
    """The k*k shifted views of x, in tap order."""
    r = k // 2
    padded = jnp.pad(x, [(0, 0), (r, r), (r, r), (0, 0)])
    h, w = x.shape[1:3]
    return [padded[:, i : i + h, j : j + w] for i in range(k) for j in range(k)]


@jax.custom_vjp
def _shift(x, kernel):
    k = int(kernel.shape[0] ** 0.5)
    return sum(view * tap for view, tap in zip(_shifts(x, k), kernel, strict=True))


def _shift_fwd(x, kernel):
    return _shift(x, kernel), (x, kernel)


def _shift_bwd(residuals, g):
    x, kernel = residuals
    k = int(kernel.shape[0] ** 0.5)
    dx = _shift(g, kernel[::-1])  # the transpose of a correlation is the flipped one
    dkernel = jnp.stack([jnp.einsum("bhwc,bhwc->c", view, g) for view in _shifts(x, k)])
    return dx, dkernel


_shift.defvjp(_shift_fwd, _shift_bwd)
