"""Parity with the original code on its tiny LLaMA model (float32, CPU).

Tolerances: features and embeddings 1e-4, logits 2e-4, loss 1e-5, gradients
1e-3 * max|g| + 1e-6 a tensor, AdamW trajectories 2e-3 relative.
"""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mgm_jax.configs import common

from mgm_jax import optim, train
from mgm_jax.convert.families import mgm
from mgm_jax.convert.hf import load_hf
from mgm_jax.convert.rules import export_params
from mgm_jax.data.examples import batch_rows, expand
from mgm_jax.generate.engine import greedy
from mgm_jax.models.decoder import empty_cache
from mgm_jax.models.mgm import Mgm
from mgm_jax.tree import flatten, unflatten

HERE = Path(__file__).parent.parent / "golden" / "llama_mha"
IGNORE = -100


@pytest.fixture(scope="module")
def golden():
    return {k: np.load(HERE / f"{k}.npz") for k in ("inputs", "vision", "lm", "generate", "grads")}


@pytest.fixture(scope="module")
def loaded():
    cfg, params = load_hf(HERE, clip_heads=4)
    return Mgm(cfg), jax.tree.map(jnp.asarray, params)


def pictures(golden):
    lr, hr = (
        np.moveaxis(golden["inputs"][k].astype(np.float32) / 32, 1, -1)
        for k in ("images_q", "images_aux_q")
    )
    return lr, hr


@pytest.fixture(scope="module")
def features(golden, loaded):
    model, params = loaded
    return model.apply({"params": params}, *pictures(golden), method="encode_views")


def make_batch(features, ids, labels, mask, images, length=None):
    """The original's ids with -200 as a batch; `images[i]` are the pictures of row i."""
    examples = [
        expand(i[m], lab[m], 16, pics)
        for i, lab, m, pics in zip(ids, labels, mask.astype(bool), images, strict=True)
    ]
    slots = sum(len(p) for p in images)
    batch, (order,) = batch_rows(
        examples,
        length=length or max(map(len, examples)),
        groups=1,
        slots=max(1, slots),
        visual_tokens=16,
    )
    order = np.array([0 if i is None else int(i) for i in order])
    chosen = jax.tree.map(lambda f: f[order][None], features)  # [1, M, ...]
    return batch | {"features": chosen}


def case(golden, features, name):
    g = golden["inputs"]
    images = {"train": (["0"], ["1"], []), "multi": (["0", "1"], ["2"])}[name]
    keys = ("input_ids", "labels", "attention_mask")
    return make_batch(features, *(g[f"{name}_{k}"] for k in keys), images)


