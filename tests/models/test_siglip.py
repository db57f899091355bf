"""The SigLIP and ViT towers against transformers (torch) and numpy; whole models with one."""

import dataclasses
import math

import big_vision_case as case
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.convert.families import siglip
from mgm_jax.convert.rules import export_params, import_params
from mgm_jax.models.clip_vit import ClipVit
from mgm_jax.models.config import CLIP_MEAN, CLIP_STD, ClipConfig, ImageSpec, MgmConfig
from mgm_jax.models.mgm import Mgm
from mgm_jax.models.presets import LLMS, SIGLIP_SO400M_384, mgm_siglip
from mgm_jax.ops.views import normalise, views
from mgm_jax.program import abstract_model
from mgm_jax.tree import flatten
from tests.conftest import TINY

# 23 px in patches of 4: 3 px at the right and below are not seen
CFG = ClipConfig(
    23, case.P, case.D, case.LAYERS, case.N, case.F, 1e-6, "gelu_tanh", -1, kind="siglip"
)
PICTURES = np.random.default_rng(1).normal(size=(2, 23, 23, 3)).astype(np.float32)


def features(cfg, params, **options):
    return jax.jit(lambda p, x: ClipVit(cfg, **options).apply({"params": p}, x))(params, PICTURES)


@pytest.mark.parametrize("kind,select", [("siglip", -1), ("siglip", -2), ("vit", -1), ("vit", 1)])
def test_against_numpy(kind, select):
    cfg = dataclasses.replace(CFG, kind=kind, select_layer=select)
    tensors = case.arrays(cls=kind == "vit")
    params = import_params(tensors, siglip.big_vision_rules(cfg), "case")["clip"]
    expected = case.forward(tensors, PICTURES, layers=cfg.layers_run)
    np.testing.assert_allclose(features(cfg, params), expected, atol=1e-5, rtol=1e-5)
    for options in ({"scan": False}, {"remat": "full"}):
        found = features(cfg, params, **options)
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    shapes = jax.eval_shape(ClipVit(cfg).init, jax.random.key(0), PICTURES)["params"]
    expected = {n: a.shape for n, a in flatten(params).items()}
    assert {n: a.value.shape for n, a in flatten(shapes).items()} == expected
    assert ("post_norm/scale" in expected) == (select == -1)


@pytest.mark.parametrize("select", [-1, -2])
def test_against_transformers(select):
    torch = pytest.importorskip("torch", reason="PyTorch is the independent reference")
    transformers = pytest.importorskip("transformers", reason="the independent reference")
    config = transformers.SiglipVisionConfig(
        hidden_size=CFG.width,
        intermediate_size=CFG.mlp_dim,
        num_hidden_layers=CFG.layers,
        num_attention_heads=CFG.heads,
        image_size=CFG.image_size,
        patch_size=CFG.patch_size,
    )
    assert (config.layer_norm_eps, config.hidden_act) == (1e-6, "gelu_pytorch_tanh")
    model = transformers.SiglipVisionModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.2)
        outputs = model(
            torch.from_numpy(np.moveaxis(PICTURES, -1, 1).copy()), output_hidden_states=True
        )
    tensors = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    prefix = "vision_model." if "vision_model.post_layernorm.bias" in tensors else ""
    cfg = dataclasses.replace(CFG, select_layer=select)
    rules = siglip.hf_rules(cfg, prefix)
    params = import_params(tensors, rules, "siglip")
    expected = outputs.last_hidden_state if select == -1 else outputs.hidden_states[select]
    found = features(cfg, params["clip"])
    assert found.shape == (2, 25, CFG.width)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    back = dict(export_params(flatten(params), rules))
    for name, array in back.items():
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)
    assert {n for n in tensors if n not in back} == {n for n in tensors if f"{prefix}head." in n}


