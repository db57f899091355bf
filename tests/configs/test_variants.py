"""The published runs: hyper-parameters as transcribed from MGM_SPEC 6.1, and what trains (6.2)."""

import functools
import itertools
import math
from pathlib import Path

import pytest
from mgm_jax.configs import variants

from mgm_jax.convert.overrides import with_switches
from mgm_jax.data.recipes import RECIPES
from mgm_jax.models.config import MgmConfig
from mgm_jax.optim import make_plan
from mgm_jax.program import abstract_model
from mgm_jax.settings import TrainingError, check_numbers, check_switches, read_config
from mgm_jax.sharding import stacks
from mgm_jax.switches import choose
from mgm_jax.text import get_template
from mgm_jax.tree import flatten, match_first

CONFIGS = Path(variants.__file__).parent
FILES = {f"MGM-{n}": f"mgm_{n.lower()}.py" for n in ("2B", "7B", "13B", "8B", "8x7B", "34B")}
# MGM_SPEC 6.1. variant: (per-device rows of stage 1, stage 2, HD; LR of stage 2; lr_multi;
# version of stage 1, stage 2)
SPEC = {
    "MGM-2B": (8, 8, 4, 2e-5, False, "gemma", "gemma"),
    "MGM-7B": (16, 8, 4, 2e-5, False, "plain", "v1"),
    "MGM-13B": (8, 4, 4, 2e-5, False, "plain", "v1"),
    "MGM-8B": (16, 8, 4, 2e-5, False, "llama_3", "llama_3"),
    "MGM-8x7B": (8, 4, 4, 1e-5, True, "plain", "mistral_instruct"),
    "MGM-34B": (8, 4, 4, 1e-5, True, "plain", "chatml_direct"),
}
STAGES = ("1", "2", "hd", "finetune")
RUNS = list(itertools.product(SPEC, STAGES, (False, True)))
# MGM_SPEC 1.3 to 1.5: parameters of the mining modules; of CLIP's blocks 12 to 22 (features are
# taken there, so the original opens block 23, too, but it has no gradient); of the last ConvNeXt
# blocks, of d channels; of the projector into H.
MINING = 6_963_456
HALF_CLIP = 11 * (4 * (1024**2 + 1024) + 2 * 2 * 1024 + 2 * 1024 * 4096 + 4096 + 1024)
LAST_BLOCKS = sum(8 * d * d + (49 + 1 + 2 + 4 + 1 + 1) * d for d in (192, 384, 768, 1536))
PROJECTOR = {2048: 6_295_552, 4096: 20_979_712, 5120: 31_467_520, 7168: 58_734_592}
LLM = {  # vocabulary, hidden, layers, q, kv, mlp, experts, untied head: MGM_SPEC 1.2
    "MGM-2B": (256000, 2048, 18, 2048, 256, 16384, 0, 0),
    "MGM-7B": (32000, 4096, 32, 4096, 4096, 11008, 0, 1),
    "MGM-13B": (32000, 5120, 40, 5120, 5120, 13824, 0, 1),
    "MGM-8B": (128256, 4096, 32, 4096, 1024, 14336, 0, 1),
    "MGM-8x7B": (32000, 4096, 32, 4096, 1024, 14336, 8, 1),
    "MGM-34B": (64000, 7168, 60, 7168, 1024, 20480, 0, 1),
}


def load(name, stage, *more):
    """The config as a command line gives it; "hd" is stage 2 with hd."""
    args = {"hd": ["stage=2", "hd"], "finetune": ["stage=finetune", "init=DIR"]}
    args = args.get(stage, [f"stage={stage}"])
    return read_config(f"{CONFIGS / FILES[name]}:{','.join([*args, *more])}")


def llm_parameters(name):
    vocabulary, d, layers, q, kv, mlp, experts, head = LLM[name]
    block = 2 * d * q + 2 * d * kv + (experts or 1) * 3 * d * mlp + experts * d + 2 * d
    return vocabulary * d * (1 + head) + layers * block + d


