"""`python ring_products.py FILE`: gradients of products over grids of eight devices, as .npz."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mgm_jax.ops import mesh as meshes
from mgm_jax.ops import ring
from mgm_jax.sharding import make_mesh

GRIDS = [(8,), (2, 4), (4, 2), (2, 2, 2)]


def gradients(grid: tuple[int, ...], side: int, mesh) -> dict:
    """Arguments, gradients (float64), whether they lie as they should, and all-reduces."""
    rng = np.random.default_rng(side)
    shapes = {"x": (40, 16), "kernel": (16, 384), "dy": (40, 384)}
    given = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    split = PartitionSpec(*("fsdp" if i == side else None for i in range(2)))
    x, kernel = (
        jax.device_put(given[name], NamedSharding(mesh, spec))
        for name, spec in (("x", meshes.rows()), ("kernel", split))
    )

    def loss(x, kernel):
        return jnp.vdot(ring.product(x, kernel, side, ring.grid()), given["dy"])

    with ring.on_grid(grid):
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, kernel).compile()
    dx, dkernel = compiled(x, kernel)
    placed = dkernel.sharding.is_equivalent_to(kernel.sharding, 2)
    return given | {
        "dx": dx,
        "dkernel": dkernel,
        "placed": placed,
        "reduces": compiled.as_text().count("all-reduce"),
    }


def in_context() -> list:
    """Which grids hold on which meshes."""
    with ring.on_grid((2, 4)):
        found = [ring.grid()]
        for shape in ({"fsdp": 8}, {"fsdp": 4, "tensor": 2}):
            with jax.set_mesh(make_mesh(shape)):
                found.append(ring.grid())
    return found


if __name__ == "__main__":
    ring.CLOSED = 2  # so that 2 x 2 x 2 is a torus whose axes are gathered one after the other
    jax.config.update("jax_enable_x64", True)
    mesh, found = make_mesh({"fsdp": 8}), {"in_context": json.dumps(in_context())}
    with jax.set_mesh(mesh):
        for i, grid in enumerate(GRIDS):
            for side in range(2):
                values = gradients(grid, side, mesh)
                found |= {f"{i}/{side}/{name}": value for name, value in values.items()}
    np.savez(sys.argv[1], **found)
