"""Runs of the published configs on a tiny model, stage after stage; and docs/configs.md."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from mgm_jax.configs import finetune, variants
from ml_collections import ConfigDict

import mgm_jax
from mgm_jax import train
from mgm_jax.checkpoint import Checkpoint, describe, load_checkpoint, save_checkpoint
from mgm_jax.models.config import MgmConfig
from mgm_jax.program import abstract_model
from mgm_jax.run import prepare
from mgm_jax.settings import TrainingError, read_config
from mgm_jax.text import load_tokenizer
from mgm_jax.tree import flatten

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "configs.md").read_text()
SMALL = ("--config.data.length=128", "--config.data.workers=0", "--config.data.threads=0")


@pytest.fixture(scope="module")
def root(tiny_config, tiny_demo, tiny_tokenizer, tmp_path_factory):
    """The folder of a run before stage 1: random base weights in parts, and both data sets."""
    root = tmp_path_factory.mktemp("root")
    cfg = MgmConfig.from_dict(tiny_config().model.to_dict())
    model, batch, _, _ = abstract_model(cfg)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(1), batch)["params"])
    tokenizer = load_tokenizer(tiny_tokenizer)
    for part, folder in (("llm", "vicuna-7b-v1.5"), ("clip", "clip"), ("convnext", "convnext")):
        text = (tokenizer, "v1") if part == "llm" else (None, None)
        parts = Checkpoint({part: getattr(cfg, part)}, {part: params[part]}, *text)
        save_checkpoint(root / folder, parts)
    for folder, name, ours in (
        ("MGM-Pretrain", "mgm_pretrain.json", "pretrain.json"),
        ("MGM-Finetune", "mgm_instruction.json", "train.json"),
    ):
        shutil.copytree(tiny_demo / "data", root / folder)
        (root / folder / ours).rename(root / folder / name)
    return root


def tiny_run(tiny_config, arg, workdir):
    """MGM-7B's config as it is, but for the sizes of the model and of the rows."""
    c = variants.get_config("MGM-7B", arg)
    if c.model:
        tiny = MgmConfig.from_dict(tiny_config().model.to_dict())
        image = dataclasses.replace(tiny.image, aspect=c.model.image.aspect)
        c.model = ConfigDict(dataclasses.replace(tiny, image=image).to_dict())
    c.dtype = c.frozen_dtype = "float32"
    c.remat = "none"
    c.data.length, c.data.workers, c.data.threads = 96, 0, 0
    return train.train(c, workdir)


def changed(before, after):
    """The parts that two checkpoints differ in."""
    one, other = (flatten(load_checkpoint(d).params) for d in (before, after))
    return {n.split("/")[0] for n in one if not np.array_equal(one[n], other[n])}


def test_stage_1_and_stage_2_from_base_weights(tiny_config, root, tmp_path):
    first = tiny_run(tiny_config, f"stage=1,root={root},batch=8", root / "MGM-7B-stage1")
    assert describe(first)["template"] == "plain"
    assert describe(first)["model"]["image"]["aspect"] == "square"
    for part, folder in (("llm", "vicuna-7b-v1.5"), ("clip", "clip"), ("convnext", "convnext")):
        assert not changed(root / folder, first), part
    second = tiny_run(tiny_config, f"root={root},batch=8", tmp_path / "second")
    assert describe(second)["template"] == "v1"
    assert describe(second)["model"]["image"]["aspect"] == "pad"
    assert changed(first, second) == {"llm", "projector", "mining"}


def commands(kind):
    for block in re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL):
        yield from block.replace("\\\n", " ").strip().splitlines()


def test_the_pages_runs_can_be_read(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = [re.search(r"--config (\S+)", c)[1] for c in commands("") if "mgm_jax.train" in c]
    assert len(found) == 4
    for file in found:
        read_config(file)


@pytest.fixture
def own_folder(root, tiny_demo, tmp_path):
    """What the page's commands speak of: ckpt, train.json, pictures/, configs/."""
    shutil.copytree(tiny_demo / "mining_stage1" / "model", tmp_path / "ckpt")
    text = (tmp_path / "ckpt" / "mgm.json").read_text()
    (tmp_path / "ckpt" / "mgm.json").write_text(
        text.replace('"template": "v1"', '"template": "mistral_instruct"')
    )
    shutil.copy(tiny_demo / "data" / "train.json", tmp_path)
    (tmp_path / "pictures").symlink_to(tiny_demo / "data")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def test_fine_tuning_as_on_the_page(own_folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "JAX_PLATFORMS": "cpu"}
    for command in commands("sh"):
        more = SMALL if "mgm_jax.train" in command else ()
        command = " ".join([command, *more])
        done = subprocess.run(
            command, shell=True, cwd=own_folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stderr)
    before, after = (describe(own_folder / d) for d in ("ckpt", "mine/model"))
    assert before["model"] == after["model"]
    assert after["template"] == "mistral_instruct"
    assert changed(own_folder / "ckpt", own_folder / "mine/model") >= {"llm", "projector", "mining"}
    model = mgm_jax.load(own_folder / "mine/model")
    assert model.template == "mistral_instruct" and model.tokenizer is not None


def test_a_checkpoint_without_a_template_is_refused(root, tiny_config):
    c = tiny_config(data__template=None, data__batch=8)
    c.init = [(".*", str(root / "clip"))]
    with pytest.raises(TrainingError, match=r"config.data.template is not set, and .*clip has non"):
        prepare(c)


def test_finetune_needs_a_checkpoint():
    with pytest.raises(ValueError, match="init=DIR"):
        finetune.get_config("batch=4")


def test_the_pages_table_is_what_the_configs_say():
    rows = []
    for name, variant in variants.VARIANTS.items():
        for stage, arg in (("1", "stage=1"), ("2", "stage=2"), ("hd", "stage=2,hd")):
            c = variants.get_config(name, arg)
            trains = "projector, mining" if stage == "1" else "all but the towers"
            rate = f"{c.optim.lr:.0e}".replace("e-0", "e-")
            label = "2, HD" if stage == "hd" else stage
            cells = (name, label, c.data.batch, rate, c.data.template, c.data.length, trains)
            rows.append(f"| {' | '.join(map(str, cells))} | {variant.slices[stage]} |")
    assert "\n".join(rows) in PAGE
    assert all(f"`{name}`" in PAGE for name in variants.SLICES)
