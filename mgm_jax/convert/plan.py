"""The plan of a conversion, made from names and shapes alone: which tensor goes where.

Both directions pair every foreign tensor with its place in one of our arrays (`pairs`), by the
rules of a family and nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mgm_jax.convert.extents import TensorSource
from mgm_jax.convert.params import Layout
from mgm_jax.convert.rules import Rule, rows_axis, their_names, to_ours, to_theirs
from mgm_jax.convert.writers import Spec

# Foreign tensors that a Mini-Gemini does without: buffers, CLIP's text tower, classifier heads,
# SigLIP's pooling head (MGM_SPEC 3.1, 3.5).
IGNORABLE = (
    r".*rotary_emb\.inv_freq",
    r".*embeddings\.position_ids",
    r"(.*\.)?(logit_scale|logit_bias|positional_embedding|text_projection(\.weight)?)",
    r"(text_model|transformer|token_embedding|ln_final|visual_projection)\..*",
    r"(visual\.)?(trunk\.)?head\..*",
    r"vision_model\.head\..*",
)
FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Pair:
    """One foreign tensor and its place: `ours[index]` of an array whose first axes are stacked."""

    theirs: str
    rule: Rule
    index: tuple[int, ...]


def stack(rule: Rule) -> tuple[int, ...]:
    """Lengths of the stacked axes: none, layers, or layers and experts (layer by layer)."""
    count = len(their_names(rule))
    if not rule.depth:
        return ()
    return (rule.depth,) if count == rule.depth else (rule.depth, count // rule.depth)


def pairs(rules: Sequence[Rule]) -> list[Pair]:
    """Every foreign tensor of `rules` with its place in ours, in the order of the rules."""
    found = []
    for rule in rules:
        lead = stack(rule)
        for i, name in enumerate(their_names(rule)):
            index = tuple(int(n) for n in np.unravel_index(i, lead)) if lead else ()
            found.append(Pair(name, rule, index))
    return found


def moved_shape(move: Callable, rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    return move(rule, np.broadcast_to(np.int8(0), shape)).shape


def target(dtype: np.dtype, wanted: np.dtype | None) -> np.dtype:
    """The dtype to write: the wanted one for floating point tensors, else the tensor's own."""
    return wanted if wanted is not None and dtype.name in FLOATS else dtype


def as_dtype(dtype) -> np.dtype | None:
    """float32, float16 or bfloat16 by name -> dtype; None stays None; ValueError for others."""
    if dtype is None:
        return None
    if np.dtype(dtype).name not in FLOATS[1:]:
        raise ValueError(f"dtype is {dtype!r}, expected one of {FLOATS[1:]}")
    return np.dtype(dtype)


