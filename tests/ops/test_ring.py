"""Sums by rings on simulated devices against plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mgm_jax.ops import mesh as meshes
from mgm_jax.ops import ring
from mgm_jax.sharding import make_mesh

GRIDS = [(8,), (2, 4), (4, 2), (2, 2, 2)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 9])
def test_neighbours_in_folded_order_are_near(n):
    order = ring.folded(n)
    assert sorted(order) == list(range(n))
    assert all(abs(a - b) <= 2 for a, b in zip(order, order[1:] + order[:1], strict=True))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("side", [0, 1])
def test_the_gradients_of_a_product(grid, side):
    mesh = make_mesh({"fsdp": 8})
    rng = np.random.default_rng(side)
    x, kernel, dy = (rng.standard_normal(s) for s in ((32, 16), (16, 384), (32, 384)))
    split = PartitionSpec(*("fsdp" if i == side else None for i in range(2)))
    with jax.enable_x64(True), jax.set_mesh(mesh), ring.on_grid(grid):
        place = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))  # noqa: E731
        arrays = place(x, meshes.rows()), place(kernel, split)
        f = lambda x, k: jnp.vdot(ring.product(x, k, side, ring.grid()), dy)  # noqa: E731
        compiled = jax.jit(jax.grad(f, argnums=(0, 1))).lower(*arrays).compile()
        dx, dkernel = compiled(*arrays)
    np.testing.assert_allclose(dx, dy @ kernel.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dkernel, x.T @ dy, rtol=0, atol=1e-12)
    assert dkernel.sharding.is_equivalent_to(arrays[1].sharding, 2)
    assert "all-reduce" not in compiled.as_text()


def test_a_grid_is_for_a_mesh_that_it_fills():
    with ring.on_grid((2, 4)):
        assert ring.grid() == ()  # no mesh
        with jax.set_mesh(make_mesh({"fsdp": 8})):
            assert ring.grid() == (2, 4)
        with jax.set_mesh(make_mesh({"fsdp": 4, "tensor": 2})):
            assert ring.grid() == ()
    with jax.set_mesh(make_mesh({"fsdp": 8})):
        assert ring.grid() == ()
