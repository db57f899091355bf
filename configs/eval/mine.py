"""Your own questions (docs/evals.md): `get_config("questions=mine.jsonl,images=DIR")`."""

from __future__ import annotations

from mgm_jax.configs.common import benchmark, eval_config, parse_arg


def get_config(arg: str | None = None):
    a = parse_arg(arg, questions="", images=".", metric="exact", new=64)
    if not a.questions:
        raise ValueError("mine config: needs questions=FILE, JSON lines of questions and answers")
    mine = benchmark("jsonl", a.questions, a.images, a.questions, metric=a.metric)
    mine["generation"]["max_new_tokens"] = a.new
    return eval_config({"mine": mine})
