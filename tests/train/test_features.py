"""`data.cache_features`: the same training, computed once, and again when anything has changed."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from mgm_jax import train
from mgm_jax.checkpoint import CheckpointError
from mgm_jax.data.images import ImageError
from mgm_jax.data.records import PictureFile
from mgm_jax.features import cache_features
from mgm_jax.models.config import MgmConfig
from mgm_jax.program import abstract_model
from mgm_jax.run import prepare
from mgm_jax.settings import TrainingError


def losses(workdir):
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    return np.array([json.loads(row)["loss"] for row in rows])


@pytest.fixture(scope="module")
def model(tiny_config):
    cfg = MgmConfig.from_dict(tiny_config().model.to_dict())
    module, batch, shapes, _ = abstract_model(cfg)
    import flax.linen as nn

    return module, nn.unbox(jax.jit(module.init)(jax.random.key(0), batch)["params"])


@pytest.fixture
def pictures(tiny_demo, tmp_path):
    """Five copied pictures."""
    files = sorted((tiny_demo / "data" / "images" / "train").iterdir())[:5]
    (tmp_path / "pictures").mkdir()
    return [PictureFile(shutil.copy(file, tmp_path / "pictures")) for file in files]


def when(directory):
    return {file.name: file.stat().st_mtime_ns for file in directory.iterdir()}


def test_training_is_the_same(run_tiny, tmp_path):
    plain = losses(run_tiny("plain"))
    cached = losses(run_tiny("cached", data__cache_features=str(tmp_path / "features")))
    again = losses(run_tiny("again", data__cache_features=str(tmp_path / "features")))
    np.testing.assert_allclose(plain, cached, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(again, cached)


def test_bfloat16_features(tiny_config, tmp_path):
    """Of bfloat16 towers, as a run in bfloat16 without the cache has them."""
    settings = dict(dtype="bfloat16", frozen_dtype="bfloat16")
    config = tiny_config(data__cache_features=str(tmp_path / "features"), **settings)
    run = prepare(config)
    plain = prepare(tiny_config(**settings))
    batch, found = next(plain.batches(0)), next(run.batches(0))
    towers = jax.jit(
        lambda p, x: plain.program.model.apply({"params": p}, x, method="tower_features")
    )
    expected = towers(plain.frozen, batch["images"][0])
    assert found["features"]["clip"].dtype == "bfloat16"
    jax.tree.map(
        lambda e, f: np.testing.assert_allclose(np.float32(e), np.float32(f[0]), atol=1e-5),
        expected,
        found["features"],
    )


def test_features_are_those_of_the_towers(model, pictures, tmp_path):
    module, params = model
    cache = cache_features(tmp_path / "cache", module, params, pictures, batch=2)
    slots = [[pictures[3], None], [pictures[0], pictures[4]]]  # [G, M]
    found = cache(slots)
    np.testing.assert_array_equal(found["image_mask"], [[True, False], [True, True]])
    from mgm_jax.data.pipeline import Pictures

    images = Pictures(module.cfg.image)(slots)["images"]
    expected = module.apply(
        {"params": params}, images.reshape(-1, *images.shape[2:]), method="tower_features"
    )
    for e, f in zip(jax.tree.leaves(expected), jax.tree.leaves(found["features"]), strict=True):
        f = f.reshape(e.shape)
        np.testing.assert_allclose(f[[0, 2, 3]], e[np.array([0, 2, 3])], atol=1e-5)
        assert not f[1].any()


def test_computed_again_only_when_something_has_changed(model, pictures, tmp_path):
    module, params = model
    directory = tmp_path / "cache"

    def run(params=params, paths=pictures):
        cache = cache_features(directory, module, params, paths)
        return when(directory), cache([[paths[0]]])["features"]["clip"]

    first, clip = run()
    assert run(paths=pictures[::-1])[0] == first  # in any order
    os.utime(pictures[1].name)
    touched, _ = run()
    assert touched != first
    shutil.copy(pictures[2].name, pictures[0].name)
    changed, other = run()
    assert changed != touched and np.abs(other - clip).max() > 1e-3
    projector = jax.tree.map(lambda x: x + 1, params["projector"])
    assert run(params | {"projector": projector})[0] == changed
    towers = params | {"clip": jax.tree.map(lambda x: x * 1.5, params["clip"])}
    moved, another = run(towers)
    assert moved != changed and np.abs(another - other).max() > 1e-3
    (directory / "key").unlink()  # what a killed run leaves
    assert run(towers)[0] != moved


def test_errors(model, pictures, tmp_path):
    module, params = model
    with pytest.raises(ImageError, match="none.jpg: No such file"):
        none = PictureFile(str(tmp_path / "none.jpg"))
        cache_features(tmp_path / "cache", module, params, [*pictures, none])
    with open(pictures[0].name, "wb") as file:
        file.write(b"\xff\xd8\xff not a picture")
    with pytest.raises(ImageError, match=os.path.basename(pictures[0].name)):
        cache_features(tmp_path / "cache", module, params, pictures)
    assert not (tmp_path / "cache" / "key").exists()
    with pytest.raises(ValueError, match="have no pictures"):
        cache_features(tmp_path / "cache", module, params, [])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="file/cache: cannot write the tower features"):
        cache_features(tmp_path / "file" / "cache", module, params, pictures[1:])


def test_trained_towers_have_no_cache(tiny_config, tmp_path):
    config = tiny_config(
        data__cache_features=str(tmp_path / "cache"),
        optim__schedule=[("(clip|convnext|llm)/.*", {"decay": "cosine"}), (".*", None)],
    )
    with pytest.raises(TrainingError, match="needs frozen towers, but clip/.* is trained"):
        train.train(config, tmp_path / "work")
    assert not (tmp_path / "cache").exists()
