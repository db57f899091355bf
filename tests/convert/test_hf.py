"""Hugging Face tensors -> ours -> Hugging Face, bit for bit; and a broken directory's one error."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mgm_jax.convert.families import mgm
from mgm_jax.convert.hf import load_hf
from mgm_jax.convert.rules import export_params, their_names
from mgm_jax.tree import flatten

HERE = Path(__file__).parent.parent / "golden" / "llama_mha"
CLIP = "model.vision_tower.vision_tower.vision_model."


@pytest.fixture(scope="module")
def source():
    return load_file(HERE / "model.safetensors")


@pytest.fixture(scope="module")
def loaded():
    cfg, params = load_hf(HERE, clip_heads=4)
    return cfg, flatten(params)


def test_what_the_tensors_say(loaded):
    cfg, _ = loaded
    assert (cfg.clip.grid, cfg.clip.layers, cfg.clip.layers_run) == (4, 4, 3)
    assert (cfg.convnext.widths, cfg.convnext.depths) == ((8, 16, 32, 64), (2, 2, 3, 2))
    assert (cfg.convnext.patch_size, cfg.convnext.kernel_size) == (4, 7)
    assert (cfg.llm.dim, cfg.llm.head_dim, cfg.llm.vocab_size) == (64, 16, 320)
    assert (cfg.image.lr_size, cfg.image.hr_size, cfg.image.aspect) == (56, 128, "pad")


def test_round_trip_is_bit_equal(loaded, source):
    cfg, flat = loaded
    written = list(export_params(flat, mgm.rules(cfg)))
    assert len(written) == len(source) and {name for name, _ in written} == set(source)
    for name, array in written:
        assert array.dtype == source[name].dtype and array.shape == source[name].shape
        np.testing.assert_array_equal(array, source[name], err_msg=name)
    assert {rule.ours for rule in mgm.rules(cfg)} == set(flat)


def test_one_changed_element_changes_one_element_of_one_tensor(loaded, source):
    """For every parameter of ours, at a random place."""
    cfg, flat = loaded
    rules = mgm.rules(cfg)
    rng = np.random.default_rng(0)
    for rule in rules:
        changed = flat[rule.ours].copy()
        place = tuple(rng.integers(n) for n in changed.shape)
        changed[place] += 1
        after = dict(export_params({rule.ours: changed}, rules))
        differ = [n for n, array in after.items() if not np.array_equal(array, source[n])]
        assert differ == [their_names(rule)[place[0] if rule.depth else 0]]
        assert (after[differ[0]] != source[differ[0]]).sum() == 1


def test_clip_layers_that_never_run_are_kept(loaded, source):
    cfg, flat = loaded
    kept = flat["clip/unused_layers/mlp/fc1/kernel"]
    assert kept.shape[0] == cfg.clip.layers - cfg.clip.layers_run == 1
    np.testing.assert_array_equal(kept[0].T, source[f"{CLIP}encoder.layers.3.mlp.fc1.weight"])
    norm = flat["clip/unused_norm/scale"]
    np.testing.assert_array_equal(norm, source[f"{CLIP}post_layernorm.weight"])


def write(directory, tensors, config=None):
    directory.mkdir()
    if config is None:
        shutil.copy(HERE / "config.json", directory)
    else:
        (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_shards_and_folder_names_do_not_matter(loaded, source, tmp_path):
    names = sorted(source)
    directory = write(tmp_path / "foo", {n: source[n] for n in names[::2]})
    save_file({n: source[n] for n in names[1::2]}, directory / "zz.safetensors")
    cfg, params = load_hf(directory, clip_heads=4)
    assert cfg == loaded[0]
    for name, array in flatten(params).items():
        np.testing.assert_array_equal(array, loaded[1][name], err_msg=name)


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.mm_projector.2.bias",
        "model.vlm_uni_val_projector.1.weight",
        f"{CLIP}embeddings.class_embedding",
        f"{CLIP}encoder.layers.3.layer_norm2.bias",
        "model.vision_tower_aux.vision_stem.0.weight",
        "model.vision_tower_aux.vision_stages.2.blocks.1.conv_dw.weight",
    ],
)
def test_missing_tensor(source, tmp_path, name):
    directory = write(tmp_path / "model", {n: a for n, a in source.items() if n != name})
    with pytest.raises(ValueError) as caught:
        load_hf(directory, clip_heads=4)
    message = str(caught.value)
    assert message.startswith(str(directory)) and f"{name!r} is missing" in message, message


def test_unknown_tensor(source, tmp_path):
    extra = {"model.layers.9.mlp.up_proj.weight": np.zeros((2, 2), np.float32)}
    directory = write(tmp_path / "model", source | extra)
    with pytest.raises(ValueError, match="'model.layers.9.mlp.up_proj.weight' is not part"):
        load_hf(directory, clip_heads=4)


@pytest.mark.parametrize(
    "key", ["hidden_size", "rms_norm_eps", "mm_projector_type", "mm_vision_select_layer"]
)
def test_missing_config_key(source, tmp_path, key):
    config = json.loads((HERE / "config.json").read_text())
    del config[key]
    directory = write(tmp_path / "model", source, config)
    with pytest.raises(ValueError) as caught:
        load_hf(directory, clip_heads=4)
    message = str(caught.value)
    assert message.startswith(str(directory / "config.json")) and f"{key!r} is missing" in message


def truncate(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])


@pytest.mark.parametrize(
    "spoil,kind,words",
    [
        (truncate, ValueError, ["model.safetensors", "truncated"]),
        (lambda d: (d / "model.safetensors").unlink(), FileNotFoundError, ["*.safetensors"]),
        (lambda d: (d / "config.json").unlink(), FileNotFoundError, ["config.json", "missing"]),
        (lambda d: (d / "config.json").write_text("{"), ValueError, ["config.json", "not JSON"]),
    ],
)
def test_broken_directory(source, tmp_path, spoil, kind, words):
    directory = write(tmp_path / "model", source)
    spoil(directory)
    with pytest.raises(kind) as caught:
        load_hf(directory, clip_heads=4)
    message = str(caught.value)
    assert str(directory) in message and all(word in message for word in words), message


def test_no_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_hf(tmp_path / "nowhere")
