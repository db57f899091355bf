"""All eleven published models at full size, shapes only: parameter counts by the specification."""

import math

import jax
import pytest

from mgm_jax.convert.families import mgm
from mgm_jax.convert.rules import their_names
from mgm_jax.models.config import MgmConfig
from mgm_jax.models.presets import LLMS, MODELS
from mgm_jax.models.presets import mgm as make
from mgm_jax.program import abstract_model
from mgm_jax.sharding import make_mesh, param_shardings
from mgm_jax.tree import flatten

CLIP, CONVNEXT, MINING = 303_507_456, 196_227_264, 6_963_456  # MGM_SPEC 1.3 to 1.5
# MGM_SPEC 1.2: vocabulary, hidden, layers, q width, kv width, mlp, experts, untied head; and 3.1:
# tensors of the whole model.
FACTS = {
    "2B": (256000, 2048, 18, 2048, 256, 16384, 0, 0, 911),
    "7B": (32000, 4096, 32, 4096, 4096, 11008, 0, 1, 1038),
    "13B": (32000, 5120, 40, 5120, 5120, 13824, 0, 1, 1110),
    "8B": (128256, 4096, 32, 4096, 1024, 14336, 0, 1, 1038),
    "8x7B": (32000, 4096, 32, 4096, 1024, 14336, 8, 1, 1742),
    "34B": (64000, 7168, 60, 7168, 1024, 20480, 0, 1, 1290),
}
BYTES = {"2B": 7.087e9 - 2 * 256000 * 2048, "7B": 14.532e9}  # bf16 files, MGM_SPEC 3.1


def facts_of(name):
    return FACTS[name.split("-")[1]]


def count(name):
    vocab, d, layers, q, kv, f, experts, head, _ = facts_of(name)
    attention = 2 * d * q + 2 * d * kv
    mlp = (experts or 1) * 3 * d * f + experts * d
    llm = vocab * d * (1 + head) + layers * (attention + mlp + 2 * d) + d
    projector = 1024 * d + d + d * d + d
    return CLIP + CONVNEXT + MINING + llm + projector


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_tensors(name):
    cfg = MODELS[name]
    _, _, shapes, axes = abstract_model(cfg)
    flat = flatten(shapes)
    sizes = {}
    for key, leaf in flat.items():
        part = key.split("/")[0]
        sizes[part] = sizes.get(part, 0) + math.prod(leaf.shape)
    assert (sizes["clip"], sizes["convnext"], sizes["mining"]) == (CLIP, CONVNEXT, MINING)
    assert sum(sizes.values()) == count(name)
    rules = mgm.rules(cfg)
    assert {rule.ours for rule in rules} == set(flat)
    assert sum(len(their_names(rule)) for rule in rules) == facts_of(name)[-1]
    assert cfg.visual_tokens == (2880 if name.endswith("-HD") else 576)
    assert MgmConfig.from_dict(cfg.to_dict()) == cfg
    param_shardings(shapes, axes, make_mesh({}, jax.devices()[:1]))  # every logical axis has a rule


def test_the_published_files_sizes():
    for size, expected in BYTES.items():
        assert 2 * count(f"MGM-{size}") == pytest.approx(expected, rel=1e-3)


def test_eleven_and_a_twelfth():
    assert len(MODELS) == 11
    assert make(LLMS["gemma_2b"], hd=True).visual_tokens == 2880
