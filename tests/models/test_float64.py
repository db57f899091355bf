"""Every epsilon of the model, in float64, against transformers' PyTorch modules.

In float32 a wrong epsilon moves logits by 5e-5, which is close to rounding noise; in float64 the
two implementations agree to 1e-9, and each epsilon that is changed from 1e-5 to 1e-6 or back shows
ten times above that. The language model agrees to 5e-6 only, since transformers keeps its norms,
softmax and rotary tables in float32; `test_whole_float64.py` has it to 1e-9.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mgm_jax.convert.hf import load_hf
from mgm_jax.models.clip_vit import ClipVit
from mgm_jax.models.convnext import ConvNext
from mgm_jax.models.decoder import Decoder
from mgm_jax.models.mining import PatchInfoMining

torch = pytest.importorskip("torch", reason="PyTorch is the independent reference")
transformers = pytest.importorskip("transformers", reason="the independent reference")

HERE = Path(__file__).parent.parent / "golden" / "llama_mha"
OTHER_EPS = {1e-5: 1e-6, 1e-6: 1e-5}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def loaded():
    cfg, params = load_hf(HERE, clip_heads=4)
    return cfg, jax.tree.map(lambda p: p.astype(np.float64), params)


@pytest.fixture(scope="module")
def tensors():
    found = load_file(HERE / "model.safetensors")
    return {k: torch.from_numpy(v).double() for k, v in found.items()}


def part(tensors, prefix, renames=()):
    found = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            for old, new in renames:
                name = name.replace(old, new)
            found[name] = value
    return found


def check(ours, reference, cfg, field, x, tolerance):
    """`ours(cfg, x)` equals `reference`, and does not once `field` is another epsilon."""
    eps = getattr(cfg, field)

    @jax.jit
    def run(eps, x):  # a traced epsilon: one compilation serves both
        return ours(dataclasses.replace(cfg, **{field: eps}), x)

    np.testing.assert_allclose(run(eps, x), reference, atol=tolerance, rtol=0)
    assert np.abs(np.asarray(run(OTHER_EPS[eps], x)) - reference).max() > 10 * tolerance


def test_clip(loaded, tensors):
    cfg, params = loaded
    c = cfg.clip
    config = transformers.CLIPVisionConfig(
        hidden_size=c.width,
        intermediate_size=c.mlp_dim,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        image_size=c.image_size,
        patch_size=c.patch_size,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )
    model = transformers.CLIPVisionModel(config).double().eval()
    own = list(model.state_dict())
    prefix = "" if own[0].startswith("vision_model.") else "vision_model."
    state = part(tensors, "model.vision_tower.vision_tower." + prefix)
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert all("position_ids" in name for name in missing), missing
    x = np.random.default_rng(0).normal(size=(2, c.image_size, c.image_size, 3))
    pixels = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
    with torch.no_grad():
        hidden = model(pixels, output_hidden_states=True).hidden_states
    reference = hidden[c.select_layer][:, 1:].numpy()
    check(
        lambda cfg, x: ClipVit(cfg).apply({"params": params["clip"]}, x),
        reference,
        c,
        "norm_eps",
        x,
        1e-9,
    )


def test_convnext(loaded, tensors):
    cfg, params = loaded
    c = cfg.convnext
    config = transformers.ConvNextConfig(
        hidden_sizes=list(c.widths), depths=list(c.depths), patch_size=c.patch_size
    )
    model = transformers.ConvNextModel(config).double().eval()
    names = (
        ("vision_stem.0", "embeddings.patch_embeddings"),
        ("vision_stem.1", "embeddings.layernorm"),
        ("vision_stages", "encoder.stages"),
        ("downsample.", "downsampling_layer."),
        ("blocks.", "layers."),
        ("conv_dw", "dwconv"),
        (".norm.", ".layernorm."),
        ("mlp.fc", "pwconv"),
        ("gamma", "layer_scale_parameter"),
    )
    state = part(tensors, "model.vision_tower_aux.", names)
    result = model.load_state_dict(state, strict=False)
    assert all(n.startswith("layernorm.") for n in result.missing_keys), result.missing_keys
    assert not result.unexpected_keys
    x = np.random.default_rng(1).normal(size=(1, 64, 64, 3))
    with torch.no_grad():
        pixels = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
        hidden = model(pixels, output_hidden_states=True).hidden_states
    reference = hidden[-1].numpy()
    check(
        lambda cfg, x: jnp.moveaxis(
            ConvNext(cfg).apply({"params": params["convnext"]}, x)[-1], -1, 1
        ),
        reference,
        c,
        "norm_eps",
        x,
        1e-9,
    )


def test_mining_against_the_literal_form(loaded, tensors):
    """The whole map projected to keys and values, as the paper writes it."""
    cfg, params = loaded
    rng = np.random.default_rng(2)
    x, hr_map = rng.normal(size=(2, 16, 32)), rng.normal(size=(2, 32, 32, 120))

    def project(name, values):
        weight = part(tensors, f"model.vlm_uni_{name}_projector.")
        normed = torch.nn.functional.layer_norm(
            torch.from_numpy(np.asarray(values)),
            values.shape[-1:],
            weight["0.weight"],
            weight["0.bias"],
            1e-5,
        )
        return (normed @ weight["1.weight"].T + weight["1.bias"]).numpy()

    regions = hr_map.reshape(2, 4, 8, 4, 8, 120).swapaxes(2, 3).reshape(2, 16, 64, 120)
    q, k, v = project("query", x), project("aux", regions), project("val", regions)
    logits = np.einsum("bnc,bnsc->bns", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    reference = np.einsum("bns,bnsc->bnc", weights, v)

    def ours(cfg, x):
        module = PatchInfoMining(120, 32, cfg.mining_eps)
        return module.apply({"params": params["mining"]}, x, (hr_map,))

    check(lambda cfg, x: ours(cfg, x)[0], reference, cfg, "mining_eps", x, 1e-9)
    check(lambda cfg, x: ours(cfg, x)[1], weights, cfg, "mining_eps", x, 1e-9)


@pytest.mark.parametrize("remat,scan", [("none", True), ("full", True), ("dots", False)])
def test_decoder(loaded, tensors, remat, scan):
    cfg, params = loaded
    c = cfg.llm
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.dim,
        intermediate_size=c.mlp_dim,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        rms_norm_eps=1e-5,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).double().eval()
    ours = {n for n in model.state_dict() if "inv_freq" not in n}
    model.load_state_dict({n: tensors[n] for n in ours}, strict=False)
    x = np.random.default_rng(3).normal(size=(2, 9, c.dim))
    with torch.no_grad():
        reference = model(inputs_embeds=torch.from_numpy(x)).logits.numpy()
    positions = np.broadcast_to(np.arange(9), (2, 9))

    def logits(cfg, x):
        module = Decoder(cfg, remat=remat, scan=scan)
        apply = {"params": params["llm"]}
        states, _ = module.apply(apply, x, positions, np.ones_like(positions))
        return module.apply(apply, states, method="head")

    check(logits, reference, c, "norm_eps", x, 5e-6)
