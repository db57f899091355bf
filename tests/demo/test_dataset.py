"""The dataset on disk: format, determinism, split purity, and failure that leaves nothing."""

import errno
import hashlib
import json
import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgm_jax.demo import dataset, photos, questions
from mgm_jax.demo.scenes import COLOURS

SIZES = {"train": 30, "val": 4, "test": 12, "new_photos": 12}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "demo"
    return out, dataset.build_dataset(out, 0, SIZES, progress=False)


def read(out, name):
    return json.loads((out / f"{name}.json").read_text())


def digest(out):
    files = sorted(file for file in out.rglob("*") if file.is_file())
    return {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def test_counts_and_files(built):
    out, counts = built
    assert counts == {"train": 30, "pretrain": 30, "val": 8, "test": 24, "new_photos": 24}
    assert {name: len(read(out, name)) for name in counts} == counts
    assert len(read(out, "scenes")) == sum(SIZES.values()) == len(list(out.rglob("*.jpg")))
    assert [path.name for path in out.parent.iterdir()] == ["demo"]


def test_training_records_have_both_questions_in_both_orders(built):
    out, _ = built
    first = set()
    for record in read(out, "train"):
        assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"] * 2
        asked = [turn["value"] for turn in record["conversations"][::2]]
        assert asked[0].startswith("<image>\n") and "<image>" not in asked[1]
        asked[0] = asked[0].removeprefix("<image>\n")
        kinds = ["digit" if q in dict(questions.DIGIT_QUESTIONS) else "colour" for q in asked]
        assert sorted(kinds) == ["colour", "digit"]
        first.add(kinds[0])
    assert first == {"digit", "colour"}


def test_captions_share_the_training_pictures(built):
    out, _ = built
    for record, caption in zip(read(out, "train"), read(out, "pretrain"), strict=True):
        assert record["image"] == caption["image"] and record["id"] == caption["id"]
        assert caption["conversations"][0] == {"from": "human", "value": "<image>"}


def test_answers_agree_with_the_scene(built):
    out, _ = built
    about = {scene["image"]: scene for scene in read(out, "scenes")}
    for name in ("val", "test", "new_photos"):
        for record in read(out, name):
            question, answer = (turn["value"] for turn in record["conversations"])
            assert answer == record["answer"]
            assert str(about[record["image"]][record["kind"]]) in answer
            table = dict(questions.QUESTIONS[record["kind"]])
            assert question.removeprefix("<image>\n") in table


def test_pictures_agree_with_the_scene(built):
    out, _ = built
    names, table = list(COLOURS), np.array(list(COLOURS.values()), float)
    for scene in read(out, "scenes"):
        picture = np.asarray(Image.open(out / scene["image"]))
        assert picture.shape == (192, 192, 3)
        x0, y0, x1, y1 = scene["box"]
        card = np.median(picture[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].reshape(-1, 3), 0)
        assert names[np.abs(table - card).sum(1).argmin()] == scene["colour"]


def test_splits_share_neither_glyphs_nor_new_photographs(built, parts):
    out, _ = built
    glyphs, places = {}, {}
    for scene in read(out, "scenes"):
        glyphs.setdefault(scene["split"], []).append(scene["glyph"])
        places.setdefault(scene["split"], set()).add(scene["photo"])
    for name, ids in glyphs.items():
        assert set(ids) <= set(parts[dataset.SPLITS[name].glyphs].ids.tolist())
        assert len(set(ids)) == len(ids)  # none twice before all came once
    assert not set(glyphs["train"]) & set(glyphs["test"] + glyphs["val"] + glyphs["new_photos"])
    assert places["new_photos"] <= set(photos.NEW_PHOTOS)
    for name in ("train", "val", "test"):
        assert not places[name] & set(photos.NEW_PHOTOS)


def test_same_seed_same_bytes_other_seed_other_bytes(built, tmp_path):
    out, _ = built
    dataset.build_dataset(tmp_path / "again", 0, SIZES, progress=False)
    assert digest(tmp_path / "again") == digest(out)
    dataset.build_dataset(tmp_path / "other", 1, {"val": 4}, progress=False)
    assert (
        digest(tmp_path / "other")["images/val/000000.jpg"] != digest(out)["images/val/000000.jpg"]
    )


def test_a_split_does_not_depend_on_the_others(built, tmp_path):
    dataset.build_dataset(tmp_path / "val", 0, {"val": 4}, progress=False)
    whole = digest(built[0])
    assert all(
        whole[name] == value
        for name, value in digest(tmp_path / "val").items()
        if name != "scenes.json"
    )


@pytest.mark.parametrize("sizes", [{"dev": 3}, {"train": 0}])
def test_wrong_sizes(tmp_path, sizes):
    with pytest.raises(ValueError, match=f"{next(iter(sizes))}="):
        dataset.build_dataset(tmp_path / "x", 0, sizes, progress=False)
    assert not any(tmp_path.iterdir())


def test_files_of_others_are_never_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(OSError, match="mine.*not empty"):
        dataset.build_dataset(tmp_path / "mine", 0, {"val": 1}, progress=False)
    assert [file.name for file in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_leftovers_of_a_killed_run_are_replaced(tmp_path):
    (tmp_path / ".x.partial" / "images").mkdir(parents=True)
    dataset.build_dataset(tmp_path / "x", 0, {"val": 1}, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_read_only_place(tmp_path):
    if os.geteuid():
        tmp_path.chmod(0o500)
        out = tmp_path / "x"
    else:  # root may write anywhere but here
        out = Path("/proc/x")
    with pytest.raises(OSError, match=re.escape(f"cannot write the dataset to {out}")):
        dataset.build_dataset(out, 0, {"val": 1}, progress=False)
    tmp_path.chmod(0o700)
    assert not any(tmp_path.iterdir())


def test_write_refused_by_the_system_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot write the dataset to .*demo.*too large"):
            dataset.build_dataset(tmp_path / "demo", 0, {"val": 3}, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any(tmp_path.iterdir())


def test_full_disk_at_the_last_file_leaves_nothing(tmp_path, monkeypatch):
    def full(path, records):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(dataset, "_write_records", full)
    with pytest.raises(OSError, match="cannot write the dataset to .*demo.*No space left"):
        dataset.build_dataset(tmp_path / "demo", 0, {"val": 3}, progress=False)
    assert not any(tmp_path.iterdir())
