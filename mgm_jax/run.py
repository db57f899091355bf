"""A run made from its config: program, parameters on the mesh, data; nothing is compiled yet."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from mgm_jax import sharding
from mgm_jax.checkpoint import content_hash, describe, load_some, quantization_of, whole_model
from mgm_jax.data.pipeline import ahead, iterate
from mgm_jax.data.stream import Stream, open_stream
from mgm_jax.features import TOWERS, cache_features
from mgm_jax.host_memory import keep_freed_memory
from mgm_jax.lora import adapters
from mgm_jax.lora.config import NAMES as ADAPTERS
from mgm_jax.metrics import batch_counts
from mgm_jax.models.config import MgmConfig
from mgm_jax.models.mgm import Mgm
from mgm_jax.program import Program, make_program
from mgm_jax.quantize.config import NAME, QuantConfig, plain_name
from mgm_jax.quantize.params import quantize_one, quantized
from mgm_jax.settings import TrainingError
from mgm_jax.tree import base_name, flatten, match_first, merge, take, unflatten


def init_params(model: Mgm, example: dict, params: dict, rules, seed: int, only=None, quant=None):
    """Each parameter from the checkpoint that its first matching rule names, or at random.

    `params`: their ShapeDtypeStructs; everything arrives in its sharding. `example`: a batch to
    create the model with. `rules`: (regex, model directory or None). `only`: names to make; all.
    Adapters are in no checkpoint: they are made as `lora.adapters.create` says. Of what is
    quantised (`quant`) a checkpoint may hold the plain parameter.
    """
    shapes = flatten(params)
    new = {n: s for n, s in shapes.items() if re.fullmatch(ADAPTERS, n)}
    sources = init_sources([n for n in shapes if n not in new], rules)
    sources = {n: path for n, path in sources.items() if only is None or n in only}
    found = adapters.create(jax.random.key(seed), new) if new and only is None else {}
    if random := [n for n, path in sources.items() if path is None]:
        if wrong := quantized(random):
            raise TrainingError(
                f"config.quant is set, but config.init names no checkpoint for {wrong[0]}"
            )

        @functools.partial(jax.jit, out_shardings={n: shapes[n].sharding for n in random})
        def create(key):
            flat = flatten(nn.unbox(model.init(key, example)["params"]))
            return {n: flat[n].astype(shapes[n].dtype) for n in random}

        found |= create(jax.random.key(seed))
    for path in dict.fromkeys(p for p in sources.values() if p is not None):
        wanted = {n: shapes[n] for n, p in sources.items() if p == path}
        found |= load_quantized(path, wanted, quant)
    return unflatten({n: found[n] for n in shapes if n in found})


def init_sources(names, rules) -> dict:
    """name -> checkpoint or None by `config.init`, whose rules name parameters unquantised."""
    plain = {n: plain_name(n) for n in names}
    sources = match_first(dict.fromkeys(plain.values()), rules, "init")
    return {n: sources[p] for n, p in plain.items()}


def load_quantized(path: str, wanted: dict, quant: QuantConfig | None) -> dict:
    """`load_some` of a checkpoint that holds these parameters, or the plain ones of those that are
    quantised: then one after the other is read and quantised. TrainingError for one that is
    quantised in another way than `quant`."""
    stored = quantization_of(describe(path))
    if stored and stored != quant:
        raise TrainingError(
            f"{path} is quantised ({stored}), but config.quant says {quant}: set "
            f"config.quant.scheme={stored.scheme} and config.quant.group={stored.group}"
        )
    later = {} if stored else {n: wanted[n] for n in quantized(wanted)}
    places = {n: s for n, s in wanted.items() if stored or not NAME.fullmatch(n)}
    found = load_some(path, places)
    for name, s in later.items():
        plain = plain_name(name)
        whole = jax.ShapeDtypeStruct(s.shape, np.float32, sharding=s.sharding)
        (array,) = load_some(path, {plain: whole}).values()
        shardings = {n: wanted[n].sharding for n in (name, f"{name}_scale")}
        found |= quantize_one(plain, array, quant, shardings)
    return found


@dataclasses.dataclass
class Run:
    """Everything that a training loop needs, made from a config; nothing has been compiled yet.

    `state` of a run that is resumed: ShapeDtypeStructs, until it has been restored.
    """

    config: ConfigDict
    cfg: MgmConfig
    program: Program
    state: dict
    frozen: dict
    stream: Stream
    pictures: Callable
    steps: int
    bases: dict[str, str]

    def batches(self, start: int) -> Iterator[dict]:
        """Batches on the mesh, from step `start` on."""
        return (batch for batch, _ in self.counted_batches(start))

    def counted_batches(self, start: int) -> Iterator[tuple[dict, np.ndarray]]:
        """The same with this process's `metrics.batch_counts`; the next one is on its way."""
        groups, data = self.stream.schedule.groups, self.config.data
        mesh = self.program.mesh
        held = sharding.held_groups(mesh, groups)
        ours = self.stream.batches(held, self.pictures)
        found = iterate(ours, start, threads=data.threads, workers=data.workers)
        placed = ((sharding.place_batch(b, mesh, groups, held), batch_counts(b)) for b in found)
        return ahead(placed, 1)

    @property
    def identity(self) -> dict:
        """What a resumed run has to find again, as JSON."""
        return {**self.stream.identity, "steps": self.steps, "bases": self.bases}

    def params(self):
        """The whole model as it computes, in the shardings of `program.params`."""
        return computing_params(self.program, self.state["params"], self.frozen)


