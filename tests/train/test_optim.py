"""`optim`: schedules, AdamW and the regex lists, beside the original's numbers and PyTorch."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from mgm_jax import optim, train
from mgm_jax.checkpoint import load_checkpoint
from mgm_jax.tree import flatten, match_first, unflatten

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lr_schedule.json").read_text())
CONSTANT = {"decay": "constant"}


def settings(**values):
    defaults = dict(lr=1e-2, wd=0.0, b1=0.9, b2=0.999, eps=1e-8, clip=None)
    lists = dict(schedule=[(".*", CONSTANT)], lr_mults=[], wd_mults=[])
    return ConfigDict(defaults | lists | values)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: str(case["num_training_steps"]))
def test_the_schedule_is_the_originals(case):
    total = case["num_training_steps"]
    factor = optim.make_schedule({"decay": "cosine", "warmup": case["warmup_ratio"]}, total)
    expected = np.array(case["lr_used_at_step"])
    found = case["base_lr"] * np.array(jax.vmap(factor)(jnp.arange(len(expected))), np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * case["base_lr"] / total**2)


def test_warmup_in_steps_and_constant_decay():
    factor = optim.make_schedule({"decay": "constant", "warmup": 4}, 10)
    np.testing.assert_allclose([factor(s) for s in range(6)], [0, 0.25, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize("clip", [None, 0.5])
def test_adamw_is_pytorchs(clip):
    torch = pytest.importorskip("torch")
    total, lr, wd = 12, 1e-2, 0.1
    rng = np.random.default_rng(0)
    shapes = {"body/kernel": (4, 3), "body/bias": (3,), "head/kernel": (3, 2)}
    start = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    grads = [
        {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()} for _ in range(total)
    ]
    cosine = {"decay": "cosine", "warmup": 3}
    cfg = settings(
        lr=lr,
        wd=wd,
        clip=clip,
        schedule=[("head/.*", CONSTANT), (".*", cosine)],
        lr_mults=[("head/.*", 2.0)],
        wd_mults=[(".*/kernel", 1.0)],
    )
    optimizer = optim.make_optimizer(cfg, optim.make_plan(cfg, list(shapes), total))
    params = unflatten(jax.tree.map(jnp.asarray, start))
    state = optimizer.init(params)

    weights = {n: torch.nn.Parameter(torch.tensor(w)) for n, w in start.items()}
    groups = [
        {"params": [weights["body/kernel"]], "weight_decay": wd},
        {"params": [weights["body/bias"]], "weight_decay": 0.0},
        {"params": [weights["head/kernel"]], "weight_decay": wd, "lr": 2 * lr},
    ]
    theirs = torch.optim.AdamW(groups, lr=lr)
    factor = optim.make_schedule(cosine, total)
    moving = [lambda step: float(factor(step))] * 2 + [lambda step: 1.0]
    schedule = torch.optim.lr_scheduler.LambdaLR(theirs, moving)
    update = jax.jit(optimizer.update)
    for step in grads:
        updates, state = update(unflatten(step), state, params)
        params = optax.apply_updates(params, updates)
        for name, gradient in step.items():
            weights[name].grad = torch.tensor(gradient)
        if clip:
            torch.nn.utils.clip_grad_norm_(weights.values(), clip)
        theirs.step()
        schedule.step()
    for name, found in flatten(params).items():
        expected = weights[name].detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6, err_msg=name)
        assert np.abs(expected - start[name]).max() > 1e-2, name


def test_frozen_parameters_have_no_optimizer_state():
    names = ["clip/a/kernel", "llm/b/kernel", "projector/c/kernel"]
    cfg = settings(schedule=[("projector/.*", CONSTANT), (".*", None)])
    plan = optim.make_plan(cfg, names, 5)
    trainable, frozen = plan.split(unflatten({n: jnp.ones((2, 3)) for n in names}))
    assert list(flatten(trainable)) == names[2:] and sorted(flatten(frozen)) == names[:2]
    state = optim.make_optimizer(cfg, plan).init(trainable)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape]
    assert len(moments) == 2  # of one parameter
    assert plan.report[0] == "clip/a/kernel: frozen"
    assert plan.report[2].startswith("projector/c/kernel: lr 0.01")


def test_training_leaves_frozen_parameters_as_they_were(tiny_config, tmp_path):
    config = tiny_config(steps=3)
    run = train.prepare(config)
    before = jax.tree.map(np.asarray, flatten(run.params()))
    towers = {n for n in before if n.split("/")[0] in ("clip", "convnext")}
    assert (
        set(flatten(run.frozen)) == towers and run.plan.trainable.keys() == before.keys() - towers
    )
    sizes = sum(p.size for p in flatten(run.state["params"]).values())
    moments = [leaf for leaf in jax.tree.leaves(run.state["opt"]) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sizes
    after = flatten(load_checkpoint(train.train(config, tmp_path)).params)
    same = {n for n in before if np.array_equal(before[n], after[n])}
    # The keys' biases cancel in the softmax, so they have no gradient.
    assert same == towers | {"mining/key/bias", "mining/key/norm_bias"}


def test_first_match_wins():
    rules = [("a/.*", 1), ("a/b", 2), (".*", 3)]
    assert match_first(["a/b", "c"], rules, "list") == {"a/b": 1, "c": 3}


BAD = {
    "unknown schedule key": (
        dict(schedule=[(".*", {"decay": "cosine", "warmpu": 3})]),
        "unknown key 'warmpu', expected decay, warmup",
    ),
    "unknown decay": (dict(schedule=[(".*", {"decay": "linear"})]), "decay is 'linear'"),
    "no decay": (dict(schedule=[(".*", {"warmup": 3})]), "decay is None"),
    "long warm-up": (dict(schedule=[(".*", {"decay": "cosine", "warmup": 9})]), "warmup is 9"),
    "uncovered": (dict(schedule=[("a/.*", CONSTANT)]), "schedule: no rule covers parameter 'b/w'"),
    "matches nothing": (
        dict(schedule=[("towres/.*", None), (".*", CONSTANT)]),
        "schedule: rule 'towres/.*' matches no parameter",
    ),
    "frozen": (dict(schedule=[(".*", None)]), "every parameter is frozen"),
    "rate": (dict(lr_mults=[("c/.*", 2.0)]), "lr_mults: rule 'c/.*' matches no parameter"),
    "decay": (dict(wd_mults=[("c/.*", 2.0)]), "wd_mults: rule 'c/.*' matches no parameter"),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_bad_lists(kind):
    values, message = BAD[kind]
    with pytest.raises(ValueError) as caught:
        optim.make_plan(settings(**values), ["a/w", "b/w"], 8)
    assert message in str(caught.value)
