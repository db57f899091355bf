"""big_vision's vision towers in and out: `.npz` <-> our checkpoints (`clip/...` alone).

Numbers move; none changes, but for positions that are resized on demand. Heads are not part of a
Mini-Gemini: they are left out, and named in the mapping.
"""

from __future__ import annotations

import json
from pathlib import Path

from mgm_jax.checkpoint import Checkpoint, CheckpointError, describe, write_description
from mgm_jax.convert import plan
from mgm_jax.convert.big_vision_source import (
    HEADS,
    Tower,
    open_tower,
    split_subtree,
    tower_config,
)
from mgm_jax.convert.families.siglip import big_vision_rules
from mgm_jax.convert.hashes import Hashes
from mgm_jax.convert.npz import NpzWriter
from mgm_jax.convert.params import ParamsSource
from mgm_jax.convert.rules import import_params
from mgm_jax.convert.stream import check_ram, exported, import_stream, progress_bar
from mgm_jax.models.config import ClipConfig, read_parts, to_dict

LICENCE = "The weights keep the licence of their source; read it before use."
LAYOUTS = ("loop", "scan")
IMAGE = {"mean": [0.5] * 3, "std": [0.5] * 3}  # pixels from -1 to 1: what `image` must say


def from_bv(
    src: str | Path,
    dst: str | Path | None,
    *,
    image_size: int | None = None,
    select_layer: int = -1,
    dtype=None,
    max_ram: int | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> list[str]:
    """A ViT (`file.npz`, `file.npz:img`) -> our directory `dst` with `clip/...` alone.

    Sizes come from the arrays' shapes. `image_size`: side in pixels; positions are resized if its
    grid is another one (bilinear, as big_vision's load does); by default the smallest that the
    file's grid fits. `select_layer` as in ClipConfig. Returns the mapping's lines; the other
    options and errors are those of `stream.import_stream`, and of `open_tower`. Resumable.
    """
    if dst is None and not dry_run:
        raise ValueError("no destination: give --dst, or --dry-run")
    tower = open_tower(src, image_size)
    cfg = tower_config(tower, select_layer=select_layer, image_size=image_size)
    provenance = {
        "source": "big_vision",
        "subtree": split_subtree(src)[1],
        "image": IMAGE,
        "dtype": plan.as_dtype(dtype).name if dtype else None,
        "licence": LICENCE,
    }
    hashes = Hashes(tower.files)

    def close():
        found = provenance | {"sha256": hashes.result()}
        write_description(Path(dst), Checkpoint({"clip": cfg}, {}, None, None, found))

    if not dry_run:
        hashes.start()
    lines = import_stream(
        tower,
        big_vision_rules(cfg),
        dst or ".",
        dtype,
        max_ram=max_ram,
        dry_run=dry_run,
        ignorable=HEADS,
        tag=json.dumps([provenance, to_dict({"clip": cfg})]),
        progress=progress,
        close=close,
    )
    names = (line.split(" ", 1) for line in lines)
    lines = [f"{tower.origins[name]} {rest}" for name, rest in names]
    return lines + [f"{name} -> left out" for name in tower.outside]


def to_bv(
    src: str | Path,
    dst: str | Path | None,
    *,
    layout: str = "loop",
    dtype=None,
    max_ram: int | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> list[str]:
    """The vision tower of our directory `src` -> one `.npz` at `dst`, keys without a prefix.

    `layout`: "loop" has arrays of one layer (`encoderblock_0/...`), "scan" of all
    (`encoderblock/...`). The file has no head: big_vision loads it with
    `dont_load=["MAPHead_0/.*", "head/.*"]`. Returns the mapping's lines.

    CheckpointError if `src` has no tower or CLIP's, which big_vision's ViT cannot be; ValueError
    for another layout, a `dst` that exists, or if `max_ram` is too little.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}, expected one of {LAYOUTS}")
    if dst is None and not dry_run:
        raise ValueError("no destination: give --dst, or --dry-run")
    if dst is not None and Path(dst).exists():
        raise ValueError(f"{dst} exists; delete it, or give another --dst")
    src = Path(src)
    source = ParamsSource(src / "params")
    source.extents = {n: a for n, a in source.extents.items() if n.startswith("clip/")}
    rules = big_vision_rules(_exportable(src))
    specs, needs, lines = plan.export_specs(source, rules, plan.as_dtype(dtype))
    check_ram(max_ram, needs)
    writer = NpzWriter(Path(dst or "."), specs, scan=layout == "scan")
    if not dry_run:
        with progress_bar(sum(s.nbytes for s in specs), "exporting", progress) as bar:
            Path(dst).parent.mkdir(parents=True, exist_ok=True)
            writer.write(exported(source, rules, writer.order(), bar.update))
    return lines


def _exportable(src: Path) -> ClipConfig:
    cfg = read_parts(describe(src)["model"])
    cfg = cfg.get("clip") if isinstance(cfg, dict) else cfg.clip
    if cfg is None:
        raise CheckpointError(f"{src} has no vision tower")
    if cfg.kind == "clip":
        raise CheckpointError(
            f"{src}: its vision tower is CLIP's, which big_vision's ViT cannot be: that has no "
            "norm before the layers, no quick_gelu and no position of the class token; to-hf "
            "writes it"
        )
    return cfg


# ------------------------------------------------------------------------------- trees in memory


def read_tower(tower: Tower, cfg: ClipConfig) -> dict:
    """A ViT's parameters as our tree {"clip": ...} of numpy arrays.

    ValueError names every array that is missing or unknown.
    """
    rules = big_vision_rules(cfg)
    names = {pair.theirs: pair.rule.ours for pair in plan.pairs(rules)}
    plan.unmatched(tower, names, HEADS)
    return import_params({name: tower.read(name) for name in names}, rules, tower.where)
