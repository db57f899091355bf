"""TFDS data sets as sources, and the builder of them. TensorFlow is not needed for either.

tests/data/tfds_golden/mgm_llava was written by

    mgm-jax data tfds tests/data/tfds_golden/llava.json --images tests/data/tfds_golden/pictures \
        --data-dir tests/data/tfds_golden --name tiny
"""

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mgm_jax.data import cli
from mgm_jax.data.images import load_image
from mgm_jax.data.parallel import parallel_map
from mgm_jax.data.records import Encoded, PictureFile, Record, Source
from mgm_jax.data.sources import open_source, write_skip_list
from mgm_jax.data.tfds import TfdsSource

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra tfds")

GOLDEN = Path(__file__).parent / "tfds_golden"
TINY = GOLDEN / "mgm_llava" / "tiny" / "1.0.0"


def written():
    """The golden data set's records as they were in the JSON file."""
    return json.loads((GOLDEN / "llava.json").read_text())


class Memory:
    """Record i has i % 3 pictures; a stand-in for any source."""

    fingerprint = "memory"

    def __init__(self, count, delay=0.0):
        self.count, self.delay = count, delay

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        time.sleep(self.delay)
        names = [f"/pictures/{i}/{k}.jpg" for k in range(i % 3)]
        images = tuple(Encoded(name, name.encode()) for name in names)
        turns = [{"from": "human", "value": f"é {i}"}, {"from": "gpt", "value": ""}]
        return Record(f"id {i}", images, turns, f"memory record {i}")


def build(data_dir, source=None, **options):
    from mgm_jax.data.tfds_llava import build_tfds

    return build_tfds(source or Memory(7), data_dir, "mine", **options)


def same(found: Record, expected: Record):
    assert (found.id, found.conversations) == (expected.id, expected.conversations)
    assert [p.data for p in found.images] == [p.data for p in expected.images]


def test_golden_records_are_those_of_the_json_file():
    source = TfdsSource(TINY)
    assert isinstance(source, Source) and len(source) == len(written())
    for i, (found, record) in enumerate(zip(source, written(), strict=True)):
        names = record.get("image", [])
        names = names if isinstance(names, list) else [names]
        assert (found.id, found.conversations) == (str(record["id"]), record["conversations"])
        assert [picture.name for picture in found.images] == names
        for picture, name in zip(found.images, names, strict=True):
            assert picture.data == (GOLDEN / "pictures" / name).read_bytes()
            assert load_image(picture).size[0] > 0
        assert f"record {i} (id {found.id})" in found.where
    assert [len(record.images) for record in source] == [1, 0, 2, 1]
    with pytest.raises(IndexError):
        source[len(source)]
    assert source[-1] == source[len(source) - 1]