@functools.cache
def parameters(name):
    """Shapes and stacks of a variant; neither stage nor HD changes them."""
    model = MgmConfig.from_dict(load(name, "2").model.to_dict())
    _, _, shapes, axes = abstract_model(model)
    return flatten(shapes), stacks(shapes, axes)


@pytest.mark.parametrize("name,stage,faithful", RUNS)
def test_hyper_parameters(name, stage, faithful):
    c = load(name, stage, *(["faithful"] if faithful else []))
    first = stage == "1"
    rows1, rows2, rows_hd, lr, lr_multi, version1, version2 = SPEC[name]
    check_numbers(c)
    switches = check_switches(c)
    assert c.data.batch == (256 if first else 128)
    assert c.data.length == (4096 if stage == "hd" else 2048)
    assert c.data.microbatch == {"1": rows1, "hd": rows_hd}.get(stage, rows2)
    assert c.optim.lr == (1e-3 if first else lr)
    multi = [("(projector|mining)/.*", 2.0)] if lr_multi and not first else []
    assert [tuple(rule) for rule in c.optim.lr_mults] == multi
    assert (c.optim.name, c.optim.b1, c.optim.b2, c.optim.eps) == ("adamw", 0.9, 0.999, 1e-8)
    assert (c.optim.wd, c.epochs, c.steps, c.seed) == (0.0, 1, 0, 42)
    schedules = [dict(s) for _, s in c.optim.schedule if s]
    assert all(s == {"decay": "cosine", "warmup": 0.03} for s in schedules)
    assert c.optim.clip == (None if faithful else 1.0)
    assert c.data.batching == ("pad" if faithful else "pack")
    assert c.data.length_grouping == (faithful and not first)
    assert switches == choose(("text", "training", "model"), faithful)

    if stage == "finetune":  # all of these are the checkpoint's
        assert c.init == [(".*", "DIR")]
        assert c.model is None and c.tokenizer is None and c.data.template is None
        return
    get_template(c.data.template)
    assert c.data.template == (version1 if first else version2)
    cfg = with_switches(MgmConfig.from_dict(c.model.to_dict()), switches)
    assert cfg.image.aspect == ("square" if first else "pad")
    assert (cfg.image.lr_size, cfg.image.hr_size) == (336, 1536 if stage == "hd" else 768)
    assert cfg.visual_tokens == (2880 if stage == "hd" else 576)


@pytest.mark.parametrize("name", SPEC)
def test_what_trains(name):
    flat, layers = parameters(name)
    new = MINING + PROJECTOR[LLM[name][1]]
    opened = {(): 0, ("open_clip",): HALF_CLIP, ("open_convnext",): LAST_BLOCKS}
    opened["open_clip", "open_convnext"] = HALF_CLIP + LAST_BLOCKS
    for stage, (towers, more) in itertools.product(STAGES, opened.items()):
        c = load(name, stage, *towers)
        plan = make_plan(c.optim, flat, 100, layers)
        pieces = {n: take_shape(flat, n) for n in plan.trainable}
        expected = new + more + (0 if stage == "1" else llm_parameters(name))
        assert sum(map(math.prod, pieces.values())) == expected, (stage, towers)
        match_first(flat, c.init, "init")  # every rule is about something
        for piece, mult in plan.lr_mults.items():
            doubled = SPEC[name][4] and stage != "1" and piece.startswith(("projector", "mining"))
            assert mult == (2.0 if doubled else 1.0)


def take_shape(flat, piece):
    """The shape of a parameter or of a piece of a stack (`tree.take`)."""
    if piece in flat:
        return flat[piece].shape
    name, _, rows = piece[:-1].rpartition("[")
    start, stop = map(int, rows.split(":"))
    return (stop - start, *flat[name].shape[1:])


def test_decay_takes_mixtrals_norms_as_the_original_does():
    for name in SPEC:
        flat, layers = parameters(name)
        plan = make_plan(load(name, "2").optim, flat, 100, layers)
        norms = {plan.wd_mults[n] for n in plan.wd_mults if n.startswith("llm/") and "norm" in n}
        assert norms == ({1.0} if name == "MGM-8x7B" else {0.0})


