"""Mixture of experts against a loop over tokens; its load-balancing loss against its formula."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.ops.moe import balance_loss, expert_mlp, route, router_load

T, E, K, D, F = 11, 4, 2, 6, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(T, D)).astype(np.float32)
W_GATE, W_UP = RNG.normal(size=(2, E, D, F)).astype(np.float32)
W_DOWN = RNG.normal(size=(E, F, D)).astype(np.float32)
LOGITS = RNG.normal(size=(T, E)).astype(np.float32)


def silu(x):
    return x / (1 + np.exp(-x))


def by_loop(x, logits):
    out = np.zeros_like(x)
    for t in range(len(x)):
        p = np.exp(logits[t]) / np.exp(logits[t]).sum()
        best = np.argsort(-p)[:K]
        for e in best:
            y = (silu(x[t] @ W_GATE[e]) * (x[t] @ W_UP[e])) @ W_DOWN[e]
            out[t] += p[e] / p[best].sum() * y
    return out


def ours(x, logits, kernels, form="ragged"):
    weights, chosen, _ = route(logits, K)
    y = expert_mlp(x[None], weights[None], chosen[None], kernels, jax.nn.silu, form)
    return y[0]


def dense(x, logits, kernels):
    """All experts computed for every token."""
    weights, chosen, _ = route(logits, K)
    gate, up, down = kernels
    h = jax.nn.silu(jnp.einsum("td,edf->etf", x, gate)) * jnp.einsum("td,edf->etf", x, up)
    y = jnp.einsum("etf,efd->etd", h, down)
    share = (jax.nn.one_hot(chosen, E) * weights[..., None]).sum(1)  # [t, E]
    return jnp.einsum("te,etd->td", share, y)


def pull(f, *args):
    return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1, 2)))(*args)


@pytest.mark.parametrize("form", ["ragged", "gmm"])
@pytest.mark.parametrize("bias", [0, 20])  # 20: one expert takes part in every token
def test_dropless_dispatch(bias, form):
    logits = LOGITS + bias * (np.arange(E) == 1).astype(np.float32)
    found = jax.jit(ours, static_argnums=3)(X, logits, (W_GATE, W_UP, W_DOWN), form)
    np.testing.assert_allclose(found, by_loop(X, logits), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["ragged", "gmm"])
def test_gradients_equal_those_of_all_experts_computed_densely(form):
    args = X, LOGITS, (W_GATE, W_UP, W_DOWN)
    found, expected = pull(lambda *a: ours(*a, form), *args), pull(dense, *args)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


def wide_case(rows=4, length=150, width=192):
    """More than one tile of pairs, in rows; one expert that no token chooses."""
    rng = np.random.default_rng(1)
    x, logits, gate, up, down = (
        rng.normal(size=size).astype(np.float32) * scale
        for size, scale in (
            ((rows, length, D), 1),
            ((rows, length, E), 1),
            ((E, D, width), 0.3),
            ((E, D, width), 0.3),
            ((E, width, D), 0.1),
        )
    )
    logits[..., 2] -= 50
    return x, logits, (gate, up, down)


def rows_form(form):
    def run(x, logits, kernels):
        weights, chosen, _ = route(logits, K)
        return expert_mlp(x, weights, chosen, kernels, jax.nn.silu, form)

    return run


def same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max() + 1e-9)


def test_the_kernel_equals_ragged_dot():
    same(pull(rows_form("gmm"), *wide_case()), pull(rows_form("ragged"), *wide_case()))


def test_what_the_kernel_refuses():
    with pytest.raises(ValueError, match="moe is 'dense', expected 'auto', 'gmm' or 'ragged'"):
        rows_form("dense")(*wide_case())


MESHED = """
import sys
sys.path.insert(0, {here!r})
import jax
from test_moe import pull, rows_form, same, wide_case
from mgm_jax.sharding import make_mesh
args = wide_case()
expected = pull(rows_form("ragged"), *args)
for mesh in ({{"fsdp": 2, "expert": 2, "tensor": 2}}, {{"expert": 4, "tensor": 2}}):
    with jax.set_mesh(make_mesh(mesh)):
        same(pull(rows_form("gmm"), *args), expected)
        for wrong, case in (("3 rows", wide_case(rows=3)), ("width of 190", wide_case(width=190))):
            try:
                rows_form("gmm")(*case)
                raise SystemExit("not refused")
            except ValueError as e:
                assert wrong in str(e), e
"""


def test_the_kernel_on_meshes(run_command):
    code = MESHED.format(here=str(Path(__file__).parent))
    done = run_command([sys.executable, "-c", code], devices=8)
    assert done.returncode == 0, done.stderr[-2000:]


def test_routing_is_float32_and_sums_to_one():
    weights, chosen, probabilities = route(jnp.asarray(LOGITS, jnp.bfloat16), K)
    assert weights.dtype == probabilities.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert (np.diff(weights) <= 0).all() and chosen.shape == (T, K)


def test_balance_loss():
    """Switch: E * sum_e (how often e is chosen) * (its mean probability), over all layers."""
    logits = RNG.normal(size=(3, T, E)).astype(np.float32)  # 3 layers
    real = np.arange(T) < 8
    loads = []
    for layer in logits:
        _, chosen, probabilities = route(layer, K)
        loads.append(router_load(probabilities, chosen, real))
    found = balance_loss(jax.tree.map(lambda *x: jnp.stack(x), *loads))
    flat = logits[:, real].reshape(-1, E)
    p = np.exp(flat) / np.exp(flat).sum(-1, keepdims=True)
    chosen = np.argsort(-p, axis=-1)[:, :K]
    share = np.array([(chosen == e).sum() / len(flat) for e in range(E)])
    np.testing.assert_allclose(found, E * (share * p.mean(0)).sum(), rtol=1e-5)


def test_balanced_routing_has_the_least_loss():
    uniform = {"share": jnp.full((2, E), K / E), "probability": jnp.full((2, E), 1 / E)}
    np.testing.assert_allclose(balance_loss(uniform), K)