def test_tensorflow_is_never_imported(tmp_path):
    code = (
        "import sys\n"
        "from tests.data.test_tfds import TINY, TfdsSource, build\n"
        f"print(TfdsSource(TINY)[0].id, len(TfdsSource(build({str(tmp_path)!r}))))\n"
        "print('tensorflow' in sys.modules)"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.splitlines()[-2:] == ["one 7", "False"], done.stderr


def test_a_part_of_a_split():
    whole, half = TfdsSource(TINY), TfdsSource(TINY, "train[50%:]")
    assert [record.id for record in half] == [record.id for record in whole][2:]
    assert half.fingerprint != whole.fingerprint


def test_workers_and_threads_read_the_same():
    source = TfdsSource(TINY)
    source[0]
    assert len(pickle.dumps(source)) < 10_000
    ids = [record.id for record in source] * 8
    with ThreadPoolExecutor(8) as pool:
        assert [r.id for r in pool.map(source.__getitem__, [0, 1, 2, 3] * 8)] == ids
    found = parallel_map(source.__getitem__, len(source), workers=1)
    assert [record.id for record in found] == ids[:4]


def test_fingerprint_follows_the_contents_not_the_place(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(TINY, copy)
    assert TfdsSource(copy).fingerprint == TfdsSource(TINY).fingerprint
    first = TfdsSource(build(tmp_path / "a"))
    assert TfdsSource(build(tmp_path / "b")).fingerprint == first.fingerprint
    other = Memory(7)
    other.fingerprint = "other"
    assert TfdsSource(build(tmp_path / "c", other)).fingerprint != first.fingerprint


@pytest.mark.parametrize("options", [{}, {"records_per_shard": 3}, {"records_per_shard": 7}])
def test_a_built_data_set_reads_back_in_order(tmp_path, options):
    folder = build(tmp_path, root="/pictures", **options)
    source = TfdsSource(folder)
    assert len(source) == 7
    for i in range(7):
        same(source[i], Memory(7)[i])
    assert [picture.name for picture in source[2].images] == ["2/0.jpg", "2/1.jpg"]
    shards = list(Path(folder).glob("*array_record*"))
    assert len(shards) == -(-7 // options.get("records_per_shard", 7))


def test_tfds_users_find_it_by_name(tmp_path):
    build(tmp_path)
    found = tfds.data_source("mgm_llava/mine", split="train", data_dir=tmp_path)
    assert len(found) == 7 and found[0]["id"] == b"id 0"


def test_tfds_builder_takes_a_json_file(tmp_path):
    from mgm_jax.data.tfds_llava import LlavaConfig

    config = LlavaConfig(
        name="tiny", json=str(GOLDEN / "llava.json"), images=str(GOLDEN / "pictures"), workers=1
    )
    builder = tfds.builder("mgm_llava", config=config, data_dir=tmp_path)
    builder.download_and_prepare()
    found, golden = TfdsSource(builder.data_dir), TfdsSource(TINY)
    for i in range(len(golden)):
        same(found[i], golden[i])
    assert [p.name for r in found for p in r.images] == [p.name for r in golden for p in r.images]
    files = [Path(folder) / "metadata.json" for folder in (builder.data_dir, TINY)]
    assert files[0].read_text() == files[1].read_text()


def test_building_again_needs_the_same_source(tmp_path):
    folder = build(tmp_path)
    assert build(tmp_path) == folder
    other = Memory(7)
    other.fingerprint = "other"
    with pytest.raises(ValueError, match="there already, built from another source.*memory"):
        build(tmp_path, other)
    assert build(tmp_path, other, version="1.0.1") != folder


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"version": "1"}, "version: found '1'"),
        ({"records_per_shard": 0}, "records_per_shard: found 0"),
        ({"name": "a/b"}, "name: found 'a/b'"),
    ],
)
def test_bad_configs(options, text):
    from mgm_jax.data.tfds_llava import LlavaConfig

    with pytest.raises(ValueError, match=text):
        LlavaConfig(**{"name": "a", "json": "b"} | options)


def test_a_config_without_a_source_is_refused(tmp_path):
    from mgm_jax.data.tfds_llava import LlavaConfig, MgmLlava

    for builder in (
        MgmLlava(config=LlavaConfig(name="a"), data_dir=tmp_path),
        MgmLlava(data_dir=tmp_path),
    ):
        with pytest.raises(ValueError, match="expected"):
            builder.download_and_prepare()


def test_a_missing_picture_stops_the_build_and_leaves_nothing(tmp_path):
    class Missing(Memory):
        def __getitem__(self, i):
            lost = (PictureFile(str(tmp_path / "lost.jpg")),)
            return Record("x", lost, [{"from": "human", "value": "a"}], "memory record 0")

    with pytest.raises(OSError, match="memory record 0: picture .*lost.jpg: No such file"):
        build(tmp_path, Missing(2))
    assert not list(tmp_path.rglob("*.json"))


