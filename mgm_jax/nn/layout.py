"""Where things lie on a mesh: one rule table from the logical axes of parameters to the mesh's, and
the constraints that models state on activations, on their leading axis."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mgm_jax.ops import mesh

RULES = {
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "expert_mlp": ("expert", "tensor"),  # a part of every expert, so that all are equally busy
    "vis_embed": "fsdp",
    "vis_mlp": None,
    "vis_heads": None,
    "conv_in": "fsdp",
    "conv_out": None,
}


def split_pictures(x):
    """x [P, ...] as `split_rows` has it, but over `mesh.PICTURE_AXES`."""
    return _split(x, mesh.PICTURE_AXES)


def slot_parts(groups: int, slots: int, limit: int | None) -> int:
    """Parts to work on a batch's picture slots in, so that no device has more than `limit` pictures
    (or one slot of each of its groups) at a time."""
    own = groups / mesh.axis_size(*mesh.BATCH_AXES) * slots / mesh.axis_size("tensor")
    return min(slots, math.ceil(own / limit)) if limit else 1


def pad_slots(images, parts: int = 1):
    """[G, M, ...] -> [G, M', ...], zeros behind: slots that divide into `parts`, each of which
    `split_pictures` can split over the tensor axis of the mesh in context."""
    missing = -images.shape[1] % (parts * mesh.axis_size("tensor"))
    return jnp.pad(images, [(0, 0), (0, missing)] + [(0, 0)] * (images.ndim - 2))


def split_rows(x):
    """x [B, ...], its first axis split over the batch axes of the mesh in context, the rest free.

    Without such a mesh, and where B does not divide, x as it is.
    """
    return _split(x, mesh.BATCH_AXES)


def _split(x, axes: tuple[str, ...]):
    shards = mesh.axis_size(*axes)
    if shards == 1 or x.shape[0] % shards:
        return x
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *rest))
