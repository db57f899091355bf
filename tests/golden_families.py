"""The original's tiny models of every family, as it wrote and ran them.

`golden/<family>` holds a model's own tensors; towers that it shares with llama_mha are there only.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = ("llama_gqa", "llama_opt", "gemma", "mixtral", "mistral", "llama_hd")
MERGED = {"train": ("merged", ""), "multi": ("merged_multi", "multi_")}


def tensors_of(name):
    """The whole checkpoint, in the original's names."""
    tensors = {k: a for k, a in load_file(GOLDEN / "llama_mha/model.safetensors").items()}
    tensors = {k: a for k, a in tensors.items() if "vision_tower" in k}
    for file in (GOLDEN / name).glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def complete(name, root):
    """Writes the whole checkpoint into a folder of another name, the CLIP folder beside it."""
    directory = root / "foo"
    directory.mkdir()
    shutil.copytree(GOLDEN / "openai-clip-tiny", root / "openai-clip-tiny")
    own = set()
    for file in [GOLDEN / name / "config.json", *(GOLDEN / name).glob("*.safetensors")]:
        shutil.copy(file, directory)
        if file.suffix == ".safetensors":
            with safe_open(file, "numpy") as opened:
                own |= set(opened.keys())
    shared = {k: a for k, a in tensors_of(name).items() if k not in own}
    save_file(shared, directory / "shared.safetensors")
    return directory


class Golden:
    """A family's recorded inputs and outputs."""

    def __init__(self, name):
        keys = ("inputs", "vision", "lm", "generate", "grads")
        self.arrays = {k: np.load(GOLDEN / name / f"{k}.npz") for k in keys}
        self.facts = json.loads((GOLDEN / name / "grads.json").read_text())
        inputs = self.arrays["inputs"]
        pictures = [inputs[k].astype(np.float32) / 32 for k in ("images_q", "images_aux_q")]
        self.lr, self.hr = (np.moveaxis(p, -3, -1) for p in pictures)

    def __getitem__(self, key):
        return self.arrays[key]

    def rows(self, case, key):
        """Unpadded rows of a case."""
        inputs = self["inputs"]
        array = inputs[f"{case}_{key}"]
        mask = inputs.get(f"{case}_attention_mask", np.ones_like(array)).astype(bool)
        return [row[m] for row, m in zip(array, mask, strict=True)]
