"""Continuous batching against serving one request at a time, over HTTP, in one run.

`python -m benchmarks.serving [DIR]`: a model directory, or a small model of random weights. Both
servers answer the same questions of CLIENTS concurrent clients, each of which asks its next one
when it has an answer; their runs are interleaved. Prints one line of JSON: tokens/s, latencies, and
the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import flax.linen as nn
import httpx
import jax
import numpy as np
import uvicorn

from mgm_jax.api import LoadedModel, load
from mgm_jax.data.files import write_json
from mgm_jax.generate.engine import Engine
from mgm_jax.models.config import MgmConfig
from mgm_jax.program import abstract_model
from mgm_jax.serve.app import create_app
from mgm_jax.serve.service import Service
from mgm_jax.text import get_template, train_tokenizer

CLIENTS = 64
WORDS = "a card of wood stone and paper lies on the grass beside which digit what colour".split()
LLM = dict(vocab_size=400, dim=512, layers=8, heads=8, kv_heads=4, head_dim=64, mlp_dim=1376)
MODEL = dict(
    image=dict(lr_size=8, hr_size=32, aspect="pad"),
    clip=dict(
        image_size=8,
        patch_size=4,
        width=16,
        layers=2,
        heads=2,
        mlp_dim=32,
        norm_eps=1e-5,
        act="quick_gelu",
        select_layer=-2,
    ),
    convnext=dict(widths=(8, 16), depths=(1, 1), patch_size=4, kernel_size=3, norm_eps=1e-6),
    llm=dict(
        **LLM,
        act="silu",
        norm_eps=1e-5,
        rope_theta=1e4,
        tied_embeddings=False,
        zero_centred_norm=False,
        embed_scale=None,
        experts=None,
    ),
    mining_eps=1e-5,
    projector="mlp2x_gelu",
)


def random_model() -> LoadedModel:
    """A small model whose answers mean nothing, and take the time that they take."""
    rng = np.random.default_rng(0)
    texts = [get_template("v1").system] * 3 + [" ".join(rng.choice(WORDS, 8)) for _ in range(100)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.model"
        tokenizer = train_tokenizer(texts, file, 400, legacy=False)
    module, batch, _, _ = abstract_model(MgmConfig.from_dict(MODEL), dtype="float32")
    params = jax.jit(lambda: nn.unbox(module.init(jax.random.key(0), batch)["params"]))()
    return LoadedModel(module, params, tokenizer, "v1", {})


@contextlib.contextmanager
def serving(engine: Engine):
    """The URL of a server over an engine, when it is ready."""
    service = Service(engine)
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while thread.is_alive() and not service.ready:
        time.sleep(0.05)
    if not service.ready:
        raise OSError("the server ended before it was ready")
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1/chat/completions"
    server.should_exit = True
    thread.join()


async def load_test(url: str, tokens: int, questions: int) -> tuple[float, list[float]]:
    """Questions of mixed lengths of CLIENTS at once -> (tokens/s, seconds of each answer)."""
    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None)) as http:

        async def one(i: int) -> tuple[int, float]:
            start, text = time.monotonic(), " ".join(WORDS[i % 7 : i % 7 + 3 + i % 6])
            body = {"model": "mgm", "messages": [{"role": "user", "content": text}]}
            body |= {"max_tokens": tokens // 2 + i * tokens // CLIENTS, "temperature": 1, "seed": i}
            answer = await http.post(url, json=body)
            answer.raise_for_status()
            return answer.json()["usage"]["completion_tokens"], time.monotonic() - start

        async def client(first: int) -> list[tuple[int, float]]:
            return [await one((first + 27 * n) % CLIENTS) for n in range(questions)]

        start = time.monotonic()
        found = sum(await asyncio.gather(*map(client, range(CLIENTS))), [])
        took = time.monotonic() - start
    return sum(n for n, _ in found) / took, [seconds for _, seconds in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", help="default: a small model of random weights")
    parser.add_argument("--slots", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=96, help="of an answer, about")
    parser.add_argument("--questions", type=int, default=2, help="of a client, one after the other")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="write the last line to FILE too")
    args = parser.parse_args()
    model = load(args.directory, dtype="float32") if args.directory else random_model()
    how = dict(max_length=80 + 2 * args.tokens, prefill_buckets=(80,), queue=CLIENTS)
    with (
        serving(Engine(model, slots=args.slots, prefill_batch=8, **how)) as batched,
        serving(Engine(model, slots=1, prefill_batch=1, **how)) as single,
    ):
        runs = {"continuous": [], "one_by_one": []}
        for _ in range(args.repeats):
            for name, url in (("continuous", batched), ("one_by_one", single)):
                runs[name].append(asyncio.run(load_test(url, args.tokens, args.questions)))
                print(f"{name}: {runs[name][-1][0]:.0f} tokens/s", flush=True)
    result = {"clients": CLIENTS, "slots": args.slots}
    for name, found in runs.items():
        seconds = [s for _, all_seconds in found for s in all_seconds]
        result[name] = {
            "tokens_per_second": round(statistics.median(rate for rate, _ in found), 1),
            "p50_seconds": round(float(np.percentile(seconds, 50)), 3),
            "p99_seconds": round(float(np.percentile(seconds, 99)), 3),
        }
    pairs = zip(runs["continuous"], runs["one_by_one"], strict=True)
    result["ratio"] = round(statistics.median(many / one for (many, _), (one, _) in pairs), 2)
    if args.json:
        write_json(Path(args.json), result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
