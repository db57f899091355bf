"""The adapter with big_vision's `Model` and `load`; against big_vision itself where it is."""

import sys

import big_vision_case as case
import jax
import numpy as np
import pytest
from big_vision_case import assert_same, read, write

from mgm_jax import cli
from mgm_jax.integrations import big_vision_vit
from mgm_jax.tree import flatten

PICTURES = np.random.default_rng(0).normal(size=(2, 20, 20, 3)).astype(np.float32)
SIZES = dict(patch_size=(4, 4), width=case.D, depth=case.LAYERS, mlp_dim=case.F, num_heads=case.N)


def shapes(model, size):
    picture = np.zeros((1, size, size, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), picture)["params"]


@pytest.mark.parametrize("scan", [False, True])
def test_numbers_and_the_way_back(tmp_path, scan):
    loop = case.arrays(head=True)
    src = write(tmp_path / "a.npz", case.stacked(loop) if scan else loop, "img/")
    model = big_vision_vit.Model(7, **SIZES, pool_type="none", scan=scan)
    init = jax.jit(model.init)(jax.random.key(0), PICTURES)["params"]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(init))
    params = big_vision_vit.load(init, f"{src}:img", {"scan": scan}, dont_load=["MAPHead_0/.*"])
    tokens, logits = case.forward(loop, PICTURES), loop["head/kernel"]
    x, out = jax.jit(model.apply, static_argnames="train")(
        {"params": params}, PICTURES, train=False
    )
    np.testing.assert_allclose(out["encoded"], tokens, atol=1e-5, rtol=1e-5)
    expected = tokens @ logits + loop["head/bias"]
    np.testing.assert_allclose(x, expected, atol=1e-4, rtol=1e-5)
    assert out["logits_2d"].shape == (2, 5, 5, 7)
    big_vision_vit.save(model, params, tmp_path / "b.npz", layout="scan")
    kept = {n: a for n, a in loop.items() if not n.startswith("MAPHead_0/")}
    assert_same(read(tmp_path / "b.npz"), case.stacked(kept))

    gap = big_vision_vit.Model(**SIZES)
    fresh = big_vision_vit.load(None, str(src), {}, dont_load=["(MAPHead_0|head)/.*"])
    x, _ = jax.jit(gap.apply)({"params": fresh}, PICTURES)
    np.testing.assert_allclose(x, tokens.mean(1), atol=1e-5, rtol=1e-5)


def test_it_resizes_keeps_and_refuses(tmp_path):
    loop = case.arrays(head=True)
    src = str(write(tmp_path / "a.npz", loop))
    model = big_vision_vit.Model(7, **SIZES)
    init = shapes(model, 30)
    with pytest.raises(ValueError, match=r"(?s)does not fit.*\+ unexpected MAPHead_0/probe"):
        big_vision_vit.load(init, src, {})
    params = big_vision_vit.load(init, src, {}, dont_load=["MAPHead_0/.*", "head/.*"])
    assert params["clip"]["positions"].shape == (49, case.D)
    assert params["head"]["kernel"] is init["head"]["kernel"]
    other = shapes(big_vision_vit.Model(**SIZES | {"mlp_dim": 44}), 20)
    with pytest.raises(ValueError, match=r"(?s)! shape +clip/layers/mlp/fc1/bias: found \(3, 40\)"):
        big_vision_vit.load(other, src, {}, dont_load=["(MAPHead_0|head)/.*"])
    cli.main(["convert", "from-bv", "--src", src, "--dst", str(tmp_path / "ours")])
    ours = big_vision_vit.load(None, str(tmp_path / "ours"))
    assert_same(flatten(ours["clip"]), flatten(big_vision_vit.load(None, src)["clip"]))


def test_options():
    assert big_vision_vit.Model(variant="So400m/14").config(384).grid == 27
    assert big_vision_vit.Model(variant="B").mlp_dim == 3072
    for options, match in (
        (dict(variant="XXL/3"), "variant is 'XXL/3'"),
        (dict(pool_type="map"), "pool_type is 'map', expected one of"),
        (dict(dropout=0.1), "dropout is 0.1"),
        (dict(posemb="sincos2d"), "posemb"),
        (dict(colour=1), "unknown option 'colour'"),
    ):
        with pytest.raises(ValueError, match=match):
            big_vision_vit.Model(**options)
    with pytest.raises(ValueError, match="20 x 24, expected a square"):
        big_vision_vit.Model(**SIZES).init(jax.random.key(0), np.zeros((1, 20, 24, 3)))
    assert "big_vision" not in sys.modules


@pytest.mark.big_vision
@pytest.mark.parametrize("scan", [False, True])
def test_against_big_vision_itself(tmp_path, scan):
    vit = pytest.importorskip(
        "big_vision.models.vit",
        reason="needs a checkout of google-research/big_vision, and what it imports",
        exc_type=ImportError,
    )
    options = dict(num_classes=7, **SIZES, pool_type="none", head_zeroinit=False, scan=scan)
    theirs, ours = vit.Model(**options), big_vision_vit.Model(**options)
    init = theirs.init(jax.random.key(0), PICTURES)["params"]
    loop = {n: a for n, a in case.arrays(head=True).items() if not n.startswith("MAPHead_0/")}
    src = str(write(tmp_path / "a.npz", loop))
    params = vit.load(init, src, {"scan": scan})
    expected, intermediates = theirs.apply({"params": params}, PICTURES)
    found, out = ours.apply({"params": big_vision_vit.load(None, src)}, PICTURES)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(out["encoded"], intermediates["encoded"], atol=1e-5, rtol=1e-5)
    assert set(out) <= set(intermediates)
    big_vision_vit.save(ours, big_vision_vit.load(None, src), tmp_path / "b.npz", layout="scan")
    back = vit.load(init, str(tmp_path / "b.npz"), {"scan": scan})
    assert_same(flatten(back), case.stacked(loop) if scan else loop)

    expected = vit.load(shapes(theirs, 30), src, {"scan": scan})
    found = big_vision_vit.load(shapes(ours, 30), src)
    positions = expected["pos_embedding"][0]
    np.testing.assert_allclose(found["clip"]["positions"], positions, atol=1e-6)
