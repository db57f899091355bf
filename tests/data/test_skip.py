"""`data.skip`: explicit lists of records to leave out."""

import json
import pickle

import pytest

from mgm_jax.data.records import Record
from mgm_jax.data.skip import FORMAT, Kept, read_skip_list, write_skip_list


class Numbers:
    """Ten records; record i has the id i."""

    fingerprint = "f" * 8

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return Record(str(i), (), [], f"numbers record {i}")


def ids(source):
    return [int(source[i].id) for i in range(len(source))]


@pytest.mark.parametrize("skipped", [[], [0], [9], [3, 4, 5], [0, 2, 9], [8, 1, 1], list(range(9))])
def test_kept_records_keep_their_order_and_name(skipped):
    source = Kept(Numbers(), skipped)
    expected = [i for i in range(10) if i not in skipped]
    assert ids(source) == expected and len(source) == len(expected)
    assert source[-1].where == f"numbers record {expected[-1]}"
    assert ids(pickle.loads(pickle.dumps(source))) == expected
    with pytest.raises(IndexError, match=f"no record {len(expected)}, found {len(expected)}"):
        source[len(expected)]


def test_the_fingerprint_covers_the_list():
    some = [Kept(Numbers(), skipped).fingerprint for skipped in ([1], [2], [1, 2], {2: "", 1: ""})]
    assert len(set(some)) == 3 and some[2] == some[3]
    assert Numbers.fingerprint not in some


def test_nothing_left():
    with pytest.raises(ValueError, match="all 10 records are on the skip list"):
        Kept(Numbers(), range(10))


def test_round_trip(tmp_path, bucket):
    reasons = {7: "picture é.jpg: the file is missing", 1: "a lone surrogate \ud800"}
    for path in (tmp_path / "skip.json", bucket / "skip.json"):
        write_skip_list(path, Numbers(), reasons)
        assert read_skip_list(path, Numbers()) == reasons
        assert [child.name for child in path.parent.iterdir()] == ["skip.json"]
    assert list(json.loads((tmp_path / "skip.json").read_text())["records"]) == ["1", "7"]


def test_a_list_of_another_data_set_is_refused(tmp_path):
    class Others(Numbers):
        fingerprint = "0" * 8

    write_skip_list(tmp_path / "skip.json", Numbers(), {1: "bad"})
    with pytest.raises(
        ValueError, match="fingerprint ffffffff.*with 00000000; make a new list with"
    ):
        read_skip_list(tmp_path / "skip.json", Others())


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "skip.json: invalid JSON .*expected a skip list"),
        ("[1]", "found a list, expected a skip list"),
        ({}, f"format: found None, expected '{FORMAT}'"),
        ({"format": "mgm-jax skip list 2"}, "format: found 'mgm-jax skip list 2'"),
        ({"format": FORMAT}, "fingerprint: expected a text"),
        ({"format": FORMAT, "fingerprint": "f", "records": [1]}, "records: expected {"),
        (
            {"format": FORMAT, "fingerprint": "f", "records": {"10": ""}},
            "number '10', expected 0 to 9",
        ),
        (
            {"format": FORMAT, "fingerprint": "f", "records": {"-1": ""}},
            "number '-1', expected 0 to",
        ),
        ({"format": FORMAT, "fingerprint": "f", "records": {"x": ""}}, "number 'x', expected 0 to"),
        (
            {"format": FORMAT, "fingerprint": "f", "records": {"1": 2}},
            "1: found 2, expected a text",
        ),
    ],
)
def test_bad_lists(tmp_path, content, message):
    path = tmp_path / "skip.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_skip_list(path, Numbers())


def test_a_missing_list_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.json: this skip list does not exist"):
        read_skip_list(tmp_path / "no.json", Numbers())
    with pytest.raises(ValueError, match="found a folder, expected a skip list"):
        read_skip_list(tmp_path, Numbers())
