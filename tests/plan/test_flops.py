"""Useful FLOPs against published figures and against the products that tracing finds."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from mgm_jax import flops
from mgm_jax.models.clip_vit import ClipVit
from mgm_jax.models.config import ClipConfig, ConvNextConfig
from mgm_jax.models.convnext import ConvNext
from mgm_jax.models.decoder import Decoder
from mgm_jax.models.presets import MODELS

TRAINED = {"llm", "mining", "projector"}


@pytest.mark.parametrize(
    "name,length,pictures,tflop",
    # A row of stage 2, HD; counted by others (the reference TPU study).
    [
        ("MGM-7B", 2048, 2.4, 87.5),
        ("MGM-7B", 2048, 1, 86.6),
        ("MGM-13B", 2048, 1, 165),
        ("MGM-8B", 2048, 1, 98),
        ("MGM-8x7B", 2048, 1, 162),
        ("MGM-34B", 2048, 1, 430),
        ("MGM-7B-HD", 4096, 1, 185),
    ],
)
def test_a_training_sample(name, length, pictures, tflop):
    found = flops.step(MODELS[name], rows=1, length=length, pictures=pictures, trained=TRAINED)
    assert found / 1e12 == pytest.approx(tflop, rel=0.025)


def test_a_batch_of_stage_2():
    """128 rows with 2.4 pictures each: 87.5 TFLOP a row, 175 a chip of 64."""
    found = flops.step(MODELS["MGM-7B"], rows=128, length=2048, pictures=307, trained=TRAINED)
    assert found / 64 / 1e12 == pytest.approx(175, rel=0.02)


def test_towers_of_the_published_models():
    found = flops.picture(MODELS["MGM-7B"])
    assert found["clip"] / 1e9 == pytest.approx(366, rel=0.01)
    assert found["convnext"] / 1e9 == pytest.approx(808, rel=0.01)
    assert 7 < found["mining"] / 1e9 < 9
    assert flops.picture(MODELS["MGM-7B-HD"])["convnext"] / 1e9 == pytest.approx(3231, rel=0.01)


def test_a_frozen_language_model_costs_two_thirds():
    cfg = dataclasses.replace(MODELS["MGM-7B"])
    three = flops.step(cfg, rows=4, length=512, pictures=0, trained=TRAINED)
    two = flops.step(cfg, rows=4, length=512, pictures=0, trained={"projector"})
    assert two / three == pytest.approx(2 / 3, rel=1e-12)


def products(jaxpr) -> int:
    """2 x multiply-adds of every dot_general of a jaxpr and of those inside it."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (axes, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            inner = math.prod(shape[a] for a in axes)
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * inner
        rounds = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in jax.core.jaxprs_in_params(eqn.params):
            total += rounds * products(getattr(inner, "jaxpr", inner))
    return total


def counted(module, *shape):
    """The products of a module's forward pass, as it was traced."""
    x = jnp.zeros(shape)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    return products(jax.make_jaxpr(module.apply)(params, x).jaxpr)


def test_clip_as_traced():
    cfg = ClipConfig(
        image_size=56,
        patch_size=14,
        width=256,
        layers=3,
        heads=4,
        mlp_dim=1024,
        norm_eps=1e-5,
        act="quick_gelu",
        select_layer=-2,
    )
    assert flops.clip(cfg) == counted(ClipVit(cfg, scan=False), 1, 56, 56, 3)


def test_convnext_as_traced():
    cfg = ConvNextConfig((64, 128), (1, 2), patch_size=4, kernel_size=1, norm_eps=1e-6)
    depthwise = 2 * (16 * 16 * 64 + 2 * 8 * 8 * 128)  # one tap; no product when it is traced
    found = counted(ConvNext(cfg, scan=False), 1, 64, 64, 3)
    assert flops.convnext(cfg, 64) == found + depthwise


def test_decoder_as_traced():
    cfg = dataclasses.replace(MODELS["MGM-7B"].llm, layers=2, vocab_size=512)
    model, t = Decoder(cfg, scan=False, attention="xla"), 64

    def forward(params, x):
        x, _ = model.apply(params, x, jnp.arange(t)[None], jnp.ones((1, t), jnp.int32))
        return model.apply(params, x, method="head")

    x = jnp.zeros((1, t, cfg.dim))
    both = (jnp.arange(t)[None], jnp.ones((1, t), jnp.int32))

    def init(key):
        return model.init(key, x, *both) | {}

    params = jax.eval_shape(init, jax.random.key(0))
    head = {"lm_head": {"kernel": jnp.zeros((cfg.dim, cfg.vocab_size))}}
    params = {"params": params["params"] | head}
    found = products(jax.make_jaxpr(forward)(params, x).jaxpr)
    causal = cfg.layers * 2 * t * t * cfg.heads * cfg.head_dim  # the half that need not be computed
    assert flops.decoder(cfg, t) == found - causal
