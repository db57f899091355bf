"""The commands of docs/finetune_lora.md, run as they stand there but for their sizes."""

import io
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from mgm_jax import cli
from mgm_jax.demo import own_pictures

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tiny_demo, tiny_base, tmp_path, monkeypatch):
    """A directory that has configs and, in workdir/demo, a demo whose model is random and tiny."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(tiny_base, tmp_path / "workdir" / "demo")
    (tmp_path / "workdir" / "demo" / "data").symlink_to(tiny_demo / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    return tmp_path


@pytest.mark.slow  # make evidence
def test_the_page(place, monkeypatch, capsys):
    from tools.evidence.finetune_lora import commands

    smaller = (("batch=20", "batch=4"), ("epochs=30", "epochs=1"), ("000500", "000005"))
    for command in commands():
        for old, new in smaller:
            command = command.replace(old, new)
        words = shlex.split(command)
        if words[0] == "python":
            assert words[1:3] == ["-m", "mgm_jax.demo.own_pictures"]
            monkeypatch.setattr(sys, "argv", [*words[2:], "--train", "4"])
            own_pictures.main()
        else:
            assert words[0] == "mgm-jax"
            cli.main(words[1:])
        out = capsys.readouterr().out
        if "compare" in words:
            found = json.loads(out.splitlines()[-1])
            assert found["questions"] == 2
            page = (place / "workdir" / "mine" / "page.html").read_text()
            assert page.count("data:image/webp") == 2 and "colour and digit" in page
    assert json.loads((place / "workdir/own/held_out.json").read_text())[0]["id"] == "own-0004"
    assert (place / "workdir/merged/mgm.json").exists()
    assert (place / "workdir/peft/adapter_model.safetensors").exists()
