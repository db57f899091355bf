"""A tiny LLaMA in both frameworks, the same random weights; prompts and pictures."""

import copy

import numpy as np
import pytest
from PIL import Image

from mgm_jax.convert.families import llama
from mgm_jax.convert.rules import import_params
from mgm_jax.models.config import MgmConfig
from mgm_jax.models.mgm import Mgm
from tests.conftest import TINY

VOCABULARY = 96


@pytest.fixture(scope="session")
def llama_pair():
    """(module, params, the model of transformers), float32."""
    torch = pytest.importorskip("torch", reason="PyTorch is the independent reference")
    transformers = pytest.importorskip("transformers", reason="the independent reference")
    values = copy.deepcopy(TINY)
    values["llm"]["vocab_size"] = VOCABULARY
    cfg = MgmConfig.from_dict(values)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=cfg.llm.dim,
        intermediate_size=cfg.llm.mlp_dim,
        num_hidden_layers=cfg.llm.layers,
        num_attention_heads=cfg.llm.heads,
        num_key_value_heads=cfg.llm.kv_heads,
        head_dim=cfg.llm.head_dim,
        rms_norm_eps=cfg.llm.norm_eps,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": cfg.llm.rope_theta},
    )
    model = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
            if "norm" in name:
                p.add_(1)
    tensors = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    return Mgm(cfg), import_params(tensors, llama.rules(cfg.llm), "llama"), model


def text_batch(rows, length):
    """Rows of ids -> right-padded prompts of the batch contract."""
    batch = {
        name: np.zeros((len(rows), length), np.int32)
        for name in ("tokens", "positions", "segments")
    }
    for i, row in enumerate(rows):
        batch["tokens"][i, : len(row)] = row
        batch["positions"][i, : len(row)] = np.arange(len(row))
        batch["segments"][i, : len(row)] = 1
    return batch


def picture(seed):
    """Random colours in large blocks."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(256, size=(4, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((90, 60), Image.Resampling.NEAREST)
