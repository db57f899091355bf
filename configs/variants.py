"""The published runs of Mini-Gemini as data (MGM_SPEC 6.1), and the configs made of them.

`get_config("MGM-7B", arg)` is all that configs/mgm_7b.py does. What `arg` may say:

    stage=1|2|finetune  align projector and mining; train all but the towers (the default); or the
                        latter with your own data, which `config.data.sources` then names
    hd                  1,536 px in 2x2 crops; stage 2 begins from the stage 1 without it
    root=DIR            where everything lies, "workdir" if not given: base weights in DIR/clip,
                        DIR/convnext and DIR/BASE, data in DIR/MGM-Pretrain and DIR/MGM-Finetune,
                        what stage 1 made in DIR/MGM-7B-stage1/model
    built               data from DIR/built/mgm-pretrain and DIR/built/mgm-instruct
    init=DIR            the checkpoint to begin from: for stage 2 what stage 1 made, for finetune a
                        whole model, which also says config, tokenizer and template
    lora=16             adapters of that rank in place of the language model (docs/lora.md); stage 2
                        then begins from stage 1's model, language model included
    quant=nf4           the frozen language model in int8, int4 or nf4, for lora
    faithful            the original's side of every switch, its padded rows and their order
    open_clip           train the second half of CLIP, too (`optimize_vision_tower`)
    open_convnext       the last block of each ConvNeXt stage, too (`optimize_vision_tower_aux`)
    batch=N             rows of a global batch
    slice=v5e-64        the mesh of that TPU slice; without it, of whatever devices there are
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from mgm_jax.configs import common, lora
from ml_collections import ConfigDict

from mgm_jax.data.recipes import get_recipe, sources_of
from mgm_jax.models.presets import LLMS, mgm
from mgm_jax.topologies import SHAPES, topology


@dataclasses.dataclass(frozen=True)
class Variant:
    """What differs between the published models.

    `llm` of `presets.LLMS` lies in the folder `base`; `family` of `common.DECAY`. `templates` of
    stages 1 and 2. `microbatch`: rows that the original had on a device at a time. `slices`: the
    recommended one. `lr` of stage 2, times 2 for projector and mining where `lr_multi`. `expert`:
    parts that the mesh splits every expert into, beside `fsdp`.
    """

    llm: str
    base: str
    templates: tuple[str, str]
    microbatch: Mapping[str, int]
    slices: Mapping[str, str]
    family: str = "llama"
    lr: float = 2e-5
    lr_multi: bool = False
    expert: int = 1


VARIANTS = {
    "MGM-2B": Variant(
        "gemma_2b",
        "gemma-2b-it",
        ("gemma", "gemma"),
        {"1": 8, "2": 8, "hd": 4},
        {"1": "v5e-16", "2": "v5e-16", "hd": "v5e-64"},
        family="gemma",
    ),
    "MGM-7B": Variant(
        "vicuna_7b",
        "vicuna-7b-v1.5",
        ("plain", "v1"),
        {"1": 16, "2": 8, "hd": 4},
        {"1": "v5e-64", "2": "v5e-64", "hd": "v5p-64"},
    ),
    "MGM-13B": Variant(
        "vicuna_13b",
        "vicuna-13b-v1.5",
        ("plain", "v1"),
        {"1": 8, "2": 4, "hd": 4},
        {"1": "v5p-64", "2": "v5p-64", "hd": "v5p-64"},
    ),
    "MGM-8B": Variant(
        "llama3_8b",
        "Meta-Llama-3-8B-Instruct",
        ("llama_3", "llama_3"),
        {"1": 16, "2": 8, "hd": 4},
        {"1": "v5e-64", "2": "v5e-64", "hd": "v5p-64"},
    ),
    "MGM-8x7B": Variant(
        "mixtral_8x7b",
        "Mixtral-8x7B-Instruct-v0.1",
        ("plain", "mistral_instruct"),
        {"1": 8, "2": 4, "hd": 4},
        {"1": "v5p-128", "2": "v5p-128", "hd": "v5p-128"},
        family="mixtral",
        lr=1e-5,
        lr_multi=True,
        expert=8,
    ),
    "MGM-34B": Variant(
        "yi_34b",
        "Nous-Hermes-2-Yi-34B",
        ("plain", "chatml_direct"),
        {"1": 8, "2": 4, "hd": 4},
        {"1": "v5p-128", "2": "v5p-128", "hd": "v5p-128"},
        lr=1e-5,
        lr_multi=True,
    ),
}

# Chips of the slices that runs of these sizes are for.
SLICES = {name: topology(name).chips for name in SHAPES if 16 <= topology(name).chips <= 256}

ARGS = dict(
    stage="2",
    hd=False,
    root=None,
    built=False,
    init=None,
    lora=0,
    quant=None,
    faithful=False,
    open_clip=False,
    open_convnext=False,
    batch=0,
    slice=None,
)


def get_config(name: str, arg: str | None = None) -> ConfigDict:
    """The run of a variant that `arg` asks for; ValueError for what cannot be."""
    v, a = VARIANTS[name], common.parse_arg(arg, **ARGS)
    _check(name, a)
    first = a.stage == "1"
    column = "1" if first else "hd" if a.hd else "2"
    c = common.stage_config(
        1 if first else 2,
        lr=1e-3 if first else v.lr,
        batch=a.batch or (256 if first else 128),
        args=a,
    )
    if v.lr_multi and not first:
        c.optim.lr_mults = [("(projector|mining)/.*", 2.0)]
    c.optim.wd_mults = common.DECAY[v.family]
    c.data.microbatch = v.microbatch[column]
    c.data.length = 4096 if a.hd else 2048
    c.tower_batch = 2 if a.hd else 5
    c.quant.scheme = a.quant
    if a.lora:
        lora.with_lora(c, a.lora)
    c.mesh.update(mesh(c.data.batch, v.expert, a.slice))
    if a.stage == "finetune":
        c.init = [(".*", a.init)]
        return c

    root = a.root or "workdir"
    model = mgm(LLMS[v.llm], hd=a.hd)
    image = dataclasses.replace(model.image, aspect="square" if first else "pad")
    c.model = dataclasses.replace(model, image=image).to_dict()
    c.data.template = v.templates[0 if first else 1]
    stage1 = a.init or f"{root}/{name}-stage1/model"
    c.init = [("llm/.*", f"{root}/{v.base}")]  # the first one: it has the tokenizer
    if first:
        c.init += [(f"{tower}/.*", f"{root}/{tower}") for tower in ("clip", "convnext")]
        c.init += [(".*", None)]
    else:  # stage 1 keeps the towers, as the original's mm_projector.bin does (MGM_SPEC 3.3)
        c.init = [(".*", stage1)] if a.lora else [*c.init, (".*", stage1)]
    recipe = get_recipe("mgm-pretrain" if first else "mgm-instruct")
    folder = "MGM-Pretrain" if first else "MGM-Finetune"
    built = {recipe.name: {"path": f"{root}/built/{recipe.name}"}}
    c.data.sources = built if a.built else sources_of(recipe, f"{root}/{folder}")
    return c


def mesh(batch: int, expert: int, slice_name: str | None) -> dict[str, int]:
    """Mesh axes: batch rows over fsdp and expert, and tensor where there are more chips than rows.

    ValueError for an unknown slice, and for rows that leave too many chips over.
    """
    if slice_name is None:
        return {"fsdp": -1, "expert": expert}
    if slice_name not in SLICES:
        raise ValueError(f"config argument slice is {slice_name!r}, expected one of {list(SLICES)}")
    chips = SLICES[slice_name]
    shards = math.gcd(batch, chips)
    if chips // shards > 8 or shards % expert:
        least = max(chips // 8, expert)
        raise ValueError(
            f"a batch of {batch} rows does not divide over {slice_name} ({chips} chips), expected "
            f"a multiple of {least}: set the config argument batch"
        )
    return {"fsdp": shards // expert, "expert": expert, "tensor": chips // shards}


def _check(name: str, a: ConfigDict) -> None:
    """ValueError for arguments that contradict each other."""
    if a.stage not in ("1", "2", "finetune"):
        raise ValueError(f"config argument stage is {a.stage!r}, expected 1, 2 or finetune")
    if a.batch < 0:
        raise ValueError(f"config argument batch is {a.batch}, expected at least 1")
    if a.quant and not a.lora:
        raise ValueError(
            f"{name}: quant={a.quant} holds the language model in integers, which have no "
            "gradient: add lora=16"
        )
    if a.stage == "1":
        if a.lora:
            raise ValueError(f"{name}: stage 1 trains no language model, so there is no lora in it")
        if a.hd:
            raise ValueError(
                f"{name}: there is no stage 1 with hd; stage=2,hd begins from stage=1 without it"
            )
        if a.init:
            raise ValueError(
                f"{name}: stage 1 begins from base weights in root, but init={a.init} is given; "
                "init is for stage=2 and stage=finetune"
            )
    if a.stage == "finetune":
        if not a.init:
            raise ValueError(f"{name}: stage=finetune needs init=DIR, the checkpoint to go on from")
        if a.built or a.root:
            found = "built" if a.built else "root"
            raise ValueError(
                f"{name}: {found} names the published data, but stage=finetune takes yours: set "
                "config.data.sources"
            )
