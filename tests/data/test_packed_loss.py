"""A packed example has exactly the loss and the gradients that it has alone (float32)."""

import copy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.data.examples import batch_rows, expand
from mgm_jax.models.config import MgmConfig
from mgm_jax.ops.loss import token_losses
from mgm_jax.program import abstract_model
from mgm_jax.text import IGNORE, IMAGE_ID

LENGTH, SLOTS = 96, 6
HD = dict(lr_size=8, hr_size=64, aspect="pad", grid=2, use_global=True)
# Text ids and pictures of each example; rows and groups that hold them.
EXAMPLES = [(9, 0), (14, 1), (7, 2), (22, 1), (5, 0), (11, 1)]
ROWS = [[1, 0], [], [3, 4, 5], [2]]


@pytest.fixture(scope="module", params=["plain", "hd"])
def setup(request, tiny_config):
    values = copy.deepcopy(tiny_config().model.to_dict())
    if request.param == "hd":
        values["image"] = HD
    cfg = MgmConfig.from_dict(values)
    model, example, _, _ = abstract_model(cfg, dtype="float32")
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), example)["params"])
    # Random parameters draw no attention to anything: sharpen them.
    return cfg, model, jax.tree.map(lambda x: x * 1.5, params)


def examples(cfg):
    rng = np.random.default_rng(0)
    found, number = [], 0
    for count, pictures in EXAMPLES:
        ids = rng.integers(3, cfg.llm.vocab_size, count).tolist()
        for at in sorted(rng.choice(count - 3, pictures, replace=False), reverse=True):
            ids.insert(int(at), IMAGE_ID)
        labels = [i if n >= 2 and i != IMAGE_ID else IGNORE for n, i in enumerate(ids)]
        names = tuple(range(number, number := number + pictures))
        found.append(expand(ids, labels, cfg.visual_tokens, names))
    pixels = rng.integers(0, 256, (number, *2 * (cfg.image.hr_size,), 3), dtype=np.uint8)
    return found, pixels


def make(cfg, rows, groups, pixels):
    options = dict(length=LENGTH, slots=SLOTS, visual_tokens=cfg.visual_tokens)
    arrays, slots = batch_rows(rows, groups=groups, **options)
    images = np.zeros((groups, SLOTS, *pixels.shape[1:]), np.uint8)
    for g, group in enumerate(slots):
        for m, picture in enumerate(group):
            if picture is not None:
                images[g, m] = pixels[picture]
    return arrays | {"images": images}


def losses_of(model):
    """batch -> loss of each (row, segment); params -> their sum."""

    def run(params, batch):
        logits, _ = model.apply({"params": params}, batch)
        losses = token_losses(logits, batch["targets"]) * batch["loss_weights"]
        numbers = jax.nn.one_hot(batch["segments"], 8, dtype=jnp.float32)
        return jnp.einsum("bt,bts->bs", losses, numbers)

    return jax.jit(run), jax.jit(
        jax.grad(lambda p, b: model.apply({"params": p}, b, method="loss")[0])
    )


def test_losses_and_gradients(setup):
    cfg, model, params = setup
    found, pixels = examples(cfg)
    losses, gradients = losses_of(model)
    packed = make(cfg, [[found[i] for i in row] for row in ROWS], 2, pixels)
    together = losses(params, packed)
    alone = [make(cfg, [[e]], 1, pixels) for e in found]
    for row, members in enumerate(ROWS):
        for segment, i in enumerate(members, 1):
            expected = losses(params, alone[i])[0, 1]
            assert float(expected) > 1
            np.testing.assert_allclose(together[row, segment], expected, rtol=1e-5)
        assert not np.asarray(together)[row, len(members) + 1 :].any()
    # Of the mean loss, which is what training takes.
    tokens = packed["loss_weights"].sum()
    summed = jax.tree.map(lambda *g: sum(g) / tokens, *(gradients(params, b) for b in alone))
    pairs = zip(jax.tree.leaves(gradients(params, packed)), jax.tree.leaves(summed), strict=True)
    for got, expected in pairs:
        np.testing.assert_allclose(got / tokens, expected, atol=1e-5, rtol=0)


def test_neighbours_matter_without_segments(setup):
    """What the test above would see if segments were merged, or slots mixed up."""
    cfg, model, params = setup
    found, pixels = examples(cfg)
    losses, _ = losses_of(model)
    packed = make(cfg, [[found[1], found[3]]], 1, pixels)
    expected = losses(params, packed)[0]
    for broken in (
        packed | {"segments": np.minimum(packed["segments"], 1)},
        packed | {"visual_index": np.where(packed["visual_index"] >= 0, 0, -1)},
    ):
        assert abs(float(losses(params, broken).sum() - expected.sum())) > 1e-3
