"""Encoding pictures and full training steps against PyTorch, same weights, same two cores.

A mid-size Mini-Gemini in float32: two rows of a picture and 128 text tokens. PyTorch's side has
the towers and the LLaMA of transformers, and mining twice: as the original writes it (keys and
values of every pixel), and re-associated as ours is, so that what the algebra gains and what the
framework gains are told apart. Each side is a process of its own; they take turns. Prints seconds,
the peak memory of each process, and one line of JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.decode import LLM, llama_config
from benchmarks.turns import CORES, Sides, answer, ratio

MODEL = dict(
    image=dict(lr_size=336, hr_size=768, aspect="pad"),
    clip=dict(
        image_size=336,
        patch_size=14,
        width=256,
        layers=6,
        heads=4,
        mlp_dim=1024,
        norm_eps=1e-5,
        act="quick_gelu",
        select_layer=-2,
    ),
    convnext=dict(
        widths=(32, 64, 128, 256), depths=(3, 3, 9, 3), patch_size=4, kernel_size=7, norm_eps=1e-6
    ),
    llm=LLM,
    mining_eps=1e-5,
    projector="mlp2x_gelu",
)
ROWS, TEXT, LR, CLIP_NORM = 2, 128, 2e-5, 1.0
SIDES = ("ours", "literal", "reassociated")


def rows() -> dict[str, np.ndarray]:
    """Ids [ROWS, T] with the picture's places in front, and what is to be learnt: its text."""
    pictures = (MODEL["clip"]["image_size"] // MODEL["clip"]["patch_size"]) ** 2
    ids = np.random.default_rng(1).integers(3, LLM["vocab_size"], (ROWS, pictures + TEXT), np.int32)
    visual = np.where(np.arange(pictures + TEXT) < pictures, np.arange(pictures + TEXT), -1)
    targets = np.roll(ids, -1, axis=1)
    weights = np.zeros(ids.shape, np.float32)
    weights[:, pictures:-1] = 1
    return {"ids": ids, "visual": visual, "targets": targets, "weights": weights}


def pictures() -> np.ndarray:
    """[ROWS, H, W, 3] uint8."""
    size = MODEL["image"]["hr_size"]
    small = np.random.default_rng(2).integers(0, 256, (ROWS, size // 8, size // 8, 3), np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


# ------------------------------------------------------------------------------------------- ours


def ours():
    """task -> what it found, by this project."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import flax.linen as nn
    import jax
    from mgm_jax.configs import common

    from mgm_jax import sharding
    from mgm_jax.convert.families import mgm
    from mgm_jax.convert.rules import export_params
    from mgm_jax.models.config import MgmConfig
    from mgm_jax.program import make_program
    from mgm_jax.settings import check_switches
    from mgm_jax.tree import flatten

    config = common.train_config()
    config.dtype = config.frozen_dtype = "float32"
    config.remat = "dots+attention"  # elementwise work is done again, as it takes no time
    config.optim.lr, config.optim.clip = LR, CLIP_NORM
    cfg = MgmConfig.from_dict(MODEL)
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    program = make_program(config, cfg, check_switches(config), mesh, steps=100)
    module = program.model
    placed = functools.partial(jax.tree.map, lambda s: s.sharding)  # or a second step compiles
    init = jax.jit(
        lambda key: nn.unbox(module.init(key, program.example)["params"]),
        out_shardings=placed(program.params),
    )
    params = init(jax.random.key(0))
    text = rows()
    batch = {
        "tokens": text["ids"],
        "targets": text["targets"],
        "loss_weights": text["weights"],
        "positions": np.broadcast_to(np.arange(text["ids"].shape[1]), text["ids"].shape),
        "segments": np.ones_like(text["ids"]),
        "visual_index": np.broadcast_to(text["visual"], text["ids"].shape),
        "images": pictures()[:, None],
        "image_mask": np.ones((ROWS, 1), bool),
    }
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    encode = jax.jit(lambda params, images: module.apply({"params": params}, images, method="look"))
    trainable, frozen = program.plan.split(params)
    begin = jax.jit(program.optimizer.init, out_shardings=placed(program.state["opt"]))
    state = {"params": trainable, "opt": begin(trainable)}

    def run(task) -> dict:
        nonlocal state
        if task["do"] == "export":  # before the first step: `params` is what the others get
            np.savez(task["file"], **dict(export_params(flatten(params), mgm.rules(cfg))))
            return {}
        if task["do"] == "encode":
            return _some(np.asarray(encode(params, batch["images"][:, 0])))
        state, metrics = program.step(state, frozen, batch)
        return {"loss": float(metrics["loss"])}

    return run


def _some(tokens: np.ndarray) -> dict:
    """A few of the numbers, by which the sides are compared."""
    return {"some": tokens[:, ::97, :8].ravel().tolist()}


# ---------------------------------------------------------------------------------------- PyTorch


def peer(reassociated: bool):
    """task -> what it found, by PyTorch."""
    import torch
    import transformers
    from torch import nn
    from torch.nn import functional

    from mgm_jax.models.config import CLIP_MEAN, CLIP_STD

    torch.set_num_threads(CORES)
    clip, aux, width = MODEL["clip"], MODEL["convnext"], MODEL["clip"]["width"]
    channels = sum(aux["widths"])

    class Projection(nn.Module):
        """LayerNorm and Linear, as mining has three of."""

        def __init__(self, inputs: int):
            super().__init__()
            self.norm = nn.LayerNorm(inputs, eps=MODEL["mining_eps"])
            self.linear = nn.Linear(inputs, width)

        def forward(self, x):
            return self.linear(self.norm(x))

    class Peer(nn.Module):
        def __init__(self):
            super().__init__()
            self.clip = transformers.CLIPVisionModel(
                transformers.CLIPVisionConfig(
                    hidden_size=width,
                    intermediate_size=clip["mlp_dim"],
                    num_hidden_layers=clip["layers"],
                    num_attention_heads=clip["heads"],
                    image_size=clip["image_size"],
                    patch_size=clip["patch_size"],
                    hidden_act=clip["act"],
                    layer_norm_eps=clip["norm_eps"],
                )
            )
            self.convnext = transformers.ConvNextModel(
                transformers.ConvNextConfig(
                    hidden_sizes=list(aux["widths"]), depths=list(aux["depths"])
                )
            )
            for module in self.convnext.modules():
                if hasattr(module, "eps"):
                    module.eps = aux["norm_eps"]
            self.query, self.keys, self.values = map(Projection, (width, channels, channels))
            dim = LLM["dim"]
            self.projector = nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim))
            self.llm = transformers.LlamaForCausalLM(llama_config())

        def towers(self, images):
            """uint8 [P, H, W, 3] -> CLIP's features [P, n, C] and the fused map [P, C', h, w]."""
            mean, std = (torch.tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
            hr = (images.movedim(-1, 1).float() / 255 - mean) / std
            lr = functional.interpolate(hr, (clip["image_size"],) * 2, mode="bilinear")
            x = self.clip(lr, output_hidden_states=True).hidden_states
            x = x[clip["select_layer"]][:, 1:]
            stages = self.convnext(hr, output_hidden_states=True).hidden_states
            stages = stages[-len(aux["widths"]) :]
            size = stages[0].shape[-2:]
            wide = [functional.interpolate(s, size, mode="bilinear") for s in stages[1:]]
            return x, torch.cat([stages[0], *wide], dim=1)

        def mine(self, x, hr_map):
            """[P, n, C] and [P, C', h, w] -> what each query finds in its region [P, n, C]."""
            p, n, c = x.shape
            grid = int(n**0.5)
            side = hr_map.shape[-1] // grid
            regions = hr_map.movedim(1, -1).reshape(p, grid, side, grid, side, -1)
            regions = regions.transpose(2, 3).reshape(p, n, side * side, -1)
            q = self.query(x) * c**-0.5
            if not reassociated:
                weights = (q[:, :, None] @ self.keys(regions).mT).nan_to_num().softmax(-1)
                return (weights @ self.values(regions))[:, :, 0]
            # The products with the projections' matrices go to the queries, and to what was found.
            hat = functional.layer_norm(regions, regions.shape[-1:], eps=MODEL["mining_eps"])
            q = (q @ self.keys.linear.weight) * self.keys.norm.weight
            weights = (hat @ q[..., None]).mT.softmax(-1)
            found = (weights @ hat)[:, :, 0] * self.values.norm.weight + self.values.norm.bias
            return self.values.linear(found)

        def look(self, images):
            """Pictures -> their visual tokens [P, n, D]."""
            with torch.no_grad():
                x, hr_map = self.towers(images)
            return self.projector(x + self.mine(x, hr_map))

        def forward(self, images, ids, text_weights):
            visual = self.look(images)
            text = self.llm.get_input_embeddings()(ids[:, visual.shape[1] :])
            logits = self.llm(inputs_embeds=torch.cat([visual, text], dim=1)).logits
            losses = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            )
            weights = text_weights[:, :-1].flatten()
            return (losses * weights).sum() / weights.sum()

    model = Peer()
    text = {name: torch.from_numpy(x) for name, x in rows().items()}
    images, ids = torch.from_numpy(pictures()), text["ids"].long()
    optimizer = None

    def run(task) -> dict:
        nonlocal optimizer
        if task["do"] == "load":
            _load(model, np.load(task["file"]))
            model.clip.requires_grad_(False)
            model.convnext.requires_grad_(False)
            trained = [x for x in model.parameters() if x.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
            return {}
        if task["do"] == "encode":
            with torch.inference_mode():
                return _some(model.look(images).numpy())
        loss = model(images, ids, text["weights"])
        loss.backward()
        trained = optimizer.param_groups[0]["params"]
        torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss.item()}

    return run


def _load(model, tensors) -> None:
    """Fills PyTorch's side from tensors under the original's names."""
    from mgm_jax.convert.torch_reference import CONVNEXT_NAMES, fill
    from mgm_jax.convert.towers import AUX, CLIP

    def convnext(name: str) -> np.ndarray:
        for theirs, original in CONVNEXT_NAMES:
            name = name.replace(theirs, original)
        return tensors[AUX + name]

    clip = model.clip.vision_model if hasattr(model.clip, "vision_model") else model.clip
    fill(clip, lambda name: tensors[CLIP + name])
    model.convnext.layernorm = type(model.projector[1])()  # of the pooled output: not used
    fill(model.convnext, convnext)
    for ours, name in (("query", "query"), ("keys", "aux"), ("values", "val")):
        part = getattr(model, ours)
        for i, module in enumerate((part.norm, part.linear)):
            fill(module, lambda n, p=f"model.vlm_uni_{name}_projector.{i}": tensors[f"{p}.{n}"])
    fill(model.projector, lambda name: tensors[f"model.mm_projector.{name}"])
    fill(model.llm, lambda name: tensors[name])


# ------------------------------------------------------------------------------------ the measure


def work(side: str) -> None:
    run = ours() if side == "ours" else peer(side == "reassociated")

    def measured(task) -> dict:
        found = run(task)
        return found | {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}

    answer(measured)


def main(repeats: int) -> None:
    result = {}
    with Sides("benchmarks.torch_peer", SIDES) as sides, tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "weights.npz")
        sides.ask("ours", {"do": "export", "file": file})
        for side in SIDES[1:]:
            sides.ask(side, {"do": "load", "file": file})
        for what in ("encode", "train"):
            first = {side: sides.ask(side, {"do": what}) for side in SIDES}  # compiles
            check(what, first)
            turns = sides.race({"do": what}, repeats)
            best = {side: round(min(seconds), 3) for side, seconds in turns.items()}
            ratios = {s: ratio(turns[s], turns["ours"]) for s in SIDES[1:]}
            result[what] = {
                "ratio": ratios["literal"],
                "ratio_reassociated": ratios["reassociated"],
            }
            result[what] |= best
            print(f"{what}: " + ", ".join(f"{s} {best[s]} s" for s in SIDES) + " (best turns)")
        last = {side: sides.ask(side, {"do": "train"}) for side in SIDES}
    result["peak_gib"] = {side: round(found["peak_gib"], 2) for side, found in last.items()}
    print(json.dumps(result))


def check(what: str, found: dict[str, dict]) -> None:
    """The sides compute the same; SystemExit where they do not."""
    key = "some" if what == "encode" else "loss"
    for side in SIDES[1:]:
        one, other = (np.asarray(found[s][key]) for s in ("ours", side))
        if not np.allclose(one, other, rtol=1e-3, atol=1e-4):
            worst = np.abs(one - other).max()
            raise SystemExit(f"error: {what}: {side} differs from ours by {worst:.2g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="turns; default: %(default)s")
    parser.add_argument("--side", choices=SIDES, help="be the process of one side")
    args = parser.parse_args()
    work(args.side) if args.side else main(args.repeats)
