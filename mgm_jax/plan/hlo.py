"""Reads the scheduled HLO text of a TPU program: operations, sizes, loops, FLOPs, groups."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator

import numpy as np

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
BYTES |= {f"{sign}{bits}": bits // 8 for sign in "su" for bits in (8, 16, 32, 64)}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_OP = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")


def array_sizes(shape: str) -> Iterator[tuple[float, list[int], str]]:
    """(bytes of an element, dimensions, layout) of every array in a shape."""
    for kind, dims, layout in _ARRAY.findall(shape):
        if kind in BYTES or kind.startswith("f8"):
            yield (
                BYTES.get(kind, 1),
                [int(d.lstrip("<=")) for d in dims.split(",") if d],
                layout,
            )


def size(shape: str, hbm_only: bool = False) -> float:
    """Bytes of a shape's arrays as tiled in memory; with `hbm_only`, those that lie in HBM."""
    total = 0.0
    for width, dims, layout in array_sizes(shape):
        space = re.search(r"S\((\d+)\)", layout)
        if hbm_only and space and space[1] != "0":
            continue
        tile = re.match(r"([\d,]*):T\((\d+),(\d+)\)", layout)
        dims = list(dims)
        if tile and len(dims) > 1:
            order = [int(d) for d in tile[1].split(",")]
            for axis, unit in zip(order[:2], (int(tile[3]), int(tile[2])), strict=True):
                dims[axis] = -(-dims[axis] // unit) * unit
        total += width * math.prod(dims)
    return total


def dimensions(shape: str) -> list[int]:
    """Of the first array of a shape."""
    return next((dims for _, dims, _ in array_sizes(shape)), [])


@dataclasses.dataclass
class Op:
    """One instruction. `inside` are the texts in its parentheses, `rest` what follows them."""

    name: str
    shape: str
    code: str
    operands: list[str]
    inside: str
    rest: str
    root: bool

    @functools.cached_property
    def config(self) -> dict:
        start = self.rest.find("backend_config={")
        if start < 0:
            return {}
        start += len("backend_config=")
        try:
            return json.loads(self.rest[start : _closing(self.rest, start)])
        except ValueError:
            return {}

    @functools.cached_property
    def cycles(self) -> float | None:
        """The compiler's estimate; None where it has none."""
        window = self.config.get("window_config") or {}
        found = window.get("estimated_cycles", self.config.get("estimated_cycles"))
        value = float(found) if found not in (None, "") else -1
        return value if 0 <= value < 1e15 else None

    @functools.cached_property
    def origin(self) -> str:
        """The path of the operation in the program that was traced."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def target(self) -> str:
        found = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return found[1] if found else ""

    def calls(self, key: str = "calls") -> str | None:
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None

    def index(self) -> int:
        """Of a get-tuple-element."""
        return int(re.search(r"index=(\d+)", self.rest)[1])


def _closing(text: str, start: int) -> int:
    """The index after the bracket that closes the one at `start`; strings are passed over."""
    opening, depth, quoted, i = text[start], 0, False, start
    closing = {"(": ")", "{": "}"}[opening]
    while i < len(text):
        c = text[i]
        if c == "\\" and quoted:
            i += 1
        elif c == '"':
            quoted = not quoted
        elif not quoted and c == opening:
            depth += 1
        elif not quoted and c == closing:
            depth -= 1
            if not depth:
                return i + 1
        i += 1
    return len(text)


def _parse_op(line: str) -> Op | None:
    head = _OP.match(line)
    if not head:
        return None
    start = head.end()
    end = _closing(line, start) if line[start] == "(" else line.find(" ", start)
    opening = line.find("(", end)
    if opening < 0:
        return None
    closing = _closing(line, opening)
    inside, rest = line[opening + 1 : closing - 1], line[closing:]
    operands = re.findall(r"%([\w.\-]+)", inside)
    code = line[end:opening].strip()
    return Op(head[2], line[start:end], code, operands, inside, rest, bool(head[1]))


def _logical_lines(text: str) -> Iterator[str]:
    """Lines; the pieces of an operation whose attributes hold line breaks are put together."""
    held = ""
    for line in text.splitlines():
        begins = _OP.match(line) or _HEAD.match(line) or line.strip() == "}"
        if begins or not held.startswith("  "):
            if held:
                yield held
            held = line
        else:
            held += line
    yield held


class Program:
    """All computations of a module; `entry` names the one that runs."""

    def __init__(self, text: str):
        self.ops: dict[str, list[Op]] = {}
        self.entry, current = None, None
        for line in _logical_lines(text):
            if line.startswith(" "):
                if current is not None and (op := _parse_op(line)):
                    current.append(op)
            elif head := _HEAD.match(line):
                current = self.ops[head[2]] = []
                self.entry = head[2] if head[1] else self.entry
            elif line.startswith("}"):
                current = None
        if self.entry is None:
            raise ValueError("no ENTRY computation: not the text of a scheduled HLO module")
        self.named = {c: {op.name: op for op in ops} for c, ops in self.ops.items()}
        found = re.search(r"num_partitions=(\d+)", text[:100_000])
        self.partitions = int(found[1]) if found else 1
        self._flops: dict[tuple[str, str], float] = {}

    def root(self, computation: str) -> Op:
        ops = self.ops[computation]
        return next((op for op in reversed(ops) if op.root), ops[-1])

    def inner(self, op: Op) -> list[tuple[str, Op]]:
        """(computation, operation) of everything fused into or called by an operation."""
        found, seen = [], set()
        called = re.search(r"called_computations=\{%?([\w.\-]+)", op.rest)
        todo = [op.calls(), op.calls("to_apply"), called and called[1]]
        while todo:
            name = todo.pop()
            if name and name in self.ops and name not in seen:
                seen.add(name)
                found += [(name, x) for x in self.ops[name]]
                todo += [x.calls() for x in self.ops[name]]
        return found

    # ----------------------------------------------------------------------------------- FLOPs

    def matmul_flops(self, computation: str, op: Op) -> float:
        """2 x multiply-adds of the products and convolutions in an operation."""
        key = (computation, op.name)
        if key not in self._flops:
            inner = self.inner(op) if op.code == "fusion" else [(computation, op)]
            self._flops[key] = sum(self._product(c, x) for c, x in inner)
        return self._flops[key]

    def _product(self, computation: str, op: Op) -> float:
        if op.code not in ("convolution", "dot"):
            return 0.0
        shapes = self.named[computation]
        left, right = (dimensions(shapes[o].shape) for o in op.operands[:2])
        out = dimensions(op.shape)
        if op.code == "dot":
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)[1]
            return 2.0 * math.prod(out) * math.prod(left[int(a)] for a in axes.split(",") if a)
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest)
        lhs, rhs, result = labels.groups()
        window = re.search(r"window=\{([^}]*)\}", op.rest)
        fields = dict(x.split("=") for x in window[1].split()) if window else {}
        total = 2.0 * right[rhs.index("i")]
        for axis, extent in zip(result, out, strict=True):
            if not axis.isdigit():
                total *= extent
                continue
            i = int(axis)
            total *= _taps(
                out=extent,
                given=left[lhs.index(axis)],
                kernel=right[rhs.index(axis)],
                stride=int(_field(fields, "stride", i, 1)),
                spread=int(_field(fields, "lhs_dilate", i, 1)),
                dilation=int(_field(fields, "rhs_dilate", i, 1)),
                before=int(str(_field(fields, "pad", i, "0_0")).split("_")[0]),
            )
        return total

    # ----------------------------------------------------------------------------------- loops

    def trips(self, computation: str, loop: Op, outer: Loop | None = None) -> int | None:
        """How often a while loop runs, from its condition; None where that cannot be told."""
        here = Loop(computation, loop, outer)
        condition = loop.calls("condition")
        root, where, given = self.root(condition), condition, None
        if root.code == "fusion":
            where, given = root.calls(), root.operands
            root = self.root(where)
        direction = re.search(r"direction=(\w+)", root.rest)
        if root.code != "compare" or not direction:
            return None
        sides = [self._side(where, name, given, condition) for name in root.operands]
        for (index, _), (_, limit), way in (
            (sides[0], sides[1], direction[1]),
            (sides[1], sides[0], {"LT": "GT", "GT": "LT"}.get(direction[1], direction[1])),
        ):
            if index is None:
                continue
            if limit is None:
                other = sides[1] if sides[0][0] == index else sides[0]
                limit = self._start(here, other[0])
            first, step = self._start(here, index), self._step(loop.calls("body"), index)
            if None in (first, step, limit) or not step:
                continue
            more = {"LE": 1, "GE": 1}.get(way, 0)
            span = limit - first if way in ("LT", "LE") else first - limit
            span = abs(limit - first) if way == "NE" else span + more
            return max(0, -(-span // abs(step)))
        return None

    def _side(self, where, name, given, condition) -> tuple[int | None, int | None]:
        """(index of the loop's tuple, None) or (None, constant) that a compared value is."""
        for _ in range(10):
            op = self.named[where][name]
            if op.code == "parameter" and given is not None and where != condition:
                name, where = given[int(op.inside)], condition
            elif op.code in ("copy", "bitcast", "convert"):
                name = op.operands[0]
            elif op.code == "constant":
                return None, _integer(op)
            else:
                return (op.index() if op.code == "get-tuple-element" else None), None
        return None, None

    def _start(self, loop: Loop, index: int | None) -> int | None:
        """The constant that a loop's value begins with."""
        given = self.named[loop.computation].get(loop.op.operands[0])
        if index is None or given is None or given.code != "tuple":
            return None
        name, computation, outer = given.operands[index], loop.computation, loop.outer
        for _ in range(20):
            op = self.named[computation].get(name)
            if op is None:
                return None
            if op.code == "constant":
                return _integer(op)
            if op.code in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
                name = op.operands[0]
            elif op.code == "get-tuple-element" and outer:
                return self._start(outer, op.index())
            else:
                return None
        return None

    def _step(self, body: str, index: int, depth: int = 0) -> int | None:
        """What a loop adds to one of its values."""
        root = self.root(body)
        if root.code != "tuple":
            return None
        name, named, total = root.operands[index], self.named[body], 0
        for _ in range(20):
            op = named.get(name)
            if op is None:
                return None
            if op.code in ("copy", "bitcast", "copy-done", "copy-start"):
                name = op.operands[0]
            elif op.code == "get-tuple-element":
                source = named[op.operands[0]]
                if source.code != "parameter":
                    return None
                if op.index() == index:
                    return total
                # Double-buffered: the value is another one's of the round before.
                return self._step(body, op.index(), depth + 1) if not total and depth < 4 else None
            elif op.code in ("add", "subtract", "fusion"):
                inner, given = op, [named[o] for o in op.operands]
                if op.code == "fusion":
                    inner, place = self.root(op.calls()), self.named[op.calls()]
                    fused = [place[o] for o in inner.operands]
                    given = [given[int(x.inside)] if x.code == "parameter" else x for x in fused]
                values = [_integer(x) for x in given]
                if inner.code not in ("add", "subtract") or values.count(None) != 1:
                    return None
                amount = next(v for v in values if v is not None)
                total += amount if inner.code == "add" else -amount
                name = given[values.index(None)].name
            else:
                return None
        return None


@dataclasses.dataclass(frozen=True)
class Loop:
    """A while loop, the computation it stands in, and the loop whose body that is, if any."""

    computation: str
    op: Op
    outer: Loop | None


def _integer(op: Op) -> int | None:
    inside = op.inside.strip()
    return int(inside) if op.code == "constant" and re.fullmatch(r"-?\d+", inside) else None


def _field(fields: dict, key: str, i: int, default):
    return fields[key].split("x")[i] if key in fields else default


def _taps(*, out, given, kernel, stride, spread, dilation, before) -> int:
    """(output, tap) pairs of one dimension that read an element, and not padding or a hole."""
    limit, count = (given - 1) * spread + 1, 0
    for k in range(kernel):
        offset = k * dilation - before
        if spread == 1:
            low = max(0, -(offset // stride)) if offset < 0 else 0
            high = min(out - 1, (limit - 1 - offset) // stride)
            count += max(0, high - low + 1)
        else:
            places = (o * stride + offset for o in range(out))
            count += sum(0 <= p < limit and p % spread == 0 for p in places)
    return count


def replica_groups(op: Op, partitions: int) -> list[list[int]]:
    """The devices that talk to each other in a collective, in each of the forms of HLO: listed,
    as a transposed count [2,4]<=[4,2]T(1,0), or as axes of a mesh."""
    listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", op.rest)
    if listed:
        groups = re.findall(r"\{([\d,]*)\}", listed[1])
        return [[int(x) for x in g.split(",") if x] for g in groups]
    made = re.search(rf"replica_groups={_COUNT}", op.rest)
    if made:
        shape = _integers(made[1])
        ids = _counted(made[2], made[3])
        return ids.reshape(-1, shape[-1] if len(shape) > 1 else ids.size).tolist()
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", op.rest)
    if not mesh:
        return [list(range(partitions))]
    axes = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])]
    order = re.search(_COUNT, mesh[2])
    ids = _counted(order[2], order[3]) if order else np.arange(math.prod(n for _, n in axes))
    # An axis of which only a part is named, 'x':(before)size, is three.
    parts = {n: (int(a), int(b)) for n, a, b in re.findall(r"'([^']+)':\((\d+)\)(\d+)", mesh[3])}
    wanted, shape, talking = set(re.findall(r"'([^']+)'", mesh[3])), [], []
    for name, extent in axes:
        before, some = parts.get(name, (1, extent))
        shape += [before, some, extent // before // some]
        talking += [False, name in wanted, False]
    ids = ids.reshape(shape)
    last = [k for k, t in enumerate(talking) if t]
    first = [k for k, t in enumerate(talking) if not t]
    size = math.prod(shape[k] for k in last)
    return ids.transpose(first + last).reshape(-1, size).tolist()


_COUNT = r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"


def _integers(text: str) -> list[int]:
    return [int(x) for x in text.split(",") if x]


def _counted(dims: str, order: str | None) -> np.ndarray:
    """Devices 0, 1, ... as an array of `dims`, transposed by `order`, flat."""
    sizes = _integers(dims)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose(_integers(order)) if order else ids).ravel()
