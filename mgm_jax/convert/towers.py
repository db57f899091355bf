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
from mgm_jax.convert.families.mgm import AUX, CLIP
from mgm_jax.convert.readers import open_source

# tower -> (regex of a name in the tower's own files, name in a whole model)
NAMES = {
    "clip": ((r"(?:.*\.)?vision_model\.(?!embeddings\.position_ids|head\.)(.+)", rf"{CLIP}\1"),),
    "convnext": (
        (r"(?:.*\.)?(?:visual\.trunk\.|vision_)?stem\.(\d.+)", rf"{AUX}vision_stem.\1"),
        (r"(?:.*\.)?(?:visual\.trunk\.|vision_)?stages\.(\d.+)", rf"{AUX}vision_stages.\1"),
    ),
    "llm": ((r"((?:model\.(?:embed_tokens|layers|norm)|lm_head)\..+)", r"\1"),),
}
FOLDERS = {"clip": "mm_vision_tower", "convnext": "mm_vision_tower_aux"}  # keys of config.json
HEADS = {"clip": CLIP, "convnext": AUX, "llm": "model.layers."}
MGM = ("model.mm_projector", "model.vlm_uni_", "model.vision_tower")
PREFIX = "base_model.model."  # of a `non_lora_trainables.bin` (MGM_SPEC 3.4)


def _renamed(name: str, table) -> str | None:
    matches = ((re.fullmatch(pattern, name), target) for pattern, target in table)
    return next((match.expand(target) for match, target in matches if match), None)


def renamed(source: TensorSource, tower: str) -> dict:
    """The tensors of a tower's own files, by their names in a whole model; others are left out.

    ValueError if there is none: the path holds something else.
    """
    names = {name: _renamed(name, NAMES[tower]) for name in source.extents}
    found = {new: source.extents[name] for name, new in names.items() if new}
    if not found:
        example = next(iter(source), "nothing")
        raise ValueError(f"{source.where}: no {tower} weights inside (it holds {example!r} ...)")
    return found


def places(directory: Path, folder: str | None) -> list[Path]:
    """Where a folder that config.json names may lie."""
    directory = directory.absolute()
    return [directory / folder, directory.parent / folder, Path(folder)] if folder else []


def own_tensors(path: Path) -> dict:
    """The tensors of a file or directory by `whole_names`."""
    return whole_names({n.removeprefix(PREFIX): x for n, x in open_source(path).extents.items()})


def whole_names(tensors: Mapping) -> dict:
    """Tensors by their names in a whole model, as far as they have one.

    Base weights (a CLIP, a ConvNeXt, a language model) are renamed; what has no place keeps its
    own name, so that it is not lost from sight.
    """
    if any(name.startswith(MGM) for name in tensors):
        return dict(tensors)
    table = [rule for rules in NAMES.values() for rule in rules]
    return {_renamed(name, table) or name: extent for name, extent in tensors.items()}


def is_whole(tensors: Mapping, config: Mapping, towers: Mapping) -> bool:
    """Whether this is to be a whole model, not base weights or stage 1's file (MGM_SPEC 3.3)."""
    has_llm = "llm" in towers or any(name.startswith(HEADS["llm"]) for name in tensors)
    return has_llm and "mm_projector_type" in config


def with_towers(
    path: Path, config: Mapping, towers: Mapping[str, str | Path]
) -> tuple[TensorSource, dict[str, Path], bool]:
    """A checkpoint's tensors completed from its towers, tower -> the folder that was found, and
    whether they are to be a whole model; parts of one are completed from `towers` alone.

    FileNotFoundError if a tower of a whole model is neither in the checkpoint nor in the folder
    that config.json names; ValueError for an unknown tower.
    """
    if unknown := sorted(set(towers) - set(NAMES)):
        raise ValueError(f"unknown tower {unknown[0]!r}, expected one of {sorted(NAMES)}")
    directory = path if path.is_dir() else path.parent
    tensors = own_tensors(path)
    whole = is_whole(tensors, config, towers)
    used = {}
    for tower, head in HEADS.items():
        folder = config.get(FOLDERS.get(tower)) if tower in FOLDERS and whole else None
        tried = places(directory, folder)
        found = next((p for p in tried if p.exists()), None)
        if tower in towers:
            found = Path(towers[tower])
            tensors |= renamed(open_source(found), tower)
        elif folder and not any(name.startswith(head) for name in tensors):
            if found is None:
                raise FileNotFoundError(
                    f"{directory}: no {tower} weights inside, and not at "
                    f"{', '.join(map(str, tried))}; give --tower {tower}=PATH"
                )
            tensors |= renamed(open_source(found), tower)
        if found is not None:
            used[tower] = found
    return TensorSource(tensors, path), used, whole


def clip_facts(path: Path | None) -> dict:
    """What the config.json of a CLIP folder says of the tower; {} if there is none to ask."""
    file = path / "config.json" if path is not None else None
    if file is None or not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text())
    except ValueError as e:
        raise ValueError(f"{file}: not JSON ({e})") from e
    return config.get("vision_config", config)
