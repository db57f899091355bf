"""Pretraining the demo's two tiny towers, since no pretrained ones exist offline.

Both learn from one kind of example: a training glyph on a card, composed afresh onto a background
made of training photographs, with labels for places of the picture. The high-resolution tower sees
a crop around the card at full size, the low-resolution tower the LR view of the whole picture. The
reading heads are thrown away afterwards.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from mgm_jax.demo import scenes
from mgm_jax.demo.backgrounds import STRONG, make_background
from mgm_jax.demo.glyphs import Glyphs
from mgm_jax.models.clip_vit import ClipVit
from mgm_jax.models.config import MgmConfig
from mgm_jax.models.convnext import ConvNext, fuse_stages
from mgm_jax.nn.linear import Linear
from mgm_jax.nn.norms import LayerNorm
from mgm_jax.ops.loss import token_losses
from mgm_jax.ops.views import normalise

# (generator, number of pictures) -> pictures [n, ...] and {name: labels [n, places]}
Examples = Callable[[np.random.Generator, int], tuple[np.ndarray, dict[str, np.ndarray]]]

DIGITS, COLOURS = 10, len(scenes.COLOUR_NAMES)
ENERGY = 0.25
NOTHING, IGNORE = -2, -1  # labels of a place without card, and of one that is not asked about


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one tower is pretrained."""

    steps: int
    batch: int
    lr: float


class HrReader(nn.Module):
    """Pictures uint8 [B, H, W, 3] -> digit logits at every position of the map [B, h*w, 11]."""

    cfg: MgmConfig

    @nn.compact
    def __call__(self, pictures):
        stages = ConvNext(self.cfg.convnext, gamma_init=1.0, name="tower")(
            normalise(pictures, self.cfg.image)
        )
        x = LayerNorm(self.cfg.mining_eps, name="norm")(fuse_stages(stages))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return {"digit": Linear(DIGITS + 1, (None, None), name="digit")(x)}


class LrReader(nn.Module):
    """LR views, pixel values [B, h, h, 3] -> logits of every token: digit [B, N, 11], colour.

    Mining adds to these features, so their mean square ("energy") is held at `ENERGY`: left alone
    they grow ten times as large as what a fresh mining module adds.
    """

    cfg: MgmConfig

    @nn.compact
    def __call__(self, pictures):
        x = ClipVit(self.cfg.clip, name="tower")(normalise(pictures, self.cfg.image))
        energy = jnp.square(x).mean()
        x = LayerNorm(self.cfg.mining_eps, name="norm")(x)
        return {
            "energy": energy,
            "digit": Linear(DIGITS + 1, (None, None), name="digit")(x),
            "colour": Linear(COLOURS + 1, (None, None), name="colour")(x),
        }


# --------------------------------------------------------------------------------------- examples


def make_backgrounds(seed: int, photos: dict, size: int, count: int) -> np.ndarray:
    """`count` strongly changed pieces of photographs, uint8 [count, size, size, 3]."""
    rng = np.random.default_rng([seed, 0xB6])
    return np.stack([make_background(rng, photos, size, STRONG)[0] for _ in range(count)])


def hr_examples(cfg: MgmConfig, backgrounds: np.ndarray, glyphs: Glyphs, canvas: int) -> Examples:
    """Crops of canvas x canvas pixels with a whole card: uint8 pictures, digit of each position."""
    spec = dataclasses.replace(scenes.SCENE, canvas=canvas)
    free = backgrounds.shape[1] - canvas + 1

    def crop(rng):
        (x, y), i = rng.integers(free, size=2), rng.integers(len(backgrounds))
        piece = backgrounds[i, y : y + canvas, x : x + canvas].copy()
        return scenes.place_card(rng, piece, glyphs, spec)

    def make(rng, n):
        batch = [crop(rng) for _ in range(n)]
        maps = np.stack([scenes.digit_map(s, cfg.convnext.patch_size) for s in batch])
        maps = np.where(maps == scenes.BACKGROUND, NOTHING, maps)
        return np.stack([s.image for s in batch]), {"digit": maps.reshape(n, -1)}

    return make


