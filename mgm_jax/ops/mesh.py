"""What a kernel asks of the mesh in context: its platform, and the axes to split its work over.

XLA cannot partition a Pallas call, so kernels run under `shard_map`; the mesh is the one that
`jax.set_mesh` (or `use_abstract_mesh`, for a compile without devices) put in context.
"""

from __future__ import annotations

import math

import jax
from jax.sharding import AxisType, PartitionSpec

AXES = ("data", "fsdp", "expert", "tensor")
BATCH_AXES = ("data", "fsdp", "expert")  # what the rows of a batch are split over
# Pictures of the towers: no weight of a tower is split over tensor, so that its devices would all
# do the same.
PICTURE_AXES = (*BATCH_AXES, "tensor")


def on_tpu() -> bool:
    """Whether the program being traced is for TPUs: by the mesh in context, else the backend.

    An ahead-of-time compile has a mesh of TPUs while the default backend is the CPU.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return (device.platform if device else jax.default_backend()) == "tpu"


def on_one_cpu() -> bool:
    """Whether the program being traced is for one CPU device, whose cache is worth thinking of."""
    return jax.default_backend() == "cpu" and not on_tpu() and axis_size(*AXES) == 1


def choose(name: str, value: str, tpu: str, other: str) -> str:
    """`value`, or for "auto" the form of the platform: `tpu` or `other`.

    ValueError for another value; `name` is the setting it came from.
    """
    if value not in ("auto", tpu, other):
        raise ValueError(f"{name} is {value!r}, expected 'auto', {tpu!r} or {other!r}")
    return (tpu if on_tpu() else other) if value == "auto" else value


def axis_size(*axes: str) -> int:
    """Number of parts that the mesh in context splits over `axes`: 1 without a mesh, and for axes
    that an enclosing `shard_map` has split over already."""
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return math.prod(mesh.shape[a] for a in axes if types.get(a) == AxisType.Auto)


def split(f, in_specs, out_specs):
    """`f` on each device's part of its arguments; `f` itself when the mesh in context is trivial.

    Specs as of `jax.shard_map`, over `AXES`.
    """
    if axis_size(*AXES) == 1:
        return f
    return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def rows(*rest: str | None) -> PartitionSpec:
    """The spec of an array whose first axis is rows of the batch, the others as given."""
    return PartitionSpec(BATCH_AXES, *rest)


def check_rows(count: int, setting: str) -> None:
    """ValueError when a batch's rows cannot be split over the mesh in context."""
    shards = axis_size(*BATCH_AXES)
    if count % shards:
        raise ValueError(
            f"{setting}: {count} rows do not divide by the mesh's {shards} batch shards "
            f"({' x '.join(BATCH_AXES)}); use a batch that does"
        )
