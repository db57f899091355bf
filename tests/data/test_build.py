"""`data build`: records and pictures as one data set, the same bytes after any number of kills."""

import argparse
import io
import json
import random
import subprocess
import sys
import time

import pytest
from PIL import Image

from mgm_jax.data import build as build_module
from mgm_jax.data.build import build
from mgm_jax.data.build_shard import Options
from mgm_jax.data.images import load_image
from mgm_jax.data.sources import ArrayRecords, open_source, write_skip_list

COMMAND = """
import argparse
from mgm_jax.data import build

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    build.main(parser.parse_args())
"""


def run(*args):
    parser = argparse.ArgumentParser()
    build_module.add_arguments(parser)
    build_module.main(parser.parse_args([*map(str, args), "--workers=0"]))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_command(tmp_path, llava_data, capsys):
    path, images = llava_data(tmp_path)
    out = tmp_path / "built"
    run(path, "--images", images, "--out", out, "--json", tmp_path / "json")
    line = capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "json").read_text() == line + "\n"
    found = json.loads(line)
    assert found.pop("seconds") >= 0 and found.pop("bytes") == sum(
        p.stat().st_size for p in out.glob("*.array_record")
    )
    assert found == {"command": "data build", "records": 10, "pictures": 10, "shards": 1}
    description = json.loads((out / "dataset.json").read_text())
    assert description["source"] == {
        "path": str(path),
        "fingerprint": open_source(path, images).fingerprint,
    }


def test_pictures_are_copied_or_made_smaller(tmp_path, llava_data):
    path, images = llava_data(tmp_path)
    original = open_source(path, images)
    run(path, "--images", images, "--out", tmp_path / "small", "--max-size", 64, "--quality", 50)
    source = ArrayRecords(tmp_path / "small")
    for i in range(10):
        for ours, theirs in zip(source[i].images, original[i].images, strict=True):
            with theirs.open() as file:
                data = file.read()
            before, after = (Image.open(io.BytesIO(d)) for d in (data, ours.data))
            assert after.format == before.format and not after.getexif()
            if before.width <= 64:
                assert ours.data == data
            else:
                assert after.size == (64, round(30 * 64 / before.width))
                reference = load_image(theirs).resize(after.size, Image.Resampling.LANCZOS)
                if after.format == "PNG":
                    assert load_image(ours).tobytes() == reference.tobytes()
    run(path, "--images", images, "--out", tmp_path / "best", "--max-size", 64, "--quality", 100)
    big, small = (sum(ArrayRecords(tmp_path / n).index().bytes) for n in ("best", "small"))
    assert small < big


def test_a_data_set_can_be_built_from_another(tmp_path, llava_data):
    path, images = llava_data(tmp_path)
    run(path, "--images", images, "--out", tmp_path / "a", "--records-per-shard", 3)
    run(tmp_path / "a", "--out", tmp_path / "b", "--records-per-shard", 4)
    a, b = ArrayRecords(tmp_path / "a"), ArrayRecords(tmp_path / "b")
    assert len(a.shards) == 4 and len(b.shards) == 3
    assert [a[i].images for i in range(10)] == [b[i].images for i in range(10)]


def test_a_second_run_makes_only_what_is_missing_or_damaged(tmp_path, llava_data):
    path, images = llava_data(tmp_path)
    args = (path, "--images", images, "--out", tmp_path / "a", "--records-per-shard", 2)
    run(*args)
    shards = sorted((tmp_path / "a").glob("*.array_record"))
    before = contents(tmp_path / "a")
    shards[1].unlink()
    shards[2].write_bytes(b"x" * shards[2].stat().st_size)
    (tmp_path / "a" / "index.npz").unlink()
    times = {p: p.stat().st_mtime_ns for p in shards if p.exists()}
    for picture in (images / "coco").iterdir():  # only records 2 to 5 are read again
        if picture.stem not in "2345":
            picture.unlink()
    run(*args)
    assert contents(tmp_path / "a") == before
    changed = [p for p in times if p.stat().st_mtime_ns != times[p]]
    assert changed == [shards[2]]


