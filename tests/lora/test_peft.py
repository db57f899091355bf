"""Adapters to and from the real PEFT, over transformers' language models (logits, 1e-4)."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.convert.families import llama
from mgm_jax.convert.rules import import_params
from mgm_jax.convert.torch_file import TorchWriter
from mgm_jax.convert.writers import Spec
from mgm_jax.lora import adapters, peft
from mgm_jax.lora.config import LoraConfig
from mgm_jax.models.config import DecoderConfig, ExpertsConfig, MgmConfig
from mgm_jax.models.decoder import Decoder
from mgm_jax.tree import flatten, unflatten

torch = pytest.importorskip("torch", reason="PyTorch is the independent reference")
transformers = pytest.importorskip("transformers", reason="the independent reference")
real = pytest.importorskip("peft", reason="the independent reference")

SIZES = dict(vocab_size=37, dim=24, layers=2, heads=6, kv_heads=2, head_dim=8, mlp_dim=28)
THEIRS = dict(
    vocab_size=37,
    hidden_size=24,
    intermediate_size=28,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    attn_implementation="eager",
)
LLAMA = dict(act="silu", norm_eps=1e-5, rope_theta=1e4, embed_scale=None, experts=None)
LLAMA |= dict(tied_embeddings=False, zero_centred_norm=False)
GEMMA = LLAMA | dict(act="gelu_tanh", tied_embeddings=True, zero_centred_norm=True)
GEMMA |= dict(embed_scale="exact", norm_eps=1e-6)
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
FAMILIES = {
    "llama": (
        LLAMA,
        lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**THEIRS, **ROPE, rms_norm_eps=1e-5)
        ),
    ),
    "gemma": (
        GEMMA,
        lambda: transformers.GemmaForCausalLM(
            transformers.GemmaConfig(
                **THEIRS, **ROPE, rms_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh"
            )
        ),
    ),
    "mixtral": (
        LLAMA | dict(experts=ExpertsConfig(4, 2, 0.0)),
        lambda: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(
                **THEIRS, **ROPE, rms_norm_eps=1e-5, num_local_experts=4, num_experts_per_tok=2
            )
        ),
    ),
}
IDS = np.random.default_rng(1).integers(37, size=(2, 9))
PLACES, ONES = np.broadcast_to(np.arange(9), IDS.shape), np.ones(IDS.shape, np.int32)


def randomise(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
            if name.endswith("norm.weight"):
                p.add_(0 if "gemma" in type(model).__name__.lower() else 1)
    return model.eval()


def their_logits(model):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(IDS)).logits.numpy()


def unfused(tensors):
    """transformers 5's Mixtral under the names of the published weights."""
    found = {}
    for name, a in tensors.items():
        name = name.replace(".mlp.gate.", ".block_sparse_moe.gate.")
        if name.endswith("experts.gate_up_proj"):
            at = name.replace(".mlp.experts.gate_up_proj", ".block_sparse_moe.experts")
            for e, matrix in enumerate(a):
                w1, w3 = np.split(matrix, 2)
                found |= {f"{at}.{e}.w1.weight": w1, f"{at}.{e}.w3.weight": w3}
        elif name.endswith("experts.down_proj"):
            at = name.replace(".mlp.experts.down_proj", ".block_sparse_moe.experts")
            found |= {f"{at}.{e}.w2.weight": matrix for e, matrix in enumerate(a)}
        else:
            found[name] = a
    return found


class Family:
    """A random transformers model and the same one of ours."""

    def __init__(self, name, tiny):
        values, self.make = FAMILIES[name]
        llm = DecoderConfig(**SIZES, **values)
        self.cfg = dataclasses.replace(MgmConfig.from_dict(tiny), llm=llm)
        tensors = {k: v.numpy() for k, v in self.torch_model().state_dict().items()}
        self.params = import_params(unfused(tensors), llama.rules(llm), name)

    def torch_model(self):
        return randomise(self.make())

    def logits(self, params):
        def run(module):
            states, _ = module(module.embed(IDS), PLACES, ONES)
            return module.head(states)

        module = Decoder(self.cfg.llm)
        return np.asarray(jax.jit(lambda p: module.apply({"params": p}, method=run))(params["llm"]))

    def with_adapter(self, params, lora):
        whole = unflatten(flatten(self.params) | flatten(params))
        return self.logits(adapters.active(whole, lora)), self.logits(adapters.merge(whole, lora))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request, tiny_config):
    return Family(request.param, tiny_config().model.to_dict())


def targets(family):
    return "llm/layers/attn/.*_proj" if family.cfg.llm.experts else ".*_proj|llm/lm_head"


def random_adapter(family, lora):
    axes = {n: (None,) * a.ndim for n, a in flatten(family.params).items()}
    names = [n.removesuffix("/kernel") for n in axes if n.endswith("/kernel")]
    shapes, _ = adapters.add(family.params, unflatten(axes), names, lora)
    rng = np.random.default_rng(2)
    return unflatten(
        {
            n: (0.3 * rng.normal(size=s.shape)).astype(np.float32)
            for n, s in flatten(shapes).items()
            if n not in axes
        }
    )


