"""The published data as data: what is needed, what is there, and double inclusion by content."""

import json

import pytest

from mgm_jax.data import cli
from mgm_jax.data.mixture import check_mixture
from mgm_jax.data.recipe_check import check_recipe, count_files
from mgm_jax.data.recipes import RECIPES, get_recipe, sources_of
from mgm_jax.data.records import Encoded, Record


def test_every_recipe_is_found_by_name_and_folders_are_unique():
    for recipe in RECIPES:
        assert get_recipe(recipe.name) is recipe
        names = [folder.name for folder in recipe.folders]
        assert len(set(names)) == len(names)
        assert all(folder.url.startswith("http") for folder in recipe.folders)
        assert not recipe.inside or get_recipe(recipe.inside)
    with pytest.raises(ValueError, match="mgm-7b.*mgm-pretrain, mgm-instruct, mgm-generation"):
        get_recipe("mgm-7b")


def test_folders_are_those_of_the_original():
    names = {folder.name for folder in get_recipe("mgm-instruct").folders}
    assert names == set(
        "llava coco gqa ocr_vqa textvqa vg gpt4v-dataset sam share_textvqa wikiart web-celebrity "
        "web-landmark ALLaVA-4V docvqa chartqa dvqa ai2d".split()
    )
    assert {f.name for f in get_recipe("mgm-pretrain").folders} == {"images", "ALLaVA-4V"}
    assert get_recipe("mgm-generation").folders == ()


def test_sources_have_the_shape_of_the_config():
    recipe = get_recipe("mgm-pretrain")
    assert sources_of(recipe, "gs://b/pre/") == {
        "mgm-pretrain": {
            "path": "gs://b/pre/mgm_pretrain.json",
            "images": "gs://b/pre",
            "weight": 1.0,
            "skip": "",
        }
    }
    found = sources_of(recipe, "/d", {"ALLaVA-4V": "gs://b/allava"})["mgm-pretrain"]["images"]
    assert found == {"": "/d", "ALLaVA-4V": "gs://b/allava"}
    assert sources_of(get_recipe("mgm-generation"), "/d")["mgm-generation"]["images"] == ""
    with pytest.raises(ValueError, match="no folder cocoa, expected some of: images, ALLaVA-4V"):
        sources_of(recipe, "/d", {"cocoa": "/e"})


def lay_out(root, recipe, *, missing=(), elsewhere=()):
    for folder in recipe.folders:
        if folder.name not in missing:
            home = root / "other" / folder.name if folder.name in elsewhere else root / folder.name
            (home / "deep").mkdir(parents=True)
            (home / "a.jpg").touch()
            (home / "deep" / "b.jpg").touch()
    with (root / recipe.json).open("wb") as file:
        file.truncate(recipe.size[0])  # sparse


def test_check_says_what_is_missing_or_odd(tmp_path):
    recipe = get_recipe("mgm-instruct")
    lay_out(tmp_path, recipe, missing=("vg", "textvqa"), elsewhere=("coco",))
    (tmp_path / "gqa" / "a.jpg").unlink()
    (tmp_path / "gqa" / "deep" / "b.jpg").unlink()
    roots = {"coco": str(tmp_path / "other" / "coco")}
    counts = count_files(recipe, tmp_path, roots)
    assert (counts["vg"], counts["gqa"], counts["coco"], counts["ai2d"]) == (None, 0, 2, 2)
    found = {(f.level, f.what) for f in check_recipe(recipe, tmp_path, roots, counts=counts)}
    assert {what for level, what in found if level == "error"} == {
        f"{tmp_path}/vg: missing",
        f"{tmp_path}/gqa: empty",
    }
    coco = f"{tmp_path}/other/coco: found 2 files, expected 118,287"
    assert ("warning", coco) in found
    assert not any(recipe.json in what for _, what in found)


def test_check_of_the_json_file(tmp_path):
    recipe = get_recipe("mgm-generation")
    (finding,) = check_recipe(recipe, tmp_path)
    assert finding.level == "error" and "mgm_generation_pure_text.json: missing" in finding.what
    (tmp_path / recipe.json).write_text("[]")
    (finding,) = check_recipe(recipe, tmp_path)
    assert "found 2, expected 39,050,000 to 39,150,000" in finding.what
    (tmp_path / "mgm_instruction.json").touch()
    inclusion = check_recipe(recipe, tmp_path)[-1]
    assert "already holds its records" in inclusion.what
    assert inclusion.remedy.endswith("leave out mgm_generation_pure_text.json")
    assert check_recipe(get_recipe("mgm-instruct"), tmp_path)[-1] == inclusion


