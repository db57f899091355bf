"""`mgm-jax demo`: the whole path from package files to a model that one can talk to.

Each phase leaves its result in the working directory and is skipped when it is already there, so
an interrupted demo goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax

from mgm_jax import train
from mgm_jax.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from mgm_jax.compile_cache import keep_compiled
from mgm_jax.configs import demo as config
from mgm_jax.demo import evaluate, glyphs, page, photos, questions, towers
from mgm_jax.demo.ceiling import lr_ceiling
from mgm_jax.demo.dataset import build_dataset
from mgm_jax.host_memory import keep_freed_memory
from mgm_jax.models.config import MgmConfig
from mgm_jax.program import abstract_model
from mgm_jax.text import SentencePieceTokenizer, get_template, render, train_tokenizer
from mgm_jax.tree import flatten, unflatten

NOTE = """\
No pretrained towers can be had offline, so the demo first pretrains two tiny ones: a ConvNeXt that
reads digits at 192 px and a ViT that sees the same pictures at 12 px. Then it freezes them and
trains as any Mini-Gemini is trained: stage 1 (projector and mining), stage 2 (and the language
model), once with mining and once with the low-resolution tower alone."""


class Phases:
    """Results and times of finished phases, kept in `phases.json`."""

    def __init__(self, root: Path, identity: dict):
        self._file = root / "phases.json"
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._done = json.loads(self._file.read_text()) if self._file.exists() else {}
            self._done.setdefault("identity", identity)
            self._write()
        except json.JSONDecodeError as e:
            raise CheckpointError(f"{self._file}: unreadable ({e}); delete it to start anew") from e
        except OSError as e:
            raise CheckpointError(f"{root}: cannot write there ({e.strerror})") from e
        if self._done["identity"] != identity:
            raise CheckpointError(
                f"{root} holds the demo of {self._done['identity']}, expected {identity}: use "
                "another --workdir, or delete it"
            )

    def _write(self) -> None:
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self._done, indent=1))
        os.replace(partial, self._file)

    def run(self, name: str, work: Callable[[], dict | None]) -> dict:
        """The result of a phase: `work`'s, or the one of an earlier run."""
        if name not in self._done:
            print(f"\n== {name}", file=sys.stderr, flush=True)
            begin = time.monotonic()
            result = work() or {}
            result["seconds"] = round(time.monotonic() - begin, 1)
            self._done[name] = result
            self._write()
            print(f"   {json.dumps(result)}", file=sys.stderr, flush=True)
        return self._done[name]

    def seconds(self) -> float:
        return sum(r["seconds"] for n, r in self._done.items() if n != "identity")


