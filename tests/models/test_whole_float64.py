"""From pixels to logits in float64 against `reference.py`, 1e-9; and every epsilon of the config.

Each epsilon is changed in turn (1e-5 <-> 1e-6): the model must follow the reference with the same
change to 1e-9, so every norm of that part reads this one value, and must leave the unchanged
reference by more than 1e-6, so the first comparison would notice a wrong one.
"""

import dataclasses

import jax
import numpy as np
import pytest
from golden_case import HERE, IGNORE, make_batch, views
from reference import Reference
from safetensors.numpy import load_file

from mgm_jax.convert.hf import load_hf
from mgm_jax.models.mgm import Mgm

MODULES = ("clip", "convnext", "llm")  # that have a config of their own
RIGHT = {"clip": 1e-5, "convnext": 1e-6, "mining": 1e-5, "llm": 1e-5}
OTHER = {1e-5: 1e-6, 1e-6: 1e-5}


def with_eps(cfg, eps):
    parts = {p: dataclasses.replace(getattr(cfg, p), norm_eps=eps[p]) for p in MODULES}
    return dataclasses.replace(cfg, mining_eps=eps["mining"], **parts)


@pytest.fixture(scope="module")
def both(golden):
    """eps -> (our logits, the reference's): [T, V] each."""
    cfg, params = load_hf(HERE, clip_heads=4)
    found = {p: getattr(cfg, p).norm_eps for p in MODULES}
    assert found | {"mining": cfg.mining_eps} == RIGHT
    lr, hr = (v.astype(np.float64) for v in views(golden["inputs"], count=1))
    ids = golden["inputs"]["train_input_ids"][:1]
    mask = golden["inputs"]["train_attention_mask"][:1].astype(bool)
    labels = np.full_like(ids, IGNORE)
    batch = make_batch({}, ids, labels, mask, [["0"]], length=37, slots=1)
    tensors = load_file(HERE / "model.safetensors")

    @jax.jit
    def ours(params, lr, hr, eps):  # traced epsilons: one compilation serves all
        model = Mgm(with_eps(cfg, eps), dtype="float64")
        features = model.apply({"params": params}, lr, hr, method="encode_views")
        features = jax.tree.map(lambda f: f[None], features)
        return model.apply({"params": params}, batch | {"features": features})[0]

    def run(eps):
        with jax.enable_x64(True):
            doubles = jax.tree.map(lambda p: p.astype(np.float64), params)
            logits = np.asarray(ours(doubles, lr, hr, eps))[0]
        assert logits.dtype == np.float64
        options = {"clip_heads": 4, "clip_layers": 3, "heads": 4, "theta": 1e4}
        expected = Reference(tensors, eps, **options).logits(ids[0][mask[0]], lr[0], hr[0])
        return logits[: len(expected)], expected

    return run


@pytest.fixture(scope="module")
def right(both):
    return both(RIGHT)


def test_logits(right, golden):
    ours, expected = right
    np.testing.assert_allclose(ours, expected, atol=1e-9, rtol=0)
    original = golden["lm"]["logits"][0][: len(expected)]  # the original's own, float32
    np.testing.assert_allclose(expected, original, atol=2e-4, rtol=0)


@pytest.mark.parametrize("part", list(RIGHT))
def test_epsilon(both, right, part):
    ours, expected = both(RIGHT | {part: OTHER[RIGHT[part]]})
    np.testing.assert_allclose(ours, expected, atol=1e-9, rtol=0)
    assert np.abs(ours - right[1]).max() > 1e-6
