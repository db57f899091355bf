"""What every training run has in common."""

from __future__ import annotations

import ast

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mgm_jax.lora import config as lora
from mgm_jax.quantize import config as quantize
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


def stage_config(stage: int, *, lr: float, batch: int, args: ConfigDict) -> ConfigDict:
    """One pass over the data as in the original's `stage` (MGM_SPEC 6.1, 6.2), without model, init
    and data. `args`: faithful, open_clip, open_convnext, as `parse_arg` gave them."""
    c = train_config(args.faithful)
    c.seed = 42
    c.epochs = 1
    c.optim.lr = lr
    towers = open_towers(24, args.open_clip, args.open_convnext)
    c.optim.schedule = towers + STAGES[stage]
    c.data.batch = batch
    c.data.length_grouping = args.faithful and stage == 2
    return c


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
    # Optimizer steps, or passes over the data: a run must set one of them.
    c.steps = 0
    c.epochs = placeholder(int)
    c.model = None  # a dict like mgm.json's "model", or None: that of the first checkpoint in init
    # A tokenizer directory, or None: that of the first checkpoint in init.
    c.tokenizer = placeholder(str)
    # (regex, model directory or None = random), first match wins.
    c.init = [(".*", None)]
    c.dtype = "bfloat16"  # of the computation
    c.frozen_dtype = "bfloat16"  # of frozen parameters
    c.gradients = "auto"  # summed by "ring", "xla", or by the mesh: see sharding.torus
    c.attention = "auto"  # "xla", "splash", or by platform: see ops.attention.packed_attend
    c.moe = "auto"  # "ragged", "gmm", or by platform: see ops.moe.expert_mlp
    c.accumulate = 1  # parts that a batch is worked on in, which saves memory
    c.remat = "full"  # what the backward pass keeps: see nn.stack.remat_policy
    # Pictures of a device that the towers work on at a time, which saves memory; None: all.
    c.tower_batch = placeholder(int)
    c.scan = True  # scan over layers, or unroll
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "expert": 1, "tensor": 1})
    # An adapter, where rank is not 0: see lora.config.LoraConfig and configs/lora.py.
    c.lora = ConfigDict({"rank": 0, "alpha": 16.0, "dropout": 0.0, "rslora": False})
    c.lora.targets = lora.TARGETS
    # Frozen matrices that are held quantised: see quantize.config. A scheme of None: none is.
    c.quant = ConfigDict({"scheme": placeholder(str), "group": placeholder(int)})
    c.quant.targets = quantize.TARGETS
    c.optim = ConfigDict({"lr": 1e-3, "wd": 0.0, "b1": 0.9, "b2": 0.999, "eps": 1e-8})
    c.optim.name = "adamw"  # or "adafactor", which keeps no first moment and ignores b1, b2, eps
    c.optim.mu_dtype = "float32"  # of AdamW's first moment; "bfloat16" saves a sixth of its state
    c.optim.clip = placeholder(float)  # largest global norm of the gradients, or None
    c.optim.clip = choose("optim", faithful)["grad_clip"]
    # (regex, value) lists over parameter names, first match wins.
    c.optim.schedule = STAGES[2]
    c.optim.lr_mults = []
    c.optim.wd_mults = DECAY["llama"]
    c.data = ConfigDict(
        {
            # name -> {"path": a LLaVA JSON or JSONL file, a folder of `mgm-jax data build`, or a
            # TFDS folder; "images": folder that picture paths are relative to; "weight": how often
            # an epoch takes each record, 1.0; "skip": a skip list of `mgm-jax data check`}
            "sources": {"main": {"path": "", "images": "", "weight": 1.0, "skip": ""}},
            # A chat template, or None: that of the first checkpoint in init.
            "template": placeholder(str),
            "batch": 128,  # rows of a global batch
            # Rows whose own token mean counts once, where switches.loss_reduction says so: what
            # the original had on a device at a time (MGM_SPEC 6.1).
            "microbatch": 8,
            "length": 2048,  # tokens of a row, visual ones included
            "batching": "pad" if faithful else "pack",  # one example in a row, or several
            "length_grouping": False,  # with "pad": the original's order by modality and length
            "group_rows": placeholder(int),  # rows that share picture slots; None: a shard's
            "slots": placeholder(int),  # of a group; None: chosen from the index
            "window": 16384,  # shuffled examples that are packed together
            "index": placeholder(str),  # where lengths of records are kept; None: workdir/index
            "workers": 8,  # processes of a host that read and decode ahead; 0: threads of this one
            "threads": 8,  # how many of those
            "cache_features": placeholder(str),  # a directory for the frozen towers' features
        }
    )
    c.checkpoint = ConfigDict({"every": 1000, "keep": 2})  # steps from state to state; newest ones
    c.checkpoint.keep_every = placeholder(int)  # states of its multiples stay for ever, or None
    c.checkpoint.best = placeholder(str)  # a measurement whose best state stays too, or None
    c.checkpoint.best_mode = "min"  # or "max": which values of it are good
    c.checkpoint.retries = (2.0, 10.0, 60.0)  # seconds from each failed saving to the next try
    # What is measured besides, every so many steps and after the last one: the loss on held-out
    # data as `eval_loss`, and the benchmarks of eval configs ("FILE[:ARG]", whose mesh, dtype,
    # tower_batch and switches are the run's) as eval/NAME/NUMBER. checkpoint.best may name any.
    c.eval = ConfigDict({"every": 1000, "configs": (), "loss": {"path": "", "images": ""}})
    c.log_every = 10
    c.boards = ()  # where measurements go besides metrics.jsonl: "tensorboard", "wandb"
    c.profile = ()  # (first step, step behind the last) that the profiler records, or none
    c.stall_minutes = placeholder(float)  # without a step, until the stacks are shown; None: never
    c.stall_minutes = 10.0
    # Largest share of the parameters' bytes that may lie whole on every device of a mesh.
    c.max_replicated = 0.02
    return c


