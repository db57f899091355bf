"""`data.packing`: what may share a row and a group, how full they are, and what planning costs."""

import bisect
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mgm_jax.data.packing import pack

PLAN = """
import json, re, sys, time
import numpy as np
from mgm_jax.data.packing import pack
n = int(sys.argv[1])
rng = np.random.default_rng(0)
pictures = (rng.random(n) < 0.95).astype(np.int32)
tokens = np.clip(rng.lognormal(5.3, 0.7, n), 16, 2048 - 577).astype(np.int32) + 576 * pictures
begin = time.monotonic()
packed = pack(tokens, pictures, length=2048, rows=4)
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20
print(json.dumps([time.monotonic() - begin, peak, packed.token_fill]))
"""


def index(n, share, length, visual):
    """The lengths that the issue fixes: lognormal texts, `share` of them with a picture."""
    rng = np.random.default_rng(0)
    pictures = (rng.random(n) < share).astype(np.int32)
    text = np.where(pictures, rng.lognormal(5.3, 0.7, n), rng.lognormal(6.0, 0.9, n))
    text = np.clip(text.round(), 16, length - visual - 1).astype(np.int32)
    return text + visual * pictures, pictures


def best_fit_rows(tokens, length):
    """Rows that plain best-fit-decreasing needs, nothing but tokens counted."""
    spaces = []
    for size in sorted(tokens, reverse=True):
        at = bisect.bisect_left(spaces, size)
        bisect.insort(spaces, (spaces.pop(at) if at < len(spaces) else length) - size)
    return len(spaces)


# (tokens, pictures) of each
CROWDED = [(1, 5), *[(1, 0)] * 4, (1, 4), (5, 4), *[(1, 0)] * 9, (36, 2), (1, 0), (1, 3)]
examples = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(examples, st.integers(1, 5), st.integers(5, 9) | st.none(), st.integers(1, 30))
# A row leaves a crowded group, whose empty row then has fewer pictures than any row of the others.
@example(CROWDED, 2, 8, 6)
def test_every_example_once_within_both_limits(found, rows, slots, window):
    tokens, pictures = np.array(found, np.int32).reshape(-1, 2).T
    options = dict(length=40, rows=rows, slots=slots, window=window, seed=3, epoch=2)
    packed = pack(tokens, pictures, **options)
    assert sorted(packed.examples) == list(range(len(tokens)))
    assert len(packed.starts) == packed.groups * rows + 1 and packed.starts[-1] == len(tokens)
    for g in range(packed.groups):
        held = packed.group(g)
        assert len(held) == rows
        assert all(tokens[row].sum() <= 40 for row in held)
        assert sum(pictures[row].sum() for row in held) <= packed.slots
    if packed.groups:
        assert packed.token_fill == pytest.approx(tokens.sum() / (packed.groups * rows * 40))
        assert packed.slot_fill == pytest.approx(pictures.sum() / (packed.groups * packed.slots))
    again = pack(tokens, pictures, **options)
    np.testing.assert_array_equal(again.examples, packed.examples)
    np.testing.assert_array_equal(again.starts, packed.starts)


def test_seed_and_epoch_change_the_order():
    tokens, pictures = index(3000, 0.7, 2048, 576)
    found = [
        pack(tokens, pictures, length=2048, rows=4, seed=seed, epoch=epoch).examples
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert all((a != b).mean() > 0.9 for a, b in ((found[0], found[1]), (found[0], found[2])))


@pytest.mark.parametrize(
    "share,length,visual,least",
    [
        (0.95, 2048, 576, 0.89),
        (0.95, 4096, 576, 0.95),
        (0.70, 2048, 576, 0.95),
        (0.70, 4096, 576, 0.98),
        (0.95, 4096, 2880, 0.75),
        (0.70, 4096, 2880, 0.75),
    ],
)
def test_fill(share, length, visual, least):
    """Of tokens as the issue asks, and within 1 point of what ignores pictures; slots 90 %."""
    tokens, pictures = index(20_000, share, length, visual)
    packed = pack(tokens, pictures, length=length, rows=4)
    assert packed.token_fill >= least
    assert packed.slot_fill >= 0.9
    order = np.random.default_rng(1).permutation(len(tokens))
    windows = [order[i : i + 16384] for i in range(0, len(order), 16384)]
    free = sum(best_fit_rows(tokens[w].tolist(), length) for w in windows)
    assert packed.token_fill >= tokens.sum() / (free * length) - 0.01


def test_groups_are_balanced_and_mixed():
    """Batches are not sorted by length: groups of the first and the last tenth look alike."""
    tokens, pictures = index(20_000, 0.7, 2048, 576)
    packed = pack(tokens, pictures, length=2048, rows=4)
    longest = [max(tokens[row].max(initial=0) for row in packed.group(g)) for g in range(1800)]
    assert abs(np.mean(longest[:180]) - np.mean(longest[-180:])) < 60


def test_planning_is_linear_and_small():
    found = []
    for n in (20_000, 200_000):
        done = subprocess.run(
            [sys.executable, "-c", PLAN, str(n)], capture_output=True, text=True, check=True
        )
        found.append(json.loads(done.stdout))
    (short, _, _), (long, peak, _) = found
    assert long < 25 * short  # ten times as many: `data bench` measures more, on a quiet machine
    assert long < 60 * 200 / 1500 and peak < 1


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(length=99), "example 1 has 100 tokens and 1 pictures, expected 1 to 99"),
        (dict(slots=2), "example 2 has 3 pictures, more than 2 picture slots"),
        (dict(rows=0), "rows 0 and window 16384: expected at least 1"),
    ],
)
def test_what_cannot_be_packed(change, message):
    tokens, pictures = np.array([4, 100, 9]), np.array([0, 1, 3])
    with pytest.raises(ValueError, match=message):
        pack(tokens, pictures, **(dict(length=100, rows=2) | change))
