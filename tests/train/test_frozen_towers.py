"""A step runs what is frozen forwards only: seen in its program, before any compiler helps."""

import re

import jax
import pytest

from mgm_jax import sharding
from mgm_jax.models.config import MgmConfig
from mgm_jax.program import make_program
from mgm_jax.settings import check_switches

OPEN = {"decay": "constant"}
MODULES = ("clip", "convnext", "mining", "projector", "llm")


def modules(tiny_config, schedule):
    """The modules that work forwards in a step, and those that work backwards."""
    config = tiny_config()
    config.optim.schedule = schedule
    cfg = MgmConfig.from_dict(config.model.to_dict())
    mesh = sharding.make_mesh({"fsdp": 1}, jax.devices()[:1])
    program = make_program(config, cfg, check_switches(config), mesh, steps=6)
    batch = program.batch(rows=8, length=96, groups=1, slots=8)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = program.step.lower(program.state, program.frozen, batch)
    found = ({}, {})
    for path in re.findall(r'loc\("(jit\(step\)/[^"]*)"', lowered.as_text(debug_info=True)):
        for name in MODULES:
            if re.search(rf"\b{name}\b", path):
                found["transpose(" in path][name] = True
    return set(found[0]), set(found[1])


@pytest.mark.parametrize(
    "schedule,trained",
    [
        ([("(clip|convnext)/.*", None), (".*", OPEN)], {"mining", "projector", "llm"}),
        ([("convnext/.*", None), (".*", OPEN)], {"clip", "mining", "projector", "llm"}),
        ([("llm/.*", OPEN), (".*", None)], {"llm"}),
    ],
    ids=["stage 2", "CLIP too", "the language model"],
)
def test_what_is_frozen_has_no_backward_pass(tiny_config, schedule, trained):
    forwards, backwards = modules(tiny_config, schedule)
    assert forwards == set(MODULES) and backwards == trained
