"""One host of a training run: `one_host.py CONFIG WORKDIR OUT STOP PROCESS COUNT PORT`.

Writes the sha256 of each global batch to OUT, a line a step, and dies without a word before step
STOP (0: never). With COUNT 1 it is the only host.
"""

import hashlib
import importlib.util
import os
import sys

import jax

config_file, workdir, out, stop, process, count, port = sys.argv[1:]
if int(count) > 1:
    jax.distributed.initialize(f"localhost:{port}", int(count), int(process))

from jax.experimental import multihost_utils  # noqa: E402

from mgm_jax import sharding, train  # noqa: E402

spec = importlib.util.spec_from_file_location("config", config_file)
spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
place, lines = sharding.place_batch, []


def recorded(batch, mesh, groups, held):
    """`place_batch`; what all hosts hold together is hashed."""
    placed = place(batch, mesh, groups, held)
    whole = multihost_utils.process_allgather(placed, tiled=True)
    digest = hashlib.sha256(b"".join(whole[name].tobytes() for name in sorted(whole)))
    lines.append(digest.hexdigest())
    if process == "0":
        with open(out, "a") as file:
            file.write(digest.hexdigest() + "\n")
    if len(lines) == int(stop):
        os._exit(9)
    return placed


sharding.place_batch = recorded
train.train(module.get_config(), workdir)
