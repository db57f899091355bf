"""`data.llava`: reading, checking and path rules of LLaVA files, as JSON and one record a line."""

import hashlib
import json
import pickle

import numpy as np
import pytest

from mgm_jax.data.llava import LlavaJson, LlavaJsonl, rewrite

TALK = [{"from": "human", "value": "<image>\nWho? é 😀"}, {"from": "gpt", "value": "A ] , [ cat."}]
RECORDS = [
    {"id": "a", "image": "coco/1.jpg", "conversations": TALK},
    {"conversations": TALK[1:] * 3},
    {"id": 7, "image": ["x/1.png", "x/../2.png"], "conversations": TALK},
    {"id": "null", "image": None, "conversations": TALK},
]


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "train.json"
        content = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        path.write_text(content, encoding="utf-8")
        return path

    return write


def names(record):
    return tuple(picture.name for picture in record.images)


def lines(content):
    return "\r\n \n".join(json.dumps(record, ensure_ascii=False) for record in content)


def sparse(content):
    return json.dumps(content, indent=2, ensure_ascii=False).replace("\n", "\r\n") + "\n\n"


@pytest.mark.parametrize(
    "kind, render",
    [(LlavaJson, json.dumps), (LlavaJson, sparse), (LlavaJsonl, lines)],
    ids=["compact ASCII", "indented UTF-8", "lines"],
)
def test_records_by_index(write, tmp_path, kind, render):
    path = write(render(RECORDS))
    source = kind(path, tmp_path)
    assert len(source) == 4
    assert source.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    for i in (3, 0, 2, 1):  # any order
        assert source[i].conversations == RECORDS[i]["conversations"]
    assert [source[i].id for i in range(4)] == ["a", "1", "7", "null"]
    assert names(source[0]) == (str(tmp_path / "coco/1.jpg"),)
    assert source[1].images == source[3].images == ()
    assert names(source[2]) == (str(tmp_path / "x/1.png"), str(tmp_path / "x/../2.png"))
    assert source[0].where == "train.json record 0 (id a)"
    assert source[1].where == "train.json record 1"


def test_indices(write, tmp_path):
    source = LlavaJson(write(RECORDS), tmp_path)
    assert source[-1] == source[np.int64(3)] == source[3]
    assert [record.id for record in source] == ["a", "1", "7", "null"]
    for bad in (4, -5):
        with pytest.raises(IndexError, match=f"no record {bad}, found 4 records"):
            source[bad]
    with pytest.raises(TypeError):
        source["0"]


def test_to_dict(write, tmp_path):
    source = LlavaJson(write(RECORDS), tmp_path)
    image = str(tmp_path / "coco/1.jpg")
    assert source[0].to_dict() == {"id": "a", "image": image, "conversations": TALK}
    assert source[1].to_dict() == {"id": "1", "conversations": RECORDS[1]["conversations"]}
    assert len(source[2].to_dict()["image"]) == 2


def test_the_pickle_is_small(write, tmp_path):
    source = LlavaJson(write(RECORDS * 500), tmp_path)
    data = pickle.dumps(source)
    assert len(data) < 20 * len(source)
    assert pickle.loads(data)[1234] == source[1234]


def test_text_only_files_need_no_folder(write):
    assert LlavaJson(write([{"conversations": TALK[1:]}]))[0].images == ()


@pytest.mark.parametrize(
    "image, expected",
    [
        ("ocr_vqa/images/1.jpg", "ocr_vqa/images/1.png"),
        ("vg/VG_100K/1.jpg", "vg/images/1.jpg"),
        ("vg/VG_100K_2/1.jpg", "vg/images/1.jpg"),
        ("coco/1.jpg", "coco/1.jpg"),
    ],
)
def test_other_names_of_missing_pictures(write, tmp_path, image, expected):
    assert rewrite(image) == expected
    source = LlavaJson(write([{"image": image, "conversations": TALK}]), tmp_path)
    assert names(source[0]) == (str(tmp_path / expected),)
    (tmp_path / image).parent.mkdir(parents=True)
    (tmp_path / image).touch()
    assert names(source[0]) == (str(tmp_path / image),)


