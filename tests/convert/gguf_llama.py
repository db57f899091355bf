"""A LLaMA in llama.cpp's GGUF -> a Hugging Face directory: config.json, float32 weights, tokenizer.

The `gguf` package reads and dequantises. Names and layouts change as llama.cpp's own converter
changed them: its rows of q and k are interleaved for another form of the rotary embedding.
"""

import json
import re

import numpy as np
import tokenizers
from safetensors.numpy import save_file

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # token type of special tokens


def renamed(name):
    layer, part = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name).groups()
    return f"model.layers.{layer}.{NAMES[part]}.weight" if layer else f"{NAMES[part]}.weight"


def halves(rows, heads):
    """Rows of interleaved pairs -> first halves of all pairs, then second halves, head by head."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))


def tokenizer_of(tokens, merges, types):
    """Byte-level BPE as SmolLM2 has it: digits apart, special tokens whole."""
    pairs = [tuple(merge.split(" ")) for merge in merges]
    model = tokenizers.models.BPE({t: i for i, t in enumerate(tokens)}, pairs)
    tokenizer = tokenizers.Tokenizer(model)
    split = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(t, special=True, normalized=False) for t in special]
    )
    return tokenizer


def write_hf(file, directory):
    """Writes the directory; returns config.json's contents."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    facts |= {k.removeprefix("llama."): v for k, v in facts.items()}
    heads, kv_heads = facts["attention.head_count"], facts["attention.head_count_kv"]
    tensors = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        name = renamed(tensor.name)
        if "q_proj" in name or "k_proj" in name:
            values = halves(values, heads if "q_proj" in name else kv_heads)
        tensors[name] = values
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": facts["embedding_length"],
        "intermediate_size": facts["feed_forward_length"],
        "num_attention_heads": heads,
        "num_hidden_layers": facts["block_count"],
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": facts["context_length"],
        "rms_norm_eps": facts["attention.layer_norm_rms_epsilon"],
        "rope_theta": facts["rope.freq_base"],
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "torch_dtype": "float32",
    }
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    keys = ("tokens", "merges", "token_type")
    tokenizer = tokenizer_of(*(facts[f"tokenizer.ggml.{key}"] for key in keys))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False})
    )
    return config
