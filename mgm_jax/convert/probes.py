"""The fixed prompts and pictures that two models are compared on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mgm_jax.data.images import preprocess
from mgm_jax.models.config import MgmConfig
from mgm_jax.text import IMAGE_ID, IMAGE_TEXT, Turn, encode_prompt, get_template

QUESTIONS = (  # (case, pictures, question)
    ("one picture", (0,), f"{IMAGE_TEXT}\nDescribe the picture in one sentence."),
    ("text only", (), "Name three colours of the rainbow."),
    ("two pictures", (0, 1), f"{IMAGE_TEXT}\n{IMAGE_TEXT}\nWhat differs between the two pictures?"),
)
FREE_IDS = 12  # random ids of a prompt without a tokenizer


@dataclasses.dataclass(frozen=True)
class Probe:
    """A prompt: the original's `ids` with -200 for each of its `pictures` (numbers)."""

    case: str
    ids: tuple[int, ...]
    pictures: tuple[int, ...]


def pictures() -> list[Image.Image]:
    """Two pictures, always the same: shapes on a gradient (wide), coloured tiles (tall)."""
    y, x = np.mgrid[:360, :480]
    scene = np.stack([x * 255 // 479, y * 255 // 359, (x + y) % 256], axis=-1).astype(np.uint8)
    scene = Image.fromarray(scene)
    draw = ImageDraw.Draw(scene)
    draw.ellipse((60, 50, 220, 210), fill=(230, 40, 30), outline=(0, 0, 0), width=5)
    draw.rectangle((280, 180, 430, 320), fill=(250, 250, 240), outline=(20, 60, 120), width=7)
    for i in range(12):
        draw.line((20 + 38 * i, 340, 40 + 38 * i, 235), fill=(0, 90, 20), width=1 + i % 4)
    tiles = np.random.default_rng(0).integers(256, size=(25, 15, 3), dtype=np.uint8)
    return [scene, Image.fromarray(tiles).resize((300, 500), Image.Resampling.NEAREST)]


def views(config: MgmConfig) -> tuple[np.ndarray, np.ndarray]:
    """Both pictures through the model's image spec: (lr, hr), normalised, as `encode_images`."""
    lr, hr = zip(*(preprocess(p, config.image) for p in pictures()), strict=True)
    return np.stack(lr), np.stack(hr)


def probes(config: MgmConfig, tokenizer: Any, template: str) -> list[Probe]:
    """The questions through a template and tokenizer; fixed random ids without a tokenizer.

    ValueError if the tokenizer gives an id that the vocabulary does not have.
    """
    rng, found = np.random.default_rng(1), []
    for case, shown, question in QUESTIONS:
        if tokenizer is not None:
            ids = encode_prompt(get_template(template), [Turn("user", question)], tokenizer)
        else:
            free = rng.integers(config.llm.vocab_size, size=FREE_IDS)
            ids = [int(free[0]), *(IMAGE_ID for _ in shown), *map(int, free[1:])]
        if max(ids) >= config.llm.vocab_size:
            raise ValueError(
                f"the tokenizer gives id {max(ids)}, but the vocabulary has "
                f"{config.llm.vocab_size} rows; `mgm-jax doctor` says more"
            )
        found.append(Probe(case, tuple(ids), shown))
    return found
