"""The original's ways of training, switch by switch (MGM_SPEC 1.4, 2.5, 6, appendix D)."""

import itertools
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mgm_jax.configs import common

from mgm_jax import train
from mgm_jax.checkpoint import load_checkpoint
from mgm_jax.data.pipeline import Encoder
from mgm_jax.data.records import PictureFile, Record
from mgm_jax.models.config import ConvNextConfig
from mgm_jax.models.convnext import ConvNext
from mgm_jax.run import prepare
from mgm_jax.step import make_step
from mgm_jax.text import IMAGE_ID, load_tokenizer
from mgm_jax.tree import flatten, unflatten

CONVNEXT = ConvNextConfig(widths=(4, 8), depths=(2, 2), patch_size=4, kernel_size=3, norm_eps=1e-6)
RATE, PICTURES = 0.6, 64


def test_drop_path_leaves_out_blocks_of_single_pictures():
    """Each picture's features are those of one of the ways to leave blocks out, the others counting
    1 / (1 - rate); rates grow linearly from 0 over the blocks of all stages (timm's rule)."""
    tower = ConvNext(CONVNEXT, gamma_init=0.5, drop_path=RATE)
    pictures = jax.random.normal(jax.random.key(0), (PICTURES, 16, 16, 3))
    params = jax.jit(tower.init)(jax.random.key(1), pictures)["params"]
    params = nn.unbox(params)
    apply = jax.jit(lambda p, key=None: tower.apply(p, pictures, rngs=key)[-1])
    rates = [RATE * i / 3 for i in range(4)]
    found = np.asarray(apply({"params": params}, {"drop_path": jax.random.key(2)}))

    ways, expected = list(itertools.product([False, True], repeat=3)), []
    for way in ways:
        scale = [1.0] + [k / (1 - r) for k, r in zip(way, rates[1:], strict=True)]
        flat = dict(flatten(params))
        for s in range(2):
            gamma = f"stages_{s}/gamma"
            flat[gamma] = flat[gamma] * np.array(scale[2 * s : 2 * s + 2])[:, None]
        expected.append(np.asarray(apply({"params": unflatten(flat)})))
    whole = jax.jit(ConvNext(CONVNEXT, gamma_init=0.5).apply)({"params": params}, pictures)
    np.testing.assert_array_equal(apply({"params": params}), whole[-1])  # without random numbers

    distance = np.stack([np.abs(found - e).max((1, 2, 3)) for e in expected])  # [ways, pictures]
    assert distance.min(0).max() < 1e-4
    kept = np.array(ways)[distance.argmin(0)].mean(0)
    for share, rate in zip(kept, rates[1:], strict=True):
        assert abs(share - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / PICTURES)


def ways_of_the_original(c):
    """A tiny run on the faithful side, with a rate that shows, and micro-batches of two rows."""
    faithful = common.train_config(faithful=True)
    c.switches, c.optim.clip = faithful.switches, faithful.optim.clip
    c.switches.frozen_tower_drop_path = 0.5
    c.data.microbatch = 2
    return c


def test_a_faithful_run_resumes_bit_identically(tiny_config, tmp_path, capsys):
    """Which blocks are left out is a function of (seed, step)."""
    config = ways_of_the_original(tiny_config(steps=4))
    config.switches.mismatch_policy = "span"  # or no sample would survive this tokenizer
    whole = flatten(load_checkpoint(train.train(config, tmp_path)).params)
    for rest in (tmp_path / "state" / "4", tmp_path / "model"):
        shutil.rmtree(rest)
    resumed = flatten(load_checkpoint(train.train(config, tmp_path)).params)
    assert "resumed at step 2" in capsys.readouterr().err
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)


class Line:
    """A model whose token losses are (x * token)^2: what a step needs, and no more."""

    drop_path = 0.0

    def apply(self, params, batch, method, rngs):
        assert method == "loss" and not rngs
        x, weights = params["params"]["x"], batch["loss_weights"]
        return jnp.sum(weights * (x * batch["tokens"]) ** 2), weights.sum()


class Sgd:
    """The optimizer's part of a step, with a state that counts as ours does."""

    def update(self, grads, state, params):
        return jax.tree.map(jnp.negative, grads), state


def one_step(batch, **options):
    state = {"params": {"x": jnp.float32(2.0)}, "opt": (optax.ScaleByScheduleState(jnp.int32(0)),)}
    new, metrics = jax.jit(make_step(Line(), Sgd(), **options))(state, {}, batch)
    return float(metrics["loss"]), 2.0 - float(new["params"]["x"])


def make_batch(empty=()):
    rng = np.random.default_rng(0)
    weights = (rng.random((6, 5)) < 0.5).astype(np.float32)
    weights[:, 0] = 1
    weights[list(empty)] = 0
    tokens = rng.integers(1, 9, (6, 5)).astype(np.float32)
    return {
        "tokens": jnp.asarray(tokens),
        "loss_weights": jnp.asarray(weights),
        "segments": jnp.ones((6, 5), jnp.int32),
    }


