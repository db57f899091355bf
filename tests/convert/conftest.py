"""Checkpoints in other dtypes, and a CLIP folder that tells the golden tower's heads."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parent.parent / "golden" / "llama_mha"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture(scope="session")
def golden_tensors():
    return load_file(GOLDEN / "model.safetensors")


@pytest.fixture(scope="session")
def hf_directory(golden_tensors, tmp_path_factory):
    """dtype name -> the golden checkpoint in that dtype, with the folder its config.json names."""
    made = {}

    def make(dtype):
        if dtype not in made:
            root = tmp_path_factory.mktemp(dtype)
            directory = root / "foo"
            directory.mkdir()
            shutil.copy(GOLDEN / "config.json", directory)
            cast = {n: a.astype(DTYPES[dtype]) for n, a in golden_tensors.items()}
            save_file(cast, directory / "model.safetensors", {"format": "pt"})
            tower = root / json.loads((GOLDEN / "config.json").read_text())["mm_vision_tower"]
            tower.mkdir()
            (tower / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
            made[dtype] = directory
        return made[dtype]

    return make


def bits(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).tobytes()


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and bits(a) == bits(b)