def test_killed_at_any_moment_the_bytes_are_the_same(tmp_path, llava_data):
    """Also with worker processes, which end when their parent is killed."""
    path, images = llava_data(tmp_path)
    records = json.loads(path.read_text()) * 20
    path.write_text(json.dumps(records))
    for picture in images.rglob("*.png"):  # so that shards take a while
        Image.new("RGB", (900, 900), "red").save(picture)
    (tmp_path / "command.py").write_text(COMMAND)
    args = [path, "--images", images, "--records-per-shard", 4]
    command = [sys.executable, tmp_path / "command.py", *args, "--out", tmp_path / "killed"]
    run(*args, "--out", tmp_path / "whole")

    journal, rng = tmp_path / "killed" / "journal", random.Random(0)
    for workers, entries in ((2, 4), (0, 14)):
        process = subprocess.Popen(
            [*map(str, command), f"--workers={workers}"], stderr=subprocess.DEVNULL
        )
        while len(list(journal.glob("records*.json"))) < entries and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        assert process.wait() == -9, "it was too quick to be killed"
        assert not (tmp_path / "killed" / "dataset.json").exists()
    run(*args, "--out", tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_into_a_bucket(tmp_path, bucket, llava_data):
    path, images = llava_data(bucket)
    run(path, "--images", images, "--out", bucket / "built", "--records-per-shard", 4)
    for folder in ("", "journal"):
        (tmp_path / "copy" / folder).mkdir()
        for file in (bucket / "built" / folder).iterdir():
            if not file.is_dir():
                file.copy(tmp_path / "copy" / folder / file.name)
    disk = llava_data(tmp_path)
    run(disk[0], "--images", disk[1], "--out", tmp_path / "disk", "--records-per-shard", 4)
    ours, theirs = (contents(tmp_path / name) for name in ("copy", "disk"))
    assert ours.keys() == theirs.keys()
    assert all(ours[k] == theirs[k] for k in ours if k.endswith(("array_record", "npz")))
    assert ArrayRecords(tmp_path / "copy")[3].images == ArrayRecords(tmp_path / "disk")[3].images


# Errors


def test_a_broken_picture_stops_the_build_unless_it_is_skipped(tmp_path, llava_data):
    path, images = llava_data(tmp_path)
    args = (path, "--images", images, "--out", tmp_path / "built", "--records-per-shard", 4)
    broken = images / "coco" / "5.png"
    data = broken.read_bytes()
    for content, reason in (
        (data[:200], "truncated"),
        (b"", "empty"),
        (None, "the file is missing"),
    ):
        broken.unlink() if content is None else broken.write_bytes(content)
        with pytest.raises(ValueError) as error:
            run(*args)
        message = str(error.value)
        assert message.startswith(f"train.json record 5 (id r5): picture {broken}") and (
            reason in message and "`mgm-jax data check --write-skip` finds all" in message
        )
    assert not (tmp_path / "built" / "dataset.json").exists()
    assert not list((tmp_path / "built").glob("*.partial"))
    write_skip_list(tmp_path / "skip.json", open_source(path, images), {5: "missing"})
    skip = ("--skip", tmp_path / "skip.json")
    with pytest.raises(ValueError, match="holds a data set made with another source"):
        run(*args, *skip)
    run(*args[:-3], tmp_path / "other", *skip)
    source = ArrayRecords(tmp_path / "other")
    assert len(source) == 9 and source[5].where.endswith("from train.json record 6 (id r6)")


def test_a_folder_of_something_else_is_refused(tmp_path, llava_data):
    path, images = llava_data(tmp_path)
    with pytest.raises(ValueError, match="images: holds other files, expected a new or empty"):
        run(path, "--images", images, "--out", images)
    assert [p.name for p in images.iterdir()] == ["coco"]
    (tmp_path / "built").mkdir()
    run(path, "--images", images, "--out", tmp_path / "built")
    for option, values in (
        ("--max-size", "max_size None .now 9."),
        ("--records-per-shard", "4096 ."),
    ):
        with pytest.raises(
            ValueError, match=f"built: holds a data set made with another.*{values}"
        ):
            run(path, "--images", images, "--out", tmp_path / "built", option, 9)
    path.write_text(path.read_text().replace("What", "Who"))
    with pytest.raises(ValueError, match="made with another source .* .now .*remove this folder"):
        run(path, "--images", images, "--out", tmp_path / "built")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--quality", 50], "--quality needs --max-size"),
        (["--max-size", 0], "--max-size is 0, expected 1 to"),
        (["--max-size", 9, "--quality", 101], "--quality is 101, expected 1 to 100"),
        (["--records-per-shard", 0], "--records-per-shard is 0, expected 1 to"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "train.json", "--out", tmp_path / "built", *options)


def test_a_disk_that_takes_nothing(tmp_path, llava_data):
    path, images = llava_data(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        build(open_source(path, images), path, tmp_path / "file" / "x", Options(), workers=0)
