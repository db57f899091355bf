"""`convert verify`: parity reports of our models with each other and with PyTorch's modules.

Against transformers every module of every family must be within 1e-5 of the reference (float32;
the command's own tolerance is 1e-4), so that a report's figures mean what they say.
"""

import json
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from golden_families import GOLDEN, complete
from safetensors.numpy import load_file, save_file

from mgm_jax import api, cli
from mgm_jax.checkpoint import describe
from mgm_jax.convert.verify import Difference, verify

FEATURES = ["clip_features", "convnext_map", "mined", "tokens", "image_features"]
MODULES = [*FEATURES, "inputs_embeds", "logits"]
UNUSED = "model.vision_tower.vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return complete("llama_gqa", tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def ours(original, tmp_path_factory):
    directory = tmp_path_factory.mktemp("ours") / "any"
    cli.main(["convert", "from-hf", "--src", str(original), "--dst", str(directory)])
    return directory


def changed(original, place, changes=None, config=None):
    """A copy of an original's directory with other tensors (name -> function) or config values."""
    shutil.copytree(original.parent, place)
    directory = place / original.name
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        if named := {n: f for n, f in (changes or {}).items() if n in tensors}:
            save_file(tensors | {n: f(tensors[n]) for n, f in named.items()}, file)
    values = json.loads((directory / "config.json").read_text()) | (config or {})
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def run(capsys, *arguments):
    """-> (exit code, lines of stdout before the last, JSON of the last)."""
    capsys.readouterr()
    try:
        cli.main(["convert", "verify", *map(str, arguments)])
        code = 0
    except SystemExit as end:
        code = end.code
    *lines, last = capsys.readouterr().out.splitlines()
    return code, lines, json.loads(last)


