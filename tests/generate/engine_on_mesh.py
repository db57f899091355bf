"""Run by test_engine.py with 4 simulated devices: an engine's answers on a mesh, as JSON."""

import dataclasses
import json
import tempfile
from pathlib import Path

import jax

from mgm_jax import sharding
from mgm_jax.generate.engine import Engine
from mgm_jax.program import abstract_model
from tests.conftest import make_tiny_model
from tests.generate.test_engine import GREEDY, LENGTHS, QUESTIONS

COUNT = 8


def main() -> None:
    model = make_tiny_model(Path(tempfile.mkdtemp()))
    mesh = sharding.make_mesh({"data": 2, "tensor": 2})
    _, _, shapes, axes = abstract_model(model.config, dtype="float32")
    params = jax.device_put(model.params, sharding.param_shardings(shapes, axes, mesh))
    placed = dataclasses.replace(model, params=params, mesh=mesh)
    with Engine(placed, slots=4, mesh=mesh, **LENGTHS) as engine:
        items = zip(QUESTIONS[:COUNT], GREEDY, range(COUNT), strict=False)
        ids = [answer.ids for answer in engine.answers(items)]
        cache = engine.device.cache[0]["k"]
        shard = cache.sharding.shard_shape(cache.shape)
        print(json.dumps({"ids": ids, "reused": engine.stats.reused_tokens, "shard": shard}))


if __name__ == "__main__":
    main()
