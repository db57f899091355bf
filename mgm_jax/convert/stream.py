"""Conversion as a stream: one tensor at a time, from a plan made before anything is read.

Values are moved, transposed and perhaps cast, never rescaled.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mgm_jax.convert import plan
from mgm_jax.convert.extents import TensorSource
from mgm_jax.convert.params import Layout, ParamsSource, ParamsWriter
from mgm_jax.convert.rules import Rule, their_names, to_ours, to_theirs
from mgm_jax.convert.torch_file import TorchWriter
from mgm_jax.convert.writers import HfWriter, Spec, begin, finish

STRIPE = 16  # columns transposed at a time: as many as share a cache line
SLACK = 128 << 20  # bytes for buffers beside the tensors in hand


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
        if view.flags.c_contiguous or view.ndim < 2:
            b[...] = a
        else:
            for i in range(0, view.shape[-1], STRIPE):
                b[..., i : i + STRIPE] = a[..., i : i + STRIPE]
    if dtype != view.dtype and dtype == np.float16:
        if np.isinf(out).sum() > np.isinf(view).sum():
            raise ValueError(f"tensor {name!r} has values beyond float16; choose bfloat16")
    return out


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
            "(itself, its converted copy, and the program)"
        )


def progress_bar(total: int, what: str, show: bool) -> tqdm:
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=not show)


def _chunks(
    source: TensorSource, rule: Rule, layout: Layout, has: Callable
) -> Iterator[tuple[tuple[int, ...], np.ndarray | None, int]]:
    """(index in the grid, chunk or None if `has` it, source bytes it took) of one of our arrays."""
    names, stacked = their_names(rule), layout.stacked
    rest = layout.shape[stacked:]

    def moved(name, array):
        return contiguous(to_ours(rule, array), layout.dtype, name)

    total = sum(source[n].nbytes for n in names)
    if np.prod(layout.grid) == 1:
        if has(()):
            yield (), None, total
            return
        whole = np.empty((len(names), *rest), layout.dtype)
        for i, name in enumerate(names):
            whole[i] = moved(name, source.read(name))
        yield (), whole.reshape(layout.shape), total
    elif stacked:
        for i, name in enumerate(names):
            index = tuple(int(n) for n in np.unravel_index(i, layout.shape[:stacked]))
            chunk = None if has(index) else moved(name, source.read(name))
            yield index, chunk, source[name].nbytes
    else:
        (name,), step = names, layout.chunk[0]
        plain = not rule.perm and not rule.shapes  # our rows are the source's: read only those
        whole = None
        for i in range(layout.grid[0]):
            rows = slice(i * step, (i + 1) * step)
            chunk = None
            if not has((i,)):
                if plain:
                    chunk = moved(name, source.read_rows(name, rows.start, rows.stop))
                else:
                    whole = moved(name, source.read(name)) if whole is None else whole
                    chunk = whole[rows]
            yield (i,), chunk, total // layout.grid[0]


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
    with progress_bar(sum(source[n].nbytes for n in names), "importing", progress) as bar:
        for rule in rules:
            has = functools.partial(writer.has, rule.ours)
            for index, chunk, size in _chunks(source, rule, ours[rule.ours], has):
                if chunk is not None:
                    writer.put(rule.ours, index, chunk)
                del chunk
                bar.update(size)
    writer.close()
    if close:
        close()
    finish(directory)
    return lines


class _Blocks:
    """Rows of our arrays, remembering the last block: a packed checkpoint is read by its chunks."""

    def __init__(self, source: TensorSource):
        self.source, self.key, self.block = source, None, None

    def get(self, name: str, index: tuple[int, ...]) -> np.ndarray:
        if not index:
            self.block = self.key = None
            return self.source.read(name)
        step = self.source.block_rows(name)
        first = index[0] // step * step
        if self.key != (name, first):
            self.block = None  # frees it before the next is read
            last = min(first + step, self.source[name].shape[0])
            self.block = self.source.read_rows(name, first, last)
            self.key = (name, first)
        return self.block[(index[0] - first, *index[1:])]


def exported(
    source: ParamsSource, rules: Sequence[Rule], specs: Sequence[Spec], done: Callable[[int], None]
) -> Iterator[tuple[Spec, np.ndarray]]:
    """The tensors of `specs`, in their order, from our arrays; `done(bytes)` after each."""
    places, blocks = {p.theirs: p for p in plan.pairs(rules)}, _Blocks(source)
    for spec in specs:
        pair = places[spec.name]
        array = to_theirs(pair.rule, blocks.get(pair.rule.ours, pair.index))
        yield spec, contiguous(array, spec.dtype, spec.name)
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
    total, rest = (sum(s.nbytes for s in some) for some in (specs, left))
    with progress_bar(total, "exporting", progress) as bar:
        bar.update(total - rest)
        out.write(exported(source, rules, left, bar.update))
    if close:
        close()
    finish(directory)
    return lines
