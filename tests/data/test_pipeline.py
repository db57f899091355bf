"""`data.pipeline` and `data.examples`: batches as a pure function of (seed, step)."""

import json

import jax
import numpy as np
import pytest

from mgm_jax.data.examples import batch_rows, expand
from mgm_jax.data.images import ImageError
from mgm_jax.data.lengths import read_lengths
from mgm_jax.data.pipeline import Batches, Encoder, Pictures, iterate
from mgm_jax.data.schedule import Schedule
from mgm_jax.data.sources import LlavaJson
from mgm_jax.models.config import MgmConfig
from mgm_jax.text import IGNORE, IMAGE_ID, load_tokenizer

LENGTH = 64


def talk(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture(scope="module")
def cfg(tiny_config):
    return MgmConfig.from_dict(tiny_config().model.to_dict())


@pytest.fixture(scope="module")
def mixed(tiny_demo, tmp_path_factory):
    """Twelve records, by turns without a picture, with one, and with two."""
    names = [record["image"] for record in json.loads((tiny_demo / "data/train.json").read_text())]
    records = []
    for i in range(12):
        images = [names[i], names[-i - 1]][: i % 3]
        record = {"id": f"r{i}", "image": images[0] if len(images) == 1 else images}
        question = "<image>\n" * len(images) + f"{'abcdefghijkl'[i]}?"
        records.append(
            {k: v for k, v in record.items() if v} | {"conversations": talk(question, "3")}
        )
    file = tmp_path_factory.mktemp("mixed") / "mixed.json"
    file.write_text(json.dumps(records))
    return file


@pytest.fixture(scope="module")
def build(mixed, cfg, tiny_demo, tiny_tokenizer):
    """(file, **options) -> the dataset of batches."""

    def make(file=mixed, *, length=LENGTH, batch=4, groups=1, seed=0):
        source = LlavaJson(file, tiny_demo / "data")
        encoder = Encoder("v1", load_tokenizer(tiny_tokenizer), cfg.visual_tokens, length)
        lengths = (read_lengths(source, encoder),)
        layout = dict(length=length, rows=batch // groups, groups=groups, batching="pad")
        schedule = Schedule(lengths, (1.0,), cfg.visual_tokens, seed=seed, **layout)
        return Batches(schedule, (source,), encoder, Pictures(cfg.image), tuple(range(groups)))

    return make


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_batch_depends_on_seed_and_step_alone(build):
    data = build()
    expected = [data[step] for step in range(7)]
    for step in (5, 0, 5):  # in any order, from any dataset
        assert_equal(build()[step], expected[step])
    for threads in (0, 4):
        for start in (0, 4):
            found = iterate(build(), start, threads=threads)
            for step in range(start, 7):
                assert_equal(next(found), expected[step])
    assert not np.array_equal(build(seed=1)[0]["tokens"], expected[0]["tokens"])


@pytest.mark.parametrize("batch", [4, 6, 5])
def test_an_epoch_holds_every_record_once(build, batch):
    """Also where the epochs' ends fall inside of batches; each epoch has its own order."""
    data, epochs = build(batch=batch), 3
    steps = -(-12 * epochs // batch)
    rows = [row.tobytes() for step in range(steps) for row in data[step]["tokens"]]
    orders = [tuple(rows[12 * e : 12 * (e + 1)]) for e in range(epochs)]
    assert len(set(orders[0])) == 12
    assert all(set(order) == set(orders[0]) for order in orders)
    assert len(set(orders)) == epochs


def test_the_contract(build, cfg):
    n, size = cfg.visual_tokens, cfg.image.hr_size
    batch = build(batch=4, groups=2)[1]
    for name in ("tokens", "targets", "positions", "segments", "visual_index"):
        assert batch[name].shape == (4, LENGTH) and batch[name].dtype == np.int32, name
    assert batch["loss_weights"].shape == (4, LENGTH)
    assert batch["loss_weights"].dtype == np.float32
    assert batch["images"].shape == (2, 4, size, size, 3) and batch["images"].dtype == np.uint8
    assert batch["image_mask"].shape == (2, 4) and batch["image_mask"].dtype == bool
    assert len(batch) == 8
    for row in range(4):
        real = batch["segments"][row] == 1
        count = real.sum()
        assert real[:count].all() and not batch["segments"][row, count:].any()
        np.testing.assert_array_equal(batch["positions"][row, :count], np.arange(count))
        tokens, targets = batch["tokens"][row], batch["targets"][row]
        np.testing.assert_array_equal(targets[: count - 1], tokens[1:count])
        visual = batch["visual_index"][row]
        places = visual[visual >= 0]
        assert len(places) % n == 0 and not tokens[visual >= 0].any()
        if len(places):  # slots of this group, in order, each with a picture in it
            np.testing.assert_array_equal(places, np.arange(len(places)) + places[0])
            assert batch["image_mask"][row // 2, places // n].all()
        # Where loss is taken, what is predicted is text of the answer.
        weighed = np.flatnonzero(batch["loss_weights"][row])
        assert len(weighed) and (visual[weighed + 1] == -1).all() and weighed.max() < count - 1
    used = {(row // 2, p // n) for row in range(4) for p in batch["visual_index"][row] if p >= 0}
    assert used == {tuple(slot) for slot in np.argwhere(batch["image_mask"])}
    assert not batch["images"][~batch["image_mask"]].any()


def test_groups_change_no_embedding(build, cfg):
    import flax.linen as nn

    from mgm_jax.program import abstract_model

    module, example, _, _ = abstract_model(cfg)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), example))
    embed = jax.jit(lambda batch: module.apply(params, batch, method="input_embeddings")[0])
    one, two, four = (build(batch=8, groups=groups)[0] for groups in (1, 2, 4))
    assert [b["images"].shape[:2] for b in (one, two, four)] == [(1, 16), (2, 8), (4, 4)]
    for name in ("tokens", "targets", "loss_weights", "positions", "segments"):
        np.testing.assert_array_equal(one[name], four[name])
    expected = embed(one)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(embed(two), expected, atol=1e-5)
    np.testing.assert_allclose(embed(four), expected, atol=1e-5)


def test_expand_places_visual_tokens():
    example = expand([1, IMAGE_ID, 7, 8, 9], [IGNORE, IGNORE, IGNORE, 8, 9], 2, ["a.png"])
    np.testing.assert_array_equal(example.tokens, [1, 0, 0, 7, 8, 9])
    np.testing.assert_array_equal(example.targets, [0, 0, 7, 8, 9, 0])
    np.testing.assert_array_equal(example.loss_weights, [0, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(example.visual, [-1, 0, 1, -1, -1, -1])
    assert len(example) == 6 and example.images == ("a.png",)


def test_rows_share_the_slots_of_their_group():
    one = expand([1, IMAGE_ID, 5], [IGNORE, IGNORE, 5], 2, ["a"])
    two = expand([IMAGE_ID, 3, IMAGE_ID, 5], [IGNORE, IGNORE, IGNORE, 5], 2, ["b", "c"])
    rows = [[one], [two], [two], [one]]
    batch, pictures = batch_rows(rows, length=6, groups=2, slots=3, visual_tokens=2)
    assert pictures == [["a", "b", "c"], ["b", "c", "a"]]
    np.testing.assert_array_equal(
        batch["visual_index"],
        [
            [-1, 0, 1, -1, -1, -1],
            [2, 3, -1, 4, 5, -1],
            [0, 1, -1, 2, 3, -1],
            [-1, 4, 5, -1, -1, -1],
        ],
    )
    for options, message in (
        (dict(length=5, groups=2, slots=3), "6 tokens, more than data.length 5"),
        (dict(length=6, groups=3, slots=3), "4 rows do not divide into 3 groups"),
        (dict(length=6, groups=2, slots=2), "group 0 needs 3 picture slots, has 2"),
    ):
        with pytest.raises(ValueError, match=message):
            batch_rows(rows, visual_tokens=2, **options)


def test_a_record_that_is_too_long_is_named(build, tmp_path):
    file = tmp_path / "long.json"
    file.write_text(
        json.dumps(
            [{"id": "short", "conversations": talk("a?", "3")}] * 3
            + [{"id": "longest", "conversations": talk("What is on the card? " * 20, "3")}]
        )
    )
    with pytest.raises(ValueError, match=r"long.json record 3 \(id longest\): \d+ tokens.*64"):
        build(file)


def test_pictures_count_as_their_visual_tokens(build, mixed):
    with pytest.raises(ValueError, match=r"record \d+ \(id r\d+\): \d+ tokens.* 40"):
        build(length=40)


@pytest.mark.parametrize("ahead", [{}, {"threads": 2}, {"workers": 1}], ids=repr)
def test_a_picture_that_cannot_be_read_is_named(build, tiny_demo, tmp_path, ahead):
    image = tiny_demo / "data" / "images" / "cut.jpg"
    whole = next((tiny_demo / "data" / "images" / "train").iterdir()).read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    file = tmp_path / "cut.json"
    record = {"id": "cut", "image": "images/cut.jpg", "conversations": talk("<image>\na?", "3")}
    file.write_text(json.dumps([record]))
    with pytest.raises(
        ImageError, match=r"cut.json record 0 \(id cut\): picture .*cut.jpg: corrupt or truncated"
    ):
        next(iterate(build(file), 0, **ahead))
