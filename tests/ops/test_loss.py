"""Cross-entropy by chunks of the vocabulary, or by tokens that count, against that of all logits at
once; float32, 1e-6."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.ops import loss
from mgm_jax.ops.loss import head_losses, token_losses

CHUNKS = 3 * 7 * 128 * 4  # bytes of 128 columns of logits for 3 x 7 tokens


def case(vocabulary, tied, b=3, t=7, d=16):
    rng = np.random.default_rng(vocabulary)
    x, kernel, g = (
        rng.normal(size=size).astype(np.float32) for size in ((b, t, d), (d, vocabulary), (b, t))
    )
    targets = rng.integers(vocabulary, size=(b, t))
    targets[0, :2] = 0, vocabulary - 1
    counted = rng.random((b, t)) < 0.6
    return x, (kernel.T if tied else kernel), targets, counted, g, tied


def pull(x, kernel, targets, counted, g, tied, form="vocabulary"):
    def losses(x, kernel):
        return head_losses(x, kernel, targets, counted, tied, form)

    losses, back = jax.vjp(losses, x, kernel)
    return losses, *back(g)


def plain(x, kernel, targets, counted, g, tied):
    def losses(x, kernel):
        return token_losses(x @ (kernel.T if tied else kernel), targets) * counted

    found, back = jax.vjp(losses, x, kernel)
    return found, *back(g)


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max())


@pytest.mark.parametrize("form", ["vocabulary", "tokens"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("vocabulary", [50, 128, 512, 300, 1000])
def test_equals_the_plain_loss(vocabulary, tied, form, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_BYTES", CHUNKS)
    monkeypatch.setattr(loss, "TOKENS", 5)
    args = case(vocabulary, tied)
    same(pull(*args, form), plain(*args))


@pytest.mark.parametrize("count", [0, 1, 5, 6, 21])
def test_tokens_that_count(count, monkeypatch):
    monkeypatch.setattr(loss, "TOKENS", 5)
    x, kernel, targets, counted, *rest = case(50, False)
    counted.ravel()[:] = np.random.default_rng(count).permutation(21) < count
    args = x, kernel, targets, counted, *rest
    same(pull(*args, "tokens"), plain(*args))


@pytest.mark.parametrize("form", ["vocabulary", "tokens"])
def test_great_logits_neither_overflow_nor_vanish(form, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_BYTES", CHUNKS)
    x, kernel, *rest = case(512, False)
    order = np.argsort(kernel[0])  # each chunk has a greater logit than the one before
    args = x * 100, kernel[:, order], *rest
    found, expected = pull(*args, form), plain(*args)
    assert all(np.isfinite(a).all() for a in found)
    same(found, expected)


@pytest.mark.parametrize("form", ["vocabulary", "tokens"])
def test_no_more_logits_than_a_chunk_exist(form):
    """8 x 512 tokens of 32,000 logits are 524 MB; a compiled step holds one chunk of 134."""
    shapes = [
        jax.ShapeDtypeStruct(s, d)
        for s, d in (
            ((8, 512, 64), jnp.float32),
            ((64, 32000), jnp.float32),
            ((8, 512), jnp.int32),
            ((8, 512), bool),
        )
    ]

    def total(x, kernel, targets, counted):
        return head_losses(x, kernel, targets, counted, False, form).sum()

    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * loss.CHUNK_BYTES


MESHED = """
import sys
sys.path.insert(0, {here!r})
import jax
from mgm_jax.ops import loss
from mgm_jax.sharding import make_mesh
from test_loss import case, plain, pull, same
loss.CHUNK_BYTES = 2 * 7 * 32 * 4
meshes = {{"data": 2, "fsdp": 2, "tensor": 2}}, {{"fsdp": 2, "expert": 2, "tensor": 2}}
for mesh in meshes:
    for vocabulary, tied in ((256, True), (300, False), (301, True)):
        args = case(vocabulary, tied, b=8)
        with jax.set_mesh(make_mesh(mesh)):
            for form in ("vocabulary", "tokens"):
                found = jax.jit(pull, static_argnums=(5, 6))(*args, form)
                same(found, plain(*args))
with jax.set_mesh(make_mesh(meshes[0])):
    try:
        pull(*case(256, True, b=3))
        raise SystemExit("not refused")
    except ValueError as e:
        assert "cross-entropy: 3 rows" in str(e), e
"""


def test_on_meshes(run_command):
    code = MESHED.format(here=str(Path(__file__).parent))
    done = run_command([sys.executable, "-c", code], devices=8)
    assert done.returncode == 0, done.stderr[-2000:]
