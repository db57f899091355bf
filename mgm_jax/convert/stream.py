"""Conversion as a stream: tensor by tensor, from a plan made before anything is read.

Values are moved, transposed and perhaps cast, never rescaled. One thread reads and transposes ahead
of another that writes, by a bounded number of bytes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mgm_jax.convert import plan
from mgm_jax.convert.ahead import LIMIT, ahead
from mgm_jax.convert.extents import TensorSource
from mgm_jax.convert.params import Layout, ParamsSource, ParamsWriter
from mgm_jax.convert.rules import Rule, their_names, to_ours, to_theirs
from mgm_jax.convert.torch_file import TorchWriter
from mgm_jax.convert.writers import HfWriter, Spec, begin, finish

TILE = (64, 1024)  # of a matrix that is transposed: fits the cache, and rows fill cache lines
SLACK = LIMIT + (128 << 20)  # bytes beside the tensor in hand: what waits, and buffers


def contiguous(view: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """A row-major copy of a view in `dtype`, without further copies; the view itself if it is one.

    ValueError when a finite value becomes infinite (float16 ends at 65504).
    """
    if view.dtype == dtype and view.flags.c_contiguous:
        return view
    out = np.empty(view.shape, dtype)
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
    a, b = view, out
    if view.dtype == dtype:  # moved as integers: numpy copies bfloat16 one by one
        a, b = view.view(bits[dtype.itemsize]), out.view(bits[dtype.itemsize])
    with np.errstate(over="ignore"):
        if view.ndim == 2 and view.T.flags.c_contiguous:
            _transpose(a.T, b)
        else:
            b[...] = a
    if dtype != view.dtype and dtype == np.float16:
        if np.isinf(out).sum() > np.isinf(view).sum():
            raise ValueError(f"tensor {name!r} has values beyond float16; choose bfloat16")
    return out


def _transpose(a: np.ndarray, out: np.ndarray) -> None:
    """out = a.T, tile by tile through a buffer whose rows don't fall on the same cache lines.

    Rows of a matrix often lie a power of two apart, and then displace each other from the cache.
    """
    rows, columns = TILE
    buffer = np.empty((rows, columns + 64 // out.itemsize), out.dtype)
    for i in range(0, a.shape[0], rows):
        for j in range(0, a.shape[1], columns):
            part = a[i : i + rows, j : j + columns]
            tile = buffer[: part.shape[0], : part.shape[1]]
            tile[...] = part
            out[j : j + columns, i : i + rows] = tile.T


def resident() -> int:
    """This process's resident memory in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check_ram(limit: int | None, needs: Mapping[str, int]) -> None:
    """ValueError naming the tensor that cannot pass through `limit` bytes; None is no limit."""
    if limit is None or not needs:
        return
    name = max(needs, key=needs.get)
    total = needs[name] + SLACK + resident()
    if total > limit:
        raise ValueError(
            f"max_ram is {limit / 1e9:.2f} GB, but tensor {name!r} needs {total / 1e9:.2f} GB "
            "(itself, its converted copy, what waits to be written, and the program)"
        )


def progress_bar(total: int, what: str, show: bool) -> tqdm:
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=not show)


def _chunks(
    source: TensorSource, rule: Rule, layout: Layout
) -> Iterator[tuple[tuple[int, ...], int, Callable[[], np.ndarray]]]:
    """(index in the grid, source bytes, function that makes the chunk) of one of our arrays."""
    names, stacked = their_names(rule), layout.stacked
    total = sum(source[n].nbytes for n in names)

    def moved(name, *rows):
        array = source.read_rows(name, *rows) if rows else source.read(name)
        return contiguous(to_ours(rule, array), layout.dtype, name)

    def whole():
        out = np.empty((len(names), *layout.shape[stacked:]), layout.dtype)
        for i, name in enumerate(names):
            out[i] = moved(name)
        return out.reshape(layout.shape)

    if np.prod(layout.grid) == 1:
        yield (), total, whole
    elif stacked:
        for i, name in enumerate(names):
            index = tuple(int(n) for n in np.unravel_index(i, layout.shape[:stacked]))
            yield index, source[name].nbytes, functools.partial(moved, name)
    else:
        (name,), n = names, layout.grid[layout.axis]
        step = layout.chunk[layout.axis]
        for i in range(n):
            rows = functools.partial(moved, name, i * step, (i + 1) * step)
            yield (0,) * layout.axis + (i,), total // n, rows


