"""Quantised models from the command to the answer: written, loaded, asked, adapted, refused."""

import json

import jax
import numpy as np
import pytest

import mgm_jax
from mgm_jax import cli, train
from mgm_jax.checkpoint import CheckpointError, describe, load_checkpoint
from mgm_jax.quantize.config import make
from mgm_jax.settings import TrainingError
from mgm_jax.tree import flatten

QUESTION = mgm_jax.Request([("user", "What digit is on the card?")])


def logits(model, batch):
    run = jax.jit(lambda params, b: model.module.apply({"params": params}, b)[0])
    return np.asarray(run(model.params, batch))


@pytest.fixture(scope="module")
def batch():
    ids = np.random.default_rng(0).integers(3, 500, size=(2, 9)).astype(np.int32)
    places = np.broadcast_to(np.arange(9, dtype=np.int32), ids.shape)
    return {"tokens": ids, "positions": places, "segments": np.ones_like(ids)}


@pytest.fixture(scope="module")
def quantized(tiny_base, tiny_demo, tmp_path_factory):
    """(directory of the base in int4, what the command said)."""
    out = tmp_path_factory.mktemp("quantized")
    data = tiny_demo / "data"
    argv = ["quantize", str(tiny_base), str(out / "int4"), "--scheme", "int4", "--group", "32"]
    argv += ["--report", "--data", str(data / "train.json"), "--images", str(data)]
    argv += ["--records", "2", "--json", str(out / "report.json")]
    cli.main(argv)
    return out / "int4", json.loads((out / "report.json").read_text())


def test_what_the_command_writes_and_says(tiny_base, quantized):
    directory, report = quantized
    assert describe(directory)["quantization"]["scheme"] == "int4"
    plain, params = (flatten(load_checkpoint(d).params) for d in (tiny_base, directory))
    changed = set(plain) - set(params)
    assert changed == set(report["error"]) and len(changed) == 7
    assert all(n.startswith("llm/layers/") for n in changed)
    for name in set(plain) & set(params):
        np.testing.assert_array_equal(plain[name], params[name], err_msg=name)
    q = "llm/layers/attn/q_proj/kernel"
    assert params[f"{q}_int4"].dtype == "int4" and params[f"{q}_int4_scale"].shape == (2, 1, 32)
    assert all(0.05 < e < 0.15 for e in report["error"].values())
    assert report["records"] == 2 and report["tokens"] > 4
    assert 0.8 < report["perplexity_ratio"] < 1.25 and 0.5 < report["same_token"] <= 1
    assert report["bytes"][1] < report["bytes"][0]


def test_a_quantised_model_answers_and_is_saved_again(tiny_base, quantized, batch, tmp_path):
    model = mgm_jax.load(quantized[0], dtype="float32")
    exact = logits(mgm_jax.load(tiny_base, dtype="float32"), batch)
    found = logits(model, batch)
    off = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert 0 < off < 0.3
    answer = model.generate([QUESTION], max_new_tokens=4)
    mgm_jax.save(model, tmp_path / "again")
    again = mgm_jax.load(tmp_path / "again", dtype="float32")
    for name, array in flatten(model.params).items():
        np.testing.assert_array_equal(flatten(again.params)[name], array, err_msg=name)
    assert again.generate([QUESTION], max_new_tokens=4) == answer


def test_a_plain_model_is_quantised_on_loading(tiny_base, quantized):
    model = mgm_jax.load(tiny_base, dtype="float32", quantize=make("int4", 32))
    stored = flatten(load_checkpoint(quantized[0]).params)
    assert flatten(model.params).keys() == stored.keys() and model.quantization.group == 32
    for name, array in flatten(model.params).items():
        np.testing.assert_array_equal(array, stored[name], err_msg=name)


def test_where_plain_weights_are_needed_it_is_refused(quantized, tmp_path, capsys):
    directory = str(quantized[0])
    for argv in (
        ["quantize", directory, str(tmp_path / "x"), "--scheme", "int8"],
        ["convert", "to-hf", "--src", directory, "--dst", str(tmp_path / "y")],
    ):
        with pytest.raises(SystemExit, match="is quantised .int4.; this needs the model"):
            cli.main(argv)
    with pytest.raises(CheckpointError, match="is int4 already"):
        mgm_jax.load(directory, quantize="int8")
    cli.main(["doctor", directory])
    assert "every name and shape fits" in capsys.readouterr().out


@pytest.fixture(scope="module")
def qlora_config(tiny_config):
    """(base, **values) -> the config of a QLoRA run."""
    from mgm_jax.configs import lora

    def config(base, **values):
        c = tiny_config(quant__scheme="int4", quant__group=32, remat="full")
        c.model = None
        c.init = [(".*", str(base))]
        lora.with_lora(c, 4)
        c.optim.lr = 1e-2
        for key, value in values.items():
            c.update_from_flattened_dict({key.replace("__", "."): value})
        return c

    return config


def test_qlora_from_plain_and_quantised_bases(tiny_base, quantized, qlora_config, tmp_path, batch):
    """The same losses, with dropout; and the adapter loads on the quantised base, and merges."""
    losses = []
    for name, directory in (("plain", tiny_base), ("int4", quantized[0])):
        options = {"steps": 3, "lora__dropout": 0.5, "lora__rslora": True}
        train.train(qlora_config(directory, **options), tmp_path / name)
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["loss"] for row in rows])
    assert losses[0] == losses[1] and losses[0][2] != losses[0][0]
    adapter = tmp_path / "int4" / "model"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["use_rslora"] is True and config["lora_dropout"] == 0.5
    model = mgm_jax.load(adapter, dtype="float32")
    assert model.quantization.scheme == "int4"
    cli.main(["lora", "merge", str(adapter), str(tmp_path / "merged")])
    merged = mgm_jax.load(tmp_path / "merged", dtype="float32")
    assert merged.quantization is None
    # The merged weights are bfloat16.
    np.testing.assert_allclose(logits(merged, batch), logits(model, batch), atol=0.05)


def test_qlora_refusals(tiny_base, quantized, qlora_config, tmp_path):
    with pytest.raises(TrainingError, match="set config.quant.scheme=int4 and .*group=32"):
        train.train(qlora_config(quantized[0], quant__scheme="nf4"), tmp_path / "a")
    moves = [(".*", {"decay": "constant"})]
    with pytest.raises(ValueError, match="integers have no gradient|also trains"):
        train.train(qlora_config(tiny_base, optim__schedule=moves, lora__rank=0), tmp_path / "b")