def unmatched(source: TensorSource, names: Mapping, ignorable: Sequence[str]) -> list[str]:
    """The source's tensors that no rule uses and that may be left out.

    ValueError lists those that nothing accounts for, in either direction.
    """
    left = [n for n in source if n not in names]
    ignored = [n for n in left if any(re.fullmatch(p, n) for p in ignorable)]
    lines = [f"- missing: {n}, from which {w} is made" for n, w in names.items() if n not in source]
    lines += [f"+ unknown: {n} {source[n].shape}" for n in left if n not in set(ignored)]
    if lines:
        more = [f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else []
        raise ValueError(
            "\n  ".join([f"{source.where} does not fit the model:"] + lines[:20] + more)
        )
    return ignored


def layouts(
    source: TensorSource, rules: Sequence[Rule], dtype: np.dtype | None
) -> dict[str, Layout]:
    """Our arrays as the source's shapes make them. ValueError where layers disagree."""
    found = {}
    for rule in rules:
        kinds = {}
        for name in their_names(rule):
            info = source[name]
            kinds.setdefault((info.shape, target(info.dtype, dtype)), name)
        if len(kinds) > 1:
            (a, x), (b, y) = list(kinds.items())[:2]
            raise ValueError(
                f"{source.where}: {rule.ours} is one array, but {x!r} is {a[0]} {a[1]} and {y!r} "
                f"is {b[0]} {b[1]}" + ("" if a[0] != b[0] else "; choose one with --dtype")
            )
        (shape, kind), name = next(iter(kinds.items()))
        lead = stack(rule)
        try:
            shape = lead + moved_shape(to_ours, rule, shape)
        except ValueError as e:
            raise ValueError(f"{source.where}: {name!r} has shape {shape} ({e})") from e
        if rule.ours in found:
            raise ValueError(f"two rules make {rule.ours}")
        axis = rows_axis(rule)
        axis = axis if axis is None or not shape else axis % len(shape)
        found[rule.ours] = Layout(shape, kind, len(lead), axis)
    return found


def mapping(source: TensorSource, rules: Sequence[Rule], ours: Mapping[str, Layout]) -> list[str]:
    """Lines `foreign shape dtype -> ours[index] shape dtype`, one for each foreign tensor."""
    lines = []
    for pair in pairs(rules):
        info, layout = source[pair.theirs], ours[pair.rule.ours]
        place = f"[{', '.join(map(str, pair.index))}]" if pair.index else ""
        lines.append(
            f"{pair.theirs} {list(info.shape)} {info.dtype} -> {pair.rule.ours}{place} "
            f"{list(layout.shape[layout.stacked :])} {layout.dtype}"
        )
    return lines


def fingerprint(source: TensorSource, plan: object) -> str:
    """Identifies a conversion: the plan, and the source's files by size and time."""
    stamps = [(f.name, s.st_size, s.st_mtime_ns) for f in source.files if (s := f.stat())]
    return hashlib.sha256(repr((stamps, plan)).encode()).hexdigest()


def check_shapes(
    source: TensorSource, ours: Mapping[str, Layout], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """ValueError with every array whose shape is not the expected one."""
    wrong = [
        f"{name}: found {ours[name].shape}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in ours and ours[name].shape != tuple(shape)
    ]
    if wrong:
        raise ValueError("\n  ".join([f"{source.where} does not fit its config:", *wrong]))


def import_needs(
    source: TensorSource, rules: Sequence[Rule], ours: Mapping[str, Layout]
) -> dict[str, int]:
    """Foreign name -> bytes in memory while it is converted: itself and what it becomes."""
    needs = {}
    for pair in pairs(rules):
        info, layout = source[pair.theirs], ours[pair.rule.ours]
        chunk = min(layout.chunk_nbytes, info.nbytes * layout.dtype.itemsize // info.dtype.itemsize)
        needs[pair.theirs] = chunk * (1 + info.dtype.itemsize / layout.dtype.itemsize)
    return needs


def export_specs(
    source: TensorSource, rules: Sequence[Rule], dtype: np.dtype | None
) -> tuple[list[Spec], dict[str, int], list[str]]:
    """What an export writes: specs in order, bytes in memory by our array, lines of the mapping.

    ValueError: an array of ours that no rule uses, or that the source lacks, or of another depth.
    """
    unmatched(source, {rule.ours: their_names(rule)[0] for rule in rules}, ())
    specs, needs, lines = [], {}, []
    for pair in pairs(rules):
        info, lead = source[pair.rule.ours], stack(pair.rule)
        n = len(lead)
        if info.shape[:n] != lead:
            raise ValueError(
                f"{source.where}: {pair.rule.ours} has shape {info.shape}, expected {lead} at its "
                "start: as many layers as the config has"
            )
        shape = moved_shape(to_theirs, pair.rule, info.shape[n:])
        spec = Spec(pair.theirs, shape, target(info.dtype, dtype))
        specs.append(spec)
        # A packed chunk is unpacked beside its packed bytes.
        needs[pair.rule.ours] = 2 * source.block_nbytes(pair.rule.ours, n) + spec.nbytes
        place = f"[{', '.join(map(str, pair.index))}]" if n else ""
        lines.append(
            f"{pair.rule.ours}{place} {list(info.shape[n:])} {info.dtype} -> {pair.theirs} "
            f"{list(shape)} {spec.dtype}"
        )
    return specs, needs, lines
