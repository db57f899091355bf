"""`optim`: schedules, AdamW and the regex lists, beside the original's numbers and PyTorch."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from mgm_jax import optim, train
from mgm_jax.checkpoint import load_checkpoint
from mgm_jax.run import prepare
from mgm_jax.tree import flatten, match_first, merge, unflatten

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lr_schedule.json").read_text())
CONSTANT = {"decay": "constant"}


def settings(**values):
    defaults = dict(lr=1e-2, wd=0.0, b1=0.9, b2=0.999, eps=1e-8, clip=None)
    defaults |= dict(name="adamw", mu_dtype="float32")
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


def updates_of(cfg, start, steps=30):
    """Updates of a quadratic's minimisation, step by step."""
    optimizer = optim.make_optimizer(cfg, optim.make_plan(cfg, list(start), steps))
    params = unflatten(start)
    state, found = optimizer.init(params), []
    for _ in range(steps):
        updates, state = optimizer.update(params, state, params)  # the gradient of |p|^2 / 2
        params = optax.apply_updates(params, updates)
        found.append(flatten(updates))
    return found, state, flatten(params)


def test_adafactor():
    """Against Adafactor as the paper has it, in numpy: matrices factored, vectors not."""
    rng = np.random.default_rng(0)
    start = {"a/kernel": rng.normal(size=(256, 128)), "a/bias": rng.normal(size=128)}
    start = {n: jnp.asarray(w, jnp.float32) for n, w in start.items()}
    found, state, _ = updates_of(settings(name="adafactor"), start)
    for name, w in start.items():
        p, row, column = np.asarray(w, np.float64), 0.0, 0.0
        for t, updates in enumerate(found, 1):
            square, decay = p**2 + 1e-30, 1 - t**-0.8
            if p.ndim == 2:
                row = decay * row + (1 - decay) * square.mean(1)
                column = decay * column + (1 - decay) * square.mean(0)
                second = np.outer(row / row.mean(), column)
            else:
                second = row = decay * row + (1 - decay) * square
            u = p / np.sqrt(second)
            u = -1e-2 * u / max(1, np.sqrt((u**2).mean()))
            np.testing.assert_allclose(updates[name], u, rtol=1e-3, atol=1e-5)
            p = p + u
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert max(sizes) <= 256  # nothing as large as the matrix


