"""`mgm-jax doctor` names the cause in directories that are broken in one way each."""

import json
import shutil

import numpy as np
import pytest
from golden_families import GOLDEN, complete
from safetensors.numpy import load_file, save_file

from mgm_jax import cli, doctor

CLIP = "model.vision_tower.vision_tower.vision_model."
AUX = "model.vision_tower_aux."


@pytest.fixture
def model(tmp_path):
    """A whole checkpoint of the original in one file, with a tokenizer and tower folders."""
    source = complete("llama_hd", tmp_path)
    tensors = {}
    for file in source.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    save_file(tensors, source / "model.safetensors")
    shutil.copy(GOLDEN / "tokenizers" / "llama2" / "tokenizer.model", source)
    options = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}
    (source / "tokenizer_config.json").write_text(json.dumps(options))
    clip = tmp_path / edit(source)["mm_vision_tower"]
    (clip / "preprocessor_config.json").write_text(json.dumps({"crop_size": {"height": 56}}))
    aux = tmp_path / edit(source)["mm_vision_tower_aux"]
    aux.mkdir()
    trunk = {n.replace(AUX + "vision_", "visual.trunk."): a for n, a in tensors.items() if AUX in n}
    save_file(trunk, aux / "open_clip.safetensors")
    resize_vocabulary(source, 32000)
    return source


def edit(directory, **values):
    file = directory / "config.json"
    config = json.loads(file.read_text()) | values
    file.write_text(json.dumps(config))
    return config


def change(directory, function):
    file = directory / "model.safetensors"
    tensors = function(load_file(file))
    file.unlink()
    save_file(tensors, file)


def resize_vocabulary(directory, rows):
    def pad(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = np.resize(tensors[name], (rows, tensors[name].shape[1]))
        return tensors

    change(directory, pad)
    edit(directory, vocab_size=rows)


def without(directory, words):
    change(directory, lambda t: {n: a for n, a in t.items() if words not in n})


def small_clip(directory):
    """Positions of a CLIP for smaller pictures, as when 224 px weights fill a 336 px slot."""

    def cut(tensors):
        name = f"{CLIP}embeddings.position_embedding.weight"
        return tensors | {name: tensors[name][: 3 * 3 + 1].copy()}

    change(directory, cut)


def truncate(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def absent_shard(directory):
    names = list(load_file(directory / "model.safetensors"))
    where = dict.fromkeys(names, "model.safetensors") | {
        names[0]: "model-00002-of-00002.safetensors"
    }
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))


def adapter(directory):
    (directory / "model.safetensors").unlink()
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "MGM-7B"}')
    save_file(
        {"base_model.model.x.lora_A.weight": np.zeros((2, 2), np.float32)},
        directory / "adapter_model.safetensors",
    )


def stale(directory):
    edit(directory, mm_vision_tower="model_zoo/OpenAI/clip-vit-large-patch14-336")
    without(directory, "vision_tower.vision_tower")


def no_aux(directory):
    without(directory, AUX)
    shutil.rmtree(directory.parent / edit(directory)["mm_vision_tower_aux"])


def extra_rows(directory):
    resize_vocabulary(directory, 32003)
    edit(directory, vocab_size=32000)


def no_preprocessor(directory):
    (directory.parent / edit(directory)["mm_vision_tower"] / "preprocessor_config.json").unlink()


BROKEN = [  # (what breaks it, level, words of the finding, words of the remedy)
    (small_clip, "error", ["position embedding", "42 px", "56 px"], "clip-vit-large-patch14-336"),
    (no_preprocessor, "warning", ["no preprocessor_config.json"], "download preprocessor_config"),
    (no_aux, "error", ["convnext tower: no weights inside", "does not exist"], "--tower convnext="),
    (stale, "error", ["'model_zoo/OpenAI/clip-vit-large-patch14-336'", "stale"], "mm_vision_tower"),
    (absent_shard, "error", ["names model-00002-of-00002.safetensors", "(1 tensors)"], "download"),
    (truncate, "error", ["model.safetensors", "truncated"], "download that file again"),
    (adapter, "error", ["LoRA adapter", "'MGM-7B'"], "merge"),
    (extra_rows, "error", ["32003 rows", "vocab_size is 32000"], '"vocab_size": 32003'),
    (lambda d: (d / "tokenizer.model").unlink(), "error", ["no tokenizer"], "copy tokenizer.model"),
    (lambda d: edit(d, image_size_aux=128), "error", ["HD config", "128"], '"image_size_aux": 256'),
]