def mean_of(batch, rows):
    w, t = (np.asarray(batch[k])[rows] for k in ("loss_weights", "tokens"))
    return (w * (2 * t) ** 2).sum() / max(w.sum(), 1)


@pytest.mark.parametrize("rows", [1, 2, 3, 6, None])
def test_loss_reduction(rows):
    """The mean over micro-batches of their own token means, and its gradient."""
    for empty in ((), (2, 3)):
        batch = make_batch(empty)
        size = rows or 6
        parts = [mean_of(batch, slice(i, i + size)) for i in range(0, 6, size)]
        loss, gradient = one_step(batch, microbatch=rows)
        np.testing.assert_allclose([loss, gradient], [np.mean(parts)] * 2, rtol=1e-5)
    assert abs(one_step(batch, microbatch=1)[0] - one_step(batch)[0]) > 1  # they differ


def test_rows_without_an_example_do_not_count():
    """As at the end of a run's last epoch."""
    batch = make_batch((4, 5))
    batch["segments"] = batch["segments"].at[4:].set(0)
    loss, _ = one_step(batch, microbatch=2, nan_on_empty=True)
    parts = [mean_of(batch, slice(i, i + 2)) for i in (0, 2)]
    np.testing.assert_allclose(loss, np.mean(parts), rtol=1e-5)


@pytest.mark.parametrize(
    "rows,empty,nan", [(None, (0, 1), False), (2, (0, 1), True), (2, (0,), False)]
)
def test_nan_loss_on_empty(rows, empty, nan):
    found = one_step(make_batch(empty), microbatch=rows, nan_on_empty=True)
    assert np.isnan(found).tolist() == [nan, nan]
    assert np.isfinite(one_step(make_batch(empty), microbatch=rows)).all()
    nothing = make_batch(range(6))
    assert one_step(nothing, microbatch=rows) == (0, 0)
    assert np.isnan(one_step(nothing, microbatch=rows, nan_on_empty=True)).all()


def record(question, *images):
    talk = [{"from": "human", "value": question}, {"from": "gpt", "value": "Yes, it is."}]
    return Record("a", tuple(map(PictureFile, images)), talk, "data.json record 7")


def test_records_that_the_original_cannot_train_on(tiny_tokenizer):
    tokenizer = load_tokenizer(tiny_tokenizer)
    switches = {n: v for n, v in common.train_config(True).switches.items()}
    text = {n: switches[n] for n in ("multi_image_training", "input_policy", "mismatch_policy")}
    encode, plain = Encoder("v1", tokenizer, 4, 50, text), Encoder("v1", tokenizer, 4, 2000)
    two = record("<image>\n<image>\nSame?", "a.jpg", "b.jpg")
    assert (plain(two).visual >= 0).sum() == 8
    with pytest.raises(ValueError, match="^data.json record 7: 2 pictures, expected at most one"):
        encode(two)
    with pytest.raises(
        ValueError, match=r"^data.json record 7: 2 placeholders, but 1 picture\(s\)"
    ):
        talk = two.conversations + record("<image> again").conversations
        encode(Record("a", (PictureFile("a.jpg"),), talk, "data.json record 7"))
    whole, short = (
        plain(record("<image>\nSame?", "a.jpg")),
        encode(record("<image>\nSame?", "a.jpg")),
    )
    assert len(whole) > 50 == len(short)  # cut in silence, as tokenizer_model_max_length says
    np.testing.assert_array_equal(short.tokens, whole.tokens[:50])
    assert short.loss_weights[-1] == 0 and IMAGE_ID not in short.tokens


@pytest.mark.parametrize(
    "values,words",
    [
        (
            {"switches__frozen_tower_drop_path": 1.5},
            "config.switches.frozen_tower_drop_path is 1.5",
        ),
        ({"switches__loss_reduction": "rows"}, "config.switches.loss_reduction is 'rows'"),
        ({"switches__mismatch_policy": "x"}, "config.switches.mismatch_policy is 'x'"),
        ({"switches__gemma_act": "tanh"}, "config.switches.gemma_act is 'tanh', but the language"),
        (
            {"switches__loss_reduction": "microbatch", "data__microbatch": 3},
            "config.data.batch 8 does not divide into micro-batches of config.data.microbatch 3",
        ),
        ({"data__microbatch": 0}, "config.data.microbatch is 0, expected at least 1"),
        (
            {"switches__frozen_tower_drop_path": 0.1, "data__cache_features": "cache"},
            "cache_features needs towers that give the same each time",
        ),
    ],
)
def test_bad_switches_of_a_run(values, words, tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        prepare(tiny_config(**values))
    assert words in str(caught.value)


def test_an_unknown_switch_of_a_run(tiny_config_file, tmp_path):
    arguments = [f"--config={tiny_config_file}", f"--workdir={tmp_path / 'work'}"]
    with pytest.raises(SystemExit, match="config has no key .*'colour'"):
        train.main([*arguments, "--config.switches.colour=1"])
