"""What a run computes, as shapes on a mesh: parameters, optimizer, batch and step.

Nothing is read, allocated or compiled here, so the same program is trained on a pod and compiled
for one that is not there (`plan`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax
from jax import ShapeDtypeStruct
from ml_collections import ConfigDict

from mgm_jax import optim, sharding, xla_flags
from mgm_jax.lora import adapters
from mgm_jax.lora.config import NAMES, WHOLE, LoraConfig
from mgm_jax.models.config import MgmConfig
from mgm_jax.models.mgm import Mgm
from mgm_jax.ops import ring
from mgm_jax.quantize import params as quantized
from mgm_jax.quantize.config import NAME, QuantConfig, make
from mgm_jax.step import make_step
from mgm_jax.tree import base_name, flatten, unflatten


def abstract_model(cfg: MgmConfig, **options):
    """The module, a batch to create it with, its parameters' shapes and their logical axes."""
    model = Mgm(cfg, **options)
    n, size = cfg.visual_tokens, cfg.image.hr_size
    row = jnp.zeros((1, n + 1), jnp.int32)
    batch = {
        "tokens": row,
        "positions": row,
        "segments": row,
        "visual_index": row,
        "images": jnp.zeros((1, 1, size, size, 3), jnp.uint8),
    }
    shapes, axes = sharding.abstract_params(model, (batch,))
    return model, batch, shapes, axes


def abstract_run(
    cfg: MgmConfig, lora: LoraConfig | None = None, quant: QuantConfig | None = None, **options
):
    """`abstract_model` with the adapters of `lora`, and its matrices quantised as `quant` says."""
    model, example, shapes, axes = abstract_model(cfg, **options)
    if lora:
        shapes, axes = adapters.add(shapes, axes, adapters.linears(model, example), lora)
    if quant:
        shapes, axes = quantized.abstract(shapes, axes, quant)
    return model, example, shapes, axes


@dataclasses.dataclass(frozen=True)
class Program:
    """A run on a mesh. Trees of ShapeDtypeStruct say shape, dtype and sharding of everything.

    `params`: the whole model as it is created, with adapters (`lora`), float32 but for what is
    quantised (`quant`); `state` ({"params", "opt"}) and `frozen`: what `step` (jitted: (state,
    frozen, batch) -> (state, metrics), state donated) takes.
    """

    mesh: jax.sharding.Mesh
    model: Mgm
    plan: optim.Plan
    optimizer: optax.GradientTransformation
    example: dict  # a tiny batch that parameters are created with
    params: dict
    state: dict
    frozen: dict
    step: object
    lora: LoraConfig | None
    quant: QuantConfig | None

    def batch(self, rows: int, length: int, groups: int, slots: int) -> dict:
        """The global batch of ARCHITECTURE 3: `rows` of `length` tokens, `groups` of `slots`."""
        placed, size = sharding.batch_sharding(self.mesh), self.model.cfg.image.hr_size
        text = {name: jnp.int32 for name in ("tokens", "targets", "positions", "segments")}
        text |= {"visual_index": jnp.int32, "loss_weights": jnp.float32}
        shapes = {name: ((rows, length), dtype) for name, dtype in text.items()}
        shapes["images"] = ((groups, slots, size, size, 3), jnp.uint8)
        shapes["image_mask"] = ((groups, slots), jnp.bool_)
        return {n: ShapeDtypeStruct(*s, sharding=placed) for n, s in shapes.items()}


