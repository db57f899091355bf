"""A step's time from its scheduled HLO: the schedule is played against a clock.

Where times come from (nothing here ran on a TPU):
  matrix products   the compiler's cycles, not below what HBM allows
  other fusions     bytes over 90 % of HBM's bandwidth, not below a quarter of the compiler's cycles
                    (measured by others against copies and additions, they are up to 4 x too high)
  collectives       bytes over the links of a ring through the chips' coordinates
  Pallas kernels    FLOPs at half of the peak (attention, from its shapes), or their `CostEstimate`
An asynchronous operation costs what its end has to wait: that is what "exposed" means.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import re

from mgm_jax.plan.hlo import COLLECTIVES, Loop, Op, Program, array_sizes, replica_groups, size
from mgm_jax.plan.links import Links
from mgm_jax.topologies import Chip

STREAM = 0.9  # of HBM's bandwidth that fusions reach
VECTOR = 4.0  # how much too high the cycles of fusions without products are
KERNEL = 0.5  # of the peak that a Pallas kernel is taken to reach
LATENCY = 2e-6  # seconds of any collective
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}
FREE |= {"partition-id", "replica-id", "opt-barrier", "optimization-barrier", "add-dependency"}
FREE_CALLS = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding"}
FREE_CALLS |= {"SliceToDynamic", "PadToStatic", "PartialReduce", "BarrierStart", "BarrierDone"}
FREE_CALLS |= {"xla.sdy.FuncResultSharding", "CustomFusionBarrier"}
FREE_CALLS |= {"PrepareAsyncCallStart", "PrepareAsyncCallDone"}


MODULES = ("clip", "convnext", "mining", "projector", "attn", "moe", "mlp")


def module_of(origin: str) -> str:
    """The module of the model that an operation belongs to, by the path it was traced at."""
    parts = origin.split("/")
    found = [name for name in MODULES if name in parts]
    if found:
        return found[0]
    if any(p.startswith("llm") for p in parts):
        return "llm, the rest"
    return "loss" if "Mgm.loss" in origin else "optimizer and the rest"


@dataclasses.dataclass
class Traffic:
    """Collectives of one kind: how many, bytes a chip, seconds on the links, seconds waited."""

    count: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0
    exposed: float = 0.0


@dataclasses.dataclass
class Timing:
    """Seconds of a step and what they are made of; `flops` counts products and kernels."""

    seconds: float
    split: dict[str, float]  # matmul, other, kernel, collective, copy
    modules: dict[str, float]  # of the model, by the origin of each operation
    flops: float
    traffic: dict[str, Traffic]
    top: list[tuple[str, float]]  # the operations that take longest, by origin
    kernels: dict[str, float]
    warnings: list[str]


def time_program(program: Program, chip: Chip, coords, slices, ring: int) -> Timing:
    """Plays a program of `coords` chips (in the order of its devices) on `chip`."""
    player = _Player(program, chip, Links(coords, slices, chip.link, ring))
    seconds = player.play(program.entry, 0.0, 1.0, None)
    top = sorted(player.top.items(), key=lambda item: -item[1])[:20]
    return Timing(
        seconds=seconds,
        split=dict(player.split),
        modules=dict(player.modules),
        flops=player.flops,
        traffic=dict(player.traffic),
        top=top,
        kernels=dict(player.kernels),
        warnings=player.warnings,
    )


class _Player:
    def __init__(self, program: Program, chip: Chip, links: Links):
        self.program, self.chip, self.links = program, chip, links
        self.split, self.top = collections.Counter(), collections.Counter()
        self.modules = collections.Counter()
        self.kernels = collections.Counter()
        self.traffic: dict[str, Traffic] = collections.defaultdict(Traffic)
        self.flops, self.warnings = 0.0, []
        self.busy = {"links": 0.0, "permute": 0.0, "copy": 0.0}  # until when
        self.started: dict[tuple[str, str], tuple[float, str, frozenset]] = {}
        self.offloaded: dict[tuple[str, str], tuple[str, Op]] = {}

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def spend(self, kind: str, seconds: float, times: float, op: Op) -> None:
        self.split[kind] += seconds * times
        self.modules[module_of(op.origin)] += seconds * times
        self.top[f"{kind}: {op.origin.removeprefix('jit(step)/') or op.name}"] += seconds * times

    # --- the schedule ---

    def play(self, computation: str, t: float, times: float, loop: Loop | None) -> float:
        """Runs a computation that begins at `t` and counts `times`; returns when it ends."""
        for op in self.program.ops[computation]:
            if op.code in FREE:
                continue
            if op.code == "while":
                t = self._loop(computation, op, t, times, loop)
            elif op.code == "call":
                t = self.play(op.calls("to_apply"), t, times, loop)
            elif op.code == "conditional":
                t = self._branch(op, t, times)
            elif op.code.endswith("-done"):
                t = self._done(computation, op, t, times, loop)
            elif op.code.endswith("-update"):
                key = (computation, op.operands[0]) if op.operands else None
                if key in self.offloaded:  # its operands are there now
                    self._start(computation, op, t, times, *self.offloaded[key])
            elif op.code.endswith("-start"):
                self._begin(computation, op, t, times)
            elif op.code in COLLECTIVES:
                t = self._synchronous(computation, op, op.code, computation, op, t, times)
            else:
                t = self._compute(computation, op, t, times, loop)
        return t

    def _loop(self, computation, op, t, times, outer) -> float:
        """Two rounds are played: the first, and one like all the others."""
        n = self.program.trips(computation, op, outer)
        if n is None:
            self.warn(f"the number of rounds of {op.name} cannot be told: taken as 1")
            n = 1
        if n == 0:
            return t
        body, here = op.calls("body"), Loop(computation, op, outer)
        end = self.play(body, t, times, here)
        if n == 1:
            return end
        again = self.play(body, end, times * (n - 1), here)
        rest = (again - end) * (n - 2)
        self.busy = {k: v + rest for k, v in self.busy.items()}
        self.started = {k: (r + rest, kind, ids) for k, (r, kind, ids) in self.started.items()}
        return again + rest

    def _branch(self, op, t, times) -> float:
        """The branch with the most operations: of a conditional in a step, the one that works."""
        found = re.search(r"branch_computations=\{([^}]*)\}", op.rest)
        names = re.findall(r"%?([\w.\-]+)", found[1]) if found else []
        names += re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", op.rest)
        self.warn(f"{op.name} has {len(names)} branches: the longest is timed")
        longest = max(names, key=lambda name: len(self.program.ops[name]))
        return self.play(longest, t, times, None)

    # --- asynchronous operations ---

    def _begin(self, computation, op, t, times) -> None:
        base = op.code.removesuffix("-start")
        inner = [(c, x) for c, x in self.program.inner(op) if x.code in COLLECTIVES]
        if base in COLLECTIVES:
            self._start(computation, op, t, times, computation, op)
        elif inner and base in ("custom-call", "async", "call"):
            users = (u for u in self.program.ops[computation] if op.name in u.operands)
            if any(u.code.endswith("-update") for u in users):
                self.offloaded[(computation, op.name)] = inner[0]
            else:
                self._start(computation, op, t, times, *inner[0])
        elif base in ("send", "recv"):
            self.started[(computation, op.name)] = (t, "copy", _channels(op))
        else:  # a copy between HBM and on-chip memory; its shape repeats what it reads
            arrays = [size(f"{m[0]}") for m in re.finditer(r"\w+\[[\d,]*\](\{[^{}]*\})?", op.shape)]
            moved = arrays[1] if len(arrays) > 1 else sum(arrays)
            begin = max(t, self.busy["copy"])
            self.busy["copy"] = begin + moved / (self.chip.bandwidth * STREAM)
            self.started[(computation, op.name)] = (self.busy["copy"], "copy", frozenset())

    def _start(self, computation, op, t, times, where, collective) -> None:
        """`op` begins `collective`, which stands in the computation `where`."""
        kind = collective.code.removesuffix("-start")
        seconds, moved = self._transfer(where, collective, kind)
        lane = "permute" if kind == "collective-permute" else "links"
        self.busy[lane] = max(t, self.busy[lane]) + seconds
        ids = self._all_channels(op) | _channels(collective)
        self.started[(computation, op.name)] = (self.busy[lane], kind, ids)
        self._count(kind, times, moved, seconds)

    def _count(self, kind, times, moved, seconds) -> None:
        traffic = self.traffic[kind]
        traffic.count += times
        traffic.bytes += moved * times
        traffic.seconds += seconds * times

    def _done(self, computation, op, t, times, loop) -> float:
        found = None
        for operand in op.operands:
            found = found or self._trace(computation, operand, loop)
        if found is None and (ids := self._all_channels(op)):
            matches = [k for k, (_, _, held) in self.started.items() if held & ids]
            found = matches[-1] if matches else None
        if found is None:
            if op.code != "custom-call-done":
                self.warn(f"{op.code} {op.name}: nothing was seen to begin it")
            return t
        ready, kind, _ = self.started[found]
        wait = max(0.0, ready - t)
        if kind in COLLECTIVES:
            self.traffic[kind].exposed += wait * times
        self.spend("collective" if kind in COLLECTIVES else "copy", wait, times, op)
        return t + wait

    def _trace(self, computation, name, loop, depth=0) -> tuple[str, str] | None:
        """The operation in `started` that a value comes from, through tuples and loops."""
        op = self.program.named[computation].get(name)
        if op is None or depth > 40:
            return None
        if (computation, name) in self.started:
            return computation, name
        if op.code in ("bitcast", "copy", "opt-barrier"):
            return self._trace(computation, op.operands[0], loop, depth + 1)
        if op.code != "get-tuple-element":
            return None
        source, k = self.program.named[computation].get(op.operands[0]), op.index()
        if source is None:
            return None
        if (computation, source.name) in self.started:
            return computation, source.name
        if source.code == "tuple":
            return self._trace(computation, source.operands[k], loop, depth + 1)
        if source.code == "while":
            body = source.calls("body")
            root = self.program.root(body)
            if root.code == "tuple":
                return self._trace(body, root.operands[k], None, depth + 1)
            return None
        if source.code == "parameter" and loop:
            root = self.program.root(computation)
            found = None
            if root.code == "tuple" and root.operands[k] != op.name:  # begun a round before
                found = self._trace(computation, root.operands[k], None, depth + 1)
            given = self.program.named[loop.computation].get(loop.op.operands[0])
            if found is None and given is not None and given.code == "tuple":
                found = self._trace(loop.computation, given.operands[k], loop.outer, depth + 1)
            return found
        for operand in source.operands:
            if found := self._trace(computation, operand, loop, depth + 1):
                return found
        return None

    def _all_channels(self, op) -> frozenset:
        return _channels(op).union(*(_channels(x) for _, x in self.program.inner(op)))

    # --- what things cost ---

    def _transfer(self, computation, op, kind) -> tuple[float, float]:
        """(seconds, bytes a chip) of a collective."""
        named = self.program.named[computation]
        given = sum(size(named[o].shape) for o in op.operands if o in named)
        made = size(op.shape)
        if op.code.endswith("-start"):  # what it makes, beside what it was given
            made = given if kind == "all-reduce" else max(made - given, given)
        groups = replica_groups(op, self.program.partitions)
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", op.rest)
        if kind == "collective-permute" and pairs:
            ids = [[int(x) for x in p] for p in re.findall(r"(\d+),(\d+)", pairs[1])]
            return self.links.permute(given, ids) + LATENCY, max(given, made)
        return self.links.seconds(kind, given, made, groups[0]), max(given, made)

    def _synchronous(self, computation, op, kind, where, collective, t, times) -> float:
        seconds, moved = self._transfer(where, collective, collective.code)
        if kind == "reduce-scatter" and collective.code == "all-reduce":
            seconds /= 2
        end = max(t, self.busy["links"]) + seconds
        self.busy["links"] = end
        self._count(kind, times, moved, seconds)
        self.traffic[kind].exposed += (end - t) * times
        self.spend("collective", end - t, times, op)
        return end

    def _compute(self, computation, op, t, times, loop) -> float:
        inner = self.program.inner(op) if op.code == "fusion" else []
        targets = {x.target for _, x in inner if x.code == "custom-call"} | {op.target}
        collectives = [(c, x) for c, x in inner if x.code in COLLECTIVES]
        flops = self.program.matmul_flops(computation, op)
        if "AsyncCollectiveDone" in targets:
            t = self._done(computation, op, t, times, loop)
            if op.cycles is None:
                return t
        elif "AsyncCollectiveStart" in targets:
            if collectives:
                self._start(computation, op, t, times, *collectives[0])
            if op.cycles is None:
                return t
        elif collectives and op.cycles is None and not flops:
            where, x = collectives[0]
            if "async_collective_fusion_config" in x.rest:
                return t  # a piece of one that has begun
            kind = x.code  # an all-reduce of which only a part is kept moves half as much
            if kind == "all-reduce" and size(op.shape) <= 0.6 * size(x.shape):
                kind = "reduce-scatter"
            return self._synchronous(computation, op, kind, where, x, t, times)
        kind, seconds, flops = self._cost(computation, op, flops)
        self.flops += flops * times
        if kind == "kernel":
            self.kernels[_kernel_name(op)] += seconds * times
        self.spend(kind, seconds, times, op)
        return t + seconds

    def _cost(self, computation, op, flops) -> tuple[str, float, float]:
        """(kind, seconds, FLOPs) of an operation that the chip computes."""
        chip, moved = self.chip, self._moved(computation, op)
        stream = moved / (chip.bandwidth * STREAM)
        if op.code == "custom-call":
            return self._kernel(computation, op, moved)
        if flops:
            cycles = op.cycles / chip.clock if op.cycles else flops / (0.85 * chip.peak)
            return "matmul", max(cycles, stream), flops
        if op.cycles is None and op.code != "fusion" and moved < 4096:
            return "other", 0.0, 0.0
        return "other", max(stream, (op.cycles or 0) / chip.clock / VECTOR), 0.0

    def _kernel(self, computation, op, moved) -> tuple[str, float, float]:
        if op.target in FREE_CALLS:
            return "other", 0.0, 0.0
        chip = self.chip
        flops = _attention_flops(self.program, computation, op)
        if flops is None:
            config = op.config.get("custom_call_config") or {}
            text = json.dumps({k: v for k, v in config.items() if k != "body"})
            said = re.search(r'"flops":\s*"?(\d+)', text)
            traffic = re.search(r'"bytes_accessed":\s*"?(\d+)', text)
            if said or traffic:
                flops = float(said[1]) if said else 0.0
                moved = float(traffic[1]) if traffic else moved
            elif op.cycles:
                return "kernel", op.cycles / chip.clock, 0.0
            else:
                self.warn(
                    f"kernel {_kernel_name(op)} has no cost estimate: only its bytes are counted"
                )
                flops = 0.0
        seconds = max(flops / (chip.peak * KERNEL), moved / (chip.bandwidth * STREAM))
        return "kernel", seconds, flops

    def _moved(self, computation, op) -> float:
        """Bytes that an operation reads from and writes to HBM; of slices only what is taken."""
        named, fused = self.program.named[computation], op.calls() if op.code == "fusion" else None
        total, inside = size(op.shape, True), {}
        if fused:
            parameters = (x for x in self.program.ops[fused] if x.code == "parameter")
            inside = {int(x.inside): x.name for x in parameters}
            total -= self._in_place(fused, self.program.root(fused))
        elif op.code == "dynamic-update-slice":
            total += size(named[op.operands[1]].shape, True) - size(op.shape, True)
        for k, operand in enumerate(op.operands):
            if operand not in named:
                continue
            whole = size(named[operand].shape, True)
            if k in inside and whole:
                whole = self._read(fused, inside[k], whole)
            elif op.code in ("dynamic-slice", "slice", "gather"):
                whole = min(whole, size(op.shape, True))
            elif op.code == "dynamic-update-slice" and k == 0:
                whole = 0.0
            total += whole
        return max(total, 0.0)

    def _in_place(self, fused, root) -> float:
        """Bytes of a fusion's result that it leaves as they are."""
        named = self.program.named[fused]
        if root.code in ("bitcast", "tuple"):
            return sum(self._in_place(fused, named[o]) for o in root.operands if o in named)
        if root.code == "dynamic-update-slice":
            part = named.get(root.operands[1])
            return max(0.0, size(root.shape, True) - (size(part.shape, True) if part else 0.0))
        return 0.0

    def _read(self, fused, name, whole, depth=0) -> float:
        """Bytes of a fusion's parameter that are read."""
        total = 0.0
        for x in self.program.ops[fused]:
            if name not in x.operands:
                continue
            first = x.operands[0] == name
            if x.code in ("dynamic-slice", "slice", "gather") and first:
                total += size(x.shape)
            elif x.code == "bitcast" and depth < 6:
                total += self._read(fused, x.name, whole, depth + 1)
            elif x.code == "fusion" and depth < 6:
                parameters = (y for y in self.program.ops[x.calls()] if y.code == "parameter")
                names = {int(y.inside): y.name for y in parameters}
                uses = [names[k] for k, o in enumerate(x.operands) if o == name and k in names]
                total += sum(self._read(x.calls(), use, whole, depth + 1) for use in uses)
            elif not (x.code == "dynamic-update-slice" and first):
                return whole
        return min(total, whole)


def _kernel_name(op: Op) -> str:
    return op.origin.split("/")[-1] or op.target


def _channels(op: Op) -> frozenset:
    return frozenset(re.findall(r"channel_id=(\d+)", op.rest))


def _attention_flops(program: Program, computation: str, op: Op) -> float | None:
    """FLOPs of a splash or flash attention kernel, half of the square where it is causal."""
    name = f"{op.name} {op.origin}".lower()
    if not re.search("splash|flash|mha", name):
        return None
    named = program.named[computation]
    shapes = [d for o in op.operands if o in named for _, d, _ in array_sizes(named[o].shape)]
    shapes = [d for d in shapes if len(d) in (3, 4) and 32 <= d[-1] <= 256 and d[-2] >= 128]
    shapes = [d for d in shapes if len(d) == 4] or shapes
    if len(shapes) < 2:
        return None
    query, key = shapes[:2]
    blocks = max(1, key[-2] // 512)
    share = (blocks + 1) / (2 * blocks) if query[-2] == key[-2] else 1.0
    products = 2 if "fwd" in name else 5 if "bwd" in name or "dkv" in name else 2
    return 2.0 * products * math.prod(query[:-2]) * query[-2] * key[-2] * query[-1] * share
