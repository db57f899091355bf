"""Sums by rings on eight simulated devices against plain ones in float64."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mgm_jax.ops import ring
from mgm_jax.sharding import make_mesh, torus

SCRIPT = Path(__file__).with_name("ring_products.py")


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 9])
def test_neighbours_in_folded_order_are_near(n):
    order = ring.folded(n)
    assert sorted(order) == list(range(n))
    assert all(abs(a - b) <= 2 for a, b in zip(order, order[1:] + order[:1], strict=True))


@pytest.fixture(scope="module")
def found(run_command, tmp_path_factory):
    out = tmp_path_factory.mktemp("rings") / "found.npz"
    done = run_command([sys.executable, str(SCRIPT), str(out)], devices=8)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(out)


@pytest.mark.parametrize("grid", range(4), ids=["8", "2x4", "4x2", "2x2x2"])
@pytest.mark.parametrize("side", [0, 1], ids=["split inputs", "split outputs"])
def test_the_gradients_of_a_product(found, grid, side):
    names = ("x", "kernel", "dy", "dx", "dkernel")
    x, kernel, dy, dx, dkernel = (found[f"{grid}/{side}/{name}"] for name in names)
    np.testing.assert_allclose(dx, dy @ kernel.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dkernel, x.T @ dy, rtol=0, atol=1e-12)
    assert found[f"{grid}/{side}/placed"] and not found[f"{grid}/{side}/reduces"]


def test_a_grid_is_for_a_mesh_that_it_fills(found):
    assert json.loads(str(found["in_context"])) == [[], [2, 4], []]


class Chip:
    """A device with a place."""

    platform = "cpu"

    def __init__(self, *coords):
        self.coords = coords


def test_the_torus_of_a_mesh():
    class Mesh:
        def __init__(self, devices, **shape):
            self.devices, self.shape = np.array(devices, object), shape

    box = [Chip(x, y, 0) for x in range(2) for y in range(4)]
    assert torus(Mesh(box, fsdp=8), "auto") == torus(Mesh(box, fsdp=8), "ring") == (2, 4)
    assert torus(Mesh(box, fsdp=8), "xla") == ()
    snake = [*box[:4], *box[:3:-1]]
    assert torus(Mesh(snake, fsdp=8), "auto") == ()
    assert torus(Mesh(snake, fsdp=8), "ring") == (8,)
    assert torus(Mesh(box, fsdp=4, tensor=2), "auto") == ()
    with pytest.raises(ValueError, match="gradients is 'ring', but the mesh .* fsdp alone"):
        torus(Mesh(box, fsdp=4, tensor=2), "ring")
    with pytest.raises(ValueError, match="gradients is 'rings', expected 'auto', 'ring' or 'xla'"):
        torus(make_mesh({}), "rings")
    assert torus(make_mesh({}), "auto") == ()