def make_program(
    config: ConfigDict, cfg: MgmConfig, switches: dict, mesh: jax.sharding.Mesh, steps: int
) -> Program:
    """The program of a run of `steps` steps; `switches` as `settings.check_switches` gives them.

    ValueError for regex lists that do not fit the model.
    """
    options = {"dtype": config.dtype, "remat": config.remat, "scan": config.scan}
    options |= {"attention": config.attention, "moe": config.moe}
    options["tower_batch"] = config.tower_batch
    options |= {"drop_path": switches["frozen_tower_drop_path"]}
    lora = lora_config(config)
    quant = quant_config(config)
    model, example, shapes, axes = abstract_run(cfg, lora, quant, **options)
    shardings = flatten(sharding.param_shardings(shapes, axes, mesh))
    stacks = sharding.stacks(shapes, axes)
    plan = optim.make_plan(config.optim, flatten(shapes), steps, stacks)
    if lora:
        check_trainable(plan.trainable)
    if wrong := [n for n in plan.trainable if NAME.fullmatch(n)]:
        raise ValueError(
            f"config.quant is set, but config.optim.schedule trains {wrong[0]}, and integers have "
            "no gradient: expected it frozen (None), with an adapter (configs/lora.py)"
        )
    optimizer = optim.make_optimizer(config.optim, plan)

    def placed(shapes: dict, dtype=None) -> dict:  # a piece of a stack lies as the whole does
        flat = flatten(shapes)
        dtypes = {n: dtype or s.dtype for n, s in flat.items()}
        dtypes |= {n: s.dtype for n, s in flat.items() if NAME.fullmatch(n)}
        return unflatten(
            {
                n: ShapeDtypeStruct(s.shape, dtypes[n], sharding=shardings[base_name(n)])
                for n, s in flat.items()
            }
        )

    trainable, frozen = jax.eval_shape(plan.split, shapes)
    trainable, frozen = placed(trainable), placed(frozen, config.frozen_dtype)
    opt = jax.eval_shape(optimizer.init, trainable)
    opt_shardings = sharding.opt_shardings(opt, flatten(trainable), mesh)
    opt = jax.tree.map(
        lambda s, p: ShapeDtypeStruct(s.shape, s.dtype, sharding=p), opt, opt_shardings
    )
    state = {"params": trainable, "opt": opt}
    by_microbatch = switches["loss_reduction"] == "microbatch"
    step = make_step(
        model,
        optimizer,
        seed=config.seed,
        microbatch=config.data.microbatch if by_microbatch else None,
        nan_on_empty=switches["nan_loss_on_empty"],
        accumulate=config.accumulate,
        shards=sharding.batch_shards(mesh),
        lora=lora,
    )
    grid = sharding.torus(mesh, config.gradients)
    if "weights" in config.remat.split("+"):
        with ring.on_grid(grid), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            gathered = math.prod(ring.grid()) > 1 and ring.fits(cfg.llm.dim)
        if not gathered:
            raise ValueError(
                f"remat is {config.remat!r}, but on the mesh {dict(mesh.shape)} with gradients "
                f"{config.gradients!r} no weights are gathered that could be kept (docs/configs.md)"
            )
    step = jax.jit(
        ring.on_grid(grid)(step),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda s: s.sharding, state), sharding.replicated(mesh)),
        compiler_options=xla_flags.options(mesh),
    )
    params = placed(shapes)
    return Program(mesh, model, plan, optimizer, example, params, state, frozen, step, lora, quant)


def lora_config(config: ConfigDict) -> LoraConfig | None:
    """`config.lora`; None if its rank is 0. ValueError for a value out of range."""
    return LoraConfig(**config.lora.to_dict()) if config.lora.rank else None


def quant_config(config: ConfigDict) -> QuantConfig | None:
    """`config.quant`; None if its scheme is. ValueError for an unknown scheme."""
    return make(**config.quant.to_dict()) if config.quant.scheme else None


def check_trainable(names: Iterable[str]) -> None:
    """ValueError unless adapters train, and beside them only what travels with an adapter."""
    rest = [n for n in names if not re.fullmatch(NAMES, n)]
    if len(rest) == len(list(names)):
        raise ValueError("config.lora is set, but config.optim.schedule trains no adapter")
    if wrong := [n for n in rest if not re.fullmatch(WHOLE, n)]:
        raise ValueError(
            f"config.lora is set, but config.optim.schedule also trains {wrong[0]}; beside "
            f"adapters only {WHOLE!r} can be trained, the rest must be frozen (None)"
        )
