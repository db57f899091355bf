"""x . a matrix held as 4-bit integers, for TPUs: a tile of it becomes floating point in the chip's
own memory, where XLA would write the whole matrix out (docs/quantize.md).

t rows, I inputs, O outputs, G groups of inputs that share a scale.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

ROWS, TILE = 256, 512  # sides of a tile at most: rows of x, inputs and outputs of the matrix
LANES = 128  # sides are multiples of it


def tile(size: int, group: int = 1) -> int | None:
    """The largest side of a tile that divides `size` and holds whole groups, if there is one."""
    sides = (s for s in range(TILE, 0, -LANES) if size % s == 0 and s % group == 0)
    return next(sides, None)


def fits(values, scale) -> bool:
    """Whether a matrix [I, O] and its scales [G, O] divide into tiles."""
    i, o = values.shape
    return tile(i, i // len(scale)) is not None and tile(o) is not None


def cost(t: int, i: int, o: int, groups: int, width: int) -> pl.CostEstimate:
    """What a call computes and moves: the matrix once for each tile of rows, x (`width` bytes a
    number) once for each tile of columns."""
    passes, columns = -(-t // ROWS), o // tile(o)
    matrix = i * o // 2 + 4 * groups * o
    moved = passes * matrix + width * t * (i * columns + o)
    return pl.CostEstimate(flops=2 * t * i * o, bytes_accessed=moved, transcendentals=0)


def matmul(x, values, scale, levels: Callable, interpret: bool = False):
    """x [t, I], values [I, O] int4, scale [G, O] float32 -> [t, O] in x's dtype.

    `levels`: integers -> the float32 values that the scale multiplies, elementwise.
    """
    (t, i), o = x.shape, values.shape[1]
    groups = len(scale)
    a, b, rows = tile(i, i // groups), tile(o), min(t, ROWS)
    own = a * groups // i  # groups of a tile
    x = jnp.pad(x, [(0, -t % rows), (0, 0)])
    call = pl.pallas_call(
        functools.partial(_kernel, levels=levels),
        grid=(len(x) // rows, o // b, i // a),
        in_specs=[
            pl.BlockSpec((rows, a), lambda r, c, k: (r, k)),
            pl.BlockSpec((a, b), lambda r, c, k: (k, c)),
            pl.BlockSpec((None, own, b), lambda r, c, k: (k, 0, c)),
        ],
        out_specs=pl.BlockSpec((rows, b), lambda r, c, k: (r, c)),
        out_shape=jax.ShapeDtypeStruct((len(x), o), x.dtype),
        scratch_shapes=[pltpu.VMEM((rows, b), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=cost(t, i, o, groups, x.dtype.itemsize),
        interpret=interpret,
    )
    return call(x, values, scale.reshape(-1, own, o))[:t]


def _kernel(x, values, scale, out, total, *, levels):
    """Adds one tile's product, x [rows, a] . [a, b], to `total` [rows, b] float32."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    a, b = values.shape
    tiles = levels(values[...]).reshape(len(scale), -1, b) * scale[...][:, None]
    matrix = tiles.reshape(a, b).astype(x.dtype)
    total[...] += jnp.dot(x[...], matrix, preferred_element_type=jnp.float32)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        out[...] = total[...].astype(out.dtype)
