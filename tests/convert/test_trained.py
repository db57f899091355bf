"""Trained checkpoints, which orbax packs and compresses: stored and read one layer at a time."""

import dataclasses
import json
import sys
import textwrap

import numpy as np
import pytest
from golden_families import complete

from mgm_jax import api
from mgm_jax.checkpoint import layer_chunks, load_checkpoint, save_checkpoint
from mgm_jax.convert.checkpoints import to_hf
from mgm_jax.convert.hf import load_hf
from mgm_jax.convert.params import ParamsSource
from mgm_jax.convert.readers import open_source
from mgm_jax.tree import flatten
from tests.convert.conftest import same

UP, EXPERTS = "llm/layers/mlp/up_proj/kernel", "llm/layers/moe/w_up"
SAVED_ON_A_MESH = """
    import dataclasses, sys
    import jax, numpy as np
    from mgm_jax import sharding
    from mgm_jax.checkpoint import load_checkpoint, save_checkpoint
    from mgm_jax.program import abstract_model
    src, dst = sys.argv[1:]
    found = load_checkpoint(src)
    _, _, shapes, axes = abstract_model(found.config)
    mesh = sharding.make_mesh(dict(data=1, fsdp=4, expert=1, tensor=2))
    placed = jax.device_put(found.params, sharding.param_shardings(shapes, axes, mesh))
    save_checkpoint(dst, dataclasses.replace(found, params=placed))
"""
READ_A_LAYER = """
    import sys
    from pathlib import Path
    from mgm_jax.convert.params import ParamsSource
    from tools.evidence.measure import own_peak
    source, name = ParamsSource(Path(sys.argv[1]) / "params"), sys.argv[2]
    source.read_block("llm/norm/scale", ())
    before = own_peak()
    for i in range(len(source[name])):
        source.read_block(name, (i,))
    print(own_peak() - before)
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """The golden of LLaMA with MLPs that are worth a chunk for each layer: 16 of 2 MB."""
    root = tmp_path_factory.mktemp("trained")
    cfg, params = load_hf(complete("llama_mha", root))
    layers, wide = 16, 2**13
    cfg = dataclasses.replace(cfg, llm=dataclasses.replace(cfg.llm, layers=layers, mlp_dim=wide))
    rng = np.random.default_rng(0)
    for name, shape in (
        ("gate_proj", (64, wide)),
        ("up_proj", (64, wide)),
        ("down_proj", (wide, 64)),
    ):
        kernel = rng.integers(-99, 99, (layers, *shape)).astype(np.float32)
        params["llm"]["layers"]["mlp"][name]["kernel"] = kernel
    stack = params["llm"]["layers"]
    for part in (stack["attn"], {"a": stack["attn_norm"], "b": stack["mlp_norm"]}):
        for leaf in part.values():
            for key, array in leaf.items():
                leaf[key] = np.resize(array, (layers, *array.shape[1:]))
    save_checkpoint(root / "saved", api.Checkpoint(cfg, params, None, "v1"))
    return root / "saved", flatten(params)


def test_a_chunk_is_a_layer_on_one_device_and_on_a_mesh(big, tmp_path, run_command):
    saved, params = big
    command = [sys.executable, "-c", textwrap.dedent(SAVED_ON_A_MESH), saved, tmp_path / "mesh"]
    done = run_command(list(map(str, command)), devices=8)
    assert not done.returncode, done.stderr[-2000:]
    for directory, split in ((saved, 1), (tmp_path / "mesh", 8)):
        source = ParamsSource(directory / "params")
        assert np.prod(source[UP].chunk) * split == params[UP][0].size
        assert source[UP].chunk[0] == 1
        assert same(source.read_block(UP, (3,)), params[UP][3:4])
        assert all(same(source.read(name), array) for name, array in params.items())
    restored = flatten(load_checkpoint(tmp_path / "mesh").params)
    assert all(same(np.asarray(restored[name]), array) for name, array in params.items())
    to_hf(tmp_path / "mesh", tmp_path / "back", progress=False)
    back = open_source(tmp_path / "back")
    name = "model.layers.{}.mlp.up_proj.weight"
    assert all(same(back.read(name.format(i)), params[UP][i].T) for i in range(16))


def test_reading_a_layer_holds_a_layer(big, run_command):
    saved, params = big
    done = run_command([sys.executable, "-c", textwrap.dedent(READ_A_LAYER), str(saved), UP])
    assert not done.returncode, done.stderr[-2000:]
    assert json.loads(done.stdout) < params[UP].nbytes / 2


def test_experts_are_chunks_too_and_small_arrays_are_not_cut(tmp_path, monkeypatch):
    cfg, params = load_hf(complete("mixtral", tmp_path))
    chunks = flatten(layer_chunks(cfg, params))
    assert {args.shard_axes for args in chunks.values()} == {()}  # all of them are small
    monkeypatch.setattr("mgm_jax.checkpoint.SMALL", 0)
    chunks = flatten(layer_chunks(cfg, params))
    assert chunks[EXPERTS].shard_axes == (0, 1) and chunks["llm/norm/scale"].shard_axes == ()
    save_checkpoint(tmp_path / "saved", api.Checkpoint(cfg, params, None, "v1"))
    source, expected = ParamsSource(tmp_path / "saved" / "params"), flatten(params)[EXPERTS]
    assert source[EXPERTS].chunk == (1, 1, *expected.shape[2:])
    assert same(source.read_block(EXPERTS, (1, 2)), expected[1:2, 2:3])
    assert source.block_nbytes(EXPERTS, 2) == expected[0, 0].nbytes
