"""A file of rows that grows: on a disk, in a bucket, after a kill."""

import json

import pytest

from mgm_jax.json_lines import JsonLines


@pytest.fixture(params=["disk", "bucket"])
def file(request, tmp_path):
    folder = tmp_path if request.param == "disk" else request.getfixturevalue("bucket")
    return folder / "rows.jsonl"


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_rows_are_there_as_soon_as_they_are_written(file):
    lines = JsonLines(file)
    assert rows(file) == []
    for n in range(3):
        lines.write({"step": n})
        assert rows(file) == [{"step": i} for i in range(n + 1)]
    lines.close()


def test_what_is_refused_or_cut_off_is_dropped(file):
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n5\n{"step": 1, "lo')
    lines = JsonLines(file, lambda row: row["step"] <= 2)
    lines.write({"step": 3, "again": True})
    lines.close()
    assert rows(file) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_no_place_to_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="rows.jsonl"):
        JsonLines(tmp_path / "file" / "rows.jsonl")
