"""TPU chips and slices as data: the one table of names, sizes and speeds.

A v5p name counts TensorCores, two a chip (`v5p-64` is 32 chips); v5e and v6e names count chips.
`2xv5e-256` is two slices, joined by the data centre's network.
"""

from __future__ import annotations

import dataclasses
import math
import re

LIBTPU_LOCK = "/tmp/libtpu_lockfile"  # libtpu's own: one process of a machine at a time


@dataclasses.dataclass(frozen=True)
class Chip:
    """One jax device. `peak`: bfloat16 FLOP/s; `bandwidth` of HBM and `link` (one ICI link, one
    way): bytes/s; `hbm`: GiB that programs can have; `clock`: Hz of the compiler's cycles.

    `ring`: sides of a slice at which its links close to a ring (a multiple counts). Sources: Google
    Cloud's system pages; clock and usable memory as the compiler of libtpu 0.0.42 has them.
    """

    clock: float
    peak: float
    bandwidth: float
    hbm: float
    link: float
    ring: int


CHIPS = {
    "v5e": Chip(1.50e9, 197e12, 819e9, 15.75, 45e9, 16),
    "v5p": Chip(1.75e9, 459e12, 2765e9, 95.74, 90e9, 4),
    "v6e": Chip(1.75e9, 918e12, 1640e9, 31.25, 90e9, 16),
}
KINDS = {"TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p"}
KINDS |= {"TPU v6 lite": "v6e", "TPU v6e": "v6e"}  # jax's `device_kind` -> CHIPS
NETWORK = 12.5e9  # bytes/s of a chip between slices: a host's 400 Gbit/s over its 4 chips

_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8"}
_CUBE |= {512: "4x8x8", 1024: "8x8x8"}
SHAPES = {f"v5e-{n}": f"v5e:{s}" for n, s in _FLAT.items()}
SHAPES |= {f"v6e-{n}": f"v6e:{s}" for n, s in _FLAT.items()}
SHAPES |= {f"v5p-{n}": f"v5p:{s}" for n, s in _CUBE.items()}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` times the slice that libtpu knows as `shape`, of `chips` chips in all."""

    name: str
    shape: str
    slices: int

    @property
    def generation(self) -> str:
        return self.shape.split(":")[0]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        return self.slices * math.prod(map(int, self.shape.split(":")[1].split("x")))


def topology(name: str) -> Topology:
    """`v5p-64` or `2xv5e-256`; ValueError for a name that is not in the table."""
    slices, shape = re.fullmatch(r"(?:(\d+)x)?(.*)", name).groups()
    if shape not in SHAPES or slices == "0":
        raise ValueError(
            f"topology {name!r} is unknown, expected one of {', '.join(SHAPES)}, or several slices "
            "of one, as 2xv5e-256"
        )
    return Topology(name, SHAPES[shape], int(slices or 1))


def devices(place: Topology) -> list:
    """The devices of a slice that is not there, for ahead-of-time compiles.

    Loads libtpu, of which a machine runs one process at a time: see `plan.compile`.
    """
    from jax.experimental import topologies

    more = {"num_slices": place.slices} if place.slices > 1 else {}
    known = place.shape.replace("1x1", "2x2")  # libtpu's smallest; one chip of it
    found = topologies.get_topology_desc(platform="tpu", topology_name=known, **more)
    return list(found.devices)[: place.chips]
