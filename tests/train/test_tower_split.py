"""Towers on eight simulated devices: every device works on pictures of its own."""

import json
import sys

from tests.conftest import TINY

# Prints, for each [mesh, picture slots of a group], the FLOPs of a device for 16 or 15 pictures.
FLOPS = """
import json, sys
import jax
from mgm_jax import sharding
from mgm_jax.models.config import MgmConfig
from mgm_jax.nn.layout import pad_slots
from mgm_jax.program import abstract_model

tiny, cases = map(json.loads, sys.argv[1:])
cfg = MgmConfig.from_dict(tiny)
size = cfg.image.hr_size
model, _, shapes, axes = abstract_model(cfg)


def features(params, images):
    images = pad_slots(images)
    images = images.reshape(-1, *images.shape[2:])
    return model.apply({"params": params}, images, method="tower_features")


found = []
for shape, slots in cases:
    mesh = sharding.make_mesh(shape)
    params = jax.tree.map(
        lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p),
        shapes,
        sharding.param_shardings(shapes, axes, mesh),
    )
    groups, placed = sharding.batch_shards(mesh), sharding.batch_sharding(mesh)
    images = jax.ShapeDtypeStruct((groups, slots, size, size, 3), "uint8", sharding=placed)
    with jax.set_mesh(mesh):
        found.append(jax.jit(features).lower(params, images).compile().cost_analysis()["flops"])
print(json.dumps(found))
"""


def test_devices_share_the_pictures(run_command):
    cases = [[{"tensor": 8}, 16], [{"tensor": 8}, 15], [{"fsdp": 8}, 2]]
    cases += [[{"fsdp": 2, "tensor": 4}, 8], [{"data": 2, "fsdp": 2, "expert": 2}, 2]]
    done = run_command(
        [sys.executable, "-c", FLOPS, json.dumps(TINY), json.dumps(cases)], devices=8
    )
    assert done.returncode == 0, done.stderr
    flops = json.loads(done.stdout.splitlines()[-1])
    # Two pictures each, and nothing that another device does as well.
    assert max(flops) < 1.01 * min(flops), flops