# Errors


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "train.json: found an empty file, expected a JSON list"),
        ('{"a": 1}', 'train.json: found {"a": 1}, expected a JSON list'),
        ("[]", "train.json: found an empty list, expected at least one record"),
        (" [", "train.json: invalid JSON"),
        ("[ ] x", "train.json: invalid JSON, text after the list"),
        ("[1]", "train.json record 0: found 1, expected an object"),
        (json.dumps(RECORDS)[:-30], "train.json: invalid JSON, .*line 1 column"),
        (json.dumps(RECORDS)[:-1], "train.json: invalid JSON, expected ',' or ']'"),
        (json.dumps(RECORDS) + "[]", "train.json: invalid JSON, text after the list"),
        (json.dumps(RECORDS)[:-1] + ",]", "train.json: invalid JSON"),
        ([RECORDS[0], {"id": 5}], r"train.json record 1 \(id 5\): conversations: found nothing"),
        ([{"conversations": []}], "record 0: conversations: found an empty list"),
        ([{"conversations": {}}], "record 0: conversations: found an object"),
        ([{"conversations": ["hi"]}], r'record 0: conversations\[0\]: found "hi"'),
        ([{"conversations": [TALK[0], {"from": "gpt"}]}], r"record 0: conversations\[1\]: found"),
        ([{"image": 3, "conversations": TALK}], "record 0: image: found 3, expected a path"),
        ([{"image": "", "conversations": TALK}], 'record 0: image: found "", expected a path'),
        ([{"image": "/etc/a.png", "conversations": TALK}], "stays in the image folder"),
        ([{"image": "a/../../b.png", "conversations": TALK}], "stays in the image folder"),
        ([{"image": ["ok.png", ".."], "conversations": TALK}], "stays in the image folder"),
    ],
)
def test_bad_files(write, tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        LlavaJson(write(content), tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (" \n\n", "train.json: found an empty file, expected one JSON record a line"),
        ('{"a": 1', "train.json: invalid JSON, .*line 1 column"),
        (lines(RECORDS)[:-1], "train.json: invalid JSON, .*line 7 column"),
        (lines(RECORDS) + "{}", "train.json: invalid JSON, Extra data: line 7"),
        (lines([RECORDS[0], {"id": 5}]), r"record 1 \(id 5\): conversations: found nothing"),
        (json.dumps(RECORDS), "train.json record 0: found a list, expected an object"),
    ],
)
def test_bad_lines(write, tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        LlavaJsonl(write(content), tmp_path)


def test_lenient_leaves_bad_records_to_the_moment_they_are_read(write, tmp_path):
    good, bad = json.dumps(RECORDS[0]), '{"conversations": [}'
    source = LlavaJsonl(write("\n".join((good, bad, "3", good))), tmp_path, lenient=True)
    assert len(source) == 4 and source[0].id == source[3].id == "a"
    assert source.bad.keys() == {1, 2}
    for i in (1, 2):
        with pytest.raises(ValueError) as error:
            source[i]
        assert str(error.value) == source.bad[i]
    assert "line 2 column 20" in source.bad[1] and "record 2: found 3" in source.bad[2]


def test_missing_file_and_folders(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="no.json: this data file does not exist"):
        LlavaJson(tmp_path / "no.json", tmp_path)
    with pytest.raises(ValueError, match="found a folder, expected a JSON file"):
        LlavaJson(tmp_path, tmp_path)
    with pytest.raises(
        FileNotFoundError, match="train.json: image folder .*nowhere does not exist"
    ):
        LlavaJson(write(RECORDS), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="train.json: its records have images"):
        LlavaJson(write(RECORDS))


def test_not_utf8(tmp_path):
    (tmp_path / "train.json").write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match="train.json: not UTF-8 text at byte 2"):
        LlavaJson(tmp_path / "train.json", tmp_path)
    (tmp_path / "train.json").write_bytes(b'{"id": 1}\n"\xff"')
    with pytest.raises(ValueError, match="train.json line 2: not UTF-8 text at byte 11"):
        LlavaJsonl(tmp_path / "train.json", tmp_path, lenient=True)[1]


def test_a_file_that_changes_is_noticed(write, tmp_path):
    source = LlavaJson(write(RECORDS), tmp_path)
    write("[{}]")
    with pytest.raises(ValueError, match="record 2: the file changed while in use"):
        source[2]
