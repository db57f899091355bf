"""The model's description: its JSON form and the one error of each mistake."""

import copy
import json

import pytest

from mgm_jax.models.config import ClipConfig, MgmConfig
from mgm_jax.models.projector import projector_depth
from mgm_jax.ops.activations import activation

VALUES = {
    "image": {"lr_size": 28, "hr_size": 64, "aspect": "pad"},
    "clip": {
        "image_size": 28,
        "patch_size": 7,
        "width": 12,
        "layers": 3,
        "heads": 3,
        "mlp_dim": 16,
        "norm_eps": 1e-5,
        "act": "quick_gelu",
        "select_layer": -2,
    },
    "convnext": {
        "widths": [8, 16],
        "depths": [1, 2],
        "patch_size": 4,
        "kernel_size": 7,
        "norm_eps": 1e-6,
    },
    "llm": {
        "vocab_size": 11,
        "dim": 16,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 4,
        "mlp_dim": 24,
        "act": "silu",
        "norm_eps": 1e-5,
        "rope_theta": 10000,
        "tied_embeddings": False,
        "zero_centred_norm": False,
        "embed_scale": None,
        "experts": None,
    },
    "mining_eps": 1e-5,
    "projector": "mlp2x_gelu",
}
GONE = object()


def changed(path, value):
    values = copy.deepcopy(VALUES)
    *parents, key = path.split(".")
    node = values
    for parent in parents:
        node = node[parent]
    if value is GONE:
        del node[key]
    else:
        node[key] = value
    return values


def test_json_form_round_trips():
    cfg = MgmConfig.from_dict(VALUES)
    assert MgmConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    assert cfg.convnext.widths == (8, 16) and isinstance(cfg.llm.rope_theta, float)
    assert cfg.visual_tokens == 16 and cfg.convnext.channels == 24 and hash(cfg)


def test_without_the_high_resolution_encoder():
    cfg = MgmConfig.from_dict(changed("convnext", None))
    assert cfg.convnext is None and MgmConfig.from_dict(cfg.to_dict()) == cfg


@pytest.mark.parametrize(
    "path,value,message",
    [
        ("colour", 1, "model: unknown key 'colour', expected one of"),
        ("llm.colour", 1, "model.llm: unknown key 'colour', expected one of"),
        ("mining_eps", GONE, "model: missing key 'mining_eps'"),
        ("convnext.norm_eps", GONE, "model.convnext: missing key 'norm_eps'"),
        ("llm.rope_theta", GONE, "model.llm: missing key 'rope_theta'"),
        ("clip.select_layer", GONE, "model.clip: missing key 'select_layer'"),
        ("llm.layers", "two", "model.llm.layers is 'two', expected int"),
        ("llm.layers", 2.0, "model.llm.layers is 2.0, expected int"),
        ("llm.layers", True, "model.llm.layers is True, expected int"),
        ("llm.norm_eps", "1e-5", "model.llm.norm_eps is '1e-5', expected float"),
        ("llm.norm_eps", True, "model.llm.norm_eps is True, expected float"),
        ("llm.tied_embeddings", 0, "model.llm.tied_embeddings is 0, expected bool"),
        ("llm.act", None, "model.llm.act is None, expected str"),
        ("convnext.widths", [8, "16"], "model.convnext.widths is '16', expected int"),
        ("convnext.widths", 8, "model.convnext.widths is 8, expected a list"),
        ("convnext.widths", "8", "model.convnext.widths is '8', expected a list"),
        ("clip", 5, "model.clip is 5, expected a mapping"),
        ("clip", None, "model.clip is None, expected a mapping"),
        ("image.aspect", "stretch", "image.aspect is 'stretch', expected 'pad' or 'square'"),
        ("image.use_global", True, "image.use_global needs image.grid >= 2, found 1"),
        ("image.grid", 3, "must be a multiple of the 12 low-resolution tokens of a side"),
        ("llm.embed_scale", "no", "llm.embed_scale is 'no', expected one of (None, 'exact'"),
        ("llm.embed_scale", GONE, "model.llm: missing key 'embed_scale'"),
        ("llm.experts", {"count": 8}, "model.llm.experts: missing key 'per_token'"),
        (
            "llm.experts",
            {"count": 2, "per_token": 3, "router_loss": 0},
            "llm.experts.per_token 3 is more than count 2",
        ),
        ("image.lr_size", 35, "clip.image_size 28 differs from image.lr_size 35"),
        ("image.hr_size", 66, "image.hr_size 66 / convnext.patch_size 4 must be a multiple of"),
        ("image.hr_size", 72, "image.hr_size 72 / convnext.patch_size 4 must be a multiple of"),
        ("clip.patch_size", 5, "clip.image_size 28 is not a multiple of patch_size 5"),
        ("clip.heads", 5, "clip.width 12 does not divide into 5 heads"),
        ("clip.select_layer", 4, "clip.select_layer 4 is outside of 3 layers"),
        ("clip.select_layer", -4, "clip.select_layer -4 is outside of 3 layers"),
        ("convnext.depths", [1], "convnext.widths (8, 16) and depths (1,) differ in length"),
        ("llm.kv_heads", 3, "llm.heads 4 is not a multiple of llm.kv_heads 3"),
        ("llm.head_dim", 5, "llm.head_dim 5 is odd"),
    ],
)
def test_errors(path, value, message):
    with pytest.raises(ValueError) as caught:
        MgmConfig.from_dict(changed(path, value))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "path", ["clip.patch_size", "clip.heads", "llm.kv_heads", "convnext.patch_size", "llm.layers"]
)
def test_sizes_are_positive(path):
    with pytest.raises(ValueError, match=rf"model.{path} is 0, expected at least 1"):
        MgmConfig.from_dict(changed(path, 0))


@pytest.mark.parametrize("select,run", [(-1, 3), (-2, 2), (-3, 1), (1, 1), (3, 3)])
def test_selected_layer_counts_as_hidden_states(select, run):
    assert ClipConfig(28, 7, 12, 3, 3, 16, 1e-5, "quick_gelu", select).layers_run == run


def test_projector_kinds():
    kinds = {"identity": 0, "linear": 1, "mlp1x_gelu": 1, "mlp2x_gelu": 2, "mlp12x_gelu": 12}
    assert {kind: projector_depth(kind) for kind in kinds} == kinds
    for kind in ("mlp0x_gelu", "mlp2x_relu", "mlpx_gelu", "", "Linear"):
        with pytest.raises(ValueError, match="expected 'identity', 'linear' or 'mlp<N>x_gelu'"):
            projector_depth(kind)


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"activation 'relu' is unknown, expected one of \['gelu'"):
        activation("relu")
