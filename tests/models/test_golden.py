"""Parity with the original code on its tiny LLaMA model (float32, CPU).

Tolerances: features and embeddings 1e-4, logits 2e-4, loss 1e-5, gradients
1e-3 * max|g| + 1e-6 a tensor, AdamW trajectories 2e-3 relative.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import HERE, IGNORE, make_batch, views
from mgm_jax.configs import common

from mgm_jax import optim
from mgm_jax.convert.families import mgm
from mgm_jax.convert.rules import export_params
from mgm_jax.step import make_step
from mgm_jax.tree import flatten, merge

MERGED = {"train": "merged", "multi": "merged_multi"}  # case -> its name after merging


def case(golden, features, name):
    g = golden["inputs"]
    images = {"train": (["0"], ["1"], []), "multi": (["0", "1"], ["2"])}[name]
    keys = ("input_ids", "labels", "attention_mask")
    length = golden["lm"][f"{MERGED[name]}_labels"].shape[1]
    return make_batch(features, *(g[f"{name}_{k}"] for k in keys), images, length=length)


def channels_first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def test_tower_features_and_mining(golden, encoded):
    _, tokens, out = encoded
    vision = golden["vision"]
    for found, expected in (
        (out["clip_features"], vision["clip_features"]),
        (channels_first(out["convnext_map"])[:1], vision["aux_features_s0"]),
        (out["convnext_map"].mean((1, 2)), vision["aux_features_mean_c"]),
        (out["convnext_map"].std((1, 2), ddof=1), vision["aux_features_std_c"]),
        (out["mined"], vision["resampler_out"]),
        (out["tokens"], vision["mined_tokens"]),
        (tokens, vision["image_features"]),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_each_convnext_stage_and_the_fused_map(encode):
    towers = np.load(HERE.parent / "towers.npz")
    features, _, out = encode(*views(towers))
    for s, stage in enumerate(features["convnext"]):
        expected = towers[f"convnext_stage_{s}"]
        np.testing.assert_allclose(channels_first(stage)[:1], expected, atol=1e-4, rtol=0)
    fused = channels_first(out["convnext_map"])[:1]
    np.testing.assert_allclose(fused, towers["convnext_concat"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(features["clip"][:2], towers["clip_features"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name,prefix", [("train", ""), ("multi", "multi_")])
def test_embeddings_logits_loss(golden, loaded, features, name, prefix):
    model, params = loaded
    batch = case(golden, features, name)
    lm = golden["lm"]
    merged = MERGED[name]
    mask = lm[f"{merged}_attention_mask"].astype(bool)
    logits, out = jax.jit(model.apply)({"params": params}, batch)
    embeds = lm[f"{merged}_inputs_embeds"]
    np.testing.assert_allclose(out["inputs_embeds"][mask], embeds[mask], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits[mask], lm[f"{prefix}logits"][mask], atol=2e-4, rtol=0)
    labels = lm[f"{merged}_labels"]
    weights = (labels[:, 1:] != IGNORE) & mask[:, 1:]
    np.testing.assert_array_equal(batch["loss_weights"][:, :-1], weights)
    total, weight = jax.jit(lambda p, b: model.apply({"params": p}, b, method="loss"))(
        params, batch
    )
    np.testing.assert_allclose(total / weight, lm[f"{prefix}loss"], atol=1e-5, rtol=0)


def stage_plan(stage, params, wd=0.0):
    c = common.train_config().optim
    constant = {"decay": "constant"}
    c.schedule = [(r, constant if s is not None else None) for r, s in common.STAGES[stage]]
    c.lr, c.wd, c.clip = 1e-3, wd, 1.0
    return c, optim.make_plan(c, list(flatten(params)), 5)


def facts_of(stage):
    return json.loads((HERE / "grads.json").read_text())[f"stage{stage}"]


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients(golden, loaded, features, stage):
    model, params = loaded
    batch = case(golden, features, "train")
    _, plan = stage_plan(stage, params)
    trainable, frozen = plan.split(params)

    @jax.jit
    @jax.value_and_grad
    def mean_loss(trainable):
        total, weight = model.apply({"params": merge(trainable, frozen)}, batch, method="loss")
        return total / weight

    loss, grads = mean_loss(trainable)
    facts = facts_of(stage)
    np.testing.assert_allclose(loss, facts["loss"], atol=1e-5, rtol=0)
    found = dict(export_params(flatten(grads), mgm.rules(model.cfg)))
    expected = facts["params"]
    assert set(found) == set(expected)  # what trains is what trained there
    full = {
        k.split("|")[1]: golden["grads"][k]
        for k in golden["grads"]
        if k.startswith(f"stage{stage}|")
    }
    assert full
    for name, facts in expected.items():
        tolerance = 1e-3 * facts["absmax"] + 1e-6
        if name in full:
            np.testing.assert_allclose(
                found[name], full[name], atol=tolerance, rtol=0, err_msg=name
            )
        head = found[name].reshape(-1)[:8]
        np.testing.assert_allclose(head, facts["first8"], atol=tolerance, rtol=0, err_msg=name)
        assert list(found[name].shape) == list(facts["shape"])
        np.testing.assert_allclose(
            np.linalg.norm(found[name]), facts["norm"], rtol=1e-3, atol=1e-5, err_msg=name
        )
    total = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in found.values()))
    np.testing.assert_allclose(total, facts_of(stage)["total_norm"], rtol=1e-4)


@pytest.mark.parametrize("stage", [1, 2])
def test_what_decays(loaded, stage):
    model, params = loaded
    _, plan = stage_plan(stage, params)
    decayed = {n: p for n, p in flatten(params).items() if n in plan.trainable and plan.wd_mults[n]}
    names = {name for name, _ in export_params(decayed, mgm.rules(model.cfg))}
    assert names == set(facts_of(stage)["decay_parameter_names"])


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("wd", [0, 0.1])
def test_adamw_trajectory(golden, loaded, features, stage, wd):
    model, params = loaded
    config, plan = stage_plan(stage, params, wd=wd)
    optimizer = optim.make_optimizer(config, plan)
    trainable, frozen = plan.split(params)
    state = {"params": trainable, "opt": optimizer.init(trainable)}
    step = jax.jit(make_step(model, optimizer))
    batch = case(golden, features, "train")
    losses, norms = [], []
    for _ in range(5):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    losses.append(float(step(state, frozen, batch)[1]["loss"]))
    expected = facts_of(stage)["trajectories"][f"adamw_lr1e-3_wd{wd}_clip1"]
    np.testing.assert_allclose(losses, expected["loss_before_each_step_then_final"], rtol=2e-3)
    np.testing.assert_allclose(norms, expected["grad_norm_before_clip"], rtol=2e-3)
    assert set(flatten(state["params"])) == set(plan.trainable)  # and state for these only
    moments = [x for x in jax.tree.leaves(state["opt"]) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(trainable))


def test_schedule():
    for facts in json.loads((HERE.parent / "lr_schedule.json").read_text()):
        steps = facts["num_training_steps"]
        spec = {"decay": "cosine", "warmup": facts["warmup_ratio"]}
        factor = optim.make_schedule(spec, steps)
        found = facts["base_lr"] * jax.vmap(factor)(jnp.arange(len(facts["lr_used_at_step"])))
        # float32 cosine near its zero: absolute, against the base rate
        np.testing.assert_allclose(
            found, facts["lr_used_at_step"], atol=1e-6 * facts["base_lr"], rtol=1e-6
        )
