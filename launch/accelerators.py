"""TPU slices by the name they are rented under: what the launchers have to know of each."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Generation:
    """A TPU generation: Cloud TPU's runtime version, GKE's node label, jax's `device_kind`, what a
    chip counts for in a slice's name, chips on the one host of a small slice, and topologies."""

    runtime: str
    gke: str
    kind: str
    cores: int
    one_host: int
    topologies: tuple[str, ...]


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
GENERATIONS = {
    "v4": Generation("tpu-ubuntu2204-base", "tpu-v4-podslice", "TPU v4", 2, 4, CUBES),
    "v5litepod": Generation(
        "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "TPU v5 lite", 1, 8, FLAT
    ),
    "v5p": Generation("v2-alpha-tpuv5", "tpu-v5p-slice", "TPU v5", 2, 4, CUBES),
    "v6e": Generation("v2-alpha-tpuv6e", "tpu-v6e-slice", "TPU v6 lite", 1, 8, FLAT),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice: `v5litepod-64` is 64 chips on 16 hosts, `v5p-64` 32 chips on 8."""

    name: str
    generation: Generation
    topology: str

    @property
    def chips(self) -> int:
        return math.prod(map(int, self.topology.split("x")))

    @property
    def chips_per_host(self) -> int:
        return self.chips if self.chips <= self.generation.one_host else 4

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host


def slices() -> dict[str, Slice]:
    """name -> slice, of all that can be rented by name."""
    found = [(f, g, Slice("", g, t)) for f, g in GENERATIONS.items() for t in g.topologies]
    named = [dataclasses.replace(s, name=f"{f}-{s.chips * g.cores}") for f, g, s in found]
    return {s.name: s for s in named}


def find_slice(name: str) -> Slice:
    """The slice of that name; ValueError, with those that there are, if it is none."""
    known = slices()
    if name not in known:
        raise ValueError(f"accelerator {name!r} is unknown, expected one of {', '.join(known)}")
    return known[name]
