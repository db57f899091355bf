"""Every family: config.json and tensors in, the same tensors out, whatever the folder is called."""

import json

import numpy as np
import pytest
from golden_families import FAMILIES, GOLDEN, complete, tensors_of

from mgm_jax import api
from mgm_jax.convert.families import mgm
from mgm_jax.convert.hf import load_hf
from mgm_jax.convert.llm_config import decoder_config, template_of
from mgm_jax.convert.overrides import split_overrides, with_overrides
from mgm_jax.convert.rules import export_params, their_names
from mgm_jax.tree import flatten


def config_of(name):
    return json.loads((GOLDEN / name / "config.json").read_text())


@pytest.mark.parametrize("name", FAMILIES)
def test_round_trip_is_bit_equal(name, tmp_path):
    source = tensors_of(name)
    cfg, params = load_hf(complete(name, tmp_path))
    assert cfg.clip.heads == 4  # of the CLIP folder beside the checkpoint
    written = dict(export_params(flatten(params), mgm.rules(cfg)))
    assert set(written) == set(source)
    for key, array in written.items():
        assert array.dtype == source[key].dtype
        np.testing.assert_array_equal(array, source[key], err_msg=key)


def test_one_changed_expert_element_changes_one_tensor(tmp_path):
    cfg, params = load_hf(complete("mixtral", tmp_path))
    source, flat = tensors_of("mixtral"), flatten(params)
    assert flat["llm/layers/moe/w_down"].shape == (3, 4, 96, 64)
    (rule,) = (r for r in mgm.rules(cfg) if r.ours == "llm/layers/moe/w_down")
    changed = flat[rule.ours].copy()
    changed[1, 2, 5, 7] += 1
    after = dict(export_params({rule.ours: changed}, [rule]))
    differ = [n for n, array in after.items() if not np.array_equal(array, source[n])]
    assert differ == ["model.layers.1.block_sparse_moe.experts.2.w2.weight"]
    assert differ[0] == their_names(rule)[1 * 4 + 2]
    assert np.argwhere(after[differ[0]] != source[differ[0]]).tolist() == [[7, 5]]


@pytest.mark.parametrize(
    "changes,expected",
    [
        ({}, "gelu"),
        ({"hidden_activation": "gelu_pytorch_tanh"}, "gelu_tanh"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "gelu_tanh"),
    ],
)
def test_gemma_activation(changes, expected):
    assert decoder_config(config_of("gemma") | changes, "config.json").act == expected


def test_families_by_what_config_json_says():
    """Published files have no model_type and older class names."""
    gemma = {"architectures": ["MiniGeminiGemmaForCausalLM"], "model_type": None}
    llm = decoder_config(config_of("gemma") | gemma, "config.json")
    assert (llm.tied_embeddings, llm.zero_centred_norm, llm.head_dim) == (True, True, 24)
    experts = decoder_config(config_of("mixtral"), "config.json").experts
    assert (experts.count, experts.per_token, experts.router_loss) == (4, 2, 0.0)
    routed = config_of("mixtral") | {"output_router_logits": True}
    assert decoder_config(routed, "config.json").experts.router_loss == 0.001
    templates = {n: template_of(config_of(n), "config.json") for n in FAMILIES}
    assert templates["gemma"] == "gemma" and templates["mixtral"] == "mistral_instruct"
    assert templates["llama_gqa"] == "v1"
    llama3 = config_of("llama_gqa") | {"vocab_size": 128256}
    assert template_of(llama3, "config.json") == "llama_3"


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "Qwen2ForCausalLM"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling is"),
        ({"sliding_window": 1024}, "sliding_window is 1024"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused(changes, words):
    with pytest.raises(ValueError, match=f"^config.json: .*{words}"):
        decoder_config(config_of("mistral") | changes, "config.json")


def test_a_tied_head_in_the_file_is_accepted_and_an_unknown_tensor_is_not(tmp_path):
    cfg, _ = load_hf(complete("gemma", tmp_path))
    assert mgm.ignored(cfg, "lm_head.weight")
    assert mgm.ignored(cfg, "model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not mgm.ignored(cfg, "model.layers.0.self_attn.q_proj.bias")


def test_overrides(tmp_path):
    cfg, _ = load_hf(complete("llama_hd", tmp_path), overrides={"image.use_global": False})
    assert cfg.visual_tokens == 64
    nested = split_overrides({"llm": {"norm_eps": 1e-6}, "gemma_act": "tanh"}, {})[1]
    changed = with_overrides(cfg, nested).llm
    assert (changed.norm_eps, changed.act) == (1e-6, "gelu_tanh")
    for wrong in ({"colour": 1}, {"gemma_act": "relu"}, {"image_global": False}):
        with pytest.raises(ValueError, match="overrides: "):
            split_overrides(wrong, {})
    with pytest.raises(ValueError, match="model.llm: unknown key 'colour'"):
        with_overrides(cfg, {"llm/colour": 1})


def test_a_tower_folder_of_another_width(tmp_path):
    directory = complete("llama_gqa", tmp_path)
    (tmp_path / "openai-clip-tiny" / "config.json").write_text('{"hidden_size": 48}')
    with pytest.raises(ValueError, match="hidden_size is 48, expected 32"):
        load_hf(directory)


def test_without_a_tokenizer(tmp_path):
    """Token ids work; what needs text says so, once and clearly."""
    model = api.load(complete("mistral", tmp_path), dtype="float32")
    assert model.tokenizer is None and model.template == "mistral_instruct"
    with pytest.raises(ValueError, match="tokenizer is None"):
        model.chat("Hi")
    api.save(model, tmp_path / "out")
    assert api.load(tmp_path / "out").tokenizer is None
    with pytest.raises(ValueError, match=r"2 picture placeholders \(-200\) in 1 rows, but 1"):
        pictures = np.zeros((1, 56, 56, 3)), np.zeros((1, 128, 128, 3))
        model.forward_ids([[1, -200, -200]], *pictures)
    with pytest.raises(ValueError, match=r"lr is \(1, 28, 28, 3\), expected \(1, 56, 56, 3\)"):
        model.encode_images(np.zeros((1, 28, 28, 3)), np.zeros((1, 128, 128, 3)))
