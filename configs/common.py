"""What every training run has in common."""

from __future__ import annotations

import ast

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mgm_jax.switches import choose

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


def open_towers(clip_layers: int, clip=True, convnext=True) -> list:
    """Rules to put in front of a stage's: what `optimize_vision_tower` and
    `optimize_vision_tower_aux` open, the second half of CLIP's layers and the last block of each
    ConvNeXt stage (MGM_SPEC 6.2). `clip_layers` counts all of CLIP's, 24 in every published model;
    the layers behind the one whose features are taken have no gradient and stay as they are.
    """
    rules = [(f"clip/layers[{clip_layers // 2}:]/.*", COSINE)] if clip else []
    return rules + ([("convnext/stages_\\d+[-1]/.*", COSINE)] if convnext else [])


# What decays in the original, if anything does (MGM_SPEC 6.2): its optimizer takes the norms of
# Mistral and Mixtral for ordinary weights. By family of the language model.
WEIGHTS = (".*(kernel|embedding|w_gate|w_up|w_down|gamma)", 1.0)
DECAY = {"llama": [WEIGHTS], "gemma": [WEIGHTS]}
DECAY |= {family: [("llm/.*norm/scale", 1.0), WEIGHTS] for family in ("mistral", "mixtral")}


def train_config(faithful: bool = False) -> ConfigDict:
    """The keys of a training run, with the defaults of the original (MGM_SPEC 6.1).

    `faithful` takes the original's side of every switch of `mgm_jax.switches` that acts in
    training; a run may still set each of them (`--config.switches.loss_reduction=tokens`).
    """
    c = ConfigDict()
    c.switches = ConfigDict(choose(("text", "training", "model"), faithful))
    for name in ("gemma_act", "gemma_scale_rounding"):  # None in most runs, but a flag may set it
        c.switches[name] = c.switches[name] or placeholder(str)
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
    c.optim = ConfigDict({"lr": 1e-3, "wd": 0.0, "b1": 0.9, "b2": 0.999, "eps": 1e-8})
    c.optim.clip = placeholder(float)  # largest global norm of the gradients, or None
    c.optim.clip = choose("optim", faithful)["grad_clip"]
    # (regex, value) lists over parameter names, first match wins.
    c.optim.schedule = STAGES[2]
    c.optim.lr_mults = []
    c.optim.wd_mults = DECAY["llama"]
    c.data = ConfigDict(
        {
            "json": "",  # LLaVA-format records
            "images": "",  # folder that their picture paths are relative to
            "template": "v1",
            "batch": 128,  # rows of a global batch
            # Rows whose own token mean counts once, where switches.loss_reduction says so: what
            # the original had on a device at a time (MGM_SPEC 6.1).
            "microbatch": 8,
            "length": 2048,  # tokens of a row, visual ones included
            "threads": 8,  # that read and decode ahead
            "cache_features": placeholder(str),  # a directory for the frozen towers' features
        }
    )
    c.checkpoint = ConfigDict({"every": 1000, "keep": 2})
    c.log_every = 10
    return c
