"""The commands on the pages of docs/, run as they stand there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)


@pytest.fixture
def data_folder(tmp_path, tiny_config_file, tiny_tokenizer):
    """What docs/data.md speaks of: train.json with a broken picture, pictures/, config.py."""
    (tmp_path / "pictures").mkdir()
    rng, records = np.random.default_rng(0), []
    for i in range(40):
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(tmp_path / "pictures" / f"{i}.png")
        talk = [
            {"from": "human", "value": "<image>\nWhat digit is on the card?"},
            {"from": "gpt", "value": "three"},
        ]
        records.append({"id": f"r{i}", "image": f"{i}.png", "conversations": talk})
    (tmp_path / "pictures" / "7.png").write_bytes(b"not a picture")
    (tmp_path / "train.json").write_text(json.dumps(records))
    shutil.copy(tiny_config_file, tmp_path / "config.py")
    return tmp_path


def test_data(data_folder):
    pytest.importorskip("tensorflow_datasets", reason="the page's TFDS command needs it")
    commands = [
        line
        for block in BLOCK.findall((DOCS / "data.md").read_text())
        for line in block.strip().splitlines()
    ]
    assert len(commands) == 5
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        done = subprocess.run(
            command,
            shell=True,
            cwd=data_folder,
            env=os.environ | {"PATH": path, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        # The check finds the broken picture; with its skip list all else goes through.
        assert done.returncode == (1 if " check " in command else 0), (command, done.stderr)
    assert list(json.loads((data_folder / "skip.json").read_text())["records"]) == ["7"]
    for file in ("report.html", "built/dataset.json", "preview.html"):
        assert (data_folder / file).stat().st_size > 500, file
    assert (data_folder / "tfds/mgm_llava/mine/1.0.0/dataset_info.json").exists()