def lr_examples(cfg: MgmConfig, backgrounds: np.ndarray, glyphs: Glyphs, draws: int) -> Examples:
    """LR views of whole pictures: float32 pixel values, digit and colour of each token.

    The token over the card's middle tells the digit; that one, and each that the card covers by a
    third or more, tells the colour. Each glyph is drawn `draws` times beforehand, and a card is
    sampled only where the LR view reads: the same numbers as `scenes.lr_view` of the whole picture.
    """
    size, grid, ratio = cfg.image.hr_size, cfg.clip.grid, cfg.image.hr_size // cfg.image.lr_size
    taps = np.arange(cfg.image.lr_size)[:, None] * ratio + np.array([ratio // 2 - 1, ratio // 2])
    taps = taps.reshape(-1)
    sampled = backgrounds[:, taps][:, :, taps]  # [n, 2h, 2h, 3]
    edges = np.arange(grid + 1) * (size / grid)
    pen = np.random.default_rng(0xCA)
    rows = np.repeat(np.arange(len(glyphs)), draws)
    colours = pen.integers(COLOURS, size=len(rows))
    cards = [
        scenes.draw_card(pen, glyphs.images[g], scenes.COLOUR_NAMES[c])[0]
        for g, c in zip(rows, colours, strict=True)
    ]

    def covered(low, high):  # share of each cell's side that [low, high) covers
        width = np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1])
        return np.clip(width, 0, None) * (grid / size)

    def make(rng, n):
        pictures = sampled[rng.integers(len(sampled), size=n)]
        digit, colour = (np.full((n, grid, grid), NOTHING, np.int32) for _ in range(2))
        for i, k in enumerate(rng.integers(len(cards), size=n)):
            side = len(cards[k])
            x, y = rng.integers(size - side + 1, size=2)
            across, down = ((taps >= v) & (taps < v + side) for v in (x, y))
            pictures[i][np.ix_(down, across)] = cards[k][taps[down] - y][:, taps[across] - x]
            share = covered(y, y + side)[:, None] * covered(x, x + side)
            middle = int((y + side / 2) * grid / size), int((x + side / 2) * grid / size)
            digit[i][share > 0] = colour[i][share > 0] = IGNORE
            colour[i][share >= 1 / 3] = colours[k]
            digit[i][middle], colour[i][middle] = glyphs.labels[rows[k]], colours[k]
        h = cfg.image.lr_size
        views = pictures.reshape(n, h, 2, h, 2, 3).mean((2, 4), dtype=np.float32)
        return views, {"digit": digit.reshape(n, -1), "colour": colour.reshape(n, -1)}

    return make


# --------------------------------------------------------------------------------------- training


def reading_loss(logits, labels):
    """logits [B, P, K + 1], labels [B, P] (NOTHING, IGNORE or 0..K-1) -> mean loss.

    Three means: over the labelled places, over each picture's labelled places read together
    (their logits averaged), and, at half weight, over the places with nothing.
    """
    classes = logits.shape[-1] - 1
    there, nothing = labels >= 0, labels == NOTHING
    losses = token_losses(logits, jnp.where(there, labels, classes))

    def mean(x, where):
        return jnp.sum(x * where) / jnp.maximum(jnp.sum(where), 1)

    together = jnp.sum(logits * there[..., None], 1) / jnp.maximum(there.sum(1), 1)[:, None]
    whole = token_losses(together, jnp.maximum(labels.max(1), 0))
    return 0.5 * mean(losses, there) + mean(whole, there.any(1)) + 0.5 * mean(losses, nothing)


def _ahead(make: Callable, depth: int = 4):
    """Calls `make()` in a thread, a few results ahead."""
    ready: queue.Queue = queue.Queue(depth)

    def work():
        while True:
            ready.put(make())

    threading.Thread(target=work, daemon=True).start()
    return ready.get


def pretrain(reader: nn.Module, examples: Examples, recipe: Recipe, seed: int, name: str):
    """Trains `reader` on fresh batches; returns (its parameters, last loss)."""
    rng = np.random.default_rng([seed, 0x70])
    pictures, labels = examples(rng, recipe.batch)
    params = nn.unbox(jax.jit(reader.init)(jax.random.key(seed), pictures)["params"])
    schedule = optax.warmup_cosine_decay_schedule(0, recipe.lr, recipe.steps // 10, recipe.steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.02)
    )

    @jax.jit
    def step(params, state, pictures, labels):
        def loss_fn(params):
            logits = reader.apply({"params": params}, pictures)
            size = jnp.square(logits["energy"] - ENERGY) if "energy" in logits else 0.0
            return size + sum(reading_loss(logits[k], labels[k]) for k in labels)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state = optimizer.init(params)
    get = _ahead(lambda: examples(rng, recipe.batch))
    bar = tqdm(range(recipe.steps), desc=name, unit="step", mininterval=2)
    for i in bar:
        params, state, loss = step(params, state, *get())
        if i % 50 == 0 or i + 1 == recipe.steps:
            bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
    return params, float(loss)


def reading_accuracy(reader: nn.Module, params, examples: Examples, seed: int, n: int) -> dict:
    """Share of n fresh pictures whose labelled places, read together, give the right class."""
    pictures, labels = examples(np.random.default_rng([seed, 0x71]), n)
    logits = jax.jit(lambda p, x: reader.apply({"params": p}, x))(params, pictures)
    result = {}
    for key, label in labels.items():
        there = label >= 0
        together = (np.asarray(logits[key])[..., :-1] * there[..., None]).sum(1)
        result[key] = float((together.argmax(-1) == label.max(1)).mean())
    return result
