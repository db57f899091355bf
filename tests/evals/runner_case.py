"""A tiny model whose answers differ, questions of its own, and evaluations of both."""

import copy
import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from case_files import draw, lines
from mgm_jax.configs import common

from mgm_jax.checkpoint import Checkpoint, save_checkpoint
from mgm_jax.models.config import MgmConfig
from mgm_jax.program import abstract_model
from mgm_jax.text import load_tokenizer
from mgm_jax.tree import flatten, unflatten
from tests.conftest import TINY

QUESTIONS = 24
WORDS = "what which colour number card digit read show answer".split()


def write_model(folder: Path, tokenizer: Path, seed: int = 0) -> Path:
    """A model directory of TINY with random weights, large enough for answers to differ."""
    cfg = MgmConfig.from_dict(copy.deepcopy(TINY))
    model, batch, _, _ = abstract_model(cfg)
    init = jax.jit(lambda key: nn.unbox(model.init(key, batch)["params"]))
    params = flatten(init(jax.random.key(seed)))
    for name in params:
        if name.endswith("/kernel"):
            params[name] = params[name] * 2
    parts = (cfg, unflatten(params), load_tokenizer(tokenizer), "v1", {})
    save_checkpoint(folder, Checkpoint(*parts))
    return folder


def write_questions(folder: Path) -> Path:
    """Own questions of many lengths; every sixth has no picture."""
    rng, names = np.random.default_rng(0), [f"{i}.png" for i in range(QUESTIONS)]
    draw(folder, names)
    rows = []
    for i in range(QUESTIONS):
        text = " ".join(rng.choice(WORDS, rng.integers(2, 24)))
        row = {"question_id": i, "text": f"{i} {text}?", "answer": "x", "category": f"c{i % 3}"}
        rows.append(row | ({} if i % 6 == 5 else {"image": names[i]}))
    return lines(folder / "mine.jsonl", rows)


def make_config(benchmarks: dict, **values):
    """An eval config of one shape: float32, 6 tokens an answer."""
    c = common.eval_config(benchmarks)
    c.dtype, c.round, c.batch, c.threads = "float32", 512, 20, 2
    for entry in c.benchmarks.values():
        entry.generation.max_new_tokens = 6
    c.update_from_flattened_dict({key.replace("__", "."): v for key, v in values.items()})
    return c


def mine(file: Path) -> dict:
    return {"mine": common.benchmark("jsonl", str(file), str(file.parent), str(file))}


def of_case(name: str, case) -> dict:
    """The benchmarks of an eval config for a `case_files.Case`."""
    paths = (str(p) if p else "" for p in (case.questions, case.images, case.annotations))
    return {name: common.benchmark(name, *paths, **case.options)}


def read_items(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]


def explained(one: list[dict], other: list[dict]) -> list[str]:
    """Differences of two runs' items; AssertionError for one that no tiny margin explains."""
    assert len(one) == len(other)
    found = []
    for a, b in zip(one, other, strict=True):
        same = all(a[k] == b[k] for k in a if k != "margin")
        if not same:
            assert min(a["margin"], b["margin"]) < 1e-4, (a, b)
            found.append(f"{a['question_id']}: {a['text']!r} and {b['text']!r}")
        else:
            np.testing.assert_allclose(a["margin"], b["margin"], atol=1e-4)
    return found