def test_a_killed_build_leaves_no_data_set_and_can_run_again(tmp_path):
    code = (
        "from tests.data.test_tfds import build, Memory\n"
        f"build({str(tmp_path)!r}, Memory(40, delay=0.1), records_per_shard=5)"
    )
    done = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    for _ in range(600):
        if list(tmp_path.rglob("*array_record*")) or done.poll() is not None:
            break
        time.sleep(0.1)
    done.send_signal(signal.SIGKILL)
    done.wait(60)
    folder = tmp_path / "mgm_llava" / "mine" / "1.0.0"
    with pytest.raises(FileNotFoundError, match="no dataset_info.json"):
        TfdsSource(folder)
    assert build(tmp_path, Memory(40), records_per_shard=5) == str(folder)
    assert len(TfdsSource(folder)) == 40


def run(*words):
    cli.main(["tfds", *map(str, words)])


def test_the_command(tmp_path, capsys):
    options = ["--images", GOLDEN / "pictures", "--data-dir", tmp_path, "--name", "cli"]
    run(GOLDEN / "llava.json", *options, "--json", tmp_path / "line.json")
    line = capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "line.json").read_text() == line + "\n"
    result = json.loads(line)
    assert result["records"] == len(TfdsSource(result["folder"])) == 4
    with pytest.raises(FileNotFoundError, match="none: this data file or folder does not exist"):
        run(tmp_path / "none", *options)


def test_skipped_records_are_left_out(tmp_path):
    source = open_source(GOLDEN / "llava.json", GOLDEN / "pictures")
    write_skip_list(tmp_path / "skip.json", source, {1: "no picture"})
    options = ["--images", GOLDEN / "pictures", "--data-dir", tmp_path, "--name", "cli"]
    run(GOLDEN / "llava.json", *options, "--skip", tmp_path / "skip.json")
    found = open_source(tmp_path / "mgm_llava" / "cli" / "1.0.0")
    assert [record.id for record in found] == ["one", "two", "many"]


def copy_of(tmp_path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(TINY, copy)
    return copy


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(FileNotFoundError, match="no dataset_info.json.*mgm_llava/NAME/1.0.0"):
        TfdsSource(tmp_path)
    copy = copy_of(tmp_path)
    (copy / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="not a readable TFDS data set"):
        TfdsSource(copy)
    with pytest.raises(ValueError, match="read from disks and gs:// only"):
        TfdsSource("s3://bucket/mgm_llava/a/1.0.0")


def test_an_unknown_split_and_a_bad_one():
    with pytest.raises(ValueError, match="split 'val': .*train"):
        TfdsSource(TINY, "val")
    with pytest.raises(ValueError, match=r"split 'train\[a:\]'"):
        TfdsSource(TINY, "train[a:]")


def test_another_format_is_refused_with_the_remedy(tmp_path):
    copy = copy_of(tmp_path)
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="stored as tfrecord, expected array_record: .*convert"):
        TfdsSource(copy)


@pytest.mark.parametrize("change", ["drop", "text"])
def test_other_features_are_named(tmp_path, change):
    copy = copy_of(tmp_path)
    features = json.loads((copy / "features.json").read_text())
    known = features["featuresDict"]["features"]
    found = {"drop": "none", "text": "Text"}[change]
    known.pop("images") if change == "drop" else known.update(images=known["id"])
    (copy / "features.json").write_text(json.dumps(features))
    expected = f"feature 'images': found {found}, expected sequence of Image"
    with pytest.raises(ValueError, match=expected):
        TfdsSource(copy)


def test_a_missing_shard_and_a_damaged_one(tmp_path):
    copy = copy_of(tmp_path)
    (shard,) = copy.glob("*array_record*")
    data = bytearray(shard.read_bytes())
    data[data.index(b"JFIF")] ^= 1  # inside the first picture
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="train record 0: cannot be read .*build the data set"):
        TfdsSource(copy)[0]
    assert TfdsSource(copy)[1].id == str(written()[1]["id"])
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="this shard is missing"):
        TfdsSource(copy)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'mgm-jax\[tfds\]'"):
        TfdsSource(TINY)
