"""Pictures of one JSON file in several places."""

import json

import pytest
from ml_collections import ConfigDict

from mgm_jax.data.roots import place, read_roots
from mgm_jax.data.sources import open_source


def test_place():
    roots = {"": "/d/", "coco": "gs://b/coco/"}
    assert place("/d", "coco/a.jpg") == "/d/coco/a.jpg"
    assert place(roots, "coco/train2017/a.jpg") == "gs://b/coco/train2017/a.jpg"
    assert place(roots, "coco.jpg") == "/d/coco.jpg"
    assert place(roots, "vg/images/1.jpg") == "/d/vg/images/1.jpg"
    with pytest.raises(ValueError, match="found 'vg/1.jpg', expected .* one of coco/"):
        place({"coco": "/c"}, "vg/1.jpg")


@pytest.mark.parametrize("images", [3, ["a"], {"a/b": "c"}, {1: "c"}, {"a": 1}])
def test_bad_roots(images):
    with pytest.raises(ValueError, match="images: found"):
        read_roots(images)


def write(tmp_path, *images):
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]
    records = [{"id": i, "image": image, "conversations": turns} for i, image in enumerate(images)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    return tmp_path / "a.json"


@pytest.mark.parametrize("kind", [dict, ConfigDict])
def test_a_source_with_pictures_in_two_places(tmp_path, kind):
    for folder in ("main", "far/VG_100K"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "far" / "VG_100K" / "1.jpg").write_bytes(b"one")
    path = write(tmp_path, "coco/2.jpg", "vg/VG_100K/1.jpg", "vg/VG_100K_2/3.jpg")
    roots = kind({"": str(tmp_path / "main"), "vg": str(tmp_path / "far")})
    found = [record.images[0] for record in open_source(path, roots)]
    assert [picture.name.removeprefix(f"{tmp_path}/") for picture in found] == [
        "main/coco/2.jpg",
        "far/VG_100K/1.jpg",
        "far/images/3.jpg",  # the other name of a missing picture
    ]
    with found[1].open() as file:
        assert file.read() == b"one"


def test_each_picture_and_each_folder_must_have_a_place(tmp_path):
    path = write(tmp_path, "coco/2.jpg", "vg/1.jpg")
    with pytest.raises(ValueError, match=r"a.json record 1 \(id 1\): image: found 'vg/1.jpg'"):
        open_source(path, {"coco": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="image folder .*/none does not exist"):
        open_source(path, {"coco": str(tmp_path), "vg": str(tmp_path / "none")})
