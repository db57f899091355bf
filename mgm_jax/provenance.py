"""Where a trained model's weights came from, in words that lead back to the original's layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mgm_jax.models.config import MgmConfig

PARTS = {"clip": "optimize_vision_tower", "convnext": "optimize_vision_tower_aux"}


def trained(
    origin: Mapping[str, Any],
    run: Mapping[str, Any],
    cfg: MgmConfig,
    names: Iterable[str],
    length: int,
) -> dict[str, Any]:
    """The provenance of a run's model: `run` as "train", and all that `origin` says.

    origin: the provenance of the checkpoint that the language model began as; an earlier run in it
    becomes `run["before"]`. Its config.json, which `convert to-hf` starts from, then says what is
    true now (MGM_SPEC 3.6): the pictures' sizes, which of the towers moved (`names` are the trained
    parameters), and `length`, the rows' length, if that is more than before.
    """
    found = dict(origin)
    before = found.pop("train", None)
    found["train"] = dict(run) | ({"before": before} if before else {})
    if found.get("config.json"):
        found["config.json"] = _config(dict(found["config.json"]), cfg, set(names), length)
    return found


def _config(config: dict, cfg: MgmConfig, names: set[str], length: int) -> dict:
    image = cfg.image
    now = {  # key: (what a file without it means, what is true)
        "image_aspect_ratio": ("square", image.aspect),
        "image_size_aux": (None, image.hr_size),
        "image_grid": (1, image.grid),
        "image_global": (False, image.use_global),
    }
    for part, key in PARTS.items():
        if any(name.startswith(f"{part}/") for name in names):
            now[key] = (False, True)
    if length > (config.get("tokenizer_model_max_length") or length):
        now["tokenizer_model_max_length"] = (None, length)
    changed = {k: new for k, (old, new) in now.items() if (config.get(k) or old) != new}
    return config | changed
