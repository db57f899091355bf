"""`data.schedule` and `data.order`: epochs, mixtures and rows as functions of seed and step."""

import pickle
from collections import Counter

import numpy as np
import pytest

from mgm_jax.data.lengths import Lengths
from mgm_jax.data.order import epoch_records, permutation
from mgm_jax.data.schedule import Schedule

VISUAL = 10


def lengths(n, seed):
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 3, n).astype(np.int32)
    text = rng.integers(5, 60, n).astype(np.int32)
    sign = np.where(pictures, 1, -1).astype(np.int32)
    return Lengths(text, pictures, pictures, text * sign)


def schedule(weights=(1.0, 1.0), **options):
    sources = (lengths(300, 1), lengths(83, 2))
    options = dict(length=100, rows=2, groups=3, seed=5, window=64) | options
    return Schedule(sources, weights, VISUAL, **options)


def rows(plan, steps):
    return [row for step in steps for row in plan.members(step, range(plan.groups))]


def test_permutations_are_fixed():
    """The same for ever, on every machine: a resumed run relies on it."""
    assert permutation(8, 0, "a").tolist() == [0, 2, 7, 4, 5, 1, 6, 3]
    assert sorted(permutation(1000, 1)) == list(range(1000))
    assert (permutation(1000, 1) != permutation(1000, 2)).mean() > 0.9


@pytest.mark.parametrize(
    "weight,epochs,times", [(1.0, 1, 1), (0.5, 2, 1), (2.0, 1, 2), (0.3, 10, 3)]
)
def test_weights(weight, epochs, times):
    found = Counter(int(r) for e in range(epochs) for r in epoch_records(57, weight, e, "k"))
    assert found == dict.fromkeys(range(57), times)


@pytest.mark.parametrize("batching", ["pack", "pad"])
def test_an_epoch_has_every_record_once(batching):
    plan = schedule(batching=batching, epochs=3)
    found = rows(plan, range(plan.steps()))
    members = Counter(item for row in found for item in row)
    assert members == {(s, r): 3 for s, n in ((0, 300), (1, 83)) for r in range(n)}
    assert rows(plan, [plan.steps(), plan.steps() + 7]) == [[]] * 12  # the end
    first = rows(schedule(batching=batching, epochs=1), range(plan.steps()))
    assert Counter(i for row in first for i in row) == {(s, r): 1 for s, r in members}


def test_rows_and_groups_keep_their_limits():
    plan = schedule()
    for step in range(100):
        members = plan.members(step, range(3))
        sizes = [[plan.lengths[s].tokens(VISUAL)[r] for s, r in row] for row in members]
        assert all(sum(row) <= 100 for row in sizes)
        shown = [sum(plan.lengths[s].pictures[r] for s, r in row) for row in members]
        assert all(sum(shown[g : g + 2]) <= plan.slots for g in (0, 2, 4))


@pytest.mark.parametrize("options", [{}, {"batching": "pad"}, {"batching": "pad", "micro_rows": 2}])
def test_any_step_in_any_order_by_anyone(options):
    plan = schedule(**options)
    expected = {step: plan.members(step, range(3)) for step in range(150)}  # several epochs
    fresh = pickle.loads(pickle.dumps(schedule(**options)))
    for step in (140, 3, 77, 3, 0):
        assert fresh.members(step, range(3)) == expected[step]
        parts = [fresh.members(step, [g]) for g in (2, 0, 1)]
        assert parts[1] + parts[2] + parts[0] == expected[step]
    epochs = [plan.at(step)[0] for step in range(150)]
    assert epochs == sorted(epochs) and epochs[0] == 0 and epochs[-1] >= 2
    assert expected[0] != schedule(seed=6, **options).members(0, range(3))


def test_mixture_in_proportion():
    plan = schedule(weights=(0.5, 2.0), epochs=2)
    found = Counter(s for row in rows(plan, range(plan.steps())) for s, _ in row)
    assert found == {0: 300, 1: 332}


def test_length_grouping_is_the_originals_order():
    from mgm_jax.data.length_groups import modality_order

    plan = schedule(batching="pad", micro_rows=2)
    order = modality_order(np.concatenate([source.words for source in plan.lengths]), 2, 3, 5)
    expected = [[(int(i >= 300), int(i - 300 * (i >= 300)))] for i in order]
    assert rows(plan, range(60)) == expected[:360]
    for step in range(50):  # pictures or text, never both
        members = plan.members(step, range(3))
        assert len({np.sign(plan.lengths[s].words[r]) for ((s, r),) in members}) == 1
