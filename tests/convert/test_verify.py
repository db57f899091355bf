"""`convert verify`: equal checkpoints agree, a changed weight shows where, PyTorch agrees."""

import json
import shutil

import numpy as np
import pytest
from golden_families import complete
from safetensors.numpy import load_file, save_file

from mgm_jax import cli
from mgm_jax.checkpoint import describe
from mgm_jax.convert import verify


def run(*args):
    cli.main(["convert", "verify", *map(str, args)])


@pytest.fixture
def both(tmp_path):
    source = complete("llama_hd", tmp_path)
    cli.main(["convert", "from-hf", "--src", str(source), "--dst", str(tmp_path / "ours")])
    return source, tmp_path / "ours"


def test_a_conversion_agrees_and_says_so_in_its_provenance(both, tmp_path, capsys):
    source, ours = both
    run(source, ours, "--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    printed = capsys.readouterr().out.splitlines()
    report = json.loads(printed[-1])
    assert report == json.loads((tmp_path / "r.json").read_text())
    assert report["passed"] and "they agree" in printed
    modules = {row["module"].split(" of ")[0].split(":")[0] for row in report["rows"]}
    assert modules == {*verify.MODULES, "inputs_embeds", "logits"}
    assert all(row["max_abs"] == 0 and row["top1"] in (None, 1.0) for row in report["rows"])
    kept = describe(ours)["provenance"]
    assert kept["verify"]["passed"] and kept["config.json"]["model_type"] == "mgm"
    html = (tmp_path / "r.html").read_text()
    assert "they agree" in html and "mined of picture 2" in html


def test_a_changed_weight_shows_from_its_module_on(both, tmp_path):
    source, _ = both
    other = tmp_path / "other"
    shutil.copytree(source, other)
    name = "model.vlm_uni_val_projector.1.bias"
    for file in other.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            tensors[name] = tensors[name] + np.float32(0.01)
            file.unlink()
            save_file(tensors, file)
    report = verify.verify(source, other)
    failed = {row["module"].split(" of ")[0] for row in report["rows"] if not row["passed"]}
    assert not report["passed"] and "mined" in failed and "tokens" in failed
    assert not failed & {"clip_features", "convnext_map"}
    (found,) = report["parameters_differ"]
    assert found[0] == "mining/value/bias" and abs(found[1] - 0.01) < 1e-6
    with pytest.raises(SystemExit) as caught:
        run(source, other)
    assert caught.value.code == 1


@pytest.mark.parametrize("name", ["llama_hd", "gemma", "mixtral"])
def test_against_torch(name, tmp_path, capsys):
    pytest.importorskip("transformers", reason="the independent reference")
    pytest.importorskip("torch", reason="the independent reference")
    run(complete(name, tmp_path), "--against", "torch")
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["passed"] and report["b"].startswith("PyTorch")
    assert max(row["max_abs"] for row in report["rows"]) > 0  # two programs, not one twice


def test_bad_input(both, tmp_path):
    source, ours = both
    with pytest.raises(SystemExit, match="either a second checkpoint or --against"):
        run(source)
    (tmp_path / "g").mkdir()
    with pytest.raises(SystemExit, match="different models"):
        run(ours, complete("gemma", tmp_path / "g"))
