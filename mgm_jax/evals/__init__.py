"""Benchmarks: their questions, prompts, scores and submission files. Imports no jax.

`get("textvqa")` is a `common.Benchmark`; `mgm-jax eval score` scores a file of predictions.
"""

from __future__ import annotations

import importlib

from mgm_jax.evals.common import Benchmark

BENCHMARKS = {  # name -> the module that holds it, as BENCHMARK
    "textvqa": "textvqa",
    "mmbench": "mmbench",
    "mme": "mme",
    "mmvet": "mmvet",
    "mmmu": "mmmu",
    "mathvista": "mathvista",
    "pope": "pope",
    "scienceqa": "scienceqa",
    "gqa": "gqa",
    "seed": "seed",
    "vizwiz": "vizwiz",
    "llavabench": "llavabench",
    "qbench": "qbench",
    "coloninst": "coloninst",
    "jsonl": "own_jsonl",
}


def get(name: str) -> Benchmark:
    """The benchmark called `name`; ValueError for an unknown one."""
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}, known: {', '.join(BENCHMARKS)}")
    return importlib.import_module(f"mgm_jax.evals.{BENCHMARKS[name]}").BENCHMARK
