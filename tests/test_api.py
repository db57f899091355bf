"""A checkpoint as a user meets it: load, generate, chat, save; and the errors of each."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import mgm_jax
from mgm_jax import cli
from mgm_jax.checkpoint import CheckpointError
from mgm_jax.data.lengths import read_lengths
from mgm_jax.data.pipeline import Batches, Encoder, Pictures, iterate
from mgm_jax.data.schedule import Schedule
from mgm_jax.data.sources import LlavaJson
from mgm_jax.models.config import MgmConfig
from mgm_jax.text import TEMPLATES
from mgm_jax.tree import flatten, match_first


@pytest.fixture(scope="module")
def model(tiny_demo):
    return mgm_jax.load(tiny_demo / "base_mining", dtype="float32")


def picture(seed):
    pixels = np.random.default_rng(seed).integers(256, size=(60, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_batched_generation_equals_one_by_one(model):
    requests = [
        mgm_jax.Request([("user", "What digit is on the card?")], [picture(0)]),
        mgm_jax.Request([("user", "Hello")]),
        mgm_jax.Request(
            [("user", "<image>\nand <image>\nare?"), ("assistant", "two"), ("user", "why?")],
            [picture(1), picture(2)],
        ),
    ]
    together = model.generate(requests, max_new_tokens=6, batch_size=3)
    alone = [model.generate([r], max_new_tokens=6)[0] for r in requests]
    assert together == alone
    assert len(set(alone)) > 1


def test_pictures_and_placeholders_must_match(model):
    with pytest.raises(ValueError, match="1 <image> in the messages, but 2 picture"):
        model.generate([mgm_jax.Request([("user", "<image> ?")], [picture(0), picture(1)])])


def test_save_and_load_are_bit_equal_under_any_name(model, tmp_path):
    mgm_jax.save(model, tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "foo")
    again = mgm_jax.load(tmp_path / "foo", dtype="float32")
    assert again.config == model.config and again.template == model.template
    one, other = flatten(model.params), flatten(again.params)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert again.chat("Hello", max_new_tokens=4) == model.chat("Hello", max_new_tokens=4)


def break_json(path):
    (path / "mgm.json").write_text('{"format": 1,')


def break_format(path):
    text = (path / "mgm.json").read_text()
    (path / "mgm.json").write_text(text.replace('"format": 1', '"format": 9'))


def break_shape(path):
    description = json.loads((path / "mgm.json").read_text())
    description["model"]["llm"]["mlp_dim"] += 8
    (path / "mgm.json").write_text(json.dumps(description))


def break_key(path):
    description = json.loads((path / "mgm.json").read_text())
    description["model"]["llm"]["colour"] = "red"
    (path / "mgm.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    "spoil,words",
    [
        (lambda path: (path / "mgm.json").unlink(), ["mgm.json", "missing"]),
        (break_json, ["mgm.json", "unreadable"]),
        (break_format, ["format is 9", "expected 1"]),
        (break_shape, ["llm/layers/mlp/gate_proj/kernel", "expected"]),
        (break_key, ["model.llm", "'colour'"]),
        (lambda path: shutil.rmtree(path / "params"), ["params"]),
        (lambda path: (path / "tokenizer" / "tokenizer.model").write_bytes(b"x"), ["tokenizer"]),
    ],
)
def test_broken_checkpoints_say_what_is_broken(spoil, words, tiny_demo, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_demo / "base_mining", broken)
    spoil(broken)
    with pytest.raises(SystemExit) as caught:
        cli.main(["chat", str(broken), "--question", "Hello"])
    message = str(caught.value.code)
    assert message.startswith("error: ") and all(word in message for word in words), message


def test_a_full_disk_leaves_no_checkpoint(model, tmp_path):
    program = (
        "import resource, sys, mgm_jax\n"
        "m = mgm_jax.load(sys.argv[1], dtype='float32')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try: mgm_jax.save(m, sys.argv[2])\n"
        "except Exception as e: print(type(e).__name__, str(e).splitlines()[0])\n"
    )
    mgm_jax.save(model, tmp_path / "good")
    command = [sys.executable, "-c", program, str(tmp_path / "good"), str(tmp_path / "full")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "CheckpointError" in done.stdout and str(tmp_path / "full") in done.stdout, done
    assert not (tmp_path / "full" / "mgm.json").exists()
    with pytest.raises(CheckpointError, match="mgm.json"):
        mgm_jax.load(tmp_path / "full")


def test_a_system_text_of_a_request(model):
    """It takes the place of the template's; a template without a place for one says so."""
    asked = [("user", "Hello")]
    own = TEMPLATES["v1"].system.removesuffix(" ")
    plain, same, other = model.generate(
        [
            mgm_jax.Request([*system, *asked])
            for system in ([], [("system", own)], [("system", "x")])
        ],
        max_new_tokens=8,
    )
    assert plain == same != other
    gemma = dataclasses.replace(model, template="gemma")
    with pytest.raises(ValueError, match="template gemma has no place for a system text"):
        gemma.generate([mgm_jax.Request([("system", "x"), *asked])])


