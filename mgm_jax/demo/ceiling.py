"""The LR ceiling: how well can a digit be read from perfectly cropped LR pixels?

What an LR-only model could reach at best. Classifiers see the ink of a card as the LR view samples
it, with all else given away: where the card lies, to the HR pixel, its size, its colours (the input
is the ink's share, not RGB) and no background. They train on endless draws of the training glyphs
with the scenes' own jitter; the one that is better on the validation glyphs is reported on the test
glyphs.

At ratio 8, seed 0, on test glyphs by the side of the drawn glyph: 0.38 at 24 px, 0.42 at 26 px,
0.48 at 28 px. Four times the steps and a wider network find some 0.04 more at 28 px, so a size
should keep its distance from the bound that it is chosen for.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mgm_jax.demo.glyphs import SIDE, Glyphs, split_glyphs
from mgm_jax.demo.scenes import SCENE, SceneSpec


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where n glyphs lie in their windows of LR pixels; lengths in HR pixels, x before y."""

    offset: jax.Array  # [n, 2] corner of the glyph's square by the card's place, in 0..ratio
    centre: jax.Array  # [n, 2] of the glyph as drawn, shift included
    scale: jax.Array  # [n] drawn pixels per glyph pixel
    angle: jax.Array  # [n] radians


jax.tree_util.register_dataclass(Pose, [f.name for f in dataclasses.fields(Pose)], [])


def window(spec: SceneSpec, ratio: int) -> int:
    """LR pixels in a row that hold the glyph's square at any offset and shift."""
    return math.ceil((spec.glyph + 2 * spec.shift + ratio - 1) / ratio)


def random_pose(key: jax.Array, n: int, spec: SceneSpec, ratio: int) -> Pose:
    """n poses with the distribution of `scenes.make_scene`: cards lie at whole HR pixels."""
    keys = jax.random.split(key, 5)
    side = jax.random.randint(keys[0], (n, 1), spec.card[0], spec.card[1] + 1)
    corner = jax.random.randint(keys[1], (n, 2), 0, ratio)
    offset = (corner + (side - spec.glyph) / 2) % ratio
    shift = jax.random.uniform(keys[2], (n, 2), minval=-spec.shift, maxval=spec.shift)
    low, high = (spec.glyph / SIDE * s for s in spec.scale)
    turn = np.deg2rad(spec.rotation)
    return Pose(
        offset=offset,
        centre=offset + spec.glyph / 2 + shift,
        scale=jax.random.uniform(keys[3], (n,), minval=low, maxval=high),
        angle=jax.random.uniform(keys[4], (n,), minval=-turn, maxval=turn),
    )


