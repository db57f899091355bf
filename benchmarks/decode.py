"""Greedy generation against transformers' `generate`, same weights, same two cores: `make bench`.

A LLaMA of 8 layers (40 M parameters, float32) reads 700 tokens and writes 64, in batches of 1 and
8. Each side is a process of its own; they take turns, so that both meet the same machine. Prints
seconds and one line of JSON: `ratio` is the median over the turns of theirs / ours.
"""

from __future__ import annotations

import argparse
import json
import os

import numpy as np

from benchmarks.turns import CORES, Sides, answer, ratio

CONTEXT, NEW, BATCHES = 700, 64, (1, 8)
LLM = dict(
    vocab_size=32000,
    dim=512,
    layers=8,
    heads=8,
    kv_heads=4,
    head_dim=64,
    mlp_dim=1376,
    act="silu",
    norm_eps=1e-5,
    rope_theta=1e4,
    tied_embeddings=False,
    zero_centred_norm=False,
    embed_scale=None,
    experts=None,
)


def tensors() -> dict[str, np.ndarray]:
    """Random weights under transformers' names and in its layout."""
    d, f, heads, kv = LLM["dim"], LLM["mlp_dim"], LLM["heads"] * 64, LLM["kv_heads"] * 64
    shapes = {"model.embed_tokens": (LLM["vocab_size"], d), "lm_head": (LLM["vocab_size"], d)}
    shapes["model.norm"] = (d,)
    products = {
        "self_attn.q_proj": (heads, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, heads),
        "mlp.gate_proj": (f, d),
        "mlp.up_proj": (f, d),
        "mlp.down_proj": (d, f),
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
    }
    for i in range(LLM["layers"]):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in products.items()}
    rng = np.random.default_rng(0)
    found = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, np.float32)
        found[f"{name}.weight"] = 1 + 0.1 * values if len(shape) == 1 else values * shape[1] ** -0.5
    return found


def prompts(batch: int) -> np.ndarray:
    """Ids [batch, CONTEXT]."""
    return np.random.default_rng(1).integers(3, LLM["vocab_size"], (batch, CONTEXT), np.int32)


def llama_config(**more):
    """`LLM` as transformers has it."""
    import transformers

    return transformers.LlamaConfig(
        vocab_size=LLM["vocab_size"],
        hidden_size=LLM["dim"],
        intermediate_size=LLM["mlp_dim"],
        num_hidden_layers=LLM["layers"],
        num_attention_heads=LLM["heads"],
        num_key_value_heads=LLM["kv_heads"],
        head_dim=LLM["head_dim"],
        rms_norm_eps=LLM["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": LLM["rope_theta"]},
        **more,
    )


def theirs():
    """batch -> ids [batch, NEW], by transformers."""
    import torch
    import transformers

    torch.set_num_threads(CORES)
    config = llama_config(max_position_embeddings=CONTEXT + NEW)
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict({name: torch.from_numpy(x) for name, x in tensors().items()})
    length = {"max_new_tokens": NEW, "min_new_tokens": NEW}

    def run(batch: int) -> np.ndarray:
        ids = torch.from_numpy(prompts(batch)).long()
        with torch.inference_mode():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **length
            )
        return found[:, CONTEXT:].numpy()

    return run


def ours():
    """batch -> ids [batch, NEW], by `batches.greedy`."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from mgm_jax.convert.families import llama
    from mgm_jax.convert.rules import import_params
    from mgm_jax.generate.batches import greedy
    from mgm_jax.models.config import DecoderConfig, MgmConfig
    from mgm_jax.models.mgm import Mgm
    from mgm_jax.models.presets import MODELS

    cfg = DecoderConfig(**LLM)
    module = Mgm(MgmConfig(**(vars(MODELS["MGM-7B"]) | {"llm": cfg})))  # its towers are not used
    params = jax.device_put(import_params(tensors(), llama.rules(cfg), "llama"))

    def run(batch: int) -> np.ndarray:
        places = np.broadcast_to(np.arange(CONTEXT, dtype=np.int32), (batch, CONTEXT))
        text = {"tokens": prompts(batch), "positions": places, "segments": np.ones_like(places)}
        return np.asarray(greedy(module, params, text, new=NEW, stop=()))

    return run


def work(side: str) -> None:
    """A process of one side: a batch size a task."""
    run = {"ours": ours, "theirs": theirs}[side]()
    answer(lambda batch: {"ids": run(batch).tolist()})


def main(repeats: int) -> None:
    result = {}
    with Sides("benchmarks.decode", ("ours", "theirs")) as sides:
        for batch in BATCHES:
            first = {side: sides.ask(side, batch)["ids"] for side in ("ours", "theirs")}  # compiles
            if first["ours"] != first["theirs"]:
                raise SystemExit(f"error: batch {batch}: the two sides wrote different tokens")
            turns = sides.race(batch, repeats)
            best = {side: round(min(seconds), 3) for side, seconds in turns.items()}
            result[f"batch {batch}"] = {"ratio": ratio(turns["theirs"], turns["ours"])} | best
            print(f"batch {batch}: ours {best['ours']} s, theirs {best['theirs']} s (best turns)")
    print(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="turns; default: %(default)s")
    parser.add_argument("--side", choices=("ours", "theirs"), help="be the process of one side")
    args = parser.parse_args()
    work(args.side) if args.side else main(args.repeats)