def bases(config: ConfigDict, program: Program) -> dict[str, str]:
    """The checkpoints that frozen parameters come from -> `content_hash`."""
    frozen = frozen_names(program)
    paths = init_sources(flatten(program.params), config.init)
    used = {path for n, path in paths.items() if n in frozen and path}
    return {path: content_hash(path) for path in sorted(used)}


def adapter_base(config: ConfigDict, program: Program) -> str:
    """The checkpoint that a run's adapter is of. TrainingError unless all that is frozen comes from
    one, a whole model."""
    frozen = frozen_names(program)
    sources = init_sources(flatten(program.params), config.init)
    found = {path for n, path in sources.items() if n in frozen}
    if len(found) > 1 or None in found:
        raise TrainingError(
            "config.lora is set, so config.init must name one whole model to adapt, but frozen "
            f"parameters come from {', '.join(sorted(map(str, found)))}"
        )
    (path,) = found
    whole_model(path)
    return path


def frozen_names(program: Program) -> set[str]:
    """Parameters of which at least a piece is frozen."""
    return {base_name(n) for n in flatten(program.frozen)}


def create(config: ConfigDict, program: Program, *, fresh: bool = True) -> tuple[dict, dict]:
    """(state, frozen) of a run that begins. Unless `fresh`, only what is frozen is made, and the
    state is `program.state`."""
    flat = flatten(program.params)
    dtypes = {n: s.dtype for n, s in flatten(program.frozen).items()}  # whole ones, cast on reading
    shapes = {
        n: jax.ShapeDtypeStruct(s.shape, dtypes.get(n, s.dtype), sharding=s.sharding)
        for n, s in flat.items()
    }
    only = None if fresh else frozen_names(program)
    made = flatten(
        init_params(
            program.model,
            program.example,
            shapes,
            config.init,
            config.seed,
            only,
            program.quant,
        )
    )

    def part(names):  # a piece of a stack, in its own dtype, lies as the stack does
        return unflatten(
            {
                n: jax.device_put(take(made, n), s.sharding).astype(s.dtype)
                for n, s in flatten(names).items()
            }
        )

    frozen = part(program.frozen)
    if not fresh:
        return program.state, frozen
    trainable = part(program.state["params"])
    shardings = jax.tree.map(lambda s: s.sharding, program.state["opt"])
    opt = jax.jit(program.optimizer.init, out_shardings=shardings)(trainable)
    return {"params": trainable, "opt": opt}, frozen


def whole_params(program: Program, trainable, frozen):
    """The two parts as one model; stacks that were cut are joined where they lie."""
    parts = [flatten(part) for part in (trainable, frozen)]
    whole = unflatten({n: x for part in parts for n, x in part.items() if base_name(n) == n})
    cut = [{n: x for n, x in part.items() if base_name(n) != n} for part in parts]
    if not any(cut):
        return whole
    shapes = flatten(program.params)
    joined = {base_name(n): shapes[base_name(n)].sharding for part in cut for n in part}
    join = jax.jit(lambda a, b: merge(a, b), out_shardings=unflatten(joined))
    return merge(whole, join(*cut))


def computing_params(program: Program, trainable, frozen):
    """`whole_params` as the model computes with them: adapters are `active`."""
    params = whole_params(program, trainable, frozen)
    return adapters.active(params, program.lora) if program.lora else params


def check_bases(found: dict[str, str], kept: dict[str, str]) -> None:
    """TrainingError unless the frozen parameters are those that the run began with."""
    for path, was in kept.items():
        if (now := found.get(path)) != was:
            raise TrainingError(
                f"{path}, where frozen parameters come from, has changed since the run began: its "
                f"content was {was[:12]}, found {now and now[:12]}; restore it, or start in "
                "another --workdir"
            )


def prepare(config: ConfigDict, *, kept: dict | None = None, index: str | None = None) -> Run:
    """Checks the whole configuration, reads the data, and places parameters on the mesh.

    `kept`, `index`: as `open_stream` has them. With `kept` the trained part is left to be restored.
    """
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    mesh = sharding.make_mesh(config.mesh.to_dict())
    stream = open_stream(config, shards=sharding.batch_shards(mesh), kept=kept, index=index)
    cfg, switches = stream.cfg, stream.switches
    steps = config.steps or stream.schedule.steps()
    program = make_program(config, cfg, switches, mesh, steps)
    if program.lora:
        adapter_base(config, program)
    begun_with = bases(config, program)
    if kept:
        check_bases(begun_with, kept["bases"])
    state, frozen = create(config, program, fresh=kept is None)
    model, plan = program.model, program.plan
    pictures = stream.pictures
    if config.data.cache_features:
        if moving := [n for n in plan.trainable if n.split("/")[0] in TOWERS]:
            raise TrainingError(
                f"config.data.cache_features needs frozen towers, but {moving[0]} is trained"
            )
        if model.drop_path:
            raise TrainingError(
                "config.data.cache_features needs towers that give the same each time, but "
                f"config.switches.frozen_tower_drop_path is {model.drop_path}"
            )
        if config.data.workers:
            raise TrainingError(
                "config.data.cache_features is read through a memory map of this process, but "
                f"config.data.workers is {config.data.workers}, expected 0 (threads may be used)"
            )
        every = [p for s in stream.sources.values() for i in range(len(s)) for p in s[i].images]
        pictures = cache_features(config.data.cache_features, model, frozen, every)
    return Run(config, cfg, program, state, frozen, stream, pictures, steps, begun_with)