def twice(directory):
    tensors = load_file(directory / "model.safetensors")
    save_file({"lm_head.weight": tensors["lm_head.weight"]}, directory / "stray.safetensors")


def wrong_index(directory):
    tensors = load_file(directory / "model.safetensors")
    save_file({"x": np.zeros(1, np.float32)}, directory / "other.safetensors")
    where = dict.fromkeys(tensors, "model.safetensors") | {"lm_head.weight": "other.safetensors"}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where | {"x": "other.safetensors"}}))


def pointer(directory):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n"
    (directory / "model.safetensors").write_text(text)


def short_head(directory):
    change(directory, lambda t: t | {"lm_head.weight": t["lm_head.weight"][:-1].copy()})


def other_projector(directory):
    name = "model.mm_projector.0.weight"
    change(directory, lambda t: t | {name: np.zeros((96, 32), np.float32)})


def without_llm(directory):
    change(directory, lambda t: {n: a for n, a in t.items() if "mm_" in n or "vision_" in n})


def config_of_the_llm(directory):
    values = {k: v for k, v in edit(directory).items() if not k.startswith("mm_")}
    (directory / "config.json").write_text(json.dumps(values))


ALSO_BROKEN = [
    (twice, ["both model.safetensors and stray.safetensors", "'lm_head.weight'"], "move"),
    (wrong_index, ["index says that 'lm_head.weight' is in other.safetensors"], "one revision"),
    (pointer, ["Git LFS pointer"], "git lfs pull"),
    (short_head, ["lm_head.weight has 31999 rows", "has 32000"], "one revision"),
    (other_projector, ["found (32, 96), expected (32, 64)", "another language model"], "inspect"),
    (without_llm, ["no language model inside", "stage 1"], "--tower llm="),
    (config_of_the_llm, ["no mm_projector_type", "language model alone"], "Mini-Gemini"),
    (lambda d: edit(d, tokenizer_model_max_length=64), ["80 tokens", "cuts at 64"], "1024"),
    (lambda d: edit(d, hidden_size=None), ["hidden_size is None"], "compare"),
    (lambda d: edit(d, image_size_aux="768"), ["image_size_aux is '768'"], "compare"),
    (lambda d: edit(d, image_grid=None), ["image.grid >= 2, found 1"], "compare"),
    (lambda d: edit(d, mm_projector_type="mlp9x"), ["projector is 'mlp9x'"], "compare"),
    (lambda d: (d / "config.json").write_text("[1]"), ["found a list, expected"], "download"),
]


def problems(directory):
    return [f for f in doctor.diagnose(directory) if f.level != "ok"]


def test_a_sound_checkpoint(model, tmp_path, capsys):
    assert not problems(model), problems(model)
    cli.main(["doctor", str(model), "--json", str(tmp_path / "out.json")])
    lines = capsys.readouterr().out.splitlines()
    assert any("every name and shape fits" in line for line in lines)
    assert json.loads(lines[-1]) == json.loads((tmp_path / "out.json").read_text())
    assert json.loads(lines[-1])["error"] == 0


@pytest.mark.parametrize("spoil,level,words,remedy", BROKEN, ids=[str(i) for i in range(10)])
def test_broken_in_one_way(model, spoil, level, words, remedy):
    spoil(model)
    found = problems(model)
    named = [f for f in found if all(word in f"{f.what} {f.cause}" for word in words)]
    assert named and named[0].level == level and remedy in named[0].remedy, found
    renamed = model.rename(model.parent / "bar")
    again = [f.what.replace("bar", model.name) for f in problems(renamed)]
    assert again == [f.what for f in found]
    if level == "error":
        with pytest.raises(SystemExit) as caught:
            cli.main(["doctor", str(renamed)])
        assert caught.value.code == 1


@pytest.mark.parametrize("spoil,words,remedy", ALSO_BROKEN, ids=[str(i) for i in range(13)])
def test_broken_in_other_ways(model, spoil, words, remedy):
    spoil(model)
    named = [f for f in problems(model) if all(w in f"{f.what} {f.cause}" for w in words)]
    assert named and named[0].level == "error" and remedy in named[0].remedy, problems(model)


def test_an_adapter_beside_a_whole_model_is_no_adapter(model):
    (model / "adapter_config.json").write_text("{}")
    assert [f.level for f in problems(model)] == ["warning"]