def test_records_are_counted_when_asked(tmp_path):
    recipe = get_recipe("mgm-pretrain")
    lay_out(tmp_path, recipe)
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]
    records = [{"id": 0, "image": "images/a.jpg", "conversations": turns}]
    (tmp_path / recipe.json).write_text(json.dumps(records))
    texts = [f.what.rpartition("/")[2] for f in check_recipe(recipe, tmp_path, read=True)]
    assert texts[-1] == "mgm_pretrain.json: records: found 1, expected 1,150,000 to 1,300,000"
    assert not any(": records: " in f.what for f in check_recipe(recipe, tmp_path))


def run(*words):
    cli.main(["recipes", *words])


def test_the_command_lists_and_checks(tmp_path, capsys):
    run()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [recipe["name"] for recipe in result["recipes"]] == [recipe.name for recipe in RECIPES]
    recipe, file = get_recipe("mgm-pretrain"), tmp_path / "out.json"
    lay_out(tmp_path, recipe, elsewhere=("images",))
    words = ["mgm-pretrain", "--root", str(tmp_path), "--json", str(file)]
    run(*words, "--folder", f"images={tmp_path}/other/images")
    out = capsys.readouterr().out.splitlines()
    result = json.loads(out[-1])
    assert result["files"] == {"images": 2, "ALLaVA-4V": 2} and result["error"] == 0
    assert file.read_text() == out[-1] + "\n"
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["files"]["images"] is None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["mgm"], "recipe 'mgm': unknown"),
        (["--root", "d"], "expected a recipe's NAME"),
        (["mgm-pretrain", "--read"], "expected --root"),
        (["mgm-pretrain", "--root", "d", "--folder", "coco"], "expected NAME=DIR"),
        (["mgm-pretrain", "--root", "d", "--folder", "coco=e"], "no folder coco"),
    ],
)
def test_bad_options(words, text):
    with pytest.raises(ValueError, match=text):
        run(*words)


class Memory:
    fingerprint = "memory"

    def __init__(self, texts, pictures=False):
        self.texts = list(texts)
        self.images = (Encoded("a.jpg", b""),) if pictures else ()

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, i):
        turns = [{"from": "human", "value": self.texts[i]}, {"from": "gpt", "value": "yes"}]
        return Record(f"x{i}", self.images, turns, f"memory {i}")


class Mixed(Memory):
    """Every tenth text stands without a picture."""

    def __getitem__(self, i):
        record = super().__getitem__(i)
        images = () if i % 10 == 0 else (Encoded("a.jpg", b""),)
        return Record(record.id, images, record.conversations, record.where)


def test_mixture_finds_a_text_only_source_inside_another_by_content():
    large = Mixed(f"text {i}" for i in range(60_000))
    inside = Memory(f"text {i} " for i in range(5_000, 15_000, 10))  # other ids, a space more
    beside = Memory(f"other text {i}" for i in range(1_000))
    (warning,) = check_mixture({"mgm": large, "extra": inside, "own": beside})
    assert "data.sources.extra and data.sources.mgm overlap" in warning
    assert "1000 text-only records" in warning and "leave extra out" in warning
    assert check_mixture({"mgm": large, "own": beside}) == []
    assert check_mixture({"mgm": large}) == [] and check_mixture({}) == []


def test_mixture_leaves_chance_repeats_and_pictures_alone():
    large = Memory(f"text {i}" for i in range(3_000))
    few = Memory([*(f"text {i}" for i in range(10)), *(f"new {i}" for i in range(990))])
    assert check_mixture({"large": large, "few": few}) == []
    pictures = Memory((f"text {i}" for i in range(3_000)), pictures=True)
    assert check_mixture({"large": large, "pictures": pictures}) == []
    twice = check_mixture({"a": large, "b": Memory(large.texts)})
    assert len(twice) == 1 and "about 100%" in twice[0]