def test_where_things_lie():
    root = "root=gs://bucket/run"
    c = load("MGM-7B", "1", root)
    assert dict(c.init) == {
        "llm/.*": "gs://bucket/run/vicuna-7b-v1.5",
        "clip/.*": "gs://bucket/run/clip",
        "convnext/.*": "gs://bucket/run/convnext",
        ".*": None,
    }
    source = c.data.sources["mgm-pretrain"]
    assert source.path == "gs://bucket/run/MGM-Pretrain/mgm_pretrain.json"
    assert source.images == "gs://bucket/run/MGM-Pretrain"
    for stage in ("2", "hd"):
        c = load("MGM-7B", stage, root)
        assert dict(c.init)[".*"] == "gs://bucket/run/MGM-7B-stage1/model"
        source = c.data.sources["mgm-instruct"]
        assert source.path == "gs://bucket/run/MGM-Finetune/mgm_instruction.json"
    built = load("MGM-7B", "2", root, "built", "init=gs://other/stage1")
    assert dict(built.init)[".*"] == "gs://other/stage1"
    path = "gs://bucket/run/built/mgm-instruct"
    assert built.data.sources.to_dict() == {"mgm-instruct": {"path": path}}
    assert {"mgm-pretrain", "mgm-instruct"} < {recipe.name for recipe in RECIPES}


@pytest.mark.parametrize("name,stage", itertools.product(SPEC, STAGES))
def test_meshes(name, stage):
    assert load(name, stage).mesh.fsdp == -1
    for place, chips in variants.SLICES.items():
        c = load(name, stage, f"slice={place}")
        axes = c.mesh.to_dict()
        assert math.prod(axes.values()) == chips
        assert c.data.batch % (chips // axes["tensor"]) == 0
        assert axes["expert"] == (8 if name == "MGM-8x7B" else 1)
    recommended = variants.VARIANTS[name].slices[stage if stage in ("1", "hd") else "2"]
    assert load(name, stage, f"slice={recommended}").mesh.tensor == 1
    if stage == "2":
        assert load(name, stage, "slice=v5e-256").mesh.tensor == 2
        assert load(name, stage, "slice=v5e-256", "batch=256").mesh.tensor == 1


@pytest.mark.parametrize(
    "arg,words",
    [
        ("stage=1,hd", ["MGM-7B", "stage=2,hd"]),
        ("stage=3", ["stage", "'3'", "finetune"]),
        ("stage=1,init=x", ["stage 1", "init=x", "root"]),
        ("stage=finetune", ["init=DIR"]),
        ("stage=finetune,init=x,built", ["built", "config.data.sources"]),
        ("stage=finetune,init=x,root=y", ["root", "config.data.sources"]),
        ("stag=2", ["'stag'", "stage"]),
        ("hd=maybe", ["hd", "'maybe'", "true or false"]),
        ("batch=many", ["batch", "'many'", "int"]),
        ("batch=-1", ["batch", "-1"]),
        ("slice=v5e-63", ["'v5e-63'", "v5e-64", "v5p-128"]),
        ("batch=12,slice=v5e-64", ["12 rows", "v5e-64", "64 chips", "multiple of 8"]),
    ],
)
def test_wrong_arguments(arg, words):
    with pytest.raises(TrainingError) as caught:
        read_config(f"{CONFIGS / 'mgm_7b.py'}:{arg}")
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_experts_need_rows_of_their_own():
    with pytest.raises(TrainingError, match="12 rows does not divide over v5e-16.*multiple of 8"):
        read_config(f"{CONFIGS / 'mgm_8x7b.py'}:batch=12,slice=v5e-16")


def test_every_run_file_is_here():
    runs = {file.name for file in CONFIGS.glob("*.py")}
    assert runs - {"__init__.py", "common.py", "variants.py"} == {
        "demo.py",
        "finetune.py",
        "lora.py",
        *FILES.values(),
    }
