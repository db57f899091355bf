"""Weights from beside a checkpoint: which folder serves a tower, and under which names.

The checkpoint's own tensors win; a tower that the user names overrides them; a folder that
config.json names serves only what is absent (MGM_SPEC 3.2, 3.5).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from mgm_jax.convert.extents import TensorSource
from mgm_jax.convert.readers import open_source

CLIP = "model.vision_tower.vision_tower.vision_model."
AUX = "model.vision_tower_aux."
# tower -> (regex of a name in the tower's own files, name in a whole model)
NAMES = {
    "clip": ((r"(?:.*\.)?vision_model\.(?!embeddings\.position_ids)(.+)", rf"{CLIP}\1"),),
    "convnext": (
        (r"(?:.*\.)?(?:visual\.trunk\.|vision_)?stem\.(\d.+)", rf"{AUX}vision_stem.\1"),
        (r"(?:.*\.)?(?:visual\.trunk\.|vision_)?stages\.(\d.+)", rf"{AUX}vision_stages.\1"),
    ),
    "llm": ((r"((?:model\.(?:embed_tokens|layers|norm)|lm_head)\..+)", r"\1"),),
}
FOLDERS = {"clip": "mm_vision_tower", "convnext": "mm_vision_tower_aux"}  # keys of config.json
PREFIX = "base_model.model."  # of a `non_lora_trainables.bin` (MGM_SPEC 3.4)


def renamed(source: TensorSource, tower: str) -> dict:
    """The tensors of a tower's own files, by their names in a whole model; others are left out.

    ValueError if there is none: the path holds something else.
    """
    found = {}
    for name, extent in source.extents.items():
        for pattern, target in NAMES[tower]:
            if match := re.fullmatch(pattern, name):
                found[match.expand(target)] = extent
                break
    if not found:
        example = next(iter(source), "nothing")
        raise ValueError(f"{source.where}: no {tower} weights inside (it holds {example!r} ...)")
    return found


def places(directory: Path, folder: str) -> list[Path]:
    """Where a folder that config.json names may lie."""
    return [directory / folder, directory.parent / folder, Path(folder)]


def with_towers(
    directory: Path, config: Mapping, towers: Mapping[str, str | Path]
) -> tuple[TensorSource, dict[str, Path]]:
    """A checkpoint's tensors completed from its towers, and tower -> the folder that was found.

    FileNotFoundError if a tower is neither in the checkpoint nor in the folder that config.json
    names; ValueError for an unknown tower.
    """
    if unknown := sorted(set(towers) - set(NAMES)):
        raise ValueError(f"unknown tower {unknown[0]!r}, expected one of {sorted(NAMES)}")
    own = open_source(directory)
    tensors = {name.removeprefix(PREFIX): extent for name, extent in own.extents.items()}
    heads = {"clip": CLIP, "convnext": AUX, "llm": "model.layers."}
    used = {}
    for tower, head in heads.items():
        folder = config.get(FOLDERS.get(tower)) if tower in FOLDERS else None
        tried = places(directory, folder) if folder else []
        path = next((p for p in tried if p.exists()), None)
        if tower in towers:
            path = Path(towers[tower])
            tensors |= renamed(open_source(path), tower)
        elif not any(name.startswith(head) for name in tensors) and (folder or tower == "llm"):
            if path is None:
                where = f", and not at {', '.join(map(str, tried))}" if tried else ""
                raise FileNotFoundError(
                    f"{directory}: no {tower} weights inside{where}; give --tower {tower}=PATH"
                )
            tensors |= renamed(open_source(path), tower)
        if path is not None:
            used[tower] = path
    return TensorSource(tensors, directory), used


def clip_heads(path: Path | None) -> int | None:
    """Attention heads by the config.json of a CLIP folder; None if there is none to ask."""
    file = path / "config.json" if path is not None else None
    if file is None or not file.is_file():
        return None
    try:
        config = json.loads(file.read_text())
    except ValueError as e:
        raise ValueError(f"{file}: not JSON ({e})") from e
    return config.get("vision_config", config).get("num_attention_heads")
