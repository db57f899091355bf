"""Parity with the original on every family, through the float path of a loaded model (float32).

Features, embeddings 1e-4; logits 2e-4 where the mask is 1; loss 1e-5 relative; gradients
1e-3 * max|g| + 1e-6 a tensor; trajectories 2e-3; greedy tokens up to the first margin below 1e-3.
"""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from golden_families import FAMILIES, MERGED, Golden, complete
from mgm_jax.configs import common

from mgm_jax import api, optim, parity, sharding
from mgm_jax.convert.families import mgm
from mgm_jax.convert.rules import export_params
from mgm_jax.program import abstract_model
from mgm_jax.step import make_step
from mgm_jax.tree import base_name, flatten, merge, take

OVERRIDES = {"gemma": {"gemma_act": "tanh"}}  # what transformers 4.39.3 made of its config.json
NEW = 20


def only(*names):
    """For what needs no repetition in every family: each costs a compilation."""
    return pytest.mark.parametrize("family", names, indirect=True, scope="module")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def directory(family, tmp_path_factory):
    directory = complete(family, tmp_path_factory.mktemp("family"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def golden(family):
    return Golden(family)


@pytest.fixture(scope="module")
def model(family, directory):
    return api.load(directory, dtype="float32", overrides=OVERRIDES.get(family))


@pytest.fixture(scope="module")
def encoded(model, golden):
    return model.encode_images(golden.lr, golden.hr)


def close(found, expected, atol):
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


def test_features(golden, encoded):
    features, out = encoded
    names = {
        "clip_features": "clip_features",
        "clip_features_crops_and_global": "clip_features",
        "resampler_out": "mined",
        "mined_tokens": "tokens",
    }
    vision = golden["vision"]
    for theirs, ours in names.items():
        if theirs in vision:
            close(out[ours], vision[theirs], 1e-4)
    close(out["convnext_map"].mean((1, 2)), vision["aux_features_mean_c"], 1e-4)
    close(out["convnext_map"].std((1, 2), ddof=1), vision["aux_features_std_c"], 1e-4)
    close(features, vision["image_features"], 1e-4)


@pytest.mark.parametrize("case", list(MERGED))
def test_embeddings_logits_loss(model, golden, case):
    tag, prefix = MERGED[case]
    labels = golden.rows(case, "labels")
    out = model.forward_ids(golden.rows(case, "input_ids"), golden.lr, golden.hr, labels)
    lm = golden["lm"]
    mask = lm[f"{tag}_attention_mask"]
    np.testing.assert_array_equal(out["attention_mask"], mask)
    np.testing.assert_array_equal(out["labels"], lm[f"{tag}_labels"])
    close(out["inputs_embeds"], lm[f"{tag}_inputs_embeds"], 1e-4)
    close(out["logits"][mask], lm[f"{prefix}logits"][mask], 2e-4)
    np.testing.assert_allclose(out["loss"], lm[f"{prefix}loss"], rtol=1e-5)


@only("gemma")
def test_gemma_with_exact_gelu(model, golden, directory):
    """The default where config.json has no `hidden_activation`."""
    assert model.config.llm.act == "gelu_tanh" and model.config.llm.embed_scale == "exact"
    exact = api.load(directory, dtype="float32")
    assert exact.config.llm.act == "gelu"
    labels = golden.rows("train", "labels")
    out = exact.forward_ids(golden.rows("train", "input_ids"), golden.lr, golden.hr, labels)
    mask = out["attention_mask"]
    close(out["logits"][mask], golden["lm"]["logits_exact_gelu"][mask], 2e-4)
    np.testing.assert_allclose(out["loss"], golden["lm"]["loss_exact_gelu"], rtol=1e-5)


@only("llama_hd")
def test_hd_without_the_global_view(golden, directory):
    model = api.load(directory, dtype="float32", overrides={"image_global": False})
    features, out = model.encode_images(golden.lr[:, :4], golden.hr)
    assert out["clip_features"].shape == (3, 4, 16, 32) and model.config.visual_tokens == 64
    close(features, golden["vision"]["image_features_no_global"], 1e-4)


@pytest.mark.parametrize(
    "tag,change", [("trunc24", ("max_length", 24)), ("left", ("side", "left"))]
)
def test_cut_and_left_padded(model, golden, tag, change):
    """Merged as under `tokenizer_model_max_length` and `tokenizer_padding_side`."""
    key = {"max_length": "tokenizer_model_max_length", "side": "tokenizer_padding_side"}[change[0]]
    config = model.provenance["config.json"] | {key: change[1]}
    model = dataclasses.replace(model, provenance={"config.json": config})
    args = golden.rows("train", "input_ids"), golden.lr, golden.hr, golden.rows("train", "labels")
    out, lm, tag = model.forward_ids(*args), golden["lm"], f"merged_{tag}"
    np.testing.assert_array_equal(out["attention_mask"], lm[f"{tag}_attention_mask"])
    np.testing.assert_array_equal(out["labels"], lm[f"{tag}_labels"])
    if f"{tag}_inputs_embeds" in lm:
        close(out["inputs_embeds"], lm[f"{tag}_inputs_embeds"], 1e-4)


def check_tokens(golden, tag, found):
    recorded = golden["generate"]
    for row, new in enumerate(found):
        near = np.flatnonzero(recorded[f"{tag}_margins"][row] < 1e-3)
        sure = near[0] if len(near) else NEW
        assert sure > 0 and new[:sure] == recorded[f"{tag}_tokens"][row][:sure].tolist()


def test_greedy_batch(model, golden):
    ids = golden.rows("genb", "input_ids")
    check_tokens(golden, "genb_left", model.generate_ids(ids, golden.lr, golden.hr, NEW))


@only("gemma", "mixtral")
def test_greedy_text_only(model, golden):
    ids = golden["inputs"]["gen2_input_ids"][0].tolist()
    new = model.generate_ids(ids, None, None, NEW)
    check_tokens(golden, "gen3_textonly_no_image", [new])


@only("llama_hd")
def test_greedy_stops_after_eos(model, golden):
    g, ids = golden["generate"], golden["inputs"]["gen0_input_ids"][0].tolist()
    new = model.generate_ids(ids, golden.lr[:1], golden.hr[:1], NEW, int(g["gen0_eos_id"]))
    assert new == g["gen0_eos_tokens"].reshape(-1).tolist()


def test_gradients(model, golden):
    check_gradients(model, golden, stage=2)


@only("gemma")
def test_gradients_of_stage_1(model, golden):
    check_gradients(model, golden, stage=1)


def check_gradients(model, golden, stage):
    args = golden.rows("train", "input_ids"), golden.lr, golden.hr, golden.rows("train", "labels")
    found = model.grads_ids(*args, stage=stage)
    expected = golden.facts[f"stage{stage}"]["params"]
    assert set(found) == set(expected)
    for name, facts in expected.items():
        tolerance = 1e-3 * facts["absmax"] + 1e-6
        if (key := f"stage{stage}|{name}") in golden["grads"]:
            close(found[name], golden["grads"][key], tolerance)
        assert list(found[name].shape) == facts["shape"]
        close(found[name].reshape(-1)[:8], facts["first8"], tolerance)
        norm = np.linalg.norm(found[name])
        np.testing.assert_allclose(norm, facts["norm"], rtol=1e-3, atol=1e-5, err_msg=name)
    total = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in found.values()))
    np.testing.assert_allclose(total, golden.facts[f"stage{stage}"]["total_norm"], rtol=1e-4)


