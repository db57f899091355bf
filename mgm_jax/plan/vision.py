"""A module of vision by itself on a slice, forward: what a picture costs in it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct
from ml_collections import ConfigDict

from mgm_jax import flops, sharding, xla_flags
from mgm_jax.models.config import MgmConfig
from mgm_jax.plan.compile import Compiled
from mgm_jax.plan.job import Part, Vision
from mgm_jax.plan.report import TIMED, memory, timed, timings
from mgm_jax.program import abstract_run
from mgm_jax.topologies import Topology
from mgm_jax.tree import flatten, unflatten

MODULES = ("clip", "convnext", "mining")


def parts(config: ConfigDict, cfg: MgmConfig, mesh, vision: Vision) -> list[Part]:
    """The module's program on `vision.batch` pictures a chip. ValueError for a module that the
    model does not have."""
    there = MODULES if cfg.convnext else ("clip",)
    if vision.module not in there:
        raise ValueError(f"--module is {vision.module!r}, but the model has {', '.join(there)}")
    dtype = jnp.dtype(config.dtype)
    model, _, shapes, axes = abstract_run(cfg, dtype=config.dtype, scan=config.scan)
    shapes, axes = ({vision.module: tree[vision.module]} for tree in (shapes, axes))
    placed = flatten(sharding.param_shardings(shapes, axes, mesh))
    params = unflatten(
        {
            name: ShapeDtypeStruct(s.shape, dtype, sharding=placed[name])
            for name, s in flatten(shapes).items()
        }
    )
    rows, pictures = sharding.batch_sharding(mesh), vision.batch * mesh.devices.size

    def given(*shape):
        return ShapeDtypeStruct((pictures, *shape), dtype, sharding=rows)

    if vision.module == "clip":
        views = () if cfg.image.crops == 1 else (cfg.image.crops,)
        inputs = (given(*views, cfg.image.lr_size, cfg.image.lr_size, 3),)
    elif vision.module == "convnext":
        inputs = (given(cfg.image.hr_size, cfg.image.hr_size, 3),)
    else:
        inputs = _features(cfg, given)

    def run(params, *inputs):
        return model.apply({"params": params}, *inputs, method=_METHODS[vision.module])

    function = jax.jit(run, compiler_options=xla_flags.options(mesh))
    kinds = (("params", params), ("batch", inputs))
    return [Part(vision.module, function, (params, *inputs), kinds)]


_METHODS = {
    "clip": lambda model, lr: model.clip(lr.reshape(-1, *lr.shape[-3:])),
    "convnext": lambda model, hr: model.convnext(hr),
    "mining": lambda model, x, *maps: model.mine(x, maps),
}


def _features(cfg: MgmConfig, given) -> tuple:
    """What mining takes: CLIP's tokens by view, and ConvNeXt's maps."""
    tokens = given(cfg.image.crops, cfg.clip.grid**2, cfg.clip.width)
    side, maps = cfg.image.hr_size // cfg.convnext.patch_size, []
    for width in cfg.convnext.widths:
        maps.append(given(side, side, width))
        side //= 2
    return tokens, *maps


def report(compiled: list[Compiled], place: Topology, cfg: MgmConfig, vision: Vision) -> dict:
    """The report of a module, with the keys of a training step's that make sense for it."""
    pictures = vision.batch * place.chips
    useful = flops.picture(cfg)[vision.module] * pictures
    found = memory(compiled[0], place) | {
        "module": vision.module,
        "pictures": pictures,
        "model_tflop_per_chip": round(useful / place.chips / 1e12, 3),
    }
    timing = timings(compiled[0], place)
    if timing is None:
        return found | dict.fromkeys(TIMED) | {"collectives": {}}
    milliseconds = round(1e3 * timing.seconds / vision.batch, 4)
    return found | timed(timing, useful, place) | {"milliseconds_a_picture": milliseconds}
