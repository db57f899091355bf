"""Meshes, and the shardings that follow from the rules of `nn.layout`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mgm_jax.nn.layout import RULES
from mgm_jax.ops.mesh import AXES, BATCH_AXES
from mgm_jax.tree import flatten, unflatten


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
    return Mesh(_arrange(devices, sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(devices: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Devices as an array of `sizes`: on TPUs neighbours on the torus, and slices along "data"."""
    flat = devices.ravel().tolist()
    if getattr(flat[0], "platform", "") != "tpu":
        return devices.reshape(sizes)
    slices = len({getattr(d, "slice_index", 0) for d in flat})
    if slices == 1:
        return create_device_mesh(sizes, flat, allow_split_physical_axes=True)
    if sizes[0] % slices:
        raise ValueError(
            f"mesh.data is {sizes[0]}, expected a multiple of the {slices} slices that it spans"
        )
    inside = [sizes[0] // slices, *sizes[1:]]
    across = [slices] + [1] * (len(sizes) - 1)
    return create_hybrid_device_mesh(inside, across, flat, allow_split_physical_axes=True)


def torus(mesh: Mesh, gradients: str) -> tuple[int, ...]:
    """The grid of chips over which `ops.ring` sums gradients; (): XLA sums them.

    `gradients`: "ring"; "xla"; or "auto": "ring" where the chips of a mesh of nothing but `fsdp`
    fill a box in row-major order. "ring" takes the others as one ring. ValueError for another
    value, and for "ring" on a mesh that has other axes.
    """
    if gradients not in ("auto", "ring", "xla"):
        raise ValueError(f"gradients is {gradients!r}, expected 'auto', 'ring' or 'xla'")
    pure = mesh.shape["fsdp"] == mesh.devices.size
    if gradients == "ring" and not pure:
        raise ValueError(
            f"gradients is 'ring', but the mesh is {dict(mesh.shape)}: expected fsdp alone"
        )
    if gradients == "xla" or not pure:
        return ()
    return _box(mesh.devices.ravel()) or ((mesh.devices.size,) if gradients == "ring" else ())


def _box(devices: np.ndarray) -> tuple[int, ...]:
    """Sides, but those of 1, of the box that chips fill in row-major order; () if they do not."""
    if not all(hasattr(d, "coords") for d in devices) or len(devices) == 1:
        return ()
    places = np.array([d.coords for d in devices])
    places -= places.min(0)
    sides = places.max(0) + 1
    in_order = np.stack(np.unravel_index(np.arange(math.prod(sides)), sides), -1)
    return tuple(int(s) for s in sides if s > 1) if np.array_equal(places, in_order) else ()


def batch_shards(mesh: Mesh) -> int:
    """Number of parts that a batch's rows are split into: the G of the batch contract."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Every array of a batch is split on its first axis (rows or groups)."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def held_groups(mesh: Mesh, groups: int) -> tuple[int, ...]:
    """Which of a batch's groups this process's devices hold."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((groups,)).values()
    return tuple(sorted({g for (s,) in slices for g in range(*s.indices(groups))}))


def place_batch(batch, mesh: Mesh, groups: int, held: tuple[int, ...]):
    """Host arrays of the groups `held` (leading axis: rows or groups) -> arrays of all groups."""

    def place(x):
        each = x.shape[0] // len(held)  # rows of a group, or 1
        shape = (groups * each, *x.shape[1:])

        def shard(index):
            start, stop, _ = index[0].indices(shape[0])
            first = held.index(start // each) * each
            return x[first : first + stop - start]

        return jax.make_array_from_callback(shape, batch_sharding(mesh), shard)

    return jax.tree.map(place, batch)


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
            over = (target,) if isinstance(target, str) else target or ()
            fits = over and not used & set(over)
            fits = fits and size % math.prod(mesh.shape[a] for a in over) == 0
            spec.append(target if fits else None)
            used |= set(over)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return unflatten({n: one(n, s.shape) for n, s in flatten(shapes).items()})


def opt_shardings(opt_shapes, params: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh):
    """Shardings of an optimizer state: a leaf whose path ends in a parameter's path, with its
    shape, takes its sharding; everything else is replicated. `params`: a flat dict."""

    def one(path, leaf):
        names = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
        for i in range(len(names)):
            name = "/".join(names[i:])
            if name in params and params[name].shape == leaf.shape:
                return params[name].sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, opt_shapes)
