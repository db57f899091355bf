"""`data.sources`: what a path holds is found out from its contents; buckets work like disks."""

import importlib.util
import json

import pytest

from mgm_jax.data.build import build
from mgm_jax.data.build_shard import Options
from mgm_jax.data.images import load_image
from mgm_jax.data.sources import (
    ArrayRecords,
    Kept,
    LlavaJson,
    LlavaJsonl,
    open_source,
    write_skip_list,
)

TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
GOOD, BAD = {"conversations": TURNS}, {"conversations": []}


def test_files_are_told_by_what_they_start_with(tmp_path):
    path = tmp_path / "data"  # the name says nothing
    path.write_text(f"\n [{json.dumps(GOOD)}]")
    assert type(open_source(path)) is LlavaJson
    path.write_text("\n" + json.dumps(GOOD) + "\n" + json.dumps(GOOD))
    source = open_source(str(path), images="", skip="")
    assert type(source) is LlavaJsonl and len(source) == 2


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "data: an empty file, expected a JSON list of records, JSON records one a line"),
        (b"   \n", "data: an empty file, expected"),
        (b"id,text\n1,x", "a file that starts with b'id,text.*expected a JSON list"),
        (b"\x89PNG\r\n", "a file that starts with b'.x89PNG"),
    ],
)
def test_other_files(tmp_path, content, message):
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "data")


def test_folders(tmp_path, llava_data):
    path, images = llava_data(tmp_path)
    build(open_source(path, images), path, tmp_path / "built", Options(), workers=0)
    assert type(open_source(tmp_path / "built")) is ArrayRecords
    with pytest.raises(ValueError, match=f"pictures lie inside the data set.*{images} is given"):
        open_source(tmp_path / "built", images)
    with pytest.raises(ValueError, match="images: found a folder with coco, expected a JSON list"):
        open_source(images)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: found a folder with nothing"):
        open_source(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere: this data file or folder does not"):
        open_source(tmp_path / "nowhere")


@pytest.mark.skipif(
    importlib.util.find_spec("mgm_jax.data.tfds") is None, reason="no mgm_jax.data.tfds yet"
)
def test_tfds_folders_go_to_its_reader(tmp_path, monkeypatch):
    for name in ("dataset_info.json", "features.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr("mgm_jax.data.tfds.TfdsSource", lambda path: ("tfds", path))
    assert open_source(tmp_path) == ("tfds", tmp_path)


def test_only_skipped_records_may_be_malformed(tmp_path):
    path, skip = tmp_path / "f.json", tmp_path / "skip.json"
    path.write_text(json.dumps([GOOD, BAD, GOOD, BAD]))
    with pytest.raises(ValueError, match="record 1: conversations: found an empty list"):
        open_source(path)
    lenient = open_source(path, lenient=True)
    assert len(lenient) == 4 and lenient.bad.keys() == {1, 3}
    write_skip_list(skip, lenient, {1: lenient.bad[1]})
    with pytest.raises(ValueError, match=r"record 3: conversations.*\(not on the skip list .*skip"):
        open_source(path, skip=skip)
    write_skip_list(skip, lenient, lenient.bad)
    source = open_source(path, skip=skip)
    assert isinstance(source, Kept) and len(source) == 2
    assert source[1].where == "f.json record 2"


def test_a_bucket_works_like_a_disk(tmp_path, bucket, llava_data):
    on_disk = open_source(*llava_data(tmp_path))
    path, images = llava_data(bucket)
    source = open_source(path, images)
    assert source.fingerprint == on_disk.fingerprint
    for i in range(len(source)):
        assert source[i].conversations == on_disk[i].conversations
        for ours, theirs in zip(source[i].images, on_disk[i].images, strict=True):
            assert ours.name.startswith("gs://bucket/data/images/coco/")
            assert load_image(ours).tobytes() == load_image(theirs).tobytes()
    (images / "coco" / "0.jpg").unlink()
    with pytest.raises(ValueError, match="gs://bucket/data/images/coco/0.jpg: the file is missing"):
        load_image(source[0].images[0])
    with pytest.raises(FileNotFoundError, match="image folder gs://bucket/no does not exist"):
        open_source(path, "gs://bucket/no")


def test_other_names_of_missing_pictures_in_a_bucket(bucket):
    record = {"image": "vg/VG_100K/1.jpg", "conversations": TURNS}
    (bucket / "f.json").write_text(json.dumps([record]))
    assert open_source(bucket / "f.json", bucket)[0].images[0].name.endswith("vg/images/1.jpg")
    (bucket / "vg" / "VG_100K").mkdir(parents=True)
    (bucket / "vg" / "VG_100K" / "1.jpg").write_bytes(b"x")
    assert open_source(bucket / "f.json", bucket)[0].images[0].name.endswith("VG_100K/1.jpg")
