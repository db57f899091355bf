"""Adapters in the tree against numpy (float32, 1e-5): scan, loop, dropout, head, scale."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.lora import adapters
from mgm_jax.lora.config import LoraConfig
from mgm_jax.models.config import DecoderConfig, MgmConfig
from mgm_jax.models.decoder import Decoder
from mgm_jax.models.presets import LLMS, mgm
from mgm_jax.nn.linear import Linear
from mgm_jax.program import abstract_model, abstract_run
from mgm_jax.sharding import make_mesh, param_shardings
from mgm_jax.tree import flatten, unflatten

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
    tied_embeddings=False,
    zero_centred_norm=False,
    embed_scale=None,
    experts=None,
)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 8)).astype(np.float32)
POSITIONS, SEGMENTS = np.broadcast_to(np.arange(5), (2, 5)), np.ones((2, 5), np.int32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def apply(params, x=X, **options):
    def both(module):
        states, _ = module(x, POSITIONS, SEGMENTS)
        return module.head(states), states @ module.head_kernel(jnp.float32)[0]

    module = Decoder(CFG, **options)
    return jax.jit(lambda p: module.apply({"params": p}, method=both))(params)


@pytest.fixture(scope="module")
def adapted():
    """(plain tree, tree with random adapters on every Linear, the config)."""
    plain = jax.jit(lambda k: nn.unbox(Decoder(CFG).init(k, X, POSITIONS, SEGMENTS))["params"])(
        jax.random.key(0)
    )
    plain["lm_head"] = {"kernel": normal(8, 11)}
    lora = LoraConfig(rank=2, alpha=3.0, targets=".*", rslora=True)
    flat = flatten(plain)
    names = [n.removesuffix("/kernel") for n in flat if n.endswith("/kernel")]
    axes = {n: (None,) * a.ndim for n, a in flat.items()}
    shapes, _ = adapters.add(plain, unflatten(axes), names, lora)
    new = {n: 0.3 * normal(*s.shape) for n, s in flatten(shapes).items() if n not in flat}
    return plain, unflatten(flat | new), lora


@pytest.mark.parametrize("scan", [True, False])
def test_adapters_are_the_update_that_they_stand_for(adapted, scan):
    plain, tree, lora = adapted
    merged = dict(flatten(plain))
    for name, a in flatten(tree).items():
        if name.endswith("/lora_a"):
            module = name.removesuffix("/lora_a")
            b = flatten(tree)[f"{module}/lora_b"]
            update = np.einsum("...ir,...ro->...io", a, b) * 3 / 2**0.5
            merged[f"{module}/kernel"] = merged[f"{module}/kernel"] + update
    expected = apply(unflatten(merged))
    for found in (adapters.active(tree, lora), adapters.merge(tree, lora)):
        logits, by_kernel = apply(found, scan=scan)
        np.testing.assert_allclose(logits, expected[0], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(by_kernel, expected[0], atol=1e-5, rtol=1e-5)
    assert np.abs(expected[0] - apply(plain)[0]).max() > 0.1


def test_a_new_adapter_does_nothing_and_only_b_has_a_gradient(adapted):
    plain, tree, lora = adapted
    shapes = {
        n: jax.ShapeDtypeStruct(
            a.shape, jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
        )
        for n, a in flatten(tree).items()
        if n.endswith(("lora_a", "lora_b"))
    }
    new = adapters.create(jax.random.key(1), shapes)
    begun = adapters.active(unflatten(flatten(plain) | new), lora)
    np.testing.assert_array_equal(apply(begun)[0], apply(plain)[0])
    a = np.asarray(new["layers/attn/q_proj/lora_a"])
    assert np.abs(a).max() <= 8**-0.5 and a.std() == pytest.approx((8 * 3) ** -0.5, rel=0.2)
    assert np.abs(a[0] - a[1]).max() > 0  # each layer has its own
    grads = flatten(jax.grad(lambda p: jnp.sum(jnp.sin(apply(p)[0])))(begun))
    for name in new:
        assert (np.abs(grads[name]).max() > 0) == name.endswith("/lora_b"), name


def test_dropout_drops_what_the_adapter_sees():
    x, kernel, a, b = normal(400, 6), normal(6, 3), normal(6, 2), normal(2, 3)
    params = {"kernel": kernel, "bias": np.zeros(3), "lora_a": a, "lora_b": b}
    module, rngs = Linear(3, (None, None)), {"dropout": jax.random.key(0)}

    def run(params, **kwargs):
        return np.asarray(module.apply({"params": params}, x, **kwargs))

    whole = run(params)
    np.testing.assert_allclose(whole, x @ kernel + x @ a @ b, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(run(params, rngs=rngs), whole)  # no rate
    rate = params | {"lora_dropout": np.float32(0.25)}
    np.testing.assert_array_equal(run(rate), whole)  # not in training
    # With A = 1, what comes out is x as it was seen: a quarter dropped, the rest 4/3 of it.
    eye = {"kernel": np.zeros((6, 6)), "lora_a": np.eye(6), "lora_b": np.eye(6)}
    eye["lora_dropout"] = np.float32(0.25)
    seen = np.asarray(Linear(6, (None, None), use_bias=False).apply({"params": eye}, x, rngs=rngs))
    kept = seen != 0
    np.testing.assert_allclose(seen[kept], x[kept] / 0.75, rtol=1e-5)
    assert kept.mean() == pytest.approx(0.75, abs=0.03)


def test_towers_only_where_they_are_named_and_stacks_are_sharded_as_their_kernels():
    cfg = MgmConfig.from_dict(mgm(LLMS["gemma_2b"], hd=False).to_dict())
    model, example, shapes, axes = abstract_model(cfg)
    names = adapters.linears(model, example)
    everything = adapters.matched(names, LoraConfig(1, 1, ".*"))
    assert {n.split("/")[0] for n in everything} == {"llm", "projector", "mining"}
    towers = adapters.matched(names, LoraConfig(1, 1, "clip/.*|.*pw1"))
    assert {n.split("/")[0] for n in towers} == {"clip"}
    assert not [n for n in names if "unused" in n]
    shapes, axes = adapters.add(shapes, axes, names, LoraConfig(8, 8))
    mesh = make_mesh({"fsdp": 1})
    specs = flatten(param_shardings(shapes, axes, mesh))
    q = "llm/layers/attn/q_proj"
    assert flatten(shapes)[f"{q}/lora_a"].shape == (18, 2048, 8)
    assert tuple(specs[f"{q}/lora_a"].spec)[1] == "fsdp"
    assert tuple(specs[f"{q}/lora_b"].spec)[2] == "tensor"


def test_an_adapter_of_mgm_7b_is_small():
    lora = LoraConfig(16, 32)
    _, _, shapes, _ = abstract_run(mgm(LLMS["vicuna_7b"], hd=False), lora)
    sizes = {n: s.size for n, s in flatten(shapes).items()}
    own = sum(s for n, s in sizes.items() if n.endswith(("lora_a", "lora_b")))
    assert 0 < own / (sum(sizes.values()) - own) <= 0.01