def test_help_of_every_command(capsys):
    for command, word in (("demo", "--seed"), ("chat", "--question"), ("train", "--config")):
        try:
            cli.main([command, "--help"])
        except SystemExit as e:
            assert e.code in (0, None)
        assert word in capsys.readouterr().out


def dataset(tiny_demo, model, groups, seed=3):
    source = LlavaJson(tiny_demo / "data" / "train.json", tiny_demo / "data")
    encoder = Encoder("v1", model.tokenizer, model.config.visual_tokens, 128)
    layout = dict(length=128, rows=8 // groups, groups=groups, batching="pad", seed=seed)
    lengths = (read_lengths(source, encoder),)
    schedule = Schedule(lengths, (1.0,), model.config.visual_tokens, **layout)
    pictures = Pictures(model.config.image)
    return source, Batches(schedule, (source,), encoder, pictures, tuple(range(groups)))


def test_batches_are_a_function_of_seed_and_step(tiny_demo, model):
    source, data = dataset(tiny_demo, model, groups=2)
    iterator = iterate(data, 4, threads=2)
    for step in (4, 5, 6):
        for name, value in next(iterator).items():
            np.testing.assert_array_equal(value, data[step][name])
    other = dataset(tiny_demo, model, groups=2, seed=4)[1]
    assert not np.array_equal(other[0]["tokens"], data[0]["tokens"])
    steps = len(source) // 8  # of one epoch
    for epoch in (0, 1):
        rows = [data[epoch * steps + i]["images"].reshape(8, -1) for i in range(steps)]
        pictures = {row.tobytes() for batch in rows for row in batch}
        assert len(pictures) == len(source)


def test_batch_contract_and_groups(tiny_demo, model):
    whole, split = (dataset(tiny_demo, model, groups=g)[1][0] for g in (1, 4))
    n, size = model.config.visual_tokens, model.config.image.hr_size
    assert whole["images"].shape == (1, 8, size, size, 3) and whole["images"].dtype == np.uint8
    assert split["images"].shape == (4, 2, size, size, 3) and split["image_mask"].all()
    assert whole["visual_index"].max() == 8 * n - 1 and split["visual_index"].max() == 2 * n - 1
    placed = whole["visual_index"] >= 0
    assert (placed.sum(1) == n).all() and not whole["tokens"][placed].any()
    ahead = whole["targets"][:, :-1] == whole["tokens"][:, 1:]
    assert ahead[whole["segments"][:, 1:] > 0].all()
    for batch in (whole, split):
        for name in ("tokens", "targets", "positions", "segments", "visual_index"):
            assert batch[name].shape == (8, 128) and batch[name].dtype == np.int32
    embed = jax.jit(lambda b: model.module.apply({"params": model.params}, b)[1]["inputs_embeds"])
    np.testing.assert_allclose(embed(whole), embed(split), atol=1e-5)


def test_config_errors(model):
    values = model.config.to_dict()
    assert MgmConfig.from_dict(values) == model.config

    def broken(path, value):
        changed = json.loads(json.dumps(values))
        node = changed
        for key in path[:-1]:
            node = node[key]
        if value is ...:
            del node[path[-1]]
        else:
            node[path[-1]] = value
        with pytest.raises(ValueError) as caught:
            MgmConfig.from_dict(changed)
        return str(caught.value)

    assert "missing key 'rope_theta'" in broken(("llm", "rope_theta"), ...)
    assert "model.llm.layers is 'two'" in broken(("llm", "layers"), "two")
    assert "multiple" in broken(("llm", "kv_heads"), 3)
    assert "lr_size" in broken(("image", "lr_size"), 14)
    assert "hr_size" in broken(("image", "hr_size"), 200)
    assert "aspect" in broken(("image", "aspect"), "stretch")
    assert "select_layer" in broken(("clip", "select_layer"), -9)


def test_rule_lists():
    names = ["a/kernel", "a/bias", "b/kernel"]
    rules = [("a/.*", 1), (".*kernel", 2)]
    assert match_first(names, rules, "x") == {"a/kernel": 1, "a/bias": 1, "b/kernel": 2}
    with pytest.raises(ValueError, match="no rule covers parameter 'b/kernel'"):
        match_first(names, rules[:1], "x")
    with pytest.raises(ValueError, match="'c/.*' matches no parameter"):
        match_first(names, [*rules, ("c/.*", 3)], "x")
