"""What is to be compiled: a config's training step, or its serving path, on a topology."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
from ml_collections import ConfigDict

from mgm_jax import optim, settings, sharding
from mgm_jax.lora.config import LoraConfig
from mgm_jax.models.config import MgmConfig
from mgm_jax.program import abstract_run, lora_config, make_program, quant_config
from mgm_jax.quantize.config import QuantConfig
from mgm_jax.tree import flatten, nbytes

# Pictures of a packed row of the published data: 2.4 in 2,048 tokens of instructions, three in
# stage 1, where an example is a picture and its caption; one of HD's 2,880 tokens in 4,096.
PICTURES = {"1": 3.0, "2": 2.4, "hd": 1.0}
STEPS = 1000  # of a run whose length nothing says; the program does not depend on it


@dataclasses.dataclass(frozen=True)
class Serve:
    """A serving load: `batch` requests of `prompt` tokens (pictures included), one picture each,
    answered with `new` tokens. `read`: prompts that are read at a time, while all slots are held
    (0: all of them)."""

    batch: int = 8
    prompt: int = 1024
    new: int = 256
    read: int = 0


@dataclasses.dataclass(frozen=True)
class Vision:
    """A module of vision by itself, forward, on `batch` pictures a chip."""

    module: str
    batch: int = 8


@dataclasses.dataclass(frozen=True)
class Job:
    """`config`: FILE[:args]; `overrides`: --config.key=value; `serve` and `vision`: None for
    training; `text_only`: rows without pictures, as the language model alone has them."""

    config: str
    topology: str
    overrides: tuple[str, ...] = ()
    serve: Serve | None = None
    text_only: bool = False
    vision: Vision | None = None

    def dumps(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> Job:
        values = json.loads(text)
        parts = {"overrides": tuple(values["overrides"])}
        for name, kind in (("serve", Serve), ("vision", Vision)):
            parts[name] = values[name] and kind(**values[name])
        return cls(**values | parts)

    def read(self) -> tuple[ConfigDict, MgmConfig]:
        """The config and its model's; TrainingError for what a training run would refuse."""
        config = settings.read_config(self.config, self.overrides)
        settings.check_numbers(config)
        return config, model_config(config)


def model_config(config: ConfigDict) -> MgmConfig:
    """`config.model`, which needs no checkpoint; without one, that of the first in init."""
    if config.model:
        return MgmConfig.from_dict(config.model.to_dict())
    return settings.read_model_config(config)[0]


@functools.cache
def _parameters(
    cfg: MgmConfig, lora: LoraConfig | None, quant: QuantConfig | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names of a model's parameters, and the depths of those that are stacks."""
    _, _, shapes, axes = abstract_run(cfg, lora, quant)
    return tuple(flatten(shapes)), sharding.stacks(shapes, axes)


def plan_of(config: ConfigDict, cfg: MgmConfig) -> optim.Plan:
    """What trains."""
    names, stacks = _parameters(cfg, lora_config(config), quant_config(config))
    return optim.make_plan(config.optim, names, STEPS, stacks)


def picture_rate(config: ConfigDict, cfg: MgmConfig) -> float:
    """Pictures of a row, from the published data: see `PICTURES`."""
    if config.data.batching == "pad":
        return 1.0
    if cfg.image.crops > 1:
        return PICTURES["hd"] * config.data.length / 4096
    stage = "2" if "llm" in plan_of(config, cfg).modules else "1"
    return PICTURES[stage] * config.data.length / 2048


@dataclasses.dataclass(frozen=True)
class Shape:
    """The batch of a step: `groups` of `slots` picture slots, of which `pictures` are filled."""

    rows: int
    length: int
    groups: int
    slots: int
    pictures: float


def batch_shape(config: ConfigDict, cfg: MgmConfig, shards: int, text_only: bool = False) -> Shape:
    """The batch on `shards` parts of a mesh; TrainingError where its rows do not divide."""
    rows = config.data.batch
    parts = shards * config.accumulate
    if rows % parts:
        raise settings.TrainingError(
            f"config.data.batch is {rows}, expected a multiple of {parts}: {shards} shards of the "
            f"mesh's data, fsdp and expert axes times config.accumulate {config.accumulate}; fewer "
            "shards leave more chips to config.mesh.tensor"
        )
    group = config.data.group_rows or rows // parts
    if text_only:
        return Shape(rows, config.data.length, rows // group, 0, 0.0)
    rate = picture_rate(config, cfg)
    slots = config.data.slots or math.ceil(rate * group)
    groups = rows // group
    return Shape(rows, config.data.length, groups, slots, min(rate * rows, groups * slots))


@dataclasses.dataclass(frozen=True)
class Part:
    """A program to compile: `args` for `function` (jitted), and what each of them is."""

    name: str
    function: object
    args: tuple
    kinds: tuple[tuple[str, object], ...]  # (kind of memory, tree of ShapeDtypeStruct)

    def bytes_by_kind(self) -> dict[str, int]:
        """kind -> bytes of it on a chip."""
        return {kind: sum(map(_chip_bytes, jax.tree.leaves(tree))) for kind, tree in self.kinds}


def _chip_bytes(x: jax.ShapeDtypeStruct) -> int:
    return nbytes(x.sharding.shard_shape(x.shape), x.dtype)


def training(config: ConfigDict, cfg: MgmConfig, mesh, text_only: bool = False) -> list[Part]:
    """The training step of a config on a mesh."""
    switches = settings.check_switches(config)
    program = make_program(config, cfg, switches, mesh, config.steps or STEPS)
    shape = batch_shape(config, cfg, sharding.batch_shards(mesh), text_only)
    batch = program.batch(shape.rows, shape.length, shape.groups, shape.slots)
    if text_only:
        batch = {n: x for n, x in batch.items() if n not in ("images", "image_mask")}
    state, frozen = program.state, program.frozen
    kinds = (
        ("params", state["params"]),
        ("optimizer", state["opt"]),
        ("frozen", frozen),
        ("batch", batch),
    )
    return [Part("step", program.step, (state, frozen, batch), kinds)]


def locate(config: str) -> None:
    """TrainingError where FILE of FILE[:args] is not there, before a child process says so."""
    file = config.partition(":")[0]
    if not Path(file).is_file():
        raise settings.TrainingError(f"config {file}: there is no such file")