def test_tower_features_and_mining(golden, loaded, features):
    model, params = loaded
    tokens, out = model.apply({"params": params}, features, method="visual_tokens")
    vision = golden["vision"]
    for found, expected in (
        (out["clip_features"], vision["clip_features"]),
        (np.moveaxis(np.asarray(out["convnext_map"][:1]), -1, 1), vision["aux_features_s0"]),
        (out["mined"], vision["resampler_out"]),
        (out["tokens"], vision["mined_tokens"]),
        (tokens, vision["image_features"]),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_each_convnext_stage_and_the_fused_map(loaded):
    towers = np.load(HERE.parent / "towers.npz")
    model, params = loaded
    hr = np.moveaxis(towers["images_aux_q"].astype(np.float32) / 32, 1, -1)
    lr = np.moveaxis(towers["images_q"].astype(np.float32) / 32, 1, -1)
    features = model.apply({"params": params}, lr[:1], hr, method="encode_views")
    for s, stage in enumerate(features["convnext"]):
        expected = np.moveaxis(towers[f"convnext_stage_{s}"], 1, -1)
        np.testing.assert_allclose(stage, expected, atol=1e-4, rtol=0)
    clip = model.apply({"params": params}, lr, np.repeat(hr, 2, 0), method="encode_views")["clip"]
    np.testing.assert_allclose(clip, towers["clip_features"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name,prefix", [("train", ""), ("multi", "multi_")])
def test_embeddings_logits_loss(golden, loaded, features, name, prefix):
    model, params = loaded
    batch = case(golden, features, name)
    lm = golden["lm"]
    merged = "merged" if name == "train" else "merged_multi"
    mask = lm[f"{merged}_attention_mask"].astype(bool)
    logits, out = jax.jit(model.apply)({"params": params}, batch)
    embeds = lm[f"{merged}_inputs_embeds"]
    np.testing.assert_allclose(out["inputs_embeds"][mask], embeds[mask], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits[mask], lm[f"{prefix}logits"][mask], atol=2e-4, rtol=0)
    labels = lm[f"{merged}_labels"]
    weights = (labels[:, 1:] != IGNORE) & mask[:, 1:]
    np.testing.assert_array_equal(batch["loss_weights"][:, :-1], weights)
    total, weight = model.apply({"params": params}, batch, method="loss")
    np.testing.assert_allclose(total / weight, lm[f"{prefix}loss"], rtol=1e-5)


def stage_plan(stage, params, lr=1e-3, wd=0.0, decayed=None, clip=1.0, cfg=None):
    c = common.train_config().optim
    constant = {"decay": "constant"}
    c.schedule = [(r, constant if s is not None else None) for r, s in common.STAGES[stage]]
    c.lr, c.wd, c.clip = lr, wd, clip
    c.wd_mults = [(re.escape(n), 1.0) for n in decayed or []]
    plan = optim.make_plan(c, list(flatten(params)), 5)
    return c, plan


def their_names(cfg, flat):
    """HF name -> our name (stacked layers repeat)."""
    return {
        theirs: rule.ours
        for rule in mgm.rules(cfg)
        if rule.ours in flat
        for theirs, _ in export_params({rule.ours: flat[rule.ours]}, [rule])
    }


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients(golden, loaded, features, stage):
    model, params = loaded
    batch = case(golden, features, "train")
    _, plan = stage_plan(stage, params)
    trainable, frozen = plan.split(params)

    def mean_loss(trainable):
        total, weight = model.apply(
            {"params": train.merge(trainable, frozen)}, batch, method="loss"
        )
        return total / weight

    grads = flatten(jax.jit(jax.grad(mean_loss))(trainable))
    found = dict(export_params(grads, mgm.rules(model.cfg)))
    expected = json.loads((HERE / "grads.json").read_text())[f"stage{stage}"]["params"]
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


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("wd", [0, 0.1])
def test_adamw_trajectory(golden, loaded, features, stage, wd):
    model, params = loaded
    facts = json.loads((HERE / "grads.json").read_text())[f"stage{stage}"]
    names = their_names(model.cfg, flatten(params))
    decayed = sorted({names[n] for n in facts["decay_parameter_names"]}) if wd else []
    config, plan = stage_plan(stage, params, wd=wd, decayed=decayed)
    optimizer = optim.make_optimizer(config, plan)
    trainable, frozen = plan.split(params)
    state = {"params": trainable, "opt": optimizer.init(trainable)}
    step = jax.jit(train.make_step(model, optimizer))
    batch = case(golden, features, "train")
    losses, norms = [], []
    for _ in range(5):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    losses.append(float(step(state, frozen, batch)[1]["loss"]))
    expected = facts["trajectories"][f"adamw_lr1e-3_wd{wd}_clip1"]
    np.testing.assert_allclose(losses, expected["loss_before_each_step_then_final"], rtol=2e-3)
    np.testing.assert_allclose(norms, expected["grad_norm_before_clip"], rtol=2e-3)
    assert set(flatten(state["params"])) == set(plan.trainable)
    moments = [x for x in jax.tree.leaves(state["opt"]) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(trainable))
    assert isinstance(optimizer, optax.GradientTransformation)


GENERATED = {  # tag -> (ids key, pictures of each row)
    "gen0": ("gen0", [["0"]]),
    "gen1": ("gen1", [["0", "1"]]),
    "gen3_textonly_no_image": ("gen2", [[]]),
    "genb_left": ("genb", [["0"], ["1"], ["2"]]),
}


def prompt(golden, features, tag):
    key, images = GENERATED[tag]
    ids = golden["inputs"][f"{key}_input_ids"]
    mask = golden["inputs"].get(f"{key}_attention_mask", np.ones_like(ids))
    return make_batch(features, ids, np.full_like(ids, IGNORE), mask, images, length=48)


@pytest.mark.parametrize("tag", list(GENERATED))
def test_greedy_tokens_and_scores(golden, loaded, features, tag):
    model, params = loaded
    batch = prompt(golden, features, tag)
    g = golden["generate"]
    expected, scores = g[f"{tag}_tokens"], g[f"{tag}_scores"]
    found = np.asarray(greedy(model, params, batch, new=20, stop=()))
    for row in range(len(expected)):
        close = np.flatnonzero(g[f"{tag}_margins"][row] < 1e-3)
        sure = close[0] if len(close) else 20
        assert sure > 0
        np.testing.assert_array_equal(found[row, :sure], expected[row, :sure])

    # The same with the original's tokens fed back, so that every step's scores compare.
    apply = {"params": params}
    rows, t = batch["segments"].shape
    lengths = (batch["segments"] > 0).sum(-1)
    cache = empty_cache(model.cfg.llm, rows, t + 20)
    slots = np.arange(t + 20)
    logits, cache = model.apply(apply, batch, cache, method="prefill")
    decode = jax.jit(lambda *a: model.apply(apply, *a, method="decode"))
    for i in range(20):
        np.testing.assert_allclose(logits, scores[:, i], atol=2e-4, rtol=0)
        mask = (slots < lengths[:, None]) | ((slots >= t) & (slots <= t + i))
        logits, cache = decode(expected[:, i], lengths + i, mask, cache, t + i)


def test_generation_stops_at_eos(golden, loaded, features):
    model, params = loaded
    g = golden["generate"]
    eos, expected = int(g["gen0_eos_id"]), g["gen0_eos_tokens"].reshape(-1)
    found = np.asarray(greedy(model, params, prompt(golden, features, "gen0"), new=20, stop=(eos,)))
    found = found[0][found[0] >= 0]
    np.testing.assert_array_equal(found, expected)


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


def test_round_trip_is_bit_equal(loaded):
    from safetensors.numpy import load_file

    model, params = loaded
    source = load_file(HERE / "model.safetensors")
    flat = flatten(params)
    written = dict(export_params(flat, mgm.rules(model.cfg)))
    assert set(written) == set(source)
    for name, array in source.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)
    changed = flat | {
        "llm/layers/mlp/up_proj/kernel": flat["llm/layers/mlp/up_proj/kernel"].at[1, 2, 3].add(1)
    }
    after = dict(export_params(changed, mgm.rules(model.cfg)))
    differ = [n for n in source if not np.array_equal(after[n], source[n])]
    assert differ == ["model.layers.1.mlp.up_proj.weight"]
    assert unflatten(flat).keys() == params.keys()
