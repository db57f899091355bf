"""Parameter trees as flat dicts of '/'-joined names, and regex lists over them.

A stack of layers is one parameter with the layers on axis 0. Where its layers are treated
differently it is cut into pieces, whose names end in their rows: `clip/layers/norm1/scale[2:4]`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

PIECE = re.compile(r"(.*)\[(\d+):(\d+)\]")
SLICE = re.compile(r"\[(?:(-?\d+)|(-?\d*):(-?\d*))\](?=/|$)")  # in a rule: [3], [12:], [:-1]


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """{"llm": {"norm": x}} -> {"llm/norm": x}; leaves are whatever is not a mapping."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, name + "/")
        else:
            flat[name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, leaf = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree


def merge(*trees: Mapping) -> dict[str, Any]:
    """Disjoint parameter trees as one; the pieces of a stack, which may lie in several trees, are
    joined in the order of their rows (in the widest of their dtypes)."""
    flat, pieces = {}, {}
    for name, value in (item for tree in trees for item in flatten(tree).items()):
        if match := PIECE.fullmatch(name):
            pieces.setdefault(match[1], {})[int(match[2])] = value
        else:
            flat[name] = value
    for name, parts in pieces.items():
        flat[name] = jnp.concatenate([parts[start] for start in sorted(parts)])
    return unflatten(flat)


def nbytes(shape: Sequence[int], dtype) -> int:
    """Bytes of an array, of which int4 packs two elements into one."""
    dtype = jnp.dtype(dtype)
    bits = jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else 8 * dtype.itemsize
    return -(-math.prod(shape) * bits // 8)


def base_name(name: str) -> str:
    """The parameter that a piece is of, or the name itself."""
    match = PIECE.fullmatch(name)
    return match[1] if match else name


def take(flat: Mapping[str, Any], name: str):
    """The parameter of that name, or the rows of it that the name of a piece says."""
    if match := PIECE.fullmatch(name):
        return flat[match[1]][int(match[2]) : int(match[3])]
    return flat[name]


def match_first(
    names: Iterable[str], rules: Sequence[tuple[str, Any]], where: str, default: Any = ...
) -> dict[str, Any]:
    """name -> value of the first rule whose regex matches the whole name.

    A name that no rule matches takes `default`, or is a ValueError without one; so is a rule that
    matches no name at all, since it is most likely a misspelt one.
    """
    names = list(names)
    matched, used = {}, set()
    for name in names:
        for i, (pattern, value) in enumerate(rules):
            if re.fullmatch(pattern, name):
                matched[name] = value
                used.add(i)
                break
        else:
            if default is ...:
                raise ValueError(f"{where}: no rule covers parameter {name!r}")
            matched[name] = default
    for i, (pattern, _) in enumerate(rules):
        if i not in used and not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(f"{where}: rule {pattern!r} matches no parameter")
    return matched


def match_layers(
    names: Iterable[str],
    stacks: Mapping[str, int],
    rules: Sequence[tuple[str, Any]],
    where: str,
    default: Any = ...,
) -> dict[str, list[Any]]:
    """name -> values of its layers (one value if it is no stack): as `match_first`, layer by layer.

    `stacks`: name -> number of layers. A rule may say which layers it is about, as a Python slice
    or index behind a part of the name: "clip/layers[12:]/.*", "convnext/stages_2[-1]/.*". Brackets
    that match names as an ordinary set of characters ("fc[12]/kernel") are one.

    ValueError as of `match_first`; for layers that are not there; for a slice of no stack.
    """
    names = list(names)
    parsed = [_parse_rule(pattern, names, where) for pattern, _ in rules]
    matched = {}
    for name in names:
        count = stacks.get(name, 1)
        values = [...] * count
        for (pattern, regex, brackets), (_, value) in zip(parsed, rules, strict=True):
            if ... not in values:
                break
            if not re.fullmatch(regex, name):
                continue
            if brackets and name not in stacks:
                raise ValueError(
                    f"{where}: rule {pattern!r} takes layers {brackets[0]} of {name}, which is not "
                    "a stack of layers"
                )
            rows = _rows(brackets, count) if brackets else range(count)
            if not rows:
                raise ValueError(
                    f"{where}: rule {pattern!r} takes layers {brackets[0]} of {name}, which has "
                    f"{count}"
                )
            for i in rows:
                values[i] = value if values[i] is ... else values[i]
        if ... in values and default is ...:
            layer = f"[{values.index(...)}]" if name in stacks else ""
            raise ValueError(f"{where}: no rule covers parameter {name + layer!r}")
        matched[name] = [default if v is ... else v for v in values]
    return matched


def _parse_rule(pattern: str, names: Sequence[str], where: str):
    """-> (the rule, its regex without the layers, the brackets' match or None)."""

    def matches(regex):
        return any(re.fullmatch(regex, name) for name in names)

    found = list(SLICE.finditer(pattern))
    if not found or matches(pattern):
        if not matches(pattern):
            raise ValueError(f"{where}: rule {pattern!r} matches no parameter")
        return pattern, pattern, None
    regex = SLICE.sub("", pattern)
    if len(found) > 1:
        raise ValueError(f"{where}: rule {pattern!r} takes layers twice, expected one slice")
    if not matches(regex):
        raise ValueError(f"{where}: rule {pattern!r} matches no parameter")
    return pattern, regex, found[0]


def _rows(brackets: re.Match, count: int) -> range:
    """The layers of `[3]` or `[12:]` of `count`; empty if there are none or not all of them."""
    index, *bounds = (int(g) if g else None for g in brackets.groups())
    given = [index] if index is not None else [b for b in bounds if b is not None]
    highest = count - 1 if index is not None else count
    if any(not -count <= b <= highest for b in given):
        return range(0)
    if index is not None:
        return range(index % count, index % count + 1)
    return range(count)[slice(*bounds)]


def diff(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Lines that say how two flat trees differ in names and shapes; empty if they agree."""
    lines = [f"- missing    {n} {tuple(expected[n].shape)}" for n in expected if n not in found]
    lines += [f"+ unexpected {n} {tuple(found[n].shape)}" for n in found if n not in expected]
    for name in expected:
        if name in found and tuple(expected[name].shape) != tuple(found[name].shape):
            lines.append(
                f"! shape      {name}: found {tuple(found[name].shape)}, "
                f"expected {tuple(expected[name].shape)}"
            )
    return sorted(lines)
