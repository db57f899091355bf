"""A weight's way over the `fsdp` axis: gathered for a product, and its gradient summed by rings of
neighbours, which leave each device its own part.

XLA makes an all-reduce and a slice of a reduce-scatter over more than one axis of a torus, and the
step waits for it. Here each axis of the torus has rings of its own, one after the other. The
columns of a matrix are split into as many colours as there are axes, and each colour begins with
another axis, so that all links are busy. A ring's devices are in folded order (0, 2, 4, ..., 5, 3,
1), which needs no link from the last to the first, and whose permutes XLA runs beside its products.

n devices of `fsdp` fill a `grid` of chips in row-major order.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import math
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from mgm_jax.ops import mesh

_grid: contextvars.ContextVar[tuple[int, ...]] = contextvars.ContextVar("grid", default=())
CLOSED = 4  # sides of a v5p slice of which this divides every one have links that close to rings
LANES = 128  # columns of a tile: colours are whole tiles
SUBLANES = 16  # rows of a bfloat16's


@contextlib.contextmanager
def on_grid(grid: tuple[int, ...]) -> Iterator[None]:
    """What is traced inside sums by rings over `grid`, whose sizes multiply to the fsdp axis of the
    mesh in context; (): as XLA does."""
    token = _grid.set(grid)
    try:
        yield
    finally:
        _grid.reset(token)


def grid() -> tuple[int, ...]:
    """The grid in context, if the mesh in context has such an fsdp axis and no other; else ()."""
    fits = math.prod(_grid.get()) == mesh.axis_size("fsdp") == mesh.axis_size(*mesh.AXES)
    return _grid.get() if fits else ()


def fits(side: int) -> bool:
    """Whether a matrix's side divides over the grid in context; on TPUs, into whole tiles, as parts
    of them are moved at every step of a ring."""
    parts = math.prod(grid())
    return side % (parts * (SUBLANES if mesh.on_tpu() else 1)) == 0


def folded(n: int) -> list[int]:
    """0, 2, 4, ..., 5, 3, 1: each two neighbours, the last and the first too, are at most two
    apart."""
    return [*range(0, n, 2), *reversed(range(1, n, 2))]


class _Ring:
    """Sums matrices over the rings along an axis of the grid: of the chunks x [..., size, ...]
    along `at`, this device's. `sum` begins as one chunk; each `turn` it goes to the next device,
    which adds its own chunk."""

    def __init__(self, x, grid: tuple[int, ...], axis: int, at: int):
        self.x, self.at, self.size = x, at, grid[axis]
        stride, order = math.prod(grid[axis + 1 :]), folded(grid[axis])
        place = {coordinate: p for p, coordinate in enumerate(order)}

        def after(rank: int) -> int:
            here = rank // stride % self.size
            return rank + (order[(place[here] + 1) % self.size] - here) * stride

        self.pairs = [(rank, after(rank)) for rank in range(math.prod(grid))]
        # Whose chunk a device adds, in turn; its own last.
        coordinates = range(self.size)
        turns = [[order[(place[c] - 1 - t) % self.size] for t in coordinates] for c in coordinates]
        here = jax.lax.axis_index("fsdp") // stride % self.size
        self.mine = jnp.asarray(turns, jnp.int32)[here]
        self.sum = self.chunk(0)

    def chunk(self, turn: int):
        return jax.lax.dynamic_index_in_dim(self.x, self.mine[turn], self.at, keepdims=False)

    def send(self, x):
        return jax.lax.ppermute(x, "fsdp", self.pairs)

    def finish(self):
        for turn in range(1, self.size):
            self.sum = self.chunk(turn) + self.send(self.sum)
        return self.sum


def _colours(whole, grid: tuple[int, ...]) -> list[tuple[int, jax.Array]]:
    """(first axis, columns [*grid, c, m]) of each colour of a matrix."""
    rows, columns = whole.shape
    number = max(1, min(len(grid), columns // LANES))
    ends = [round(i * columns / number / LANES) * LANES for i in range(number)] + [columns]
    parts = (whole[:, a:b] for a, b in itertools.pairwise(ends))
    shape = (*grid, rows // math.prod(grid), -1)
    return [(axis, part.reshape(shape)) for axis, part in enumerate(parts)]


def _finish(ring: _Ring, grid: tuple[int, ...], first: int):
    """A colour's sum over the other axes -> this device's rows [c, m]."""
    x, done = ring.sum, [first]
    for axis in (*range(first + 1, len(grid)), *range(first)):
        x = _Ring(x, grid, axis, axis - sum(a < axis for a in done)).finish()
        done.append(axis)
    return x


def gather(kernel, side: int, grid: tuple[int, ...]):
    """A kernel whose axis `side` is split over `fsdp` -> the same, whole on every device.

    Of a gather over three axes of a torus, all of them closed, XLA makes an all-reduce of twice the
    bytes. So the last axis is gathered first, which leaves two.
    """
    if len(grid) < 3 or any(size % CLOSED for size in grid):
        return jax.lax.with_sharding_constraint(kernel, PartitionSpec())
    lines = np.arange(math.prod(grid)).reshape(-1, grid[-1])

    def part(own):
        for groups in (lines, lines.T):
            own = jax.lax.all_gather(
                own, "fsdp", axis=side, axis_index_groups=groups.tolist(), tiled=True
            )
        return own

    own, whole = _split(side), PartitionSpec()
    return jax.shard_map(part, in_specs=own, out_specs=whole, check_vma=False)(kernel)


def _split(side: int) -> PartitionSpec:
    """How a kernel lies whose axis `side` is split."""
    return PartitionSpec(*("fsdp" if i == side else None for i in range(2)))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(x, kernel, side: int, grid: tuple[int, ...]):
    """x [N, in] . kernel [in, out], the kernel's gradient summed by rings over `grid`, in its
    dtype.

    Rows are split over the batch axes of the mesh in context, and axis `side` of the kernel over
    `fsdp`.
    """
    return _forward(x, kernel, side, grid)[0]


def _forward(x, kernel, side: int, grid: tuple[int, ...]):
    whole = checkpoint_name(gather(kernel, side, grid), "whole_kernel")
    return jnp.dot(x, whole), (x, whole)


def _backward(side: int, grid: tuple[int, ...], saved, dy):
    def part(x, kernel, dy):
        colours = _colours(x.T @ dy if side == 0 else dy.T @ x, grid)
        rings = [_Ring(c, grid, axis, axis) for axis, c in colours]
        # Sums of the first axes travel while dx is computed, some rows at a time. The barriers say
        # so: else the compiler leaves all rings to the end, where nothing is left to compute.
        dx, start = jax.lax.empty((len(dy), len(kernel)), dy.dtype), 0
        longest = max(ring.size for ring in rings)
        ends = [len(dy) * (i + 1) // longest for i in range(longest)]
        for turn, end in enumerate(ends, 1):
            moving = [ring for ring in rings if turn < ring.size]
            sums, dx, dy = jax.lax.optimization_barrier(([r.sum for r in moving], dx, dy))
            sent = [ring.send(x) for ring, x in zip(moving, sums, strict=True)]
            block = jnp.dot(dy[start:end], kernel.T)
            dx = jax.lax.dynamic_update_slice_in_dim(dx, block, start, axis=0)
            sent, dx = jax.lax.optimization_barrier((sent, dx))
            for ring, came in zip(moving, sent, strict=True):
                ring.sum = ring.chunk(turn) + came
            start = end
        own = [_finish(ring, grid, axis) for ring, (axis, _) in zip(rings, colours, strict=True)]
        own = jnp.concatenate(own, axis=1)
        return dx, own if side == 0 else own.T

    rows = mesh.rows()
    specs, out = (rows, PartitionSpec(), rows), (rows, _split(side))
    backward = jax.shard_map(part, in_specs=specs, out_specs=out, check_vma=False)
    return backward(*saved, dy)


product.defvjp(_forward, _backward)
