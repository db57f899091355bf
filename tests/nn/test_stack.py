"""Scan, unrolled loop and rematerialisation: the same numbers (1e-6) from the same parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.models.config import DecoderConfig
from mgm_jax.models.decoder import Decoder
from mgm_jax.nn.stack import KEPT, REMAT_POLICIES, stack
from mgm_jax.tree import flatten

CFG = DecoderConfig(
    vocab_size=11,
    dim=8,
    layers=3,
    heads=2,
    kv_heads=1,
    head_dim=4,
    mlp_dim=12,
    act="silu",
    norm_eps=1e-5,
    rope_theta=100.0,
    tied_embeddings=True,
    zero_centred_norm=False,
    embed_scale=None,
    experts=None,
)
X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
POSITIONS = np.broadcast_to(np.arange(5), (2, 5))
SEGMENTS = np.ones((2, 5), np.int32)


def scalar(params, **options):
    states, _ = Decoder(CFG, **options).apply({"params": params}, X, POSITIONS, SEGMENTS)
    return jnp.sum(jnp.sin(states))


@pytest.fixture(scope="module")
def params():
    init = jax.jit(lambda key: Decoder(CFG).init(key, X, POSITIONS, SEGMENTS))
    return nn.unbox(init(jax.random.key(0)))["params"]


@pytest.fixture(scope="module")
def plain(params):
    return jax.jit(jax.value_and_grad(scalar))(params)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", [*REMAT_POLICIES, *KEPT, "qkv+gate+up", "dots+attention"])
def test_same_value_and_gradients(params, plain, remat, scan):
    found = jax.jit(jax.value_and_grad(lambda p: scalar(p, remat=remat, scan=scan)))(params)
    np.testing.assert_allclose(found[0], plain[0], atol=1e-5)
    expected = flatten(plain[1])
    for name, grad in flatten(found[1]).items():
        np.testing.assert_allclose(grad, expected[name], atol=1e-6, rtol=1e-5, err_msg=name)


def test_the_policy_decides_what_the_backward_pass_keeps(params):
    def kept(remat):
        pull = jax.eval_shape(lambda p: jax.vjp(lambda p: scalar(p, remat=remat), p)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    assert kept("full") < kept("dots") < kept("none")
    assert kept("full") < kept("qkv") < kept("qkv+gate") < kept("qkv+gate+up") < kept("none")


def test_scan_compiles_one_layer_and_the_loop_all():
    def loops(scan):
        shapes = jax.eval_shape(
            lambda key: nn.unbox(Decoder(CFG).init(key, X, POSITIONS, SEGMENTS)),
            jax.random.key(0),
        )["params"]
        text = jax.jit(lambda p: scalar(p, scan=scan)).lower(shapes).compile().as_text()
        return text.count(" while(")

    assert loops(True) == 1 and loops(False) == 0


@pytest.mark.parametrize("scan", [True, False])
def test_parameters_are_stacked_and_the_same_either_way(scan):
    model = Decoder(CFG, scan=scan)
    args = jax.random.key(0), X, POSITIONS, SEGMENTS
    boxed = jax.eval_shape(model.init, *args)["params"]
    shapes = {n: leaf.shape for n, leaf in flatten(nn.unbox(boxed)).items()}
    assert shapes["layers/attn/q_proj/kernel"] == (3, 8, 8)
    assert shapes["layers/attn_norm/scale"] == (3, 8)
    names = flatten(nn.get_partition_spec(boxed))
    assert tuple(names["layers/attn/q_proj/kernel"]) == ("layers", "embed", "heads")
    assert tuple(names["layers/mlp/down_proj/kernel"]) == ("layers", "mlp", "embed")


class Accumulate(nn.Module):
    """Adds its weight times `shared`, and hands its own slice of `layer` on, doubled."""

    @nn.compact
    def __call__(self, x, shared, layer):
        weight = self.param("weight", nn.initializers.ones, ())
        return x + weight * shared, layer * 2 + x


@pytest.mark.parametrize("scan", [True, False])
def test_layers_run_in_order_with_their_own_slices(scan):
    module = stack(Accumulate, 3, scan=scan)()
    params = {"weight": np.array([1.0, 10.0, 100.0], np.float32)}
    x, layers = module.apply({"params": params}, jnp.float32(0), 2.0, jnp.array([0.0, 1.0, 2.0]))
    assert x == 222
    np.testing.assert_array_equal(layers, [0, 2 + 2, 4 + 22])


def test_unknown_policy():
    with pytest.raises(ValueError, match=r"remat is 'some', expected .* dots, weights, joined by"):
        stack(Accumulate, 2, remat="some")