def import_stream(
    source: TensorSource,
    rules: Sequence[Rule],
    directory: str | Path,
    dtype=None,
    *,
    max_ram: int | None = None,
    dry_run: bool = False,
    ignorable: Sequence[str] = plan.IGNORABLE,
    expected: Mapping[str, tuple[int, ...]] | None = None,
    tag: str = "",
    progress: bool = True,
    close: Callable[[], None] | None = None,
) -> list[str]:
    """Foreign tensors -> `directory/params`, which orbax restores onto any mesh.

    `dtype` of what is written (floating point tensors only; None keeps each one's). `expected`:
    shapes that our arrays must have. `tag` is what else tells this conversion from another.
    `close()` runs when the parameters are whole, before the directory counts as finished. Returns
    the lines of the mapping, then of what was left out; with `dry_run` nothing is written. The
    same call resumes an interrupted one, and leaves a finished directory as it is.

    ValueError names every tensor that is missing, unknown or of a wrong shape, the largest one if
    `max_ram` bytes cannot hold it, and a `directory` that holds something else.
    """
    dtype, directory = plan.as_dtype(dtype), Path(directory)
    names = {p.theirs: p.rule.ours for p in plan.pairs(rules)}
    ignored = plan.unmatched(source, names, ignorable)
    ours = plan.layouts(source, rules, dtype)
    plan.check_shapes(source, ours, expected or {})
    lines = plan.mapping(source, rules, ours) + [f"{n} -> left out" for n in ignored]
    check_ram(max_ram, plan.import_needs(source, rules, ours))
    if dry_run or begin(directory, plan.fingerprint(source, ("import", tag, lines))):
        return lines
    writer = ParamsWriter(directory / "params", ours)
    writer.start()
    chunks = [
        (rule.ours, *chunk) for rule in rules for chunk in _chunks(source, rule, ours[rule.ours])
    ]
    left = [c for c in chunks if not writer.has(*c[:2])]
    made = ahead((ours[name].chunk_nbytes, make) for name, _, _, make in left)
    with progress_bar(sum(size for _, _, size, _ in chunks), "importing", progress) as bar:
        bar.update(bar.total - sum(size for _, _, size, _ in left))
        for name, index, size, _ in left:
            writer.put(name, index, next(made))
            bar.update(size)
    writer.close()
    if close:
        close()
    finish(directory)
    return lines


class Blocks:
    """Layers of our arrays, remembering the last chunk: a packed one may hold several layers."""

    def __init__(self, source: ParamsSource):
        self.source, self.key, self.block = source, None, None

    def get(self, name: str, index: tuple[int, ...]) -> np.ndarray:
        steps = self.source[name].chunk[: len(index)]
        first = tuple(i // step * step for i, step in zip(index, steps, strict=True))
        if self.key != (name, first):
            self.block = None  # frees it before the next is read
            self.block = self.source.read_block(name, first)
            self.key = (name, first)
        return self.block[tuple(i - f for i, f in zip(index, first, strict=True))]


def exported(
    source: ParamsSource, rules: Sequence[Rule], specs: Sequence[Spec], done: Callable[[int], None]
) -> Iterator[tuple[Spec, np.ndarray]]:
    """The tensors of `specs`, in their order, from our arrays; `done(bytes)` after each."""
    places, blocks = {p.theirs: p for p in plan.pairs(rules)}, Blocks(source)

    def moved(spec):
        pair = places[spec.name]
        array = to_theirs(pair.rule, blocks.get(pair.rule.ours, pair.index))
        return contiguous(array, spec.dtype, spec.name)

    made = ahead((spec.nbytes, functools.partial(moved, spec)) for spec in specs)
    for spec in specs:
        yield spec, next(made)
        done(spec.nbytes)


def export_stream(
    params: str | Path | ParamsSource,
    rules: Sequence[Rule],
    directory: str | Path,
    dtype=None,
    *,
    writer: Callable[[Path, Sequence[Spec]], HfWriter | TorchWriter],
    max_ram: int | None = None,
    dry_run: bool = False,
    tag: str = "",
    progress: bool = True,
    close: Callable[[], None] | None = None,
) -> list[str]:
    """Our `params/` -> files in `directory`, in foreign names: what `writer(directory, specs)`
    makes of them, such as sharded safetensors.

    Options and errors as of `import_stream`; the same parameters always give the same bytes, also
    when the work was interrupted.
    """
    source = params if isinstance(params, ParamsSource) else ParamsSource(Path(params))
    dtype, directory = plan.as_dtype(dtype), Path(directory)
    specs, needs, lines = plan.export_specs(source, rules, dtype)
    check_ram(max_ram, needs)
    if dry_run or begin(directory, plan.fingerprint(source, ("export", tag, lines))):
        return lines
    out = writer(directory, specs)
    left = out.order()
    total = sum(s.nbytes for s in specs)
    with progress_bar(total, "exporting", progress) as bar:
        bar.update(total - sum(s.nbytes for s in left))
        out.write(exported(source, rules, left, bar.update))
    if close:
        close()
    finish(directory)
    return lines
