"""Times of collectives, against the formulas of rings, and the table of slices."""

import math

import pytest

from mgm_jax import topologies
from mgm_jax.plan.links import EFFICIENCY, HOP, LATENCY, Links

LINK = 45e9


def slice_of(*sides):
    coords = [()]
    for side in reversed(sides):
        coords = [(i, *c) for i in range(side) for c in coords]
    return coords


@pytest.mark.parametrize(
    "sides,ring,ways",
    [((4, 4), 16, 2), ((16, 16), 16, 4), ((4, 4, 4), 4, 6), ((2, 4, 4), 4, 3)],
)
def test_all_gather_of_a_whole_slice(sides, ring, ways):
    coords = slice_of(*sides)
    links, n = Links(coords, [0] * len(coords), LINK, ring), len(coords)
    hops = sum(s // 2 if ways == 2 * len(sides) else s - 1 for s in sides)
    expected = 1e9 * (n - 1) / n / (ways * LINK * EFFICIENCY) + LATENCY + hops * HOP
    group = list(range(n))
    assert links.seconds("all-gather", 0, 1e9, group) == pytest.approx(expected, rel=1e-12)
    assert links.seconds("reduce-scatter", 1e9, 0, group) == pytest.approx(expected, rel=1e-12)
    assert links.seconds("all-reduce", 1e9, 1e9, group) == pytest.approx(2 * expected, rel=1e-12)


def test_a_group_along_one_side_uses_that_side_alone():
    links = Links(slice_of(4, 4), [0] * 16, LINK, 16)
    row = links.seconds("all-gather", 0, 1e9, [0, 1, 2, 3])
    assert row == pytest.approx(1e9 * 0.75 / (LINK * EFFICIENCY) + LATENCY + 3 * HOP, rel=1e-12)
    assert links.seconds("all-gather", 0, 1e9, [5]) == 0


def test_between_slices_the_network_is_what_counts():
    coords = slice_of(4, 4) * 2
    links = Links(coords, [0] * 16 + [1] * 16, LINK, 16)
    across = links.seconds("all-reduce", 1e9, 1e9, [0, 16])
    assert across == pytest.approx(1e9 / topologies.NETWORK, rel=1e-3)  # half of it, there and back
    assert links.permute(1e9, [[0, 16]]) > 3 * links.permute(1e9, [[0, 1]])


@pytest.mark.parametrize(
    "name,shape,chips",
    [("v5e-16", "v5e:4x4", 16), ("v5p-64", "v5p:2x4x4", 32), ("2xv5e-256", "v5e:16x16", 512)],
)
def test_topologies(name, shape, chips):
    place = topologies.topology(name)
    assert (place.shape, place.chips) == (shape, chips)


def test_a_v5p_name_counts_cores_and_others_chips():
    for name, shape in topologies.SHAPES.items():
        per_chip = 2 if name.startswith("v5p") else 1
        chips = math.prod(int(side) for side in shape.split(":")[1].split("x"))
        assert chips == int(name.split("-")[1]) / per_chip


@pytest.mark.parametrize("name", ["v5e-17", "v4-8", "0xv5e-16", "v5e-16x2", ""])
def test_unknown_topology(name):
    with pytest.raises(ValueError, match=f"topology '{name}' is unknown, expected one of v5e-1"):
        topologies.topology(name)