def lr_ink(glyphs: jax.Array, pose: Pose, ratio: int, size: int) -> jax.Array:
    """The ink's share of each LR pixel: float32 [n, size, size] of uint8 [n, 28, 28].

    Equals `lr_view` of what `draw_glyph` draws, but computes only the 2x2 HR pixels that each LR
    pixel reads.
    """
    taps = jnp.arange(size)[:, None] * ratio + jnp.array([ratio // 2 - 1, ratio // 2])
    taps = taps.reshape(-1) + 0.5  # centres of the pixels read, [2 * size]

    def one(glyph, centre, scale, angle):
        x, y = taps - centre[0], taps - centre[1]
        cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
        column = cos * x[None, :] + sin * y[:, None] + SIDE / 2 - 0.5
        row = -sin * x[None, :] + cos * y[:, None] + SIDE / 2 - 0.5
        return jax.scipy.ndimage.map_coordinates(glyph, [row, column], order=1)  # zero outside

    values = glyphs.astype(jnp.float32) / 255
    ink = jax.vmap(one)(values, pose.centre, pose.scale, pose.angle)
    return ink.reshape(-1, size, 2, size, 2).mean((2, 4))


def aligned(ink: jax.Array, offset: jax.Array, glyph: int, ratio: int, grid: int = 8) -> jax.Array:
    """LR pixels interpolated at grid x grid places of the glyph's square: [n, grid, grid].

    It takes the offset out of the input, which a small network is slow to learn by itself.
    """
    places = (jnp.arange(grid) + 0.5) * glyph / grid
    centres = (jnp.arange(ink.shape[1]) + 0.5) * ratio

    def weights(corner):  # [n] -> [n, grid, size]
        distance = jnp.abs(corner[:, None, None] + places[:, None] - centres)
        return jax.nn.relu(1 - distance / ratio)

    return jnp.einsum("ngi,nij,nhj->ngh", weights(offset[:, 1]), ink, weights(offset[:, 0]))


def _one_hot(offset: jax.Array, ratio: int) -> jax.Array:
    """Offsets come in half pixels (a card's side may be odd): float32 [n, 4 * ratio]."""
    return jax.nn.one_hot((2 * offset).astype(int), 2 * ratio).reshape(len(offset), -1)


class Mlp(nn.Module):
    """Two hidden layers on the LR pixels, their aligned form and the offset."""

    glyph: int
    ratio: int
    width: int = 256

    @nn.compact
    def __call__(self, ink, offset):
        n = len(ink)
        grid = aligned(ink, offset, self.glyph, self.ratio)
        parts = [ink.reshape(n, -1), grid.reshape(n, -1), _one_hot(offset, self.ratio)]
        x = jnp.concatenate(parts, -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(10)(x)


class ConvNet(nn.Module):
    """Two 3x3 convolutions, then a hidden layer on all their positions and the offset.

    A convolution here is a product with its shifted inputs side by side: XLA's own convolution is
    several times slower on a CPU at this size.
    """

    glyph: int
    ratio: int
    channels: int = 16
    width: int = 128

    @nn.compact
    def __call__(self, ink, offset):
        x, size = ink[..., None], ink.shape[1]
        for _ in range(2):
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            shifted = [x[:, i : i + size, j : j + size] for i in range(3) for j in range(3)]
            x = nn.relu(nn.Dense(self.channels)(jnp.concatenate(shifted, -1)))
        x = jnp.concatenate([x.reshape(len(x), -1), _one_hot(offset, self.ratio)], -1)
        x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(10)(x)


CLASSIFIERS = {"mlp": Mlp, "conv": ConvNet}


def _inputs(key, images, spec, ratio):
    pose = random_pose(key, len(images), spec, ratio)
    return lr_ink(images, pose, ratio, window(spec, ratio)), pose.offset


def train_classifier(
    model: nn.Module, seed: int, glyphs: Glyphs, spec: SceneSpec, ratio: int, steps: int, size: int
):
    """Parameters of `model` after `steps` of AdamW on batches of `size` fresh draws of `glyphs`."""
    data = jnp.asarray(glyphs.images), jnp.asarray(glyphs.labels)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 20, steps)
    optimizer = optax.adamw(schedule, weight_decay=1e-2)

    def loss(params, data, key):
        which, draw = jax.random.split(key)
        rows = jax.random.randint(which, (size,), 0, len(data[1]))
        images, labels = (array[rows] for array in data)
        logits = model.apply(params, *_inputs(draw, images, spec, ratio))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit  # `data` is an argument: as a constant XLA would spend seconds folding it
    def run(data, key):
        def step(carry, index):
            params, state = carry
            grads = jax.grad(loss)(params, data, jax.random.fold_in(key, index))
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = model.init(key, *_inputs(key, data[0][:1], spec, ratio))
        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, jnp.arange(steps))[0][0]

    return run(data, jax.random.key(seed, impl="rbg"))


def accuracy(model, params, seed: int, glyphs: Glyphs, spec: SceneSpec, ratio: int) -> float:
    """Share of right answers over ten draws of each glyph."""

    @jax.jit
    def answers(params, images, key):
        return model.apply(params, *_inputs(key, images, spec, ratio)).argmax(-1)

    images = jnp.asarray(np.repeat(glyphs.images, 10, axis=0))
    found = answers(params, images, jax.random.key(seed + 1, impl="rbg"))
    return float(np.mean(np.asarray(found) == np.repeat(glyphs.labels, 10)))


def lr_ceiling(
    seed: int,
    spec: SceneSpec = SCENE,
    ratio: int = 8,
    steps: int = 2000,
    batch_size: int = 256,
) -> dict:
    """The LR ceiling at an HR : LR ratio.

    Returns {"accuracy": on the test glyphs, of the classifier that is best on the validation
    glyphs, "classifier": its name, "validation": {name: accuracy}}. Raises ValueError for an odd
    ratio.
    """
    if ratio % 2:
        raise ValueError(f"lr_ceiling: expected an even ratio, found {ratio}")
    parts = split_glyphs(seed)
    models = {name: kind(spec.glyph, ratio) for name, kind in CLASSIFIERS.items()}
    params = {
        name: train_classifier(model, seed, parts["train"], spec, ratio, steps, batch_size)
        for name, model in models.items()
    }

    def score(name: str, split: str) -> float:
        return accuracy(models[name], params[name], seed, parts[split], spec, ratio)

    validation = {name: score(name, "val") for name in models}
    best = max(validation, key=validation.get)
    return {"accuracy": score(best, "test"), "classifier": best, "validation": validation}
