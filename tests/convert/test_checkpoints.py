"""Whole conversions of every family: the command in, `load`, the command out, bit for bit."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from golden_families import FAMILIES, GOLDEN, complete, tensors_of
from safetensors.numpy import load_file

from mgm_jax import api, cli
from mgm_jax.convert.hf import Required, mgm_config
from mgm_jax.convert.hf_config import hf_config

TEMPLATES = {"gemma": "gemma", "mixtral": "mistral_instruct", "mistral": "mistral_instruct"}


def convert(direction, src, dst, *options):
    cli.main(["convert", direction, "--src", str(src), "--dst", str(dst), *options])


@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back(name, tmp_path):
    source = complete(name, tmp_path)
    convert("from-hf", source, tmp_path / "ours")
    convert("to-hf", tmp_path / "ours", tmp_path / "back", "--shard-size", "400KB")
    config = (source / "config.json").read_text()
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(config)
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    expected, found = tensors_of(name), {}
    for file in set(index["weight_map"].values()):
        found |= load_file(tmp_path / "back" / file)
    assert found.keys() == expected.keys() == index["weight_map"].keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)

    model = api.load(tmp_path / "ours", dtype="float32")
    direct = api.load(source, dtype="float32")
    assert model.config == direct.config
    assert model.template == direct.template == TEMPLATES.get(name, "v1")


def test_the_tokenizer_comes_along(tmp_path):
    source = complete("llama_gqa", tmp_path)
    shutil.copy(GOLDEN / "tokenizers" / "llama2" / "tokenizer.model", source)
    options = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}
    (source / "tokenizer_config.json").write_text(json.dumps(options))
    convert("from-hf", source, tmp_path / "ours", "--template", "llama_3")
    model = api.load(tmp_path / "ours", dtype="float32")
    assert model.template == "llama_3" and not model.tokenizer.legacy
    assert model.tokenizer.encode("Hello world") == [1, 15043, 3186]
    convert("to-hf", tmp_path / "ours", tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == (
        source / "tokenizer.model"
    ).read_bytes()
    written = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert written.items() >= options.items()


def test_unknown_template(tmp_path):
    source = complete("gemma", tmp_path)
    with pytest.raises(SystemExit) as caught:
        convert("from-hf", source, tmp_path / "ours", "--template", "v7")
    assert "v7" in str(caught.value.code) and not (tmp_path / "ours").exists()


@pytest.mark.parametrize("name", ["gemma", "mixtral", "llama_hd"])
def test_a_config_made_for_a_model_that_never_had_one(name, tmp_path):
    """It says the same model, and keeps what the language model's own config said besides."""
    config = json.loads((GOLDEN / name / "config.json").read_text())
    tensors = tensors_of(name)
    cfg = mgm_config(tmp_path, Required(config, "key", tmp_path), tensors, clip_heads=4)
    made = hf_config(cfg, {"bos_token_id": 7, "architectures": config["architectures"]})
    assert made["bos_token_id"] == 7 and made["model_type"] == config["model_type"]
    again = mgm_config(tmp_path, Required(made, "key", tmp_path), tensors, clip_heads=4)
    assert again == cfg
    odd = dataclasses.replace(cfg.llm, zero_centred_norm=False, head_dim=4)
    with pytest.raises(ValueError, match="head_dim is 4, expected"):
        hf_config(dataclasses.replace(cfg, llm=odd))
