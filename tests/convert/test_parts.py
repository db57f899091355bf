"""Checkpoints of parts: base weights in, and what stage 1 saves, in and out."""

import json
import shutil

import jax
import numpy as np
import pytest
from golden_families import GOLDEN, complete, tensors_of
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from mgm_jax import api, cli, sharding
from mgm_jax.checkpoint import CheckpointError, load_checkpoint, whole_model
from mgm_jax.convert.readers import open_source
from mgm_jax.convert.towers import with_towers
from mgm_jax.program import abstract_model
from mgm_jax.run import init_params
from mgm_jax.settings import TrainingError, read_model_config
from mgm_jax.tree import flatten

CLIP, AUX = "model.vision_tower.vision_tower.", "model.vision_tower_aux.vision_"


def convert(direction, src, dst, *options):
    cli.main(["convert", direction, "--src", str(src), "--dst", str(dst), *options])


def part(name, pattern, rename=lambda n: n):
    return {rename(n): a for n, a in tensors_of(name).items() if pattern in n}


@pytest.fixture
def whole(tmp_path):
    """The gemma golden as one of our directories."""
    convert("from-hf", complete("gemma", tmp_path), tmp_path / "whole")
    return tmp_path / "whole"


def write(directory, tensors, config=None):
    directory.mkdir()
    save_file(tensors, directory / "any.safetensors", {"format": "pt"})
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


def assert_part_of(part, whole, *roots):
    found, expected = (flatten(load_checkpoint(d).params) for d in (part, whole))
    assert {n.split("/")[0] for n in found} == set(roots)
    expected = {n: a for n, a in expected.items() if n.split("/")[0] in roots}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_a_clip_folder(tmp_path, whole):
    tensors = part("gemma", CLIP, lambda n: n.removeprefix(CLIP))
    others = {"text_model.final_layer_norm.bias": np.zeros(4, np.float32)}
    others["logit_scale"] = np.zeros((), np.float32)
    src = write(tmp_path / "clip", tensors | others, {"vision_config": {"num_attention_heads": 4}})
    convert("from-hf", src, tmp_path / "ours")
    assert_part_of(tmp_path / "ours", whole, "clip")
    description = json.loads((tmp_path / "ours" / "mgm.json").read_text())
    assert list(description["model"]) == ["clip"] and description["model"]["clip"]["heads"] == 4
    assert description["template"] is description["tokenizer"] is None
    with pytest.raises(CheckpointError, match="holds only clip, expected a whole model"):
        api.load(tmp_path / "ours")
    with pytest.raises(SystemExit, match="holds only clip: a whole model also needs"):
        convert("to-hf", tmp_path / "ours", tmp_path / "back")


def test_open_clip_and_timm_convnext(tmp_path, whole):
    def open_clip(name):
        return name.replace(AUX, "visual.trunk.")

    def timm(name):
        return name.replace(AUX, "")

    for style in (open_clip, timm):
        src = write(tmp_path / style.__name__, part("gemma", AUX, style))
        dst = tmp_path / f"ours_{style.__name__}"
        convert("from-hf", src / "any.safetensors", dst)
        assert_part_of(dst, whole, "convnext")


def test_a_language_model_brings_template_and_tokenizer(tmp_path, whole):
    tensors = {n: a for n, a in tensors_of("gemma").items() if "vision" not in n}
    tensors = {n: a for n, a in tensors.items() if "mm_" not in n and "vlm_" not in n}
    config = json.loads((GOLDEN / "gemma" / "config.json").read_text())
    config = {k: v for k, v in config.items() if not k.startswith(("mm_", "image_"))}
    src = write(tmp_path / "llm", tensors, config | {"architectures": ["GemmaForCausalLM"]})
    shutil.copy(GOLDEN / "tokenizers" / "llama2" / "tokenizer.model", src)
    options = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}
    (src / "tokenizer_config.json").write_text(json.dumps(options))
    convert("from-hf", src, tmp_path / "ours")
    assert_part_of(tmp_path / "ours", whole, "llm")
    found = load_checkpoint(tmp_path / "ours")
    assert found.template == "gemma" and found.tokenizer.encode("Hello world") == [1, 15043, 3186]

    model = json.loads((whole / "mgm.json").read_text())["model"]
    init = [("llm/.*", str(tmp_path / "ours")), (".*", None)]
    config = {"init": init, "model": model, "tokenizer": None, "data": {"template": None}}
    cfg, tokenizer, template = read_model_config(ConfigDict(config))
    assert cfg.llm == found.config["llm"] and tokenizer == str(tmp_path / "ours" / "tokenizer")
    assert template == "gemma"
    own = ConfigDict(config | {"data": {"template": "plain"}})
    assert read_model_config(own)[2] == "plain"
    with pytest.raises(TrainingError, match="config.model is not set"):
        read_model_config(ConfigDict(config | {"model": None}))
    random = ConfigDict(config | {"init": [(".*", None)], "tokenizer": str(tmp_path)})
    with pytest.raises(TrainingError, match="config.data.template is not set, and config.init na"):
        read_model_config(random)


def test_a_run_begins_from_parts(tmp_path, whole):
    """A training run's init takes each parameter from the checkpoint that holds its part."""
    convert("to-hf", whole, tmp_path / "stage1", "--adapter")
    convert("from-hf", tmp_path / "stage1", tmp_path / "parts")
    model, batch, shapes, axes = abstract_model(whole_model(whole))
    shardings = sharding.param_shardings(shapes, axes, sharding.make_mesh({"fsdp": 1}))
    shapes = jax.tree.map(
        lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, shardings
    )
    rules = [("llm/.*", str(whole)), (".*", str(tmp_path / "parts"))]
    params = flatten(init_params(model, batch, shapes, rules, 0))
    for name, array in flatten(load_checkpoint(whole).params).items():
        np.testing.assert_array_equal(params[name], array, err_msg=name)
    with pytest.raises(CheckpointError, match="missing    llm/norm/scale"):
        init_params(model, batch, shapes, [(".*", str(tmp_path / "parts"))], 0)


