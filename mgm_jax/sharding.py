"""Meshes, one rule table from logical to mesh axes, and the shardings that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mgm_jax.tree import flatten, unflatten

AXES = ("data", "fsdp", "expert", "tensor")
BATCH_AXES = ("data", "fsdp", "expert")  # what the rows of a batch are split over

RULES = {
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "expert": "expert",
    "vis_embed": "fsdp",
    "vis_mlp": None,
    "vis_heads": None,
    "conv_in": "fsdp",
    "conv_out": None,
}


def make_mesh(shape: Mapping[str, int], devices=None) -> Mesh:
    """A mesh over `AXES` (a missing axis has size 1; one may be -1: what is left).

    ValueError when the sizes do not multiply to the number of devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices)
    if unknown := set(shape) - set(AXES):
        raise ValueError(f"mesh: unknown axis {sorted(unknown)[0]!r}, expected one of {AXES}")
    sizes = [int(shape.get(axis, 1)) for axis in AXES]
    fixed = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) == 1 and devices.size % fixed == 0:
        sizes[sizes.index(-1)] = devices.size // fixed
    if math.prod(sizes) != devices.size or min(sizes) < 1:
        raise ValueError(f"mesh {dict(shape)} does not fit {devices.size} devices")
    # Auto: on the Explicit meshes that jax.make_mesh builds by default, constraints raise.
    return Mesh(devices.reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """Number of parts that a batch's rows are split into: the G of the batch contract."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(rows: int, mesh: Mesh) -> None:
    """ValueError unless `rows` divides over the mesh's batch axes."""
    if rows % batch_shards(mesh):
        raise ValueError(
            f"data.batch {rows} does not divide over {batch_shards(mesh)} batch shards "
            f"(mesh {dict(mesh.shape)})"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Every array of a batch is split on its first axis (rows or groups)."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def abstract_params(module: nn.Module, init_args: tuple, method=None):
    """Shapes of a module's parameters and their logical axes, two trees, computing nothing."""
    boxed = jax.eval_shape(
        lambda: module.init(jax.random.key(0), *init_args, method=method)["params"]
    )
    return nn.unbox(boxed), nn.get_partition_spec(boxed)


def stacks(shapes, axes) -> dict[str, int]:
    """name -> number of layers, of the parameters that are stacks of layers (on axis 0)."""
    flat_axes = flatten(axes)
    return {n: s.shape[0] for n, s in flatten(shapes).items() if flat_axes[n][:1] == ("layers",)}


def param_shardings(shapes, axes, mesh: Mesh):
    """NamedShardings of a parameter tree: `RULES`, where the dimension divides; else replicated."""
    flat_axes = flatten(axes)

    def one(name, shape):
        spec, used = [], set()
        for size, axis in zip(shape, flat_axes[name], strict=True):
            target = RULES[axis] if axis else None
            fits = target and target not in used and size % mesh.shape[target] == 0
            spec.append(target if fits else None)
            used.add(target)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return unflatten({n: one(n, s.shape) for n, s in flatten(shapes).items()})


def opt_shardings(opt_shapes, params: Mapping[str, jax.ShapeDtypeStruct], shardings, mesh: Mesh):
    """Shardings of an optimizer state: a leaf whose path ends in a parameter's path, with its
    shape, takes its sharding; everything else is replicated. `params`, `shardings`: flat dicts."""

    def one(path, leaf):
        names = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
        for i in range(len(names)):
            name = "/".join(names[i:])
            if name in params and params[name].shape == leaf.shape:
                return shardings[name]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, opt_shapes)
