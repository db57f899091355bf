"""Quantised matrices against numpy, qwix, torchao and the unrolled decoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.models.config import DecoderConfig, ExpertsConfig
from mgm_jax.models.decoder import Decoder
from mgm_jax.ops import quant
from mgm_jax.quantize import params as quantized
from mgm_jax.quantize.config import QuantConfig, make
from mgm_jax.tree import flatten, unflatten

RNG = np.random.default_rng(0)
W = RNG.normal(size=(3, 128, 40)).astype(np.float32)
X = RNG.normal(size=(16, 128)).astype(np.float32)
CASES = [("int8", 0), ("int8", 32), ("int4", 0), ("int4", 32), ("nf4", 0), ("nf4", 64)]


def reference(w, scheme, group):
    """One matrix, straight: column by column, group by group."""
    out, group = np.zeros_like(w), group or len(w)
    for j in range(w.shape[1]):
        for start in range(0, len(w), group):
            part = w[start : start + group, j]
            if scheme == "nf4":
                scale = np.abs(part).max()
                levels = np.asarray(quant.NF4, np.float32)
                nearest = np.abs(part[:, None] / scale - levels).argmin(1)
                out[start : start + group, j] = levels[nearest] * scale
            else:
                low, high = {"int8": (-128, 127), "int4": (-8, 7)}[scheme]
                scale = np.abs(part).max() / (high + 0.5)
                steps = np.clip(np.round(part / scale), low, high)
                out[start : start + group, j] = steps * scale
    return out


@pytest.mark.parametrize("scheme,group", CASES)
def test_a_stack_is_its_matrices_one_by_one(scheme, group):
    q = quant.quantize(jnp.asarray(W), scheme, group)
    assert q.values.shape == W.shape and q.scale.shape == (3, 128 // (group or 128), 40)
    assert q.values.dtype == ("int8" if scheme == "int8" else "int4")
    found = np.asarray(quant.dequantize(q))
    expected = np.stack([reference(w, scheme, group) for w in W])
    # The largest of a group lies half-way between two integers: either will do.
    ours, theirs = np.abs(found - W), np.abs(expected - W)
    np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-5)
    assert (np.abs(found - expected) > 1e-6).mean() < 0.02


@pytest.mark.parametrize("scheme,group", CASES)
def test_products_and_their_gradient(scheme, group):
    q = quant.quantize(jnp.asarray(W[0]), scheme, group)
    exact = np.asarray(quant.dequantize(q))
    run = jax.jit(lambda x: quant.matmul(x, q))
    np.testing.assert_allclose(run(X), X @ exact, atol=1e-4, rtol=1e-4)
    g = RNG.normal(size=(16, 40)).astype(np.float32)
    (pulled,) = jax.vjp(run, X)[1](g)
    np.testing.assert_allclose(pulled, g @ exact.T, atol=1e-4, rtol=1e-4)
    assert run(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def error(found):
    exact = X @ W[0]
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("scheme,group,most", [("int8", 0, 0.008), ("int4", 32, 0.09)])
def test_error_is_no_worse_than_qwix(scheme, group, most):
    qarray = pytest.importorskip("qwix._src.core.qarray", reason="qwix is the other implementation")
    how = qarray.HowToQuantize(
        qtype=scheme, channelwise_axes=(1,), tiled_axes={0: group} if group else {}
    )
    theirs = error(X @ np.asarray(qarray.dequantize(qarray.quantize(jnp.asarray(W[0]), how))))
    ours = error(X @ np.asarray(quant.dequantize(quant.quantize(jnp.asarray(W[0]), scheme, group))))
    assert ours <= theirs * 1.01 and ours < most


def test_zeros_stay_and_bad_sizes_are_named():
    q = quant.quantize(jnp.zeros((8, 2)), "int4", 4)
    np.testing.assert_array_equal(quant.dequantize(q), np.zeros((8, 2)))
    with pytest.raises(ValueError, match="10 inputs do not divide into quantisation groups of 4"):
        quant.quantize(jnp.zeros((10, 2)), "int4", 4)
    with pytest.raises(ValueError, match="scheme 'int5'"):
        quant.quantize(jnp.zeros((8, 2)), "int5")


LLAMA = dict(
    vocab_size=11,
    dim=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp_dim=32,
    act="silu",
    norm_eps=1e-5,
    rope_theta=100.0,
    tied_embeddings=False,
    zero_centred_norm=False,
    embed_scale=None,
)
STATES = RNG.normal(size=(2, 5, 16)).astype(np.float32)
POSITIONS, SEGMENTS = np.broadcast_to(np.arange(5), (2, 5)), np.ones((2, 5), np.int32)


def states(cfg, params, **options):
    module = Decoder(cfg, **options)

    def run(x):
        out = module.apply({"params": params}, x, POSITIONS, SEGMENTS)[0]
        return jnp.sum(jnp.sin(out)), out

    (_, out), pulled = jax.jit(jax.value_and_grad(run, has_aux=True))(STATES)
    return np.asarray(out), np.asarray(pulled)


@pytest.mark.parametrize(
    "scheme,group,experts", [("int4", 8, None), ("nf4", 16, ExpertsConfig(4, 2, 0.0))]
)
def test_scanned_unrolled_and_dequantised_decoders_are_one(scheme, group, experts):
    """Values and gradients; scan under full rematerialisation."""
    cfg = DecoderConfig(**LLAMA, experts=experts)
    init = jax.jit(lambda k: nn.unbox(Decoder(cfg).init(k, STATES, POSITIONS, SEGMENTS))["params"])
    plain = {"llm": init(jax.random.key(0))}
    config = make(scheme, group)
    tree = quantized.quantize(plain, config)
    names = quantized.quantized(flatten(tree))
    assert len(names) == 7 and not any("router" in n for n in names)
    exact = states(cfg, quantized.dequantize(tree, jnp.float32)["llm"])
    for options in ({"scan": True, "remat": "full"}, {"scan": False}):
        found = states(cfg, tree["llm"], **options)
        np.testing.assert_allclose(found[0], exact[0], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(found[1], exact[1], atol=1e-4, rtol=1e-4)


def test_what_cannot_be_quantised_is_named():
    shapes = {"llm/layers/attn/q_proj/kernel": jnp.zeros((2, 10, 4)), "llm/norm/scale": X[0]}
    with pytest.raises(ValueError, match="q_proj/kernel has 10 inputs.*quant.group 4"):
        quantized.quantize(unflatten(shapes), make("int4", 4))
    with pytest.raises(ValueError, match="llm/norm/scale, which is not the matrix"):
        quantized.quantize(unflatten(shapes), make("int4", 4, "llm/norm/.*"))
    with pytest.raises(ValueError, match="'llm/q' matches no parameter"):
        quantized.quantize(unflatten(shapes), make("int4", 4, "llm/q"))
    with pytest.raises(ValueError, match="quant.scheme is 'int3'"):
        QuantConfig("int3", 0)
