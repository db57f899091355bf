"""`mgm-jax data check`: every kind of fault, the page, skip lists, and that training agrees."""

import argparse
import io
import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mgm_jax.data import check
from mgm_jax.data.build import build
from mgm_jax.data.build_shard import Options
from mgm_jax.data.check_record import Rules, count_tokens, look
from mgm_jax.data.check_report import repeats
from mgm_jax.data.findings import KINDS, printable
from mgm_jax.data.images import load_image, to_hr
from mgm_jax.data.pipeline import Encoder
from mgm_jax.data.records import Encoded, Record
from mgm_jax.data.skip import read_skip_list
from mgm_jax.data.sources import open_source
from mgm_jax.models.config import ImageSpec
from mgm_jax.text import load_tokenizer

SPEC = ImageSpec(lr_size=8, hr_size=32)


def encoded(size=(40, 30), form="PNG", mode="RGB", seed=0, **options):
    """The bytes of a picture of noise."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(form="JPEG", exif=exif)


def animated():
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


PICTURES = {
    "coco/good.png": encoded(),
    "coco/empty.jpg": b"",
    "coco/noise.jpg": bytes(range(256)) * 4,
    "coco/cut.jpg": encoded(form="JPEG")[:-400],
    "coco/floats.tif": encoded(form="TIFF", mode="F"),
    "coco/big.png": encoded((70, 60)),  # --max-pixels 4000
    "gqa/strip.png": encoded((600, 2)),
    "gqa/tiny.png": encoded((9, 9)),
    "gqa/animated.gif": animated(),
    "gqa/rotated.jpg": rotated(),
    "gqa/folder.jpg/inside.png": encoded(),
}


def talk(*texts, roles=("human", "gpt")):
    return [{"from": roles[n % 2], "value": text} for n, text in enumerate(texts)]


def shows(image, question="<image>\nWhat digit is on the card?"):
    return {"image": image, "conversations": talk(question, f"It is {image!r}.")}


def says(*texts, **options):
    return {"conversations": talk(*texts, **options)}


RECORDS = (  # (kind of the finding, record), each kind once
    (None, shows("coco/good.png")),
    (None, says("a?", "3")),
    ("record", {"conversations": "none"}),
    ("outside", shows("../secret.png")),
    ("role", says("a?", "3", roles=("human", "<b>robot</b>"))),
    ("alternation", says("a?", "3", roles=("human", "human"))),
    ("unanswered", says("a?", "3", "b?") | {"id": "\x1b[1m\ud800"}),
    ("empty_question", says(" \n", "3")),
    ("empty_answer", says("a?", "")),
    ("placeholders", says("<image>\na?", "3")),
    ("unicode", says("a \ud800 ?", "3")),
    ("too_long", says("What digit is on the card? " * 40, "3")),
    ("missing_picture", shows("coco/nowhere.png")),
    ("unreadable_picture", shows("gqa/folder.jpg")),
    ("empty_picture", shows("coco/empty.jpg")),
    ("corrupt_picture", shows("coco/noise.jpg")),
    ("truncated_picture", shows("coco/cut.jpg")),
    ("unsupported_picture", shows("coco/floats.tif")),
    ("too_many_pixels", shows("coco/big.png")),
    ("duplicate", shows("coco/good.png")),
    ("duplicate_id", says("b?", "4") | {"id": "r0"}),
    ("extreme_aspect", shows("gqa/strip.png")),
    ("tiny_picture", shows("gqa/tiny.png")),
    ("animation", shows("gqa/animated.gif")),
    ("rotated", shows("gqa/rotated.jpg")),
    (None, says("c?", "5")),
)
EXPECTED = {kind: i for i, (kind, _) in enumerate(RECORDS) if kind}
ELSEWHERE = {"shard", "template", "refused", "too_long_strip"}  # not faults of these records
ERRORS = {kind: i for kind, i in EXPECTED.items() if KINDS[kind].level == "error"}


def write(folder, records):
    for name, data in PICTURES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    file = folder / "train.json"
    file.write_text(json.dumps([{"id": f"r{i}"} | record for i, record in enumerate(records)]))
    return file


def run(*arguments):
    """The command in this process; returns its exit code."""
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    try:
        check.main(parser.parse_args([str(a) for a in arguments] + ["--workers", "0"]))
    except SystemExit as leave:
        return leave.code
    return 0


@pytest.fixture(scope="module")
def lengths(tiny_tokenizer):
    return ("--tokenizer", tiny_tokenizer, "--template", "v1", "--length", 200) + (
        "--visual-tokens",
        16,
    )


@pytest.fixture(scope="module")
def faulty(tmp_path_factory, lengths):
    """The files of one check of RECORDS: its folder, exit code, summary and page."""
    folder = tmp_path_factory.mktemp("faulty")
    file = write(folder, [record for _, record in RECORDS])
    code = run(
        *(file, "--images", folder, *lengths, "--max-pixels", 4000),
        *("--json", folder / "found.json", "--html", folder / "page.html"),
        *("--write-skip", folder / "skip.json"),
    )
    summary = json.loads((folder / "found.json").read_text())
    return folder, code, summary, (folder / "page.html").read_text()


def test_every_kind_is_found_once(faulty):
    folder, code, summary, _ = faulty
    assert set(EXPECTED) | ELSEWHERE == set(KINDS)
    assert code == 1
    assert summary["kinds"] == dict.fromkeys(EXPECTED, 1)
    assert summary["errors"] == summary["bad_records"] == len(ERRORS)
    assert summary["warnings"] == len(EXPECTED) - len(ERRORS)


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_name_their_record(faulty, kind):
    folder, *_ = faulty
    reasons = json.loads((folder / "skip.json").read_text())["records"]
    assert sorted(map(int, reasons)) == sorted(ERRORS.values())
    assert reasons[str(ERRORS[kind])].startswith(f"train.json record {ERRORS[kind]}")


@pytest.mark.parametrize("number", range(len(RECORDS)))
def test_training_stops_at_errors_alone(faulty, tiny_tokenizer, number):
    folder, *_ = faulty
    source = open_source(folder / "train.json", folder, lenient=True)
    encoder = Encoder("v1", load_tokenizer(tiny_tokenizer), 16, 200)

    def train():
        record = source[number]
        encoder(record)
        for picture in record.images:
            to_hr(load_image(picture), SPEC)

    kind, _ = RECORDS[number]
    if kind in ERRORS and kind != "too_many_pixels":  # fewer than Pillow's limit, by an option
        with pytest.raises(ValueError, match=f"train.json record {number} "):
            train()
    else:
        train()


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_page_lists_the_record_under_its_kind(faulty, kind):
    page = faulty[3]
    section = page.split(f"<h3 id={kind}>")[1].split("<h3")[0]
    assert f"train.json record {EXPECTED[kind]}" in section
    assert section.count("train.json record") == (2 if kind.startswith("duplicate") else 1)
    shown = {"extreme_aspect", "tiny_picture", "animation", "rotated"}
    assert ("<img " in section) == (kind in shown)
    boxed = {k for k in EXPECTED if k.endswith("_picture")} - shown | {"too_many_pixels"}
    assert ("class=none" in section) == (kind in boxed)


def test_the_page_escapes_and_needs_no_other_file(faulty):
    page = faulty[3]
    assert "&lt;b&gt;robot&lt;/b&gt;" in page and "<b>" not in page
    assert not re.search(r"(src|href)=(?!'data:|'#)", page)
    assert r"(id \x1b[1m\ud800)" in page


def test_totals_and_folders(faulty):
    _, _, summary, _ = faulty
    assert summary["command"] == "data check" and summary["records"] == len(RECORDS)
    assert summary["pictures"] == 13 and summary["multi_image"] == 0
    assert summary["bytes"] == sum(map(len, PICTURES.values())) + len(PICTURES["coco/good.png"]) - (
        len(PICTURES["gqa/folder.jpg/inside.png"])
    )
    assert summary["pixels"]["max"] == 70 * 60
    assert 0 < summary["tokens"]["p50"] <= summary["tokens"]["max"] <= 200
    folders = summary["sources"]
    assert folders["coco"] == {"records": 8, "pictures": 8, "errors": 6, "warnings": 1}
    assert folders["gqa"] == {"records": 5, "pictures": 5, "errors": 1, "warnings": 4}
    assert folders["(unreadable)"]["errors"] == 2
    assert sum(counts["records"] for counts in folders.values()) == len(RECORDS)


def test_the_last_line_is_the_json(tmp_path, capsys):
    file = write(tmp_path, [shows("coco/good.png"), says("a?", "3")])
    assert run(file, "--images", tmp_path, "--json", tmp_path / "found.json") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] + "\n" == (tmp_path / "found.json").read_text()
    summary = json.loads(out.splitlines()[-1])
    assert (summary["errors"], summary["warnings"], summary["kinds"]) == (0, 0, {})
    assert summary["tokens"] is None


def test_workers_find_the_same(faulty, lengths, tmp_path):
    folder, _, expected, _ = faulty
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    options = [folder / "train.json", "--images", folder, *lengths, "--max-pixels", 4000]
    options += ["--workers", 2, "--json", tmp_path / "found.json"]
    with pytest.raises(SystemExit):
        check.main(parser.parse_args([str(o) for o in options]))
    found = json.loads((tmp_path / "found.json").read_text())
    for name in ("seconds", "records_per_s"):
        found.pop(name), expected.pop(name, None)
    assert found == expected


def test_the_skip_list_leaves_nothing_but_warnings(faulty, lengths, tmp_path, capsys):
    folder, *_ = faulty
    options = ("--images", folder, *lengths, "--max-pixels", 4000, "--skip", folder / "skip.json")
    options += ("--error", "duplicate", "--write-skip", tmp_path / "more.json")
    assert run(folder / "train.json", *options) == 1
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["skipped"] == len(ERRORS)
    assert summary["records"] == len(RECORDS) - len(ERRORS)
    assert summary["errors"] == 1 and summary["kinds"]["duplicate"] == 1
    source = open_source(folder / "train.json", folder, lenient=True)
    more = read_skip_list(tmp_path / "more.json", source)
    assert sorted(more) == sorted({*ERRORS.values(), EXPECTED["duplicate"]})
    assert run(folder / "train.json", *options[:-5], tmp_path / "more.json") == 0


def test_without_pictures_none_is_opened(faulty, capsys):
    folder, *_ = faulty
    assert run(folder / "train.json", "--images", folder, "--no-pictures") == 1
    kinds = json.loads(capsys.readouterr().out.splitlines()[-1])["kinds"]
    text = {"record", "outside", "role", "alternation", "unanswered", "empty_question"}
    text |= {"empty_answer", "placeholders", "unicode", "duplicate", "duplicate_id"}
    assert set(kinds) == text  # no tokenizer, no length


def test_several_sources_share_repeats_but_not_ids(tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        write(folder, [says("a?", "3")])
    assert run(one / "train.json", two / "train.json") == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["kinds"] == {"duplicate": 1}
    same = "the same pictures and conversation as"
    assert f"{two}/train.json record 0: {same} {one}/train.json record 0" in out
    with pytest.raises(ValueError, match="found 2 sources, but a skip list belongs to one"):
        run(one / "train.json", two / "train.json", "--write-skip", tmp_path / "skip.json")


def test_captions_only(tmp_path, lengths, capsys):
    file = write(tmp_path, [shows("coco/good.png"), says("a?", "3")])
    options = [*lengths[:3], "plain"]
    assert run(file, "--images", tmp_path, *options) == 1
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["kinds"] == {"template": 1}


@pytest.mark.parametrize("name", ["a" * 300 + ".jpg", "coco/good.png/b.jpg"])
def test_names_that_the_system_refuses(tmp_path, name, capsys):
    file = write(tmp_path, [shows(name)])
    assert run(file, "--images", tmp_path) == 1
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["kinds"] == {"unreadable_picture": 1}
    assert "corrupt" not in out


def test_a_strip_that_cannot_be_resized(tmp_path, capsys):
    (tmp_path / "long.png").write_bytes(encoded((200_000, 1)))
    file = write(tmp_path, [shows("long.png")])
    assert run(file, "--images", tmp_path) == 1
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["kinds"] == {"too_long_strip": 1}


@pytest.mark.parametrize(
    "options, message",
    [
        (("--length", 100), "--template, --length and --visual-tokens need --tokenizer"),
        (("--tokenizer", "nowhere"), "--tokenizer needs --template"),
        (("--max-pixels", 10**9), "--max-pixels is 1000000000, expected at most 178956970"),
        (("--hr-size", 0), "--hr-size is 0, expected at least 1"),
        (("--tokenizer", "nowhere", "--template", "v1"), "nowhere"),
    ],
)
def test_bad_options(tmp_path, options, message):
    file = write(tmp_path, [says("a?", "3")])
    with pytest.raises((ValueError, OSError), match=message):
        run(file, *options)


def test_lines_that_are_no_json(tmp_path, capsys):
    write(tmp_path, [])
    lines = [json.dumps(says("a?", "3")), '{"conversations": [', json.dumps(shows("coco/good.png"))]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(lines))
    assert run(file, "--images", tmp_path, "--write-skip", tmp_path / "skip.json") == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kinds"] == {"record": 1}
    kept = open_source(file, tmp_path, tmp_path / "skip.json")
    assert [record.where for record in kept] == ["train.jsonl record 0", "train.jsonl record 2"]


def test_a_built_data_set_with_a_damaged_shard(tmp_path, capsys):
    records = [shows("coco/good.png", f"<image>\nWhat is {i}?") for i in range(4)]
    file, out = write(tmp_path, records), tmp_path / "built"
    options = Options(images=str(tmp_path), records_per_shard=2)
    build(open_source(file, tmp_path), file, out, options, workers=0)
    assert run(out) == 0
    good = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (good["records"], good["errors"], list(good["sources"])) == (4, 0, ["coco"])
    shard = out / "records-00000-of-00002.array_record"
    data = bytearray(shard.read_bytes())
    place = data.index(b"What is 1?")
    data[place : place + 10] = b"What is 2?"
    shard.write_bytes(data)
    assert run(out, "--html", tmp_path / "page.html") == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["kinds"]["shard"] == 1
    assert f"{shard}: damaged" in (tmp_path / "page.html").read_text()


def test_a_file_that_is_no_json_is_one_error(tmp_path):
    file = write(tmp_path, [says("a?", "3")])
    file.write_text(file.read_text()[:-10])
    with pytest.raises(ValueError, match="train.json: invalid JSON"):
        run(file)


def test_repeats_name_the_first():
    digests = np.array([[0, 0], [5, 1], [7, 1], [5, 1], [0, 0], [7, 1], [5, 1]], np.uint64)
    assert repeats(digests) == [(3, 1), (5, 2), (6, 1)]


def test_printable():
    assert printable("é\n\x1b[1m\ud800\u202e") == r"é\n\x1b[1m\ud800\u202e"
    assert len(printable("x" * 10_000)) < 500


# Whatever the check lets pass, training takes.

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["<image>", "<image>\na?", "<image><image> b", "</s>", "", " ", "3"]),
)
TURNS = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "human", "gpt", "system"]), "value": TEXTS}
)
GOOD = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3).map(
    lambda pairs: talk(*(text for pair in pairs for text in pair))
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    conversations=st.one_of(GOOD, st.lists(TURNS, max_size=4)),
    pictures=st.integers(0, 2),
    template=st.sampled_from(["v1", "plain", "gemma", "llama_3"]),
    length=st.sampled_from([24, 64, 400]),
)
def test_text_that_passes_is_encoded(tiny_tokenizer, conversations, pictures, template, length):
    tokenizer = load_tokenizer(tiny_tokenizer)
    record = Record("r", (Encoded("a.png", b""),) * pictures, conversations, "record 0")
    judged = Encoder(template, tokenizer, 16, 10**9)
    training = Encoder(template, tokenizer, 16, length)
    try:
        tokens = count_tokens(record, Rules(SPEC, 10**8, judged, length))
    except ValueError as error:
        assert error.kind in KINDS
        with pytest.raises(ValueError):
            training(record)
        return
    assert len(training(record)) == tokens
    count_tokens(record, Rules(SPEC, 10**8))  # without a tokenizer it passes all the more


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about damaged files
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    form=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    at=st.floats(0, 1),
    damage=st.sampled_from(["none", "cut", "flip"]),
)
def test_pictures_that_pass_are_decoded(form, size, at, damage):
    data = bytearray(encoded(size, form))
    place = int(at * (len(data) - 1))
    if damage == "cut":
        del data[place:]
    elif damage == "flip":
        data[place] ^= 0xFF
    picture = Encoded("picture", bytes(data))
    _, found = look(picture, "record 0", "folder", Rules(SPEC, check.PILLOW_LIMIT))
    if any(KINDS[kind].level == "error" for kind, _ in found):
        with pytest.raises(ValueError):
            to_hr(load_image(picture), SPEC)
    else:
        assert to_hr(load_image(picture), SPEC).shape == (32, 32, 3)
