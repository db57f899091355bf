"""Depthwise convolution for TPUs. It has nothing for the matrix units to do, and XLA's own form
leaves most of the vector units' time unused (docs/performance.md). Here a strip of rows is in the
chip's own memory, and a tile of it in registers while all taps are added up.

B pictures of H x W positions, C channels; k x k taps, stride 1, zeros around.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

TILE = 8  # rows and columns of a tile: 8 columns x 128 channels are a register
LANES = 128
EDGE = TILE  # rows above and below a strip, columns beside it: at least k // 2
# An operation of the vector units takes as long as so many FLOPs of v5e's and v5p's matrix units at
# half of their peak.
MATRIX_FLOPS = 16
MEMORY, LIMIT = 24 << 20, 32 << 20  # bytes that a call counts on, and that the compiler grants it


def channels(c: int) -> int:
    """Channels of a strip: those of a register, or all."""
    return LANES if c % LANES == 0 else c


def strip(h: int, w: int, c: int, width: int) -> int:
    """Rows of a strip: the most that divide h, are whole tiles and fit; 0 where none do. `width`:
    bytes of a number of x."""
    lanes = -(-channels(c) // LANES) * LANES

    def size(rows: int) -> int:  # in float32, and two of all that comes and goes
        strip = 4 * (rows + 2 * EDGE) * (w + 2 * EDGE) * lanes
        return strip + 2 * width * (2 * rows + 2 * EDGE) * w * lanes

    return max((r for r in range(TILE, h + 1, TILE) if h % r == 0 and size(r) <= MEMORY), default=0)


def fits(h: int, w: int, c: int, k: int, width: int) -> bool:
    """Whether a map divides into tiles, a strip has room, and a tap reaches no further than the
    next tile."""
    tiles = h % TILE == 0 and w % TILE == 0 and k // 2 <= EDGE
    return tiles and strip(h, w, c, width) > 0


def cost(shape: tuple[int, ...], k: int, width: int) -> pl.CostEstimate:
    """What a call computes and moves; `width`: bytes of a number.

    Who reads FLOPs takes them for the matrix units', at half of their peak. So every operation of
    the vector units counts as many as would take as long: a multiplication and an addition a tap,
    and two operations a row that is shifted, with that of a tile's neighbours.
    """
    b, h, w, c = shape
    operations = 2 * k * k + 2 * k * (TILE + 2 * (k // 2)) / TILE
    lanes = b * h * w * -(-c // LANES) * LANES
    edges = 2 * EDGE / strip(h, w, c, width)
    return pl.CostEstimate(
        flops=int(MATRIX_FLOPS * operations * lanes),
        bytes_accessed=int(width * b * h * w * c * (2 + edges)),
        transcendentals=0,
    )


def depthwise(x, kernel, interpret: bool = False):
    """x [B, H, W, C], kernel [k*k, C] (row-major taps, k odd) -> [B, H, W, C] in x's dtype, the
    sums in float32."""
    (b, h, w, c), taps = x.shape, len(kernel)
    k, own, rows = round(taps**0.5), channels(c), strip(h, w, c, x.dtype.itemsize)
    step, last = rows // EDGE, h // EDGE - 1  # a strip in edges; the last edge
    call = pl.pallas_call(
        functools.partial(_kernel, k=k),
        grid=(b, c // own, h // rows),
        in_specs=[
            pl.BlockSpec(
                (None, EDGE, w, own), lambda b, c, r: (b, jnp.maximum(r * step - 1, 0), 0, c)
            ),
            pl.BlockSpec((None, rows, w, own), lambda b, c, r: (b, r, 0, c)),
            pl.BlockSpec(
                (None, EDGE, w, own), lambda b, c, r: (b, jnp.minimum((r + 1) * step, last), 0, c)
            ),
            pl.BlockSpec((taps, own), lambda b, c, r: (0, c)),
        ],
        out_specs=pl.BlockSpec((None, rows, w, own), lambda b, c, r: (b, r, 0, c)),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[pltpu.VMEM((rows + 2 * EDGE, w + 2 * EDGE, own), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=LIMIT
        ),
        cost_estimate=cost(x.shape, k, x.dtype.itemsize),
        interpret=interpret,
    )
    return call(x, x, x, kernel.astype(jnp.float32))


def _kernel(above, x, below, taps, out, strip, *, k):
    """`strip`: x with its edges, in float32."""
    rows, w, own = x.shape
    r, reach = pl.program_id(2), k // 2
    strip[:, :EDGE] = jnp.zeros((rows + 2 * EDGE, EDGE, own), jnp.float32)
    strip[:, EDGE + w :] = jnp.zeros((rows + 2 * EDGE, EDGE, own), jnp.float32)
    inside = slice(EDGE, EDGE + w)
    strip[:EDGE, inside] = jnp.where(r > 0, above[...].astype(jnp.float32), 0)
    strip[EDGE : EDGE + rows, inside] = x[...].astype(jnp.float32)
    strip[EDGE + rows :, inside] = jnp.where(
        r < pl.num_programs(2) - 1, below[...].astype(jnp.float32), 0
    )

    def tile(at, _):
        row = pl.multiple_of(at // (w // TILE) * TILE, TILE)
        column = pl.multiple_of(at % (w // TILE) * TILE, TILE)
        # All that the tile's taps reach: rows from the one above, columns from the tile before.
        near = strip[pl.ds(row + EDGE - reach, TILE + 2 * reach), pl.ds(column, TILE + 2 * EDGE)]
        total = jnp.zeros((TILE, TILE, own), jnp.float32)
        for j in range(k):
            shifted = near[:, EDGE - reach + j : EDGE - reach + j + TILE]
            for i in range(k):
                total += shifted[i : i + TILE] * taps[i * k + j]
        out[pl.ds(row, TILE), pl.ds(column, TILE)] = total.astype(out.dtype)
        return 0

    jax.lax.fori_loop(0, rows // TILE * (w // TILE), tile, 0)
