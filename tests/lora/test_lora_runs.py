"""LoRA runs as a user sees them: what trains, what is kept, what is left, what is refused."""

import io
import json
import shutil
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

import mgm_jax
from mgm_jax import cli, train
from mgm_jax.checkpoint import CheckpointError, content_hash, load_checkpoint, save_checkpoint
from mgm_jax.doctor import diagnose
from mgm_jax.export import export_state
from mgm_jax.settings import TrainingError
from mgm_jax.tree import flatten

ATTENTION = [f"llm/layers/attn/{n}_proj" for n in "qkvo"]
MLP = [f"llm/layers/mlp/{n}_proj" for n in ("gate", "up", "down")]
WHOLE = {"projector", "mining"}
MOVES = {"decay": "constant"}


def logits(model, batch):
    run = jax.jit(lambda params, b: model.module.apply({"params": params}, b)[0])
    return np.asarray(run(model.params, batch))


def test_state_and_adapter_hold_exactly_what_trains(trained):
    adapters = {f"{m}/{leaf}" for m in ATTENTION + MLP for leaf in ("lora_a", "lora_b")}
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(trained / "state" / "6" / "state").item_metadata.tree
    names = {n for n in flatten(tree["params"])}
    assert {n for n in names if n.split("/")[0] not in WHOLE} == adapters
    assert WHOLE < {n.split("/")[0] for n in names} == WHOLE | {"llm"}

    stored = load_file(trained / "model" / "adapter_model.safetensors")
    layers = [n for n in stored if "lora_" in n]
    assert len(layers) == 2 * 2 * 7  # A and B, two layers, seven matrices
    q = "base_model.model.model.layers.1.self_attn.q_proj"
    assert stored[f"{q}.lora_A.weight"].shape == (4, 32)
    assert stored[f"{q}.lora_B.weight"].shape == (32, 4)
    assert np.abs(stored[f"{q}.lora_B.weight"]).max() > 0
    others = {n.split(".")[3] for n in stored if n not in layers}
    assert others == {"mm_projector"} | {f"vlm_uni_{n}_projector" for n in ("query", "aux", "val")}
    config = json.loads((trained / "model" / "adapter_config.json").read_text())
    assert set(config["modules_to_save"]) == others
    report = (trained / "report.txt").read_text()
    assert all(name in report for name in ATTENTION + MLP) and "rank 4, scale 2" in report


def test_the_adapter_loads_as_a_model_and_merges(trained, tiny_base, batch, tmp_path):
    plain = logits(mgm_jax.load(tiny_base, dtype="float32"), batch)
    model = mgm_jax.load(trained / "model", dtype="float32")
    found = logits(model, batch)
    assert np.abs(found - plain).max() > 1e-2
    cli.main(["lora", "merge", str(trained / "model"), str(tmp_path / "merged")])
    merged = mgm_jax.load(tmp_path / "merged", dtype="float32")
    assert not [n for n in flatten(merged.params) if "lora" in n]
    np.testing.assert_allclose(logits(merged, batch), found, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="has an adapter .*merge"):
        mgm_jax.save(model, tmp_path / "no")


def test_a_killed_run_goes_on_and_a_state_is_exported(trained, lora_config, tmp_path):
    """Its two halves are the whole run to the bit, and so is an adapter that is written again."""
    shutil.copytree(trained, tmp_path / "run")
    for what in ("state/6", "model"):
        shutil.rmtree(tmp_path / "run" / what)
    assert train.train(lora_config(), tmp_path / "run").name == "model"
    export_state(lora_config(), tmp_path / "run", tmp_path / "exported")
    expected = load_file(trained / "model" / "adapter_model.safetensors")
    for directory in ("run/model", "exported"):
        found = load_file(tmp_path / directory / "adapter_model.safetensors")
        assert found.keys() == expected.keys()
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_another_base_is_refused_with_both_hashes(trained, tiny_base, tmp_path):
    checkpoint, other = load_checkpoint(tiny_base), tmp_path / "other"
    checkpoint.params["projector"]["fc1"]["bias"] += 1
    save_checkpoint(other, checkpoint)
    with pytest.raises(CheckpointError) as error:
        mgm_jax.load(trained / "model", base=other)
    assert content_hash(tiny_base) in str(error.value) and content_hash(other) in str(error.value)
    record = json.loads((trained / "model" / "mgm_adapter.json").read_text())
    shutil.copytree(trained / "model", tmp_path / "moved")
    record["base"]["path"] = str(tmp_path / "gone")
    (tmp_path / "moved" / "mgm_adapter.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="gone.*--base DIR"):
        mgm_jax.load(tmp_path / "moved")
    (found,) = diagnose(tmp_path / "moved")
    assert found.level == "error" and "gone" in found.what
    (found,) = diagnose(trained / "model")
    assert found.level == "ok" and "rank 4, scale 2, 7 stacks" in found.what
    mgm_jax.load(tmp_path / "moved", base=tiny_base)


def test_chat_with_an_adapter(trained, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    cli.main(["chat", str(trained / "model"), "--question", "Hello", "--max-new-tokens", "2"])
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize(
    "values,message",
    [
        ({"lora__targets": "llm/.*/qproj"}, "'llm/.*/qproj' matches no Linear"),
        ({"lora__targets": "mining/key/kernel"}, "mining/key/kernel is no Linear"),
        ({"lora__alpha": 0.0}, "lora.alpha is 0.0, expected more than 0"),
        ({"lora__dropout": 1.0}, "lora.dropout is 1.0"),
        ({"lora__targets": "llm/lm_head", "lora__dropout": 0.1}, "never whole"),
        ({"optim__schedule": [(".*", {"decay": "constant"})]}, "also trains"),
        (
            {"optim__schedule": [("projector/.*", {"decay": "constant"}), (".*", None)]},
            "no adapter",
        ),
        ({"init": [("llm/.*", "BASE"), (".*", None)]}, "one whole model"),
    ],
)
def test_refusals(lora_config, tiny_base, tmp_path, values, message):
    if "init" in values:
        values = {"init": [(r, path and str(tiny_base)) for r, path in values["init"]]}
        values["model"] = load_checkpoint(tiny_base).config.to_dict()
    config = lora_config()
    with config.unlocked():
        config = lora_config(**{k: v for k, v in values.items() if k != "model"})
        config.model = values.get("model")
    with pytest.raises((TrainingError, ValueError), match=message):
        train.train(config, tmp_path / "no")