def eval_config(benchmarks: dict[str, dict], faithful: bool = False) -> ConfigDict:
    """The keys of an evaluation. `benchmarks`: name of the results -> `benchmark(...)`.

    `faithful` takes the original's side of every switch that acts here, such as MMMU's sampling.
    """
    c = ConfigDict()
    c.benchmarks = benchmarks
    c.limit = placeholder(int)  # only the first so many questions of each
    c.batch = 32  # questions of a global batch
    c.round = 32  # prompts are padded to a multiple of it at least; a larger one compiles less
    c.window = 32  # batches whose questions are sorted by length together
    c.threads = 8  # of a host, that read pictures ahead
    c.dtype = "bfloat16"  # of the computation
    # Pictures of a device that the towers work on at a time, which saves memory; None: all.
    c.tower_batch = placeholder(int)
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "expert": 1, "tensor": 1})
    c.switches = ConfigDict(choose(("model", "load", "eval"), faithful))
    for name in ("gemma_act", "gemma_scale_rounding"):
        c.switches[name] = c.switches[name] or placeholder(str)
    return c


def benchmark(
    name: str,
    questions: str,
    images: str = "",
    annotations: str = "",
    score: bool = True,
    **options,
) -> dict:
    """One benchmark of an evaluation: which one of `mgm_jax.evals`, its files, its options.

    `score` False: answers and submission alone. `generation`: values that go before the
    benchmark's own.
    """
    generation = {"max_new_tokens": placeholder(int), "temperature": placeholder(float)}
    generation |= {key: placeholder(int) for key in ("num_beams", "top_k", "seed")}
    return dict(
        benchmark=name,
        questions=questions,
        images=images,
        annotations=annotations,
        score=score,
        options=options,
        generation=generation,
    )
