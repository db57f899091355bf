"""Tiny random towers and decoders against transformers' PyTorch modules (float32, 1e-5).

Sizes differ from the golden's on purpose: shared key heads, a head_dim that is not dim / heads,
tied embeddings, another rotary base, every selected CLIP layer, every ConvNeXt stage.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.convert.families import clip, convnext, llama
from mgm_jax.convert.rules import export_params, import_params
from mgm_jax.models.clip_vit import ClipVit
from mgm_jax.models.config import ClipConfig, ConvNextConfig, DecoderConfig
from mgm_jax.models.convnext import ConvNext
from mgm_jax.models.decoder import Decoder
from mgm_jax.ops.loss import head_losses
from mgm_jax.tree import flatten

torch = pytest.importorskip("torch", reason="PyTorch is the independent reference")
transformers = pytest.importorskip("transformers", reason="the independent reference")


def randomise(model, std=0.2):
    """Every parameter random (norms around 1), so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * std)
            if "norm" in name and name.endswith("weight"):
                p.add_(1)
    return model.eval()


def tensors_of(model):
    return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def channels_first(x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


@pytest.fixture(scope="module")
def clip_model():
    config = transformers.CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=20,
        patch_size=5,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )
    return randomise(transformers.CLIPVisionModel(config))


@pytest.mark.parametrize("select,run", [(-1, 4), (-2, 3), (1, 1)])
def test_clip_features_of_each_layer(clip_model, select, run):
    cfg = ClipConfig(20, 5, 24, 4, 3, 40, 1e-5, "quick_gelu", select)
    assert cfg.layers_run == run
    tensors = tensors_of(clip_model)
    prefix = "vision_model." if "vision_model.pre_layrnorm.weight" in tensors else ""
    params = import_params(tensors, clip.rules(cfg, prefix), "clip")["clip"]
    x = normal(2, 20, 20, 3)
    with torch.no_grad():
        hidden = clip_model(channels_first(x), output_hidden_states=True).hidden_states
    found = jax.jit(lambda p, x: ClipVit(cfg).apply({"params": p}, x))(params, x)
    assert found.shape == (2, 16, 24)
    np.testing.assert_allclose(found, hidden[select][:, 1:], atol=1e-5, rtol=1e-5)


TIMM_NAMES = (  # transformers' -> timm's, which MGM stores
    ("embeddings.patch_embeddings", "stem.0"),
    ("embeddings.layernorm", "stem.1"),
    ("encoder.stages", "stages"),
    ("downsampling_layer", "downsample"),
    (".layers.", ".blocks."),
    ("dwconv", "conv_dw"),
    (".layernorm.", ".norm."),
    ("pwconv", "mlp.fc"),
    ("layer_scale_parameter", "gamma"),
)


def test_each_convnext_stage():
    cfg = ConvNextConfig(
        widths=(6, 10, 12), depths=(1, 2, 1), patch_size=4, kernel_size=7, norm_eps=1e-6
    )
    config = transformers.ConvNextConfig(
        hidden_sizes=list(cfg.widths), depths=list(cfg.depths), patch_size=4, num_stages=3
    )
    model = randomise(transformers.ConvNextModel(config))
    tensors = {}
    for name, value in tensors_of(model).items():
        for theirs, timm in TIMM_NAMES:
            name = name.replace(theirs, timm)
        tensors[name] = value
    params = import_params(tensors, convnext.rules(cfg, "stem", "stages"), "convnext")["convnext"]
    x = normal(2, 32, 48, 3)
    with torch.no_grad():
        hidden = model(channels_first(x), output_hidden_states=True).hidden_states[-3:]
    found = jax.jit(lambda p, x: ConvNext(cfg).apply({"params": p}, x))(params, x)
    for stage, expected in zip(found, hidden, strict=True):
        np.testing.assert_allclose(
            np.moveaxis(np.asarray(stage), -1, 1), expected, atol=1e-5, rtol=1e-5
        )


def decoder(tied):
    cfg = DecoderConfig(
        vocab_size=37,
        dim=24,
        layers=2,
        heads=6,
        kv_heads=2,
        head_dim=8,
        mlp_dim=28,
        act="silu",
        norm_eps=1e-5,
        rope_theta=5e5,
        tied_embeddings=tied,
        zero_centred_norm=False,
        embed_scale=None,
        experts=None,
    )
    config = transformers.LlamaConfig(
        vocab_size=37,
        hidden_size=24,
        intermediate_size=28,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    return cfg, randomise(transformers.LlamaForCausalLM(config))


IDS = np.random.default_rng(1).integers(37, size=(3, 9))
LENGTHS = np.array([9, 6, 2])


@pytest.mark.parametrize("tied", [False, True])
def test_decoder_logits_and_gradients(tied):
    """Rows of three lengths: right padding there is segment 0 here."""
    cfg, model = decoder(tied)
    params = import_params(tensors_of(model), llama.rules(cfg), "llama")["llm"]
    mask = np.arange(9) < LENGTHS[:, None]
    weights = mask * (np.arange(9) < LENGTHS[:, None] - 1)
    targets = np.roll(IDS, -1, axis=1)

    def loss(params, module):
        x = module.apply({"params": params}, IDS, method=lambda m, ids: m.embed(ids))
        positions = np.broadcast_to(np.arange(9), IDS.shape)
        states, _ = module.apply({"params": params}, x, positions, mask.astype(np.int32))

        logits = module.apply({"params": params}, states, method="head")
        head = module.apply({"params": params}, jnp.float32, method="head_kernel")
        losses = head_losses(states, head[0], targets, targets >= 0, head[1])
        return (losses * weights).sum() / weights.sum(), logits

    logits = model(
        input_ids=torch.from_numpy(IDS), attention_mask=torch.from_numpy(mask.astype(int))
    ).logits
    rows, places = np.nonzero(weights)
    expected = torch.nn.functional.cross_entropy(
        logits[rows, places], torch.from_numpy(targets)[rows, places]
    )
    expected.backward()
    grads = {n: p.grad.numpy() for n, p in model.named_parameters()}

    @jax.jit
    def run(params):
        return jax.value_and_grad(loss, has_aux=True)(params, Decoder(cfg))

    (value, found), pulled = run(params)
    np.testing.assert_allclose(found[mask], logits.detach().numpy()[mask], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(value, expected.detach(), atol=1e-5)
    ours = dict(export_params(flatten({"llm": pulled}), llama.rules(cfg)))
    assert set(ours) == set(grads)
    for name, grad in grads.items():
        np.testing.assert_allclose(ours[name], grad, atol=1e-5, rtol=1e-4, err_msg=name)