def plan_of(family, model, stage, wd):
    rules = common.STAGES[stage]
    if family == "llama_opt":  # trains the towers' ends, too
        rules = common.open_towers(model.config.clip.layers) + rules
    c = common.train_config().optim
    c.schedule = [(r, {"decay": "constant"} if s is not None else None) for r, s in rules]
    c.lr, c.wd, c.clip = 1e-3, wd, 1.0
    c.wd_mults = common.DECAY.get(family, common.DECAY["llama"])
    _, _, shapes, axes = abstract_model(model.config)
    return c, optim.make_plan(c, flatten(shapes), 5, sharding.stacks(shapes, axes))


def names_of(model, plan, chosen):
    """The original's names of what is `chosen` (pieces' names -> bool), layer by layer."""
    parts = [
        {n: np.full(p.shape, n in plan.trainable and chosen(n)) for n, p in flatten(t).items()}
        for t in plan.split(model.params)
    ]
    named = export_params(flatten(merge(*parts)), mgm.rules(model.config))
    return {name for name, mask in named if mask.all()}


@dataclasses.dataclass(frozen=True)
class WithPictures:
    """The model as a step sees it, going through the towers with float pictures."""

    module: object
    pictures: tuple
    drop_path: float = 0.0

    def apply(self, params, batch, **options):
        found = self.module.apply(params, *self.pictures, method="encode_views")
        batch = batch | {"features": jax.tree.map(lambda f: f[None], found)}
        return self.module.apply(params, batch, **options)


def test_adamw_trajectory(family, model, golden):
    check_trajectory(family, model, golden, stage=2, wd=0.1)


@only("mixtral")
def test_adamw_trajectory_of_stage_1(family, model, golden):
    check_trajectory(family, model, golden, stage=1, wd=0)


def check_trajectory(family, model, golden, stage, wd):
    config, plan = plan_of(family, model, stage, wd)
    optimizer = optim.make_optimizer(config, plan)
    trainable, frozen = plan.split(model.params)
    facts = golden.facts[f"stage{stage}"]
    idle = {n for n, f in facts["params"].items() if not f["has_grad"]}  # behind CLIP's features
    assert names_of(model, plan, lambda n: True) == set(facts["params"]) - idle
    decayed = set(facts["decay_parameter_names"]) - idle
    assert names_of(model, plan, lambda n: plan.wd_mults[n]) == decayed
    rows = golden.rows("train", "input_ids"), golden.rows("train", "labels")
    module = model.module
    if family == "llama_opt":
        pictures = parity.check_pictures(model.config, golden.lr, golden.hr)
        batch = parity.make_batch(model.config, *rows, len(golden.lr), None)
        module = WithPictures(module, pictures)
    else:
        batch, _ = parity._prepare(module, model.params, *rows, golden.lr, golden.hr, None)
    step = jax.jit(make_step(module, optimizer))
    state, losses, norms = {"params": trainable, "opt": optimizer.init(trainable)}, [], []
    for _ in range(6):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    expected = facts["trajectories"][f"adamw_lr1e-3_wd{wd}_clip1"]
    np.testing.assert_allclose(losses, expected["loss_before_each_step_then_final"], rtol=2e-3)
    np.testing.assert_allclose(norms[:5], expected["grad_norm_before_clip"], rtol=2e-3)
    moments = sum(x.size for x in jax.tree.leaves(state["opt"]) if x.ndim)
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(trainable))  # of what trains alone
    before = flatten(model.params)
    for name, value in flatten(merge(state["params"], frozen)).items():
        still = [n for n in flatten(frozen) if base_name(n) == name]
        for piece in still:
            rows = take({name: value}, piece), take(before, piece)
            np.testing.assert_array_equal(*rows, err_msg=piece)