class Page(HTMLParser):
    """The text of a page, and whatever it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.text, self.fetched = "", []
        self.feed(text)

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attrs):
        self.fetched += [v for k, v in attrs if k in ("src", "href")]


def test_a_conversion_agrees_and_says_so(original, ours, tmp_path, capsys):
    directory = tmp_path / "foo"
    shutil.copytree(ours, directory)
    code, lines, report = run(capsys, original, directory, "--json", tmp_path / "report.json")
    assert code == 0 and report["ok"] and "within tolerance" in lines
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert list(report["modules"]) == MODULES
    for key, figures in report["modules"].items():
        assert figures["max_abs"] == figures["relative"] == 0, key
        assert figures["cosine"] == pytest.approx(1, abs=1e-12)
        assert figures["limit"] == pytest.approx(
            max(1, figures["scale"]) * (2e-4 if key == "logits" else 1e-4)
        )
    assert report["top1"] == 1 and list(report["cases"]) == [
        "one picture",
        "text only",
        "two pictures",
    ]
    assert report["weights"] | {"worst": []} == report["weights"]
    assert report["weights"]["count"] == 214 and report["weights"]["different"] == 0

    summary = describe(directory)["provenance"]["verify"]
    assert summary["ok"] and summary["modules"] == report["modules"]
    sums = describe(directory)["provenance"]["sha256"]
    assert sorted(summary["source"]["sha256"].values()) == sorted(sums.values())
    page = Page((directory / "verify.html").read_text())
    assert "The two agree" in page.text and "merged embeddings" in page.text
    assert not page.fetched
    api.load(directory, dtype="float32")  # as good as before


def test_nothing_is_written_beside_an_original(original, capsys, tmp_path):
    before = {f.name: f.read_bytes() for f in original.iterdir()}
    code, _, _ = run(capsys, original, original, "--html", tmp_path / "page.html")
    assert code == 0 and {f.name: f.read_bytes() for f in original.iterdir()} == before
    assert "The two agree" in (tmp_path / "page.html").read_text()


def test_a_changed_tensor_is_named_with_the_modules_behind_it(original, ours, tmp_path, capsys):
    name = "model.mm_projector.2.weight"
    wrong = changed(original, tmp_path / "wrong", {name: lambda a: a + np.float32(0.01)})
    code, lines, report = run(capsys, wrong, ours)
    assert code == 1 and not report["ok"] and "NOT within tolerance" in lines
    bad = [key for key, figures in report["modules"].items() if not figures["ok"]]
    assert bad == ["image_features", "inputs_embeds", "logits"]
    assert report["cases"]["text only"]["agree"] == report["cases"]["text only"]["positions"]
    assert report["weights"]["different"] == 1
    (worst,) = report["weights"]["worst"]
    assert worst["name"] == name and worst["max_abs"] == pytest.approx(0.01, rel=1e-3)
    assert describe(ours)["provenance"]["verify"]["ok"] is False
    assert run(capsys, wrong, ours, "--tolerance", "100")[0] == 0


def test_values_of_the_config_and_weights_that_never_run(original, tmp_path):
    directory = changed(
        original, tmp_path / "other", {UNUSED: lambda a: a + 1}, {"rope_theta": 20000.0}
    )
    report = verify(original, directory)
    assert report["config"] == ["llm.rope_theta: 500000.0 in A, 20000.0 in B"]
    assert [w["name"] for w in report["weights"]["worst"]] == [UNUSED]
    ok = {key: figures["ok"] for key, figures in report["modules"].items()}
    assert ok == dict.fromkeys(MODULES, True) | {"logits": False}


def test_not_a_number_is_never_within(original, tmp_path):
    bad = changed(original, tmp_path / "nan", {"model.norm.weight": lambda a: a * np.nan})
    report = verify(original, bad, tolerance=1e30)
    assert not report["ok"] and report["modules"]["logits"]["max_abs"] is None
    assert "NaN" not in json.dumps(report)


def test_models_of_other_shapes_and_bad_arguments(original, ours, tmp_path):
    with pytest.raises(ValueError, match=r"different shapes:\n(.*\n)*  llm.vocab_size: 384 in A"):
        verify(original, complete("gemma", tmp_path))
    with pytest.raises(ValueError, match="two models"):
        verify(original)
    with pytest.raises(ValueError, match="nothing.*mgm.json is missing"):
        verify(original, tmp_path / "nothing")
    with pytest.raises(ValueError, match="tolerance is nan"):
        verify(original, ours, tolerance=float("nan"))
    shutil.copy(GOLDEN / "tokenizers/llama2/tokenizer.model", tmp_path / "foo")
    with pytest.raises(ValueError, match="the vocabulary has 352 rows"):
        verify(tmp_path / "foo", tmp_path / "foo")


def test_prompts_of_the_checkpoints_tokenizer(tiny_demo, tmp_path):
    directory = tmp_path / "foo"
    shutil.copytree(tiny_demo / "base_mining", directory)
    description = describe(directory)
    description["template"] = "llama_3"
    (directory / "mgm.json").write_text(json.dumps(description))
    report = verify(tiny_demo / "base_mining", directory)
    assert report["prompts"] == "tokenizer" and not report["ok"]  # although every number agrees
    assert all(figures["max_abs"] == 0 for figures in report["modules"].values())
    assert any(line.startswith("template: 'v1' in A") for line in report["config"])
    assert any("different ids" in line for line in report["config"])


def test_figures_against_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 7)).astype(np.float32)
    whole, parts = Difference(), Difference()
    whole.add(a, b)
    for row in range(5):
        parts.add(a[row], b[row])
    a, b = a.astype(np.float64), b.astype(np.float64)
    expected = {
        "max_abs": np.abs(a - b).max(),
        "relative": np.linalg.norm(a - b) / np.linalg.norm(a),
        "cosine": (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b),
        "scale": np.sqrt((a * a).mean()),
    }
    for difference in (whole, parts):
        found = difference.figures(1e-4)
        assert {k: found[k] for k in expected} == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"found \(2,\), expected \(3,\)"):
        whole.add(np.zeros(3), np.zeros(2))


# --- against PyTorch ---


@pytest.fixture
def torch():
    pytest.importorskip("transformers", reason="the independent reference")
    return pytest.importorskip("torch", reason="PyTorch is the independent reference")


@pytest.mark.parametrize("name", ["gemma", "mixtral", "llama_hd"])
def test_every_family_against_torch(torch, name, tmp_path):
    report = verify(complete(name, tmp_path), against="torch")
    assert report["ok"] and report["weights"] is None and report["top1"] == 1
    assert list(report["modules"]) == MODULES
    for key, figures in report["modules"].items():
        assert figures["max_abs"] <= 2e-5, (key, figures)


def test_against_torch_finds_the_module_that_is_wrong(torch, original, ours, tmp_path, capsys):
    name = "model.vlm_uni_val_projector.1.bias"
    wrong = changed(original, tmp_path / "wrong", {name: lambda a: a + 1})
    code, lines, report = run(capsys, wrong, ours, "--against", "torch")
    assert code == 1 and report["against"] == "torch" and "in PyTorch" in lines[0]
    ok = [key for key, figures in report["modules"].items() if figures["ok"]]
    assert ok == ["clip_features", "convnext_map"]
    assert report["weights"]["worst"][0]["name"] == name
    assert describe(ours)["provenance"]["verify"]["against"] == "torch"


def test_without_torch_the_extra_is_named(original, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"pip install 'mgm-jax\[test\]'"):
        verify(original, against="torch")
