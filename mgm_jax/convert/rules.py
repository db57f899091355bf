"""The conversion engine: one table of rules serves both directions.

A rule names a foreign tensor and ours, with `{i}` where a stacked layer index goes (and `{e}` where
an expert's does), and how the layout changes: `perm` transposes, then `shapes` reshapes. Values are
never rescaled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mgm_jax.tree import unflatten

MATRIX = (1, 0)  # torch Linear [out, in] -> [in, out]
CONV = (2, 3, 1, 0)  # torch convolution [out, in, kh, kw] -> [kh * kw * in, out]
DEPTHWISE = (2, 3, 1, 0)  # torch depthwise [C, 1, kh, kw] -> [kh * kw, C]


@dataclasses.dataclass(frozen=True)
class Rule:
    """`theirs` and `ours` name one tensor, or with `{i}` in `theirs` `depth` of them, stacked.

    `start` is the foreign index of the first layer. With `{e}` too, each layer stacks `experts`
    tensors: ours is [depth, experts, ...]. `shapes`: the foreign shape (transposed) and ours of
    one layer, where they differ in rank; -1 stands for one size that the tensor tells.
    """

    theirs: str
    ours: str
    perm: tuple[int, ...] | None = None
    depth: int = 0
    start: int = 0
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    experts: int = 0

    @property
    def stacked(self) -> int:
        """How many first axes of ours count layers (and experts)."""
        return (self.depth > 0) + (self.experts > 0)


def patches(kernel: int, inputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`shapes` of a convolution: its spatial and input axes are one of ours."""
    return (kernel, kernel, inputs, -1), (kernel * kernel * inputs, -1)


def linear(theirs: str, ours: str, *, bias: bool = True, **where) -> list[Rule]:
    """Rules of a Linear: weight and (with `bias`) bias."""
    rules = [Rule(f"{theirs}.weight", f"{ours}/kernel", MATRIX, **where)]
    return rules + ([Rule(f"{theirs}.bias", f"{ours}/bias", **where)] if bias else [])


def norm(theirs: str, ours: str, *, bias: bool = True, **where) -> list[Rule]:
    """Rules of a norm: scale and (with `bias`) bias."""
    rules = [Rule(f"{theirs}.weight", f"{ours}/scale", **where)]
    return rules + ([Rule(f"{theirs}.bias", f"{ours}/bias", **where)] if bias else [])


def to_ours(rule: Rule, array: np.ndarray) -> np.ndarray:
    """One foreign tensor in our layout; a view where numpy can make one."""
    if rule.perm:
        array = np.transpose(array, rule.perm)
    return _reshape(array, *rule.shapes) if rule.shapes else array


def to_theirs(rule: Rule, array: np.ndarray) -> np.ndarray:
    """One layer of ours in the foreign layout: the inverse of `to_ours`; a view."""
    if rule.shapes:
        array = _reshape(array, *reversed(rule.shapes))
    return np.transpose(array, np.argsort(rule.perm)) if rule.perm else array


def _reshape(array: np.ndarray, found: tuple[int, ...], wanted: tuple[int, ...]) -> np.ndarray:
    """`array`, whose shape must be `found`, as `wanted`; ValueError if it has another shape."""
    same = len(array.shape) == len(found)
    if not same or any(n not in (-1, m) for m, n in zip(array.shape, found, strict=True)):
        raise ValueError(f"shape {array.shape} where {found} is expected")
    return array.reshape(wanted)


def rows_axis(rule: Rule) -> int | None:
    """The axis of ours along which the foreign first axis runs; None if it is merged with others.

    Negative where it is the last one.
    """
    if not rule.perm:
        return None if rule.shapes else 0
    if rule.perm[-1] == 0:
        return -1
    return None if rule.shapes else rule.perm.index(0)


def their_names(rule: Rule) -> list[str]:
    """Every foreign name that the rule reads or writes, in layer order, then expert order."""
    if not rule.depth:
        return [rule.theirs]
    layers = range(rule.start, rule.start + rule.depth)
    return [rule.theirs.format(i=i, e=e) for i in layers for e in range(rule.experts or 1)]


def import_params(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], source: str):
    """Foreign tensors -> our parameter tree. A missing tensor is a ValueError that names it."""
    flat = {}
    for rule in rules:
        names = their_names(rule)
        if missing := [n for n in names if n not in tensors]:
            raise ValueError(
                f"{source}: tensor {missing[0]!r} is missing"
                + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
                + f"; {rule.ours} is made from it"
            )
        arrays = [to_ours(rule, tensors[n]) for n in names]
        stacked = np.stack(arrays) if rule.depth else arrays[0]
        if rule.experts:
            stacked = stacked.reshape(rule.depth, rule.experts, *stacked.shape[1:])
        flat[rule.ours] = stacked
    return unflatten(flat)


def export_params(
    flat: Mapping[str, np.ndarray], rules: Sequence[Rule]
) -> Iterator[tuple[str, np.ndarray]]:
    """Our flat tree (or a part of it, or its gradients) -> (foreign name, array) one by one."""
    for rule in rules:
        if rule.ours not in flat:
            continue
        array = np.asarray(flat[rule.ours])
        if rule.experts:
            array = array.reshape(-1, *array.shape[2:])
        for i, name in enumerate(their_names(rule)):
            yield name, np.ascontiguousarray(to_theirs(rule, array[i] if rule.depth else array))
