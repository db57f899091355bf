"""`data.rows`: a batch read back says what was packed into it."""

import batch_case
import numpy as np
import pytest

from mgm_jax.data.rows import digest, read, supervised, totals
from mgm_jax.text import load_tokenizer


@pytest.fixture(scope="module", params=[None, batch_case.HD], ids=["plain", "hd"])
def case(request, tiny_config, tiny_demo, tiny_tokenizer):
    files = sorted((tiny_demo / "data" / "images" / "train").iterdir())
    model = tiny_config().model.to_dict()
    return batch_case.make(model, load_tokenizer(tiny_tokenizer), files, request.param)


def changed(case, name, at, value):
    batch = {k: v.copy() for k, v in case.arrays.items()}
    batch[name][at] = value
    return batch


def test_segments_are_the_examples(case):
    n = case.cfg.visual_tokens
    rows = read(case.arrays, case.members(0), n)
    assert [len(row) for row in rows] == [2, 1, 2, 0]
    taken = {0: [], 1: []}
    for r, (row, examples) in enumerate(zip(rows, case.examples, strict=True)):
        at = 0
        for number, (segment, example) in enumerate(zip(row, examples, strict=True), 1):
            assert (segment.row, segment.group, segment.number) == (r, r // 2, number)
            assert (segment.start, segment.stop) == (at, at := at + len(example))
            assert segment.member == case.members(0)[r][number - 1]
            assert segment.loss_tokens == example.loss_weights.sum() > 0
            assert len(segment.slots) == len(example.images)
            taken[r // 2] += segment.slots
            # The stretches cover the segment without a gap, and each is what it says.
            assert segment.stretches[0].start == segment.start
            assert segment.stretches[-1].stop == segment.stop
            for one, other in zip(segment.stretches, segment.stretches[1:], strict=False):
                assert one.stop == other.start
            lengths = {"prompt": 0, "loss": 0, "image": 0}
            for s in segment.stretches:
                lengths[s.kind] += s.stop - s.start
                if s.kind == "image":
                    found = case.arrays["visual_index"][r, s.start : s.stop]
                    np.testing.assert_array_equal(found, s.slot * n + np.arange(n))
            assert lengths["loss"] == segment.loss_tokens
            assert lengths["image"] == n * len(example.images)
    assert taken == {0: [0, 1, 2], 1: [0, 1]}


def test_totals(case):
    count = totals(case.arrays)
    examples = [e for row in case.examples for e in row]
    tokens, pictures = sum(map(len, examples)), sum(len(e.images) for e in examples)
    loss = sum(e.loss_weights.sum() for e in examples)
    assert count == {
        **{"rows": 4, "length": 192, "groups": 2, "slots": 4, "examples": 5},
        **{"pictures": pictures, "tokens": tokens, "loss_tokens": loss},
        **{"token_fill": tokens / 768, "slot_fill": pictures / 8},
    }


def test_a_weight_on_no_next_token_is_found(case):
    assert not supervised(case.arrays)[1].any()
    segment = read(case.arrays, case.members(0), case.cfg.visual_tokens)[0][0]
    position = int(np.flatnonzero(case.arrays["loss_weights"][0])[0])
    for name, at, value in (
        ("targets", (0, position), 0),  # another token than the next
        ("loss_weights", (0, segment.stop - 1), 1),  # over the border of two examples
        ("loss_weights", (0, 191), 1),  # on padding
        ("loss_weights", (0, segment.stretches[1].start), 1),  # before a visual token
    ):
        learnt, stray = supervised(changed(case, name, at, value))
        assert np.argwhere(stray).tolist() == [list(at)]
        assert learnt.sum() + 1 == changed(case, name, at, value)["loss_weights"].sum()


def test_names_have_to_fit(case):
    members = case.members(0)
    with pytest.raises(ValueError, match="4 rows, but records are named for 3"):
        read(case.arrays, members[:3], case.cfg.visual_tokens)
    members[2] = members[2][:1]
    with pytest.raises(ValueError, match="row 2 has 2 segments, but 1 records"):
        read(case.arrays, members, case.cfg.visual_tokens)


def test_a_digest_differs_if_anything_does(case):
    one = digest(case.arrays)
    assert len(one) == 64 and one == digest(dict(reversed(case.arrays.items())))
    other = case.arrays | {"tokens": case.arrays["tokens"].astype(np.int64)}
    reshaped = case.arrays | {"tokens": case.arrays["tokens"].reshape(8, 96)}
    renamed = {("t" if k == "tokens" else k): v for k, v in case.arrays.items()}
    changes = [changed(case, name, (0, 0), 7) for name in ("tokens", "images")]
    found = {digest(b) for b in (case.arrays, other, reshaped, renamed, *changes)}
    assert len(found) == 6