def test_the_preset_has_as_many_parameters_as_googles():
    shapes = jax.eval_shape(
        ClipVit(SIGLIP_SO400M_384).init, jax.random.key(0), jnp.zeros((1, 384, 384, 3))
    )
    count = sum(math.prod(a.shape) for a in jax.tree.leaves(shapes))
    d, f = 1152, 4304
    attention, mlp = 4 * (d * d + d), 2 * d * f + d + f
    layer = attention + mlp + 4 * d
    assert count == 14 * 14 * 3 * d + d + 27 * 27 * d + 27 * layer + 2 * d == 412_987_248
    pooling_head = d + attention + mlp + 2 * d
    assert count + pooling_head == 428_225_600  # transformers' SiglipVisionModel of that size
    assert SIGLIP_SO400M_384.grid == 27


HALF = dict(mean=[0.5] * 3, std=[0.5] * 3)


def siglip_model(**image):
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in TINY.items()}
    values["clip"] |= dict(kind="siglip", act="gelu_tanh", norm_eps=1e-6, select_layer=-1)
    values["image"] |= image
    return MgmConfig.from_dict(values)


def test_a_whole_model():
    cfg = siglip_model(**HALF, hr_mean=[0.4] * 3, hr_std=[0.3] * 3)
    assert MgmConfig.from_dict(cfg.to_dict()) == cfg
    batch = {"images": jnp.zeros((1, 1, 32, 32, 3), jnp.uint8)}
    zeros = jnp.zeros((1, 8), jnp.int32)
    batch |= {k: zeros for k in ("tokens", "positions")} | {"segments": zeros + 1}
    batch["visual_index"] = jnp.asarray([[-1, 0, 1, 2, 3, -1, -1, -1]])
    params = jax.eval_shape(Mgm(cfg).init, jax.random.key(0), batch)
    logits, _ = jax.eval_shape(Mgm(cfg).apply, params, batch)
    assert logits.shape == (1, 8, 576)
    names = flatten(params["params"]["clip"])
    assert {"patch/bias", "post_norm/scale"} <= set(names)
    assert not {"cls", "pre_norm/scale", "unused_norm/scale"} & set(names)


def test_a_config_says_its_normalisation_and_kind():
    with pytest.raises(ValueError, match="image.mean and image.std are CLIP's, but clip.kind is"):
        siglip_model()
    with pytest.raises(ValueError, match="image.hr_mean and image.hr_std are not given, but"):
        siglip_model(**HALF)
    with pytest.raises(ValueError, match="one is given without the other"):
        siglip_model(**HALF, hr_mean=[0.4] * 3)
    values = dataclasses.asdict(CFG)
    assert ClipConfig(**values) == CFG
    with pytest.raises(ValueError, match=r"clip.kind is 'dino', expected one of \('clip'"):
        ClipConfig(**values | {"kind": "dino"})
    with pytest.raises(ValueError, match="not a multiple of patch_size"):
        ClipConfig(**values | {"kind": "clip"})
    del values["kind"]
    assert ClipConfig(**values | {"image_size": 20}).kind == "clip"


def test_each_view_has_its_normalisation():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    plain = ImageSpec(8, 32, mean=(0.5,) * 3, std=(0.5,) * 3)
    lr, hr = views(pixels, plain)
    assert np.array_equal(hr, normalise(pixels, plain))
    own = dataclasses.replace(plain, hr_mean=CLIP_MEAN, hr_std=CLIP_STD)
    found_lr, found_hr = views(pixels, own)
    np.testing.assert_array_equal(found_lr, lr)
    expected = (pixels / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(found_hr, expected, atol=1e-5)


def test_a_preset_around_it():
    cfg = mgm_siglip(LLMS["vicuna_7b"])
    assert cfg.visual_tokens == 729 and MgmConfig.from_dict(cfg.to_dict()) == cfg
    _, _, shapes, _ = abstract_model(cfg)
    sizes = {k: sum(math.prod(a.shape) for a in jax.tree.leaves(v)) for k, v in shapes.items()}
    assert sizes["clip"] == 412_987_248
    assert sizes["projector"] == 1152 * 4096 + 4096 + 4096 * 4096 + 4096