def test_load_reads_bin_files_and_towers_beside(tmp_path, whole):
    torch = pytest.importorskip("torch", reason="writes the file")
    tensors = {n: torch.from_numpy(a) for n, a in tensors_of("gemma").items() if AUX not in n}
    src, tower = tmp_path / "hf", tmp_path / "hf" / "openclip-convnext-large-d-320-tiny"
    tower.mkdir(parents=True)
    shutil.copy(GOLDEN / "gemma" / "config.json", src)
    torch.save(tensors, src / "pytorch_model.bin")
    aux = part("gemma", AUX, lambda n: n.replace(AUX, "visual.trunk."))
    torch.save({n: torch.from_numpy(a) for n, a in aux.items()}, tower / "any.bin")
    found = flatten(api.load(src, dtype="float32").params)
    for name, array in flatten(load_checkpoint(whole).params).items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    shutil.rmtree(tower)
    with pytest.raises(FileNotFoundError, match="no convnext weights inside.*--tower convnext="):
        api.load(src, dtype="float32")


def test_stage_one_out_torch_in_and_back(tmp_path, whole):
    """`mm_projector.bin`: all but the language model, bit for bit; torch loads what is written."""
    convert("to-hf", whole, tmp_path / "stage1", "--adapter")
    expected = {n: a for n, a in tensors_of("gemma").items() if "vision" in n or "mm_" in n}
    expected |= part("gemma", "vlm_")
    files = {f.name for f in (tmp_path / "stage1").iterdir()}
    assert files == {"mm_projector.bin", "config.json", ".convert.json"}
    source = open_source(tmp_path / "stage1")
    assert set(source) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(source.read(name), array, err_msg=name)

    convert("from-hf", tmp_path / "stage1" / "mm_projector.bin", tmp_path / "parts")
    assert_part_of(tmp_path / "parts", whole, "clip", "convnext", "projector", "mining")
    with pytest.raises(SystemExit, match="with --adapter it becomes mm_projector.bin"):
        convert("to-hf", tmp_path / "parts", tmp_path / "x")
    convert("to-hf", tmp_path / "parts", tmp_path / "again", "--adapter")
    first, again = (tmp_path / d / "mm_projector.bin" for d in ("stage1", "again"))
    assert first.read_bytes() == again.read_bytes()
    parts = load_checkpoint(tmp_path / "parts").config
    assert parts["clip"].heads == 4 and parts["projector"] == "mlp2x_gelu"
    (tmp_path / "other").mkdir()
    llm = complete("gemma", tmp_path / "other")
    convert("from-hf", first, tmp_path / "full", "--tower", f"llm={llm}")
    roots = ("clip", "convnext", "projector", "mining", "llm")
    assert_part_of(tmp_path / "full", whole, *roots)

    torch = pytest.importorskip("torch", reason="the reader of the original")
    found = torch.load(first, weights_only=True)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), array, err_msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_bin_in_half_precision(tmp_path, whole, dtype):
    torch = pytest.importorskip("torch", reason="the reader of the original")
    convert("to-hf", whole, tmp_path / "out", "--adapter", "--dtype", dtype)
    found = torch.load(tmp_path / "out" / "mm_projector.bin", weights_only=True)
    name = "model.mm_projector.0.weight"
    expected = torch.from_numpy(tensors_of("gemma")[name]).to(getattr(torch, dtype))
    assert torch.equal(found[name], expected)


def test_lora_leftovers(tmp_path, whole):
    """`non_lora_trainables.bin`: names behind `base_model.model.`, towers not inside."""
    torch = pytest.importorskip("torch", reason="writes the file")
    kept = {n: a for n, a in tensors_of("gemma").items() if "mm_proj" in n or "vlm_uni" in n}
    state = {f"base_model.model.{n}": torch.from_numpy(a) for n, a in kept.items()}
    (tmp_path / "lora").mkdir()
    torch.save(state, tmp_path / "lora" / "non_lora_trainables.bin")
    file = tmp_path / "lora" / "non_lora_trainables.bin"
    with pytest.raises(SystemExit, match="config.json is missing"):
        convert("from-hf", file, tmp_path / "none")
    shutil.copy(GOLDEN / "gemma" / "config.json", tmp_path / "lora")
    convert("from-hf", file, tmp_path / "ours")
    assert_part_of(tmp_path / "ours", whole, "projector", "mining")


def test_errors_name_the_checkpoint(tmp_path, whole):
    """Also where no folder beside it served a tower."""
    src = tmp_path / "foo"
    config = json.loads((src / "config.json").read_text())
    source, used, is_whole = with_towers(src, config, {})
    assert is_whole and "llm" not in used
    with pytest.raises(ValueError, match=f"{src}: tensor 'nothing' is missing"):
        source["nothing"]


def test_nothing_of_a_model(tmp_path):
    src = write(tmp_path / "x", {"some.weight": np.zeros(3, np.float32)})
    with pytest.raises(SystemExit, match="no weights of a Mini-Gemini inside .found 'some.weight'"):
        convert("from-hf", src, tmp_path / "ours")
    clip = part("gemma", CLIP, lambda n: n.removeprefix(CLIP))
    unknown = {"some.weight": np.zeros(3, np.float32)}
    src = write(tmp_path / "y", clip | unknown, {"num_attention_heads": 4})
    with pytest.raises(SystemExit, match="unknown: some.weight"):
        convert("from-hf", src, tmp_path / "ours")
    assert load_file(src / "any.safetensors")
