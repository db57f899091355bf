"""`one_step.py OUT TINY CASES MESHES`: loss and gradients of each case on each mesh, as .npz.

A case changes TINY's config, and may have `meshes` of its own; a mesh of {} is one device. The
parameters and the packed batch of a case are the same on all meshes.
"""

import copy
import json
import sys

import flax.linen as nn
import jax
import numpy as np
from mgm_jax.configs import common

from mgm_jax import sharding
from mgm_jax.data.examples import batch_rows, expand
from mgm_jax.models.config import MgmConfig
from mgm_jax.ops import ring
from mgm_jax.program import make_program
from mgm_jax.settings import check_switches
from mgm_jax.text import IGNORE, IMAGE_ID
from mgm_jax.tree import flatten, merge

ROWS, LENGTH, GROUPS = 16, 96, 16


def merge_config(values, changes):
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            merge_config(values[key], value)
        else:
            values[key] = value


def make_batch(cfg):
    """Rows of two examples each; every third example has no picture."""
    rng = np.random.default_rng(0)
    rows, number = [], 0
    for _ in range(ROWS):
        row = []
        for _ in range(2):
            ids = rng.integers(3, cfg.llm.vocab_size, 12).tolist()
            pictures = int(number % 3 > 0)
            if pictures:
                ids.insert(2, IMAGE_ID)
            labels = [i if n > 4 else IGNORE for n, i in enumerate(ids)]
            row.append(expand(ids, labels, cfg.visual_tokens, (number,) * pictures))
            number += 1
        rows.append(row)
    slots = 2 * ROWS // GROUPS
    options = dict(length=LENGTH, groups=GROUPS, slots=slots, visual_tokens=cfg.visual_tokens)
    arrays, shown = batch_rows(rows, **options)
    size = cfg.image.hr_size
    images = rng.integers(0, 256, (GROUPS, slots, size, size, 3), dtype=np.uint8)
    mask = np.array([[picture is not None for picture in group] for group in shown])
    return arrays | {"images": images, "image_mask": mask}


def run(tiny, case, mesh_shape):
    values = copy.deepcopy(tiny)
    merge_config(values, case.get("model", {}))
    cfg = MgmConfig.from_dict(values)
    config = common.train_config()
    config.steps = 1
    config.dtype = config.frozen_dtype = "float32"
    config.update(case.get("config", {}))
    devices = jax.devices() if mesh_shape else jax.devices()[:1]
    mesh = sharding.make_mesh(mesh_shape or {"fsdp": 1}, devices)
    program = make_program(config, cfg, check_switches(config), mesh, steps=100)
    summed = ring.on_grid(sharding.torus(mesh, config.gradients))
    with jax.set_mesh(mesh):
        params = jax.jit(lambda key: nn.unbox(program.model.init(key, program.example)["params"]))(
            jax.random.key(0)
        )
        params = jax.tree.map(lambda p, s: jax.device_put(p, s.sharding), params, program.params)
        trainable, frozen = program.plan.split(params)
        batch = make_batch(cfg)
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))

        def loss(trainable):
            total, weight = program.model.apply(
                {"params": merge(trainable, frozen)}, batch, method="loss"
            )
            return total / weight

        found = {}
        if case.get("gradients", True):
            found["loss"], grads = jax.jit(jax.value_and_grad(summed(loss)))(trainable)
            found |= {f"grads/{n}": g for n, g in flatten(grads).items()}
            found = jax.tree.map(np.asarray, found)
        opt = jax.jit(
            program.optimizer.init,
            out_shardings=jax.tree.map(lambda s: s.sharding, program.state["opt"]),
        )(trainable)
        state = {"params": trainable, "opt": opt}
        lowered = program.step.lower(state, frozen, batch).as_text()
        found["constraints"] = np.array(lowered.count("sharding_constraint"))
        found["permutes"] = np.array(lowered.count("collective_permute"))
        if case.get("step"):
            _, metrics = program.step(state, frozen, batch)
            found |= {n: np.asarray(metrics[n]) for n in ("loss", "grad_norm")}
        return found


out, tiny, cases, meshes = sys.argv[1], *map(json.loads, sys.argv[2:])
found = {}
for c, case in enumerate(cases):
    for m, mesh_shape in enumerate(case.get("meshes", meshes)):
        found |= {f"{c}/{m}/{n}": x for n, x in run(tiny, case, mesh_shape).items()}
np.savez(out, **found)
