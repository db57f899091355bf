"""A packed mixture, stopped and resumed on other numbers of hosts: the same batches, hash by hash.

The hosts are real processes that `jax.distributed` joins; the training loop and its states are the
real ones.
"""

import json
import os
import random
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

STEPS, DEVICES = 9, 4
HOST = Path(__file__).with_name("one_host.py")


@pytest.fixture(scope="module")
def config_file(tiny_config, tiny_demo, tmp_path_factory):
    """A run of TINY over 48 records with a picture and 30 without, those twice an epoch."""
    root = tmp_path_factory.mktemp("resume")
    talk = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "three"}]
    texts = [{"id": f"t{i}", "conversations": talk * (1 + i % 3)} | {"n": i} for i in range(30)]
    (root / "text.json").write_text(json.dumps(texts))
    c = tiny_config(data__batching="pack", data__group_rows=1, data__batch=4, steps=STEPS)
    c.checkpoint.every = 1
    c.data.window = 32  # several windows an epoch
    values = c.to_dict()
    values["data"]["sources"] = {
        "pictures": {
            "path": str(tiny_demo / "data" / "train.json"),
            "images": str(tiny_demo / "data"),
        },
        "text": {"path": str(root / "text.json"), "weight": 2.0},
    }
    file = root / "config.py"
    file.write_text(
        textwrap.dedent(f"""
        from ml_collections import ConfigDict

        from mgm_jax.configs import common


        def get_config():
            c = common.train_config()
            values = {values!r}
            del c.data.sources.main
            c.update(ConfigDict(values))
            return c
        """)
    )
    return file


def run(config_file, workdir, hosts, stop=0):
    """-> hashes of the batches that were made, from the step on where the run began."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    out = workdir / "hashes"
    out.unlink(missing_ok=True)
    flags = (
        f"--xla_force_host_platform_device_count={DEVICES // hosts} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    )
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    arguments = [sys.executable, HOST, config_file, workdir, out, stop]
    processes = [
        subprocess.Popen(
            [str(a) for a in (*arguments, process, hosts, port)],
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for process in range(hosts)
    ]
    for process in processes:
        _, err = process.communicate(timeout=900)
        assert process.returncode == (9 if stop else 0), err[-3000:]
    return out.read_text().split()


@pytest.mark.slow  # make evidence
def test_one_host_two_hosts_one_host(config_file, tmp_path):
    (tmp_path / "whole").mkdir()
    expected = run(config_file, tmp_path / "whole", 1)
    assert len(expected) >= STEPS and len(set(expected[:STEPS])) == STEPS
    workdir, begun = tmp_path / "broken", 0
    workdir.mkdir()
    rng = random.Random(int(os.environ.get("SEED", 0)))
    for hosts in (1, 2, 1):
        last = hosts == 1 and begun > 0
        stop = 0 if last else rng.randint(4, 6)
        found = run(config_file, workdir, hosts, stop)
        assert found == expected[begun : begun + len(found)]
        # It dies at a batch that is made ahead, and while the newest state is being written: what
        # is on disk says how far it came.
        newest = max(int(d.name) for d in (workdir / "state").iterdir() if d.name.isdigit())
        assert begun < newest <= STEPS
        begun = newest
    losses = [
        [json.loads(line)["loss"] for line in (d / "metrics.jsonl").read_text().splitlines()]
        for d in (tmp_path / "whole", workdir)
    ]
    assert len(losses[0]) == STEPS
    assert (workdir / "heartbeat").exists()
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
