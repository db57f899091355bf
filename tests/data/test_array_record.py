"""`data.array_record`: reading what `data build` makes, and refusing what is missing or damaged."""

import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mgm_jax.data.array_record import ArrayRecords, decode, encode
from mgm_jax.data.build import build
from mgm_jax.data.build_shard import Options
from mgm_jax.data.images import load_image
from mgm_jax.data.records import Record
from mgm_jax.data.sources import open_source

REMEDY = "run the same `mgm-jax data build` again"


@pytest.fixture
def built(tmp_path, llava_data):
    """(source, folder of its data set in shards of 4, 4 and 2 records)."""
    path, images = llava_data(tmp_path)
    source = open_source(path, images)
    build(source, path, tmp_path / "built", Options(str(images), records_per_shard=4), workers=0)
    return source, tmp_path / "built"


def test_records_are_those_of_the_source(built):
    original, folder = built
    source = ArrayRecords(folder)
    assert len(source) == len(original) == 10
    for i in (9, 3, 2, 0, 5):
        ours, theirs = source[i], original[i]
        assert (ours.id, ours.conversations) == (theirs.id, theirs.conversations)
        assert ours.where == f"built record {i}, from train.json record {i} (id r{i})"
        for a, b in zip(ours.images, theirs.images, strict=True):
            with b.open() as file:
                assert a.data == file.read()
            assert a.name == b.name.split("images/")[1]
            assert load_image(a).tobytes() == load_image(b).tobytes()
    assert source[-1].id == source[np.int64(9)].id == "r9"
    with pytest.raises(IndexError, match="built: no record 10, found 10 records"):
        source[10]


def test_the_index(built):
    index = ArrayRecords(built[1]).index()
    np.testing.assert_array_equal(index.pictures, [1, 1, 0, 2, 1, 1, 1, 1, 1, 1])
    # "<image>" is a word, as in the original
    np.testing.assert_array_equal(index.words, [5, 6, -6, 9, 9, 10, 11, 12, 13, 14])
    np.testing.assert_array_equal(index.widths, [60, 61, 63, 64, 64, 65, 66, 67, 68, 69])
    assert set(index.heights) == {30} and (index.bytes > 100).all()


def test_the_pickle_is_small_and_readers_are_opened_anew(built):
    source = ArrayRecords(built[1])
    assert source[0].id == "r0"
    data = pickle.dumps(source)
    assert len(data) < 4000
    assert pickle.loads(data)[7] == source[7]


def test_many_threads_share_one_source(built):
    source = ArrayRecords(built[1])
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda i: source[i % 10].id, range(400)))
    assert found == [f"r{i % 10}" for i in range(400)]


def test_elements_keep_any_text():
    turns = [{"from": "human", "value": "\ud800 é 😀\0", "extra": [1, None, 2.5]}]
    record = Record("\udfff", (), turns, "w")
    found = decode(encode(record, [("é", b"\xff")]), "d record 0")
    assert (found.id, found.conversations) == (record.id, turns)
    assert (found.images[0].name, found.images[0].data) == ("é", b"\xff")
    assert found.where == "d record 0, from w"


def test_the_fingerprint_is_that_of_the_contents(built, tmp_path):
    original, folder = built
    again = tmp_path / "again"
    build(original, "x", again, Options(original.image_root, records_per_shard=4), workers=0)
    assert ArrayRecords(again).fingerprint == ArrayRecords(folder).fingerprint
    other = tmp_path / "other"
    build(original, "x", other, Options(original.image_root, 50, 90, 4), workers=0)
    assert ArrayRecords(other).fingerprint != ArrayRecords(folder).fingerprint


# Errors


@pytest.mark.parametrize("name", ["records-00001-of-00003.array_record", "index.npz"])
def test_missing_and_cut_files(built, name):
    file = built[1] / name
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(
        ValueError, match=f"{name}: found {len(data) - 1} bytes, expected {len(data)}; {REMEDY}"
    ):
        ArrayRecords(built[1])
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match=f"{name}: this file of the .* is missing; {REMEDY}"
    ):
        ArrayRecords(built[1])


def flip(file, at):
    data = bytearray(file.read_bytes())
    data[at] ^= 0xFF
    file.write_bytes(data)


def test_a_damaged_shard(built):
    folder = built[1]
    assert ArrayRecords(folder).verify(workers=0) == []
    shard = folder / "records-00001-of-00003.array_record"
    flip(shard, shard.read_bytes().index(ArrayRecords(folder)[5].images[0].data) + 30)
    source = ArrayRecords(folder)
    assert source[4].id == "r4" and source[6].id == "r6"
    message = r"records-00001-of-00003.array_record record 1 \(record 5 of the data set\): damaged"
    with pytest.raises(ValueError, match=f"{message}.*{REMEDY}"):
        source[5]
    (found,) = source.verify(workers=0)
    assert re.search(f"{shard}: damaged, found SHA-256 .*, expected .*; {REMEDY}", found)


def test_a_shard_without_its_end(built):
    folder = built[1]
    shard = folder / "records-00000-of-00003.array_record"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    with pytest.raises(ValueError, match=f"records-00000.*record 0.*damaged.*{REMEDY}"):
        ArrayRecords(folder)[0]


def test_a_damaged_index(built):
    flip(built[1] / "index.npz", 300)
    source = ArrayRecords(built[1])
    with pytest.raises(ValueError, match=f"index.npz: damaged.*{REMEDY}"):
        source.index()
    assert "index.npz: damaged" in source.verify(workers=0)[0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 2}, "made by a newer mgm_jax .version 2 .* update mgm_jax, or build"),
        ({"format": "other"}, "format: found 'other' 1, expected 'mgm-jax records'"),
        ({"version": "1"}, "format: found 'mgm-jax records' '1', expected"),
        ({"shards": []}, f"lists no shard; {REMEDY}"),
        ({"shards": [{"name": "x"}]}, f"a field is missing or unknown .*; {REMEDY}"),
        ({"index": None}, f"a field is missing or unknown .*; {REMEDY}"),
    ],
)
def test_other_descriptions(built, change, message):
    file = built[1] / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=f"dataset.json: {message}"):
        ArrayRecords(built[1])


def test_a_build_that_is_not_finished(built):
    (built[1] / "dataset.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"built: .*the build is not finished; {REMEDY}"):
        open_source(built[1])


def test_buckets_that_array_record_does_not_read():
    with pytest.raises(
        ValueError, match="reads from disks and gs://, found s3://; copy the folder"
    ):
        ArrayRecords("s3://bucket/built")