def test_base_weights_are_parts(model, capsys):
    """A CLIP folder and a language model's: nothing is wrong with them."""
    clip = model.parent / edit(model)["mm_vision_tower"]
    inside = CLIP.removesuffix("vision_model.")
    tensors = load_file(model / "model.safetensors")
    found = {n.removeprefix(inside): a for n, a in tensors.items() if n.startswith(inside)}
    save_file(found, clip / "any.safetensors")
    words = ("vision", "mm_", "vlm_")
    change(model, lambda t: {n: a for n, a in t.items() if not any(w in n for w in words)})
    values = {k: v for k, v in edit(model).items() if not k.startswith(("mm_", "image_"))}
    (model / "config.json").write_text(json.dumps(values | {"model_type": "llama"}))
    for directory, part in ((clip, "clip"), (model, "llm")):
        cli.main(["doctor", str(directory)])  # without an error
        (found,) = problems(directory)
        assert found.level == "warning" and f"holds only {part}" in found.what
        assert "from-hf" in found.remedy


def test_stale_path_beside_weights_inside_is_a_warning(model):
    edit(model, mm_vision_tower_aux="model_zoo/x")
    assert [f.level for f in problems(model)] == ["warning"]


def test_several_things_at_once(model):
    (model / "tokenizer.model").unlink()
    truncate(model)
    assert len([f for f in problems(model) if f.level == "error"]) == 2


def test_a_224_clip_in_the_tower_folder(model):
    without(model, "vision_tower.vision_tower")
    folder = model.parent / edit(model)["mm_vision_tower"]
    tensors = {}
    for file in (GOLDEN / "llama_mha").glob("*.safetensors"):
        tensors |= load_file(file)
    inside = CLIP.removesuffix("vision_model.")
    tensors = {n.removeprefix(inside): a for n, a in tensors.items() if n.startswith(inside)}
    name = "vision_model.embeddings.position_embedding.weight"
    tensors[name] = tensors[name][:10].copy()
    save_file(tensors, folder / "model.safetensors")
    found = [f"{f.what} {f.cause}" for f in problems(model)]
    assert any("42 px CLIP in a 56 px slot" in line for line in found), found


def test_ours(model, tmp_path):
    ours = tmp_path / "ours"
    cli.main(["convert", "from-hf", "--src", str(model), "--dst", str(ours)])
    assert not problems(ours)
    shutil.move(ours / "params" / "llm.norm.scale", tmp_path / "lost")
    assert "unreadable parameters" in problems(ours)[0].what
    shutil.move(tmp_path / "lost", ours / "params" / "llm.norm.scale")
    piece = ours / "params" / "llm.norm.scale" / "0"
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-8])
    assert "chunk 0 has 248 bytes, expected 256" in problems(ours)[0].what
    piece.unlink()
    assert "llm/norm/scale: chunk 0 is absent" in problems(ours)[0].what
    piece.write_bytes(whole)
    assert not problems(ours)
    description = json.loads((ours / "mgm.json").read_text())
    half = json.loads(json.dumps(description))
    half["model"]["image"]["hr_size"] = 128
    (ours / "mgm.json").write_text(json.dumps(half))
    (found,) = problems(ours)
    assert found.level == "warning" and '"model.image.hr_size": 256 in mgm.json' in found.remedy
    description["model"]["llm"]["mlp_dim"] += 1
    (ours / "mgm.json").write_text(json.dumps(description))
    assert "arrays do not fit the config" in problems(ours)[0].what
    description["format"] = 99
    (ours / "mgm.json").write_text(json.dumps(description))
    assert "format is 99, expected 1" in problems(ours)[0].what
    (ours / ".convert.json").write_text('{"fingerprint": "x", "finished": false}')
    assert "unfinished" in problems(ours)[0].what
    (ours / ".convert.json").unlink()
    (ours / "mgm.json").unlink()
    assert "mgm.json is missing beside params/" in problems(ours)[0].what
    assert "neither mgm.json nor config.json" in problems(tmp_path)[0].what
    assert "is no directory" in problems(tmp_path / "nowhere")[0].what
    clip = model.parent / edit(model)["mm_vision_tower"]
    tensors = load_file(model / "model.safetensors")
    inside = CLIP.removesuffix("vision_model.")
    tensors = {n.removeprefix(inside): a for n, a in tensors.items() if n.startswith(inside)}
    save_file(tensors, clip / "model.safetensors")
    cli.main(["convert", "from-hf", "--src", str(clip), "--dst", str(tmp_path / "part")])
    assert [f.level for f in problems(tmp_path / "part")] == ["warning"]
    assert "holds only clip" in problems(tmp_path / "part")[0].what
