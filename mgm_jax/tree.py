"""Parameter trees as flat dicts of '/'-joined names, and regex lists over them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


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
