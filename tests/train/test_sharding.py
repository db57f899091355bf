"""Meshes: what is really sharded on eight simulated devices, and what is refused before compile."""

import json
import sys

import pytest

from mgm_jax import sharding

# Prints JSON: how each trainable parameter and its two Adam moments lie on the mesh.
PLACEMENT = """
import importlib.util, json, sys
import jax
from mgm_jax.run import prepare
from mgm_jax.tree import flatten

spec = importlib.util.spec_from_file_location("tiny", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
found = []
for mesh in json.loads(sys.argv[2]):
    config = module.get_config()
    config.mesh.update(mesh)
    if "tensor" in mesh:  # and of a stack, some layers
        config.optim.schedule = [("llm/layers[0]/.*", None), *config.optim.schedule]
    run = prepare(config)
    params = flatten(run.state["params"])
    kinds = {n: [p] for n, p in params.items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.state["opt"]):
        keys = [str(getattr(k, "key", getattr(k, "name", k))) for k in path]
        for i in range(len(keys)):
            if "/".join(keys[i:]) in params:
                kinds["/".join(keys[i:])].append(leaf)
    found.append({n: [
        [list(x.shape), list(x.sharding.shard_shape(x.shape)), str(x.sharding.spec)] for x in xs
    ] for n, xs in kinds.items()})
print(json.dumps(found))
"""

REFUSED = """
import sys
import jax

compiled = []
listen = jax.monitoring.register_event_duration_secs_listener
listen(lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None)
from mgm_jax import train
try:
    train.main(sys.argv[1:])
finally:
    print("compiled", len(compiled))
"""


def test_parameters_and_moments_are_sharded(tiny_config_file, run_command):
    meshes = [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]
    command = [sys.executable, "-c", PLACEMENT, str(tiny_config_file), json.dumps(meshes)]
    done = run_command(command, devices=8)
    assert done.returncode == 0, done.stderr
    fsdp, mixed = json.loads(done.stdout.splitlines()[-1])
    for placed, parts in ((fsdp, 8), (mixed, 4)):
        whole = held = 0
        for name, leaves in placed.items():
            assert len(leaves) == 3, name  # the parameter and two moments
            assert leaves[0] == leaves[1] == leaves[2], name
            shape, shard, _ = leaves[0]
            whole, held = whole + prod(shape), held + prod(shard)
        assert held < 1.2 * whole / parts
    assert "llm/layers/mlp/gate_proj/kernel" in fsdp
    shape, shard, _ = mixed["llm/layers/mlp/gate_proj/kernel[1:2]"][0]
    assert shard == [shape[0], shape[1] // 2, shape[2] // 2]  # layers, embed, mlp


def prod(shape):
    out = 1
    for n in shape:
        out *= n
    return out


@pytest.mark.parametrize(
    "override,words",
    [
        ("--config.data.batch=12", ["data.batch 12", "8 batch shards", "fsdp"]),
        ("--config.mesh.fsdp=3", ["mesh", "'fsdp': 3", "8 devices"]),
        ("--config.mesh.tensor=3", ["mesh", "'tensor': 3", "8 devices"]),
    ],
)
def test_what_does_not_divide_is_refused_before_any_compile(
    override, words, tiny_config_file, run_command, tmp_path
):
    arguments = [f"--config={tiny_config_file}", f"--workdir={tmp_path / 'work'}", override]
    done = run_command([sys.executable, "-c", REFUSED, *arguments], devices=8)
    assert done.returncode == 1 and done.stdout == "compiled 0\n"
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words), line
    assert "Traceback" not in done.stderr


def test_meshes():
    devices = list(range(8))
    mesh = sharding.make_mesh({"data": 2, "fsdp": -1, "tensor": 2}, devices)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2}
    assert sharding.batch_shards(mesh) == 4
    for shape in ({"fsdp": 3}, {"data": -1, "fsdp": -1}, {"tensor": 16}, {"fsdp": 0}, {"fsdp": -8}):
        with pytest.raises(ValueError, match="does not fit 8 devices"):
            sharding.make_mesh(shape, devices)
    with pytest.raises(ValueError, match="unknown axis 'tp'"):
        sharding.make_mesh({"tp": 8}, devices)