@dataclasses.dataclass(frozen=True)
class Demo:
    """One demo: where it lies, its seed and its size."""

    root: Path
    seed: int
    size: str

    @property
    def sizes(self):
        return config.get_demo(self.size)

    def build_data(self) -> dict:
        hr_size = config.model(self.sizes.vocab_size, "mining")["image"]["hr_size"]
        return build_dataset(
            self.root / "data", self.seed, self.sizes.pictures.to_dict(), hr_size=hr_size
        )

    def build_tokenizer(self) -> dict:
        template = get_template("v1")
        prompt = "".join(s.text for s in render(template, [("user", "")], open_turn=True))
        train_tokenizer(
            [prompt] * 20 + questions.vocabulary(),
            self.root / "tokenizer.model",
            self.sizes.vocab_size,
        )
        return {"pieces": self.tokenizer().vocab_size}

    def tokenizer(self) -> SentencePieceTokenizer:
        return SentencePieceTokenizer.from_file(self.root / "tokenizer.model", legacy=False)

    def model_config(self, arm: str) -> MgmConfig:
        return MgmConfig.from_dict(config.model(self.tokenizer().vocab_size, arm))

    def pretrain_towers(self) -> dict:
        """Both towers, and from them the models that the two arms start with."""
        cfg, sizes = self.model_config("mining"), self.sizes
        parts = glyphs.split_glyphs(self.seed)
        shipped = photos.load_photos(photos.TRAIN_PHOTOS)
        hr, lr = sizes.hr_tower.to_dict(), sizes.lr_tower.to_dict()
        canvas, draws = hr.pop("canvas"), lr.pop("draws")
        train_pieces, check_pieces = (
            towers.make_backgrounds(seed, shipped, cfg.image.hr_size, count)
            for seed, count in ((self.seed, sizes.backgrounds), (self.seed + 1, 100))
        )
        jobs = {
            "convnext": (towers.HrReader(cfg), hr, partial(towers.hr_examples, canvas=canvas)),
            "clip": (towers.LrReader(cfg), lr, partial(towers.lr_examples, draws=draws)),
        }
        trained, result = {}, {}
        for name, (reader, recipe, examples) in jobs.items():
            stream = examples(cfg, train_pieces, parts["train"])
            recipe = towers.Recipe(**recipe)
            params, _ = towers.pretrain(reader, stream, recipe, self.seed, f"{name} tower")
            trained[name] = params["tower"]
            check = examples(cfg, check_pieces, parts["val"])
            accuracy = towers.reading_accuracy(reader, params, check, self.seed, 400)
            result |= {f"{name}_{k}_accuracy": v for k, v in accuracy.items()}
        for arm in config.ARMS:
            self._save_base(arm, trained)
        return result

    def _save_base(self, arm: str, trained: dict) -> None:
        cfg = self.model_config(arm)
        model, batch, shapes, _ = abstract_model(cfg)
        params = jax.jit(lambda key: nn.unbox(model.init(key, batch)["params"]))(
            jax.random.key(self.seed)
        )
        flat = flatten(params)
        flat |= {n: p for n, p in flatten(trained).items() if n in flat}
        provenance = {"demo": {"seed": self.seed, "pretrained": sorted(trained)}}
        parts = (cfg, unflatten(flat), self.tokenizer(), "v1", provenance)
        save_checkpoint(self.root / f"base_{arm}", Checkpoint(*parts))

    def train(self, arm: str, stage: int) -> None:
        arg = f"stage={stage},arm={arm},root={self.root},seed={self.seed},size={self.size}"
        run = config.get_config(arg)
        train.train(run, self.root / f"{arm}_stage{stage}", name=f"{arm} stage {stage}")

    def ceiling(self) -> dict:
        """What the best reader of perfectly cropped LR digits reaches."""
        image = self.model_config("mining").image
        ratio = image.hr_size // image.lr_size
        return lr_ceiling(self.seed, ratio=ratio, **self.sizes.ceiling.to_dict())

    def finish(self, summary: dict) -> dict:
        """The trained model at the top of the working directory, and the page beside it."""
        save_checkpoint(self.root, load_checkpoint(self.root / "mining_stage2" / "model"))
        return {"page": str(page.write_page(self.root, summary, self.sizes.page_pictures))}


def run(root: Path, seed: int, size: str) -> dict:
    """Runs what is missing of the demo; returns the summary that `main` prints."""
    print(NOTE, file=sys.stderr)
    keep_freed_memory()
    demo = Demo(root, seed, size)
    phases = Phases(root, {"seed": seed, "size": size})
    phases.run("data", demo.build_data)
    phases.run("tokenizer", demo.build_tokenizer)
    phases.run("towers", demo.pretrain_towers)
    for arm in config.ARMS:
        for stage in (1, 2):
            phases.run(f"{arm}_stage{stage}", lambda arm=arm, stage=stage: demo.train(arm, stage))
    ceiling = phases.run("ceiling", demo.ceiling)
    scores = {
        arm: phases.run(
            f"{arm}_answers",
            lambda arm=arm: evaluate.evaluate(
                root / f"{arm}_stage2" / "model", root, arm, demo.sizes.questions[arm]
            ),
        )
        for arm in config.ARMS
    }
    mining, lr_only = scores["mining"], scores["lr_only"]
    summary = {
        "digit_accuracy": mining["test_digit"],
        "digit_accuracy_lr_only": lr_only["test_digit"],
        "lr_ceiling": round(ceiling["accuracy"], 4),
        "colour_accuracy": mining["test_colour"],
        "digit_accuracy_new_photos": mining["new_photos_digit"],
        "questions": mining["questions"] + lr_only["questions"],
    }
    phases.run("page", lambda: demo.finish(summary))
    return summary | {"seconds": round(phases.seconds(), 1)}


def main(args) -> None:
    """`args`: workdir, seed, size, json. The last line on stdout is the summary as JSON."""
    keep_compiled()
    summary = run(Path(args.workdir), args.seed, args.size)
    print(page.table(summary))
    print(f"Look: {args.workdir}/report/index.html   Ask: mgm-jax chat {args.workdir}")
    line = json.dumps(summary)
    if args.json:
        Path(args.json).write_text(line + "\n")
    print(line)
