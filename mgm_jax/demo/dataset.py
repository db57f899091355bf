"""The demo's dataset on disk, in LLaVA format: JSON files of conversations beside pictures.

    DIR/train.json       two turns a picture (digit and colour, in random order)
    DIR/pretrain.json    the same pictures, each with a caption (template `plain`)
    DIR/{val,test,new_photos}.json   two records a picture, with ONE question each; they also
                         carry "kind" ("digit" | "colour") and "answer", the exact right answer
    DIR/scenes.json      of each picture: split, digit, colour, boxes, photograph, glyph
    DIR/images/SPLIT/000123.jpg

The same arguments give the same bytes: picture i of a split is a pure function of (seed, split, i).
JPEG at quality 95 without chroma subsampling: ten times faster to write than PNG, three times
faster to read, and no digit suffers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from mgm_jax.demo import questions
from mgm_jax.demo.backgrounds import MILD, STRONG, Augment
from mgm_jax.demo.glyphs import Glyphs, split_glyphs
from mgm_jax.demo.photos import NEW_PHOTOS, TRAIN_PHOTOS, load_photos
from mgm_jax.demo.scenes import SCENE, make_scene


@dataclasses.dataclass(frozen=True)
class Split:
    """What a split is made of. `number` seeds it."""

    number: int
    glyphs: str
    photos: tuple[str, ...]
    augment: Augment
    evaluation: bool


SPLITS = {
    "train": Split(0, "train", TRAIN_PHOTOS, STRONG, evaluation=False),
    "val": Split(1, "val", TRAIN_PHOTOS, MILD, evaluation=True),
    "test": Split(2, "test", TRAIN_PHOTOS, MILD, evaluation=True),
    "new_photos": Split(3, "test", NEW_PHOTOS, MILD, evaluation=True),
}
SIZES = {"train": 4000, "val": 300, "test": 600, "new_photos": 600}  # pictures


def _turn(question: str, answer: str, first: bool) -> list[dict]:
    value = f"<image>\n{question}" if first else question
    return [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]


def _train_record(base: dict, scene, rng: np.random.Generator) -> list[dict]:
    turns = []
    for kind in rng.permutation(list(questions.QUESTIONS)):
        question = questions.ask(rng, kind)
        turns += _turn(question, questions.expected(question, scene), first=not turns)
    return [{**base, "conversations": turns}]


def _question_records(base: dict, scene, rng: np.random.Generator) -> list[dict]:
    records = []
    for kind in questions.QUESTIONS:
        question = questions.ask(rng, kind)
        answer = questions.expected(question, scene)
        turns = _turn(question, answer, first=True)
        extra = {"id": f"{base['id']}-{kind}", "kind": kind, "answer": answer}
        records.append({**base, "conversations": turns, **extra})
    return records


def _glyph_order(seed: int, split: Split, glyphs: Glyphs, count: int) -> np.ndarray:
    """Rows of `glyphs` for each picture: every glyph once before any comes twice."""
    rng = np.random.default_rng([seed, split.number])
    rounds = -(-count // len(glyphs))
    return np.concatenate([rng.permutation(len(glyphs)) for _ in range(rounds)])[:count]


@contextlib.contextmanager
def _whole_or_nothing(out_dir: Path) -> Iterator[Path]:
    """A new directory beside `out_dir` that becomes `out_dir` at the end, or vanishes."""
    partial = out_dir.with_name(f".{out_dir.name}.partial")
    try:
        if out_dir.is_dir() and any(out_dir.iterdir()):
            raise FileExistsError("it exists and is not empty")
        shutil.rmtree(partial, ignore_errors=True)  # left behind by a killed run
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, out_dir)
    except OSError as error:
        raise OSError(f"cannot write the dataset to {out_dir}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _jpeg(image: np.ndarray) -> bytes:
    """In memory first: Pillow takes a short write to a full disk for a success."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _write_records(path: Path, records: list[dict]) -> None:
    """A JSON list with one record a line."""
    lines = ",\n".join(json.dumps(record) for record in records)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def build_dataset(
    out_dir: str | os.PathLike,
    seed: int,
    sizes: Mapping[str, int] = SIZES,
    hr_size: int = 192,
    progress: bool = True,
) -> dict[str, int]:
    """Write the dataset and return the number of records of each JSON file (by its stem).

    `sizes` gives the number of pictures of each split in `SPLITS` (others are left out); with
    "train" comes "pretrain". Raises ValueError for an unknown split or a size below 1 before
    anything is written, and one OSError naming `out_dir` when it holds files already or cannot be
    written; then nothing is left behind.
    """
    import tqdm

    for name, count in sizes.items():
        if name not in SPLITS or count < 1:
            raise ValueError(
                f"dataset sizes: {name}={count}, expected a count >= 1 for {', '.join(SPLITS)}"
            )
    spec = dataclasses.replace(SCENE, canvas=hr_size)
    glyphs = split_glyphs(seed)
    photos = load_photos()
    orders = {
        name: _glyph_order(seed, SPLITS[name], glyphs[SPLITS[name].glyphs], count)
        for name, count in sizes.items()
    }

    def make(root: Path, name: str, index: int) -> tuple[dict, list[dict], list[dict]]:
        """Write one picture; its description, its records, and its captions."""
        split = SPLITS[name]
        rng = np.random.default_rng([seed, split.number, index])
        backgrounds = {photo: photos[photo] for photo in split.photos}
        glyph = int(orders[name][index])
        scene = make_scene(rng, backgrounds, glyphs[split.glyphs], spec, split.augment, glyph)
        base = {"id": f"{name}-{index:06d}", "image": f"images/{name}/{index:06d}.jpg"}
        (root / base["image"]).write_bytes(_jpeg(scene.image))
        about = {k: v for k, v in vars(scene).items() if k != "image"}
        about = {"split": name, "image": base["image"], **about}
        if split.evaluation:
            return about, _question_records(base, scene, rng), []
        records = _train_record(base, scene, rng)
        turns = [
            {"from": "human", "value": "<image>"},
            {"from": "gpt", "value": questions.caption(scene, rng)},
        ]
        return about, records, [{**base, "conversations": turns}]

    with _whole_or_nothing(Path(out_dir)) as root:
        for name in sizes:
            (root / "images" / name).mkdir(parents=True)
        files, scenes = {}, []
        jobs = [(name, index) for name, count in sizes.items() for index in range(count)]
        for name, index in tqdm.tqdm(jobs, "scenes", unit="picture", disable=not progress):
            about, records, captions = make(root, name, index)
            scenes.append(about)
            files.setdefault(name, []).extend(records)
            if captions:
                files.setdefault("pretrain", []).extend(captions)
        for name, records in files.items():
            _write_records(root / f"{name}.json", records)
        _write_records(root / "scenes.json", scenes)
    return {name: len(records) for name, records in files.items()}