def test_ours_in_peft(family, tmp_path):
    rslora = family.cfg.llm.experts is not None
    lora = LoraConfig(rank=3, alpha=5.0, targets=targets(family), rslora=rslora)
    params = random_adapter(family, lora)
    peft.save(tmp_path, params, family.cfg, lora, "somewhere")
    model = real.PeftModel.from_pretrained(family.torch_model(), str(tmp_path))
    by_adapter, merged = family.with_adapter(params, lora)
    expected = their_logits(model)
    np.testing.assert_allclose(by_adapter, expected, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(merged, by_adapter, atol=1e-5, rtol=1e-5)
    assert np.abs(expected - family.logits(family.params)).max() > 0.1
    again, same = peft.load(tmp_path, family.cfg)
    assert (again.rank, again.scale) == (lora.rank, lora.scale)
    for name, a in flatten(same).items():
        np.testing.assert_array_equal(a, flatten(params)[name], err_msg=name)
    assert flatten(same).keys() == flatten(params).keys()


def test_pefts_in_ours(family, tmp_path):
    names = ["q_proj", "v_proj"] + ([] if family.cfg.llm.experts else ["down_proj"])
    config = real.LoraConfig(
        r=3, lora_alpha=7, target_modules=names, task_type="CAUSAL_LM", init_lora_weights=False
    )
    torch.manual_seed(3)
    model = real.get_peft_model(family.torch_model(), config).eval()
    model.save_pretrained(str(tmp_path))
    lora, params = peft.load(tmp_path, family.cfg)
    assert {n.split("/")[3] for n in flatten(params)} == set(names)
    by_adapter, merged = family.with_adapter(params, lora)
    np.testing.assert_allclose(by_adapter, their_logits(model), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(merged, by_adapter, atol=1e-5, rtol=1e-5)


def test_a_head_that_was_trained_whole(llama_family, tmp_path):
    lora = LoraConfig(rank=3, alpha=5.0)
    params = random_adapter(llama_family, lora)
    head = llama_family.params["llm"]["lm_head"]["kernel"] * 2
    params["llm"]["lm_head"] = {"kernel": head}
    peft.save(tmp_path, params, llama_family.cfg, lora, "somewhere")
    model = real.PeftModel.from_pretrained(llama_family.torch_model(), str(tmp_path))
    found, _ = llama_family.with_adapter(params, lora)
    np.testing.assert_allclose(found, their_logits(model), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def llama_family(tiny_config):
    return Family("llama", tiny_config().model.to_dict())


def saved(family, tmp_path, **config):
    """An adapter directory of ours whose adapter_config.json says something else, too."""
    lora = LoraConfig(rank=2, alpha=2.0, targets="llm/layers/attn/q_proj")
    params = random_adapter(family, lora)
    peft.save(tmp_path, params, family.cfg, lora, "somewhere")
    values = json.loads((tmp_path / peft.CONFIG).read_text()) | config
    (tmp_path / peft.CONFIG).write_text(json.dumps(values))
    return params


@pytest.mark.parametrize(
    "config,message",
    [
        ({"use_dora": True}, "use_dora is True, which is not implemented"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"some_new_field": 3}, "some_new_field is 3, which is not implemented"),
        ({"layers_to_transform": [0]}, "layers_to_transform is"),
        ({"r": None}, "r is None, expected a number"),
    ],
)
def test_fields_that_are_not_implemented_are_named(llama_family, tmp_path, config, message):
    saved(llama_family, tmp_path, **config)
    with pytest.raises(ValueError, match=message):
        peft.load(tmp_path, llama_family.cfg)


@pytest.mark.parametrize(
    "name,message",
    [
        ("model.layers.0.block_sparse_moe.experts.1.w1.lora_A.weight", "adapts an expert"),
        ("model.embed_tokens.lora_embedding_A", "of an embedding"),
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("model.layers.2.self_attn.q_proj.lora_A.weight", "no place in this model"),
        ("model.layers.0.mlp.up_proj.lora_A.weight", "layers.1.mlp.up_proj.* is missing"),
    ],
)
def test_tensors_that_have_no_place_are_named(llama_family, tmp_path, name, message):
    saved(llama_family, tmp_path)
    source = peft.open_source(tmp_path / peft.WEIGHTS)
    tensors = {n: source.read(n) for n in source} | {peft.PREFIX + name: np.ones((2, 24), "f4")}
    peft.write_safetensors(tmp_path / peft.WEIGHTS, tensors)
    with pytest.raises(ValueError, match=message):
        peft.load(tmp_path, llama_family.cfg)


def test_the_file_of_llavas_trainer_is_read_too(llama_family, tmp_path):
    params = saved(llama_family, tmp_path)
    bias = np.arange(24, dtype=np.float32)
    name = "base_model.model.model.mm_projector.0.bias"
    writer = TorchWriter(tmp_path / peft.REST, [Spec(name, bias.shape, bias.dtype)])
    writer.write([(writer.specs[0], bias)])
    assert name in torch.load(tmp_path / peft.REST, weights_only=True)
    _, found = peft.load(tmp_path, llama_family.cfg)
    np.testing.assert_array_equal(found["projector"]["fc1"]["bias"], bias)
    assert flatten(found).keys() == flatten(params).keys() | {"projector/fc1/bias"}


def test_half_precision_and_what_stays_out(llama_family, tmp_path):
    lora = LoraConfig(rank=2, alpha=2.0)
    params = random_adapter(llama_family, LoraConfig(2, 2.0, "llm/layers/mlp/up_proj"))
    peft.save(tmp_path, params, llama_family.cfg, lora, "x", dtype="bfloat16")
    found = peft.open_source(tmp_path / peft.WEIGHTS)
    assert {str(found[n].dtype) for n in found} == {"bfloat16"}
    params["clip"] = {"cls": jnp.zeros(3)}
    with pytest.raises(ValueError, match="clip/cls: a PEFT adapter has no place"):
        peft.save(tmp_path, params, llama_family.cfg, lora, "x")
