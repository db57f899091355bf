"""A trained model leads back to where its weights came from: original in, a step, original out."""

import json
import re

import numpy as np
import pytest
from golden_families import complete, tensors_of
from mgm_jax.configs import common
from safetensors.numpy import load_file, save_file

from mgm_jax import train
from mgm_jax.checkpoint import describe
from mgm_jax.convert.checkpoints import from_hf, to_hf
from mgm_jax.models.config import MgmConfig
from mgm_jax.provenance import trained
from mgm_jax.text import train_tokenizer

CONSTANT = {"decay": "constant"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One whose pieces fit into the golden models' vocabularies."""
    directory = tmp_path_factory.mktemp("small") / "tokenizer"
    texts = ["What digit is on the card? It is red, 0123456789. USER: ASSISTANT:"] * 9
    train_tokenizer(texts, directory / "any.model", 300, legacy=False).save(directory)
    return directory


def test_there_a_step_and_back(tiny_config, tiny_demo, tokenizer, tmp_path):
    """config.json and a tied head that was stored all come out again; only what trains moves."""
    source, head = complete("gemma", tmp_path), "lm_head.weight"
    tensors = load_file(source / "model.safetensors")
    tensors[head] = tensors["model.embed_tokens.weight"].copy()  # as published
    save_file(tensors, source / "model.safetensors")
    from_hf(source, tmp_path / "ours", progress=False)

    config = tiny_config(steps=1, data__batch=2, data__length=200, data__template="plain")
    config.data.sources.main.path = str(tiny_demo / "data" / "pretrain.json")
    config.init = [(".*", str(tmp_path / "ours"))]
    config.model, config.tokenizer = None, str(tokenizer)
    opened = [name for name, _ in common.open_towers(4, clip=False)]
    config.optim.schedule = [(n, CONSTANT) for n in (*opened, "llm/layers[-1]/.*")]
    config.optim.schedule += [(".*", None)]
    model = train.train(config, tmp_path / "work")
    provenance, origin = (describe(d)["provenance"] for d in (model, tmp_path / "ours"))
    before = json.loads((source / "config.json").read_text())
    now = {"config.json": before | {"optimize_vision_tower_aux": True}}
    assert provenance.pop("train")["steps"] == 1
    assert provenance == origin | now and origin["tied_head_stored"]

    to_hf(model, tmp_path / "back", progress=False)
    found, expected = {}, tensors_of("gemma")
    for file in (tmp_path / "back").glob("*.safetensors"):
        found |= load_file(file)
    assert found.keys() == expected.keys() | {head}
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == now["config.json"]
    moved = {n for n in expected if not np.array_equal(found[n], expected[n])}
    places = {
        re.search(r"vision_stages\.\d+\.blocks\.\d+|model\.layers\.\d+|$", n)[0] for n in moved
    }
    last = {f"vision_stages.{s}.blocks.{d - 1}" for s, d in enumerate((2, 2, 3, 2))}
    assert places == last | {"model.layers.2"}


def test_runs_in_a_row_and_other_pictures(tiny_config):
    values = tiny_config().model.to_dict()
    values["image"] |= {"grid": 2, "use_global": True}
    values["image"] |= {"lr_size": 8, "hr_size": 64}
    cfg = MgmConfig.from_dict(values)
    config = {"image_grid": 1, "image_size_aux": 32, "tokenizer_model_max_length": 2048}
    config |= {"image_aspect_ratio": "pad", "hidden_act": "silu"}
    first = trained({"config.json": config, "sha256": {}}, {"steps": 1}, cfg, ["llm/x"], 96)
    second = trained(first, {"steps": 2}, cfg, ["clip/layers/x[1:2]"], 4096)
    assert first["train"] == {"steps": 1} and second["sha256"] == {}
    assert second["train"] == {"steps": 2, "before": {"steps": 1}}
    hd = {"image_grid": 2, "image_global": True, "image_size_aux": 64}
    assert first["config.json"] == config | hd
    last = hd | {"optimize_vision_tower": True, "tokenizer_model_max_length": 4096}
    assert second["config.json"] == config | last
    assert trained({}, {"steps": 1}, cfg, [], 96) == {"train": {"steps": 1}}
