"""Benchmarks by name: `get_config("names=pope+gqa,root=DIR")`. `names=all` for all in files.py."""

from __future__ import annotations

from mgm_jax.configs.common import eval_config, parse_arg
from mgm_jax.configs.eval import files


def get_config(arg: str | None = None):
    a = parse_arg(arg, names="all", root="data/MGM-Eval", faithful=False)
    names = files.FILES if a.names == "all" else a.names.split("+")
    return eval_config(files.under(a.root, names), a.faithful)
