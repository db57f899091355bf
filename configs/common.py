"""What every training run has in common."""

from __future__ import annotations

import ast

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

BOOLS = {"": True, "true": True, "false": False}


def parse_arg(arg: str | None, **defaults) -> ConfigDict:
    """ "a=1,b" over `defaults` -> ConfigDict; a bare name means True; unknown names are errors.

    Values take the type of their default (None and strings stay strings).
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, _, text = item.partition("=")
        if key not in defaults:
            raise ValueError(f"config argument {key!r} is unknown, expected {sorted(defaults)}")
        kind = type(defaults[key])
        if kind is bool:
            if text.lower() not in BOOLS:
                raise ValueError(f"config argument {key} is {text!r}, expected true or false")
            values[key] = BOOLS[text.lower()]
        elif kind in (int, float):
            try:
                values[key] = kind(ast.literal_eval(text))
            except (ValueError, SyntaxError):
                raise ValueError(
                    f"config argument {key} is {text!r}, expected {kind.__name__}"
                ) from None
        else:
            values[key] = text
    return ConfigDict(values)


TOWERS = "(clip|convnext)/.*"
COSINE = {"decay": "cosine", "warmup": 0.03}  # MGM_SPEC 6.1

STAGES = {  # what trains (MGM_SPEC 6.2); None = frozen
    1: [("(projector|mining)/.*", COSINE), (".*", None)],
    2: [(TOWERS, None), (".*", COSINE)],
}


def train_config() -> ConfigDict:
    """The keys of a training run, with the defaults of the original (MGM_SPEC 6.1)."""
    c = ConfigDict()
    c.seed = 0
    c.steps = 0  # optimizer steps; a run must set it
    c.model = None  # a dict like mgm.json's "model", or None: that of the first checkpoint in init
    # A tokenizer directory, or None: that of the first checkpoint in init.
    c.tokenizer = placeholder(str)
    # (regex, model directory or None = random), first match wins.
    c.init = [(".*", None)]
    c.dtype = "bfloat16"  # of the computation
    c.frozen_dtype = "bfloat16"  # of frozen parameters
    c.remat = "full"  # what the backward pass keeps: see nn.stack.REMAT_POLICIES
    c.scan = True  # scan over layers, or unroll
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "expert": 1, "tensor": 1})
    c.optim = ConfigDict({"lr": 1e-3, "wd": 0.0, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip": 1.0})
    # (regex, value) lists over parameter names, first match wins.
    c.optim.schedule = STAGES[2]
    c.optim.lr_mults = []
    c.optim.wd_mults = [(".*(kernel|embedding|w_gate|w_up|w_down)", 1.0)]
    c.data = ConfigDict(
        {
            "json": "",  # LLaVA-format records
            "images": "",  # folder that their picture paths are relative to
            "template": "v1",
            "batch": 128,  # rows of a global batch
            "length": 2048,  # tokens of a row, visual ones included
            "threads": 8,  # that read and decode ahead
            "cache_features": placeholder(str),  # a directory for the frozen towers' features
        }
    )
    c.checkpoint = ConfigDict({"every": 1000, "keep": 2})
    c.log_every = 10
    return c
