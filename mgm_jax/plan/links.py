"""How long collectives take on the links between chips: rings through the chips' coordinates."""

from __future__ import annotations

from mgm_jax.topologies import NETWORK

EFFICIENCY = 0.9  # of a link's bandwidth
LATENCY, HOP = 2e-6, 0.5e-6  # seconds: of a collective, of each chip that it passes


class Links:
    """The links of a slice (or several): `coords` of its chips in the order of the program.

    `link`: bytes/s of one, one way; `ring`: sides that are a multiple of it close to a ring. A v5p
    slice has rings where all of its sides do, a v5e or v6e one along each side of 16.
    """

    def __init__(self, coords, slices, link: float, ring: int):
        self.coords, self.slices, self.link = [tuple(c) for c in coords], slices, link * EFFICIENCY
        self.sides = [max(axis) + 1 for axis in zip(*self.coords, strict=True)]
        closed = [side % ring == 0 for side in self.sides]
        self.closed = [all(closed)] * len(closed) if ring == 4 else closed

    def _ways(self, group) -> tuple[float, int, int, bool]:
        """(bytes/s of a chip inside a slice, hops, longest side, whether that is a ring)."""
        total, hops, longest, closed = 0.0, 0, 1, True
        for k, side in enumerate(self.sides):
            extent = len({self.coords[device][k] for device in group})
            if extent == 1:
                continue
            ring = extent == side and self.closed[k]
            total += self.link * (2 if ring else 1)
            hops += extent // 2 if ring else extent - 1
            if extent > longest:
                longest, closed = extent, ring
        return max(total, self.link), max(hops, 1), longest, closed

    def seconds(self, kind: str, given: float, made: float, group: list[int]) -> float:
        """Of a collective of `group` in which a chip gives and gets so many bytes."""
        n = len(group)
        if n < 2:
            return 0.0
        bandwidth, hops, longest, closed = self._ways(group)
        across = len({self.slices[device] for device in group})
        share, wait = (n - 1) / n, LATENCY + hops * HOP
        rate = 1 / bandwidth
        if across > 1:  # what goes between slices takes its own, slower way
            rate = max(rate, (across - 1) / across / share / NETWORK)
        if kind == "all-gather":
            return made * share * rate + wait
        if kind == "reduce-scatter":
            return given * share * rate + wait
        if kind == "all-reduce":
            return 2 * (given * share * rate + wait)
        # all-to-all: half of it crosses the middle of the longest side
        inside = given * longest / (8 if closed else 4) / self.link
        return max(inside, given * rate if across > 1 else 0.0) + wait

    def permute(self, given: float, pairs) -> float:
        """Each chip sends `given` bytes to one other."""
        crosses = any(self.slices[a] != self.slices[b] for a, b in pairs)
        return given / (NETWORK if crosses else self.link)
