"""Mining without projecting or making the high-resolution map, against the paper's literal form."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.models.convnext import fuse_stages
from mgm_jax.models.mining import PatchInfoMining
from mgm_jax.models.presets import IMAGE_HD
from mgm_jax.ops import mesh
from mgm_jax.ops.mining import mine, region_softmax
from mgm_jax.ops.views import pack_views, whole_view

EPS = 1e-5


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def regions_of(hr_map, n):
    b, h, w, c = hr_map.shape
    s = h // n
    return hr_map.reshape(b, n, s, n, s, c).swapaxes(2, 3).reshape(b, n * n, s * s, c)


def norm(a, scale=1.0, bias=0.0):
    return (a - a.mean(-1, keepdims=True)) / jnp.sqrt(a.var(-1, keepdims=True) + EPS) * scale + bias


def literal(p, x, maps):
    """The paper's form: keys and values of every position of the fused map."""
    regions = regions_of(fuse_stages(maps), round(x.shape[1] ** 0.5))
    q = norm(x, *(p["query"]["norm"][k] for k in ("scale", "bias")))
    q = q @ p["query"]["proj"]["kernel"] + p["query"]["proj"]["bias"]
    k, v = (
        norm(regions, p[n]["norm_scale"], p[n]["norm_bias"]) @ p[n]["kernel"] + p[n]["bias"]
        for n in ("key", "value")
    )
    weights = jax.nn.softmax((q[:, :, None] * k / np.sqrt(q.shape[-1])).sum(-1), -1)
    return (weights[..., None] * v).sum(2), weights


def stage_maps(sizes, offset=0.5):
    return tuple(offset + normal(2, h, h, c, seed=h) for h, c in sizes)


# Sides and channels: four stages as published; one of which the queries' grid is no divisor, so
# that it is resized; a single map.
CASES = {
    "published": (4, ((32, 6), (16, 5), (8, 4), (4, 7))),
    "coarser than the queries": (4, ((16, 6), (8, 4), (2, 5))),
    "no whole factor": (4, ((24, 6), (8, 5), (12, 4), (7, 3))),
    "one map": (2, ((8, 10),)),
}


@pytest.mark.parametrize("tpu", [False, True], ids=["cpu", "as for a tpu"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_literal_form_and_its_gradients(monkeypatch, case, tpu):
    n, sizes = CASES[case]
    monkeypatch.setattr(mesh, "on_tpu", lambda: tpu)
    x, maps, channels = normal(2, n * n, 6), stage_maps(sizes), sum(c for _, c in sizes)
    module = PatchInfoMining(channels, 6, EPS)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, maps)["params"])
    params = jax.tree.map(lambda s: 0.5 * normal(*s.shape, seed=s.size), nn.unbox(shapes))
    g = normal(2, n * n, 6, seed=3)

    def run(form, params, x, maps):
        def total(params, x, maps):
            mined, weights = form(params, x, maps)
            return jnp.vdot(mined, g), (mined, weights)

        grad = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
        ((_, values), gradients) = jax.jit(grad)(params, x, maps)
        return values, gradients

    args = params, x, maps
    found = run(lambda params, *args: module.apply({"params": params}, *args), *args)
    with jax.enable_x64(True):
        expected = run(literal, *jax.tree.map(lambda a: a.astype(np.float64), args))
    for tolerance, a, b in zip((1e-6, 5e-6), found, expected, strict=True):
        for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            largest = max(np.abs(other).max(), 1)  # the key bias has gradient 0
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * largest)


def test_exact_in_float64():
    with jax.enable_x64(True):
        n, sizes = CASES["published"]
        maps = tuple(m.astype(np.float64) for m in stage_maps(sizes))
        queries = normal(2, n * n, 22).astype(np.float64)
        sums, weights = mine(queries, maps, 0.3, EPS)
        z = regions_of(norm(fuse_stages(maps)), n)
        expected = jax.nn.softmax(0.3 * jnp.einsum("bnc,bnsc->bns", queries, z), -1)
        np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-13)
        expected = jnp.einsum("bns,bnsc->bnc", expected, z)
        np.testing.assert_allclose(sums, expected, rtol=0, atol=1e-13)


def test_the_global_view_of_maps_is_that_of_the_fused_map():
    maps = stage_maps(((32, 6), (16, 5), (8, 4), (4, 7)))
    expected = pack_views(fuse_stages(maps), IMAGE_HD)[:, -1]
    found = jnp.concatenate(whole_view(maps, 2), axis=-1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_logits_that_are_not_finite_become_finite():
    logits = np.array([[[np.nan, 1.0, 2.0], [np.inf, -np.inf, np.inf]]], np.float32)
    expected = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    found = region_softmax(logits)[0]
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    np.testing.assert_array_equal(found[1], [0.5, 0, 0.5])


def test_the_fused_map_is_not_made():
    """At the published sizes and a quarter of the channels: all temporaries are less than it."""
    sizes = ((192, 48), (96, 96), (48, 192), (24, 384))
    maps = tuple(jax.ShapeDtypeStruct((1, h, h, c), jnp.float32) for h, c in sizes)
    queries = jax.ShapeDtypeStruct((1, 576, 720), jnp.float32)
    compiled = jax.jit(lambda q, m: mine(q, m, 0.1, EPS)[0]).lower(queries, maps).compile()
    fused = 192 * 192 * 720 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < fused