def test_a_first_moment_in_bfloat16():
    start = {"a/kernel": jnp.asarray(np.random.default_rng(0).normal(size=(64, 8)), jnp.float32)}
    exact, _, _ = updates_of(settings(), start)
    found, state, params = updates_of(settings(mu_dtype="bfloat16"), start)
    kinds = sorted(str(leaf.dtype) for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert kinds == ["bfloat16", "float32"] and params["a/kernel"].dtype == jnp.float32
    np.testing.assert_allclose(found[-1]["a/kernel"], exact[-1]["a/kernel"], atol=5e-4)


@pytest.mark.parametrize("values", [{"name": "adam"}, {"mu_dtype": "float16"}])
def test_unknown_optimizers(values):
    ((key, value),) = values.items()
    cfg = settings(**values)
    with pytest.raises(ValueError, match=f"optim.{key} is '{value}', expected one of"):
        optim.make_optimizer(cfg, optim.make_plan(cfg, ["a"], 5))


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
    run = prepare(config)
    before = jax.tree.map(np.asarray, flatten(run.params()))
    towers = {n for n in before if n.split("/")[0] in ("clip", "convnext")}
    assert (
        set(flatten(run.frozen)) == towers
        and run.program.plan.trainable.keys() == before.keys() - towers
    )
    sizes = sum(p.size for p in flatten(run.state["params"]).values())
    moments = [leaf for leaf in jax.tree.leaves(run.state["opt"]) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sizes
    after = flatten(load_checkpoint(train.train(config, tmp_path)).params)
    same = {n for n in before if np.array_equal(before[n], after[n])}
    # The keys' biases cancel in the softmax, so they have no gradient.
    assert same == towers | {"mining/key/bias", "mining/key/norm_bias"}


STACKS = {"clip/layers/a/kernel": 4, "clip/layers/b/bias": 4, "stages_0/kernel": 1}


def test_layers_of_stacks():
    """Piece by piece: the first rule that matches a layer wins, and neighbours that agree join."""
    names = [*STACKS, "fc1/kernel", "fc2/kernel"]
    cfg = settings(
        schedule=[
            ("clip/layers[-1:]/.*", {"decay": "cosine"}),
            ("clip/layers[2:]/.*", CONSTANT),
            ("clip/layers[1]/a/.*", None),  # as the rest below
            ("stages_\\d+[-1]/.*", CONSTANT),
            ("fc[12]/.*", CONSTANT),  # an ordinary set of characters
            (".*", None),
        ],
        lr_mults=[("clip/layers[:3]/a/.*", 2.0)],
        wd_mults=[(".*kernel", 1.0)],
        wd=0.1,
    )
    plan = optim.make_plan(cfg, names, 5, STACKS)
    a, b = "clip/layers/a/kernel", "clip/layers/b/bias"
    assert plan.report == (
        f"{a}[0:2]: frozen",
        f"{a}[2:3]: lr 0.02 {{'decay': 'constant'}}, wd 0.1",
        f"{a}[3:4]: lr 0.01 {{'decay': 'cosine'}}, wd 0.1",
        f"{b}[0:2]: frozen",
        f"{b}[2:3]: lr 0.01 {{'decay': 'constant'}}, wd 0",
        f"{b}[3:4]: lr 0.01 {{'decay': 'cosine'}}, wd 0",
        *(f"{n}: lr 0.01 {{'decay': 'constant'}}, wd 0.1" for n in names[2:]),
    )
    params = unflatten({n: np.random.rand(STACKS.get(n, 2), 3).astype(np.float32) for n in names})
    trainable, frozen = plan.split(params)
    assert list(flatten(frozen)) == [f"{a}[0:2]", f"{b}[0:2]"]
    jax.tree.map(np.testing.assert_array_equal, merge(trainable, frozen), params)
    moments = [x.shape for x in jax.tree.leaves(optim.make_optimizer(cfg, plan).init(trainable))]
    assert moments.count((1, 3)) == 2 * 5 and (4, 3) not in moments


def test_a_frozen_half_of_a_stack_in_another_dtype_is_joined_exactly():
    parts = {"w[0:2]": jnp.ones((2, 3), jnp.bfloat16)}, {"w[2:3]": jnp.full((1, 3), 0.1, "float32")}
    (joined,) = merge(*parts).values()
    assert joined.dtype == jnp.float32 and joined[2, 0] == np.float32(0.1) and joined[0, 0] == 1


def sliced(pattern):
    return dict(schedule=[(pattern, CONSTANT), (".*", None)])


BAD_LAYERS = {
    "clip/layers[4:]/.*": "rule 'clip/layers[4:]/.*' takes layers [4:] of clip/layers/a/kernel, "
    "which has 4",
    "clip/layers[2:9]/.*": "takes layers [2:9] of clip/layers/a/kernel, which has 4",
    "clip/layers[-5:]/.*": "takes layers [-5:]",
    "clip/layers[4]/.*": "takes layers [4] of",
    "clip/layers[3:1]/.*": "takes layers [3:1] of",
    "fc1[0]/.*": "takes layers [0] of fc1/kernel, which is not a stack of layers",
    "(clip/layers[1:]/|stages_0[-1]/).*": "takes layers twice, expected one slice",
    "clop/layers[1:]/.*": "rule 'clop/layers[1:]/.*' matches no parameter",
    "clip/layers[::2]/.*": "rule 'clip/layers[::2]/.*' matches no parameter",
}


@pytest.mark.parametrize("pattern", BAD_LAYERS)
def test_bad_layers(pattern):
    with pytest.raises(ValueError) as caught:
        optim.make_plan(settings(**sliced(pattern)), [*STACKS, "fc1/kernel"], 8, STACKS)
    assert str(caught.value).startswith("schedule: ") and BAD_LAYERS[pattern] in str(caught.value)
    with pytest.raises(ValueError, match=r"no rule covers parameter 'clip/layers/a/kernel\[0\]'"):
        rest = dict(schedule=[("clip/layers[1:]/.*", CONSTANT), ("[^c].*", CONSTANT)])
        optim.make_plan(settings(**rest), STACKS, 8, STACKS)


def test_a_run_that_trains_layers_resumes_bit_identically(tiny_config, tmp_path, capsys):
    """Its state holds the trained rows alone."""
    rules = [("llm/layers[-1]/.*", CONSTANT), ("convnext/stages_\\d+[-1:]/.*", CONSTANT)]
    model = tiny_config().model.to_dict()
    model["convnext"]["depths"] = (2, 1)
    values = dict(model=model, optim__schedule=[*rules, (".*", None)], steps=4)
    config = tiny_config(**values)
    whole = flatten(load_checkpoint(train.train(config, tmp_path)).params)
    lines = capsys.readouterr().err.splitlines()
    name = "llm/layers/attn/q_proj/kernel"
    assert f"{name}[0:1]: frozen" in lines
    assert f"{name}[1:2]: lr 0.001 {CONSTANT}, wd 0" in lines
    assert f"convnext/stages_1/gamma: lr 0.001 {CONSTANT}, wd 0" in lines
    for rest in (tmp_path / "state" / "4", tmp_path / "model"):
        shutil.rmtree(rest)
    resumed = flatten(load_checkpoint(train.train(config, tmp_path)).params)
    assert "resumed at step 2" in capsys.readouterr().err
    assert whole.keys() == resumed.keys() and whole[name].shape == (2, 32, 32)
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)
    saved = ocp.StandardCheckpointer().metadata(tmp_path / "state" / "4" / "state").item_metadata
    shapes = {tuple(x.shape) for x in jax.tree.leaves(saved) if len(x.shape) == 3}
    assert {shape[0] for shape in shapes} == {1}


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
