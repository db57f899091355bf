"""What a run is, said before its first step: devices, parameters, memory, data, first rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version

import jax
import numpy as np

from mgm_jax.data.examples import Example
from mgm_jax.lora.adapters import adapted
from mgm_jax.run import Run
from mgm_jax.settings import TrainingError
from mgm_jax.tree import flatten, nbytes

SMALL = 64 << 20  # bytes: what may lie whole on every device, whatever its share
SHOWN = 2  # examples
PACKAGES = ("mgm-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


def report(run: Run) -> str:
    """The report of a run that has been prepared. A few lines each, no line of them is parsed."""
    sections = [_devices, _parameters, _adapters, _memory, _data, _first_rows, _versions]
    return "\n".join(line for section in sections for line in section(run))


def check_unsharded(run: Run) -> None:
    """TrainingError where more than `config.max_replicated` of the parameters' bytes (and more than
    SMALL) lie whole on every device of the mesh axes that parameters are split over."""
    mesh, allowed = run.program.mesh, run.config.max_replicated
    if math.prod(mesh.shape[axis] for axis in ("fsdp", "expert", "tensor")) == 1:
        return
    leaves = flatten(run.program.state["params"]) | flatten(run.program.frozen)
    whole = {n: _bytes(s) for n, s in leaves.items() if s.sharding.is_fully_replicated}
    share = sum(whole.values()) / sum(map(_bytes, leaves.values()))
    if share > allowed and sum(whole.values()) > SMALL:
        name = max(whole, key=whole.get)
        raise TrainingError(
            f"{share:.1%} of the parameters lie whole on every device of the mesh "
            f"{_sizes(mesh)}, expected at most config.max_replicated {allowed:.1%}; the largest is "
            f"{name} {leaves[name].shape}: use mesh sizes that divide its dimensions"
        )


def _bytes(s) -> int:
    return nbytes(s.shape, s.dtype)


def _sizes(mesh) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "of 1"


def _devices(run: Run) -> Iterator[str]:
    kinds = {d.device_kind for d in run.program.mesh.devices.flat}
    yield (
        f"devices     {run.program.mesh.size} x {', '.join(sorted(kinds))}, "
        f"{jax.process_count()} processes, mesh {_sizes(run.program.mesh)}"
    )


def _parameters(run: Run) -> Iterator[str]:
    counts = defaultdict(lambda: [0, 0])
    for column, part in enumerate((run.program.state["params"], run.program.frozen)):
        for name, s in flatten(part).items():
            counts[name.split("/")[0]][column] += math.prod(s.shape)
    yield f"{'parameters':<12}{'trained':>15} {'frozen':>15}"
    total = [sum(c) for c in zip(*counts.values(), strict=True)]
    for name, (trained, frozen) in [*sorted(counts.items()), ("total", total)]:
        yield f"  {name:<10}{trained:>15,} {frozen:>15,}"


def _adapters(run: Run) -> Iterator[str]:
    if lora := run.program.lora:
        yield f"adapters    rank {lora.rank}, scale {lora.scale:g}, dropout {lora.dropout:g}, on"
        for name in adapted(flatten(run.program.params)):
            yield f"  {name}"


def _memory(run: Run) -> Iterator[str]:
    def held(tree) -> float:
        shards = [(s.sharding.shard_shape(s.shape), s.dtype) for s in jax.tree.leaves(tree)]
        return sum(nbytes(*shard) for shard in shards) / 2**30

    state = run.program.state
    parts = {"trained": state["params"], "optimizer": state["opt"], "frozen": run.program.frozen}
    said = ", ".join(f"{name} {held(tree):.3g}" for name, tree in parts.items())
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    yield f"memory      GiB a device: {said}" + (f"; of {limit / 2**30:.3g}" if limit else "")


def _data(run: Run) -> Iterator[str]:
    data, schedule = run.config.data, run.stream.schedule
    records = {name: len(source) for name, source in run.stream.sources.items()}
    yield "data        " + ", ".join(f"{name} {n:,} records" for name, n in records.items())
    yield (
        f"batch       {data.batch} rows of {data.length} tokens, {data.batching}; "
        f"{schedule.groups} groups of {schedule.slots} picture slots; {run.steps:,} steps"
    )


def _first_rows(run: Run) -> Iterator[str]:
    for source, record, where in run.stream.members(0)[0][:SHOWN]:
        example = run.stream.encoder(run.stream.sources[source][record])
        yield f"example     {where}"
        yield f"  {shown(example, run.stream.tokenizer)!r}"


def shown(example: Example, tokenizer) -> str:
    """An example as text: 【what is learnt】, each picture as <image>."""
    learnt = np.append(False, example.loss_weights[:-1] > 0)
    kind = np.where(example.visual >= 0, 2, learnt)  # 0 prompt, 1 learnt, 2 of a picture
    cuts = np.flatnonzero(np.diff(kind)) + 1
    out = ""
    for tokens, kinds in zip(np.split(example.tokens, cuts), np.split(kind, cuts), strict=True):
        if kinds[0] == 2:
            out += "<image>"
        else:
            text = tokenizer.decode(tokens.tolist(), skip_special=False)
            out += f"【{text}】" if kinds[0] else text
    return out


def _versions(run: Run) -> Iterator[str]:
    yield "versions    " + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
