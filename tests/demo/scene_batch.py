"""Many scenes as arrays, for tests that count over them."""

from collections.abc import Mapping

import numpy as np

from mgm_jax.demo.backgrounds import STRONG, Augment
from mgm_jax.demo.glyphs import Glyphs
from mgm_jax.demo.scenes import COLOUR_NAMES, SCENE, SceneSpec, digit_map, make_scene

CROP = SceneSpec(canvas=96, min_inside=0.8)  # cards may reach over the edge


def batch(
    rng: np.random.Generator,
    n: int,
    photos: Mapping[str, np.ndarray],
    glyphs: Glyphs,
    spec: SceneSpec = SCENE,
    augment: Augment = STRONG,
    stride: int | None = None,
) -> dict[str, np.ndarray]:
    """n scenes as arrays.

    image uint8 [n, canvas, canvas, 3]; digit, colour (index into `COLOUR_NAMES`) and glyph int32
    [n]; box and digit_box int32 [n, 4]; with `stride`, map int32 [n, canvas // stride] ** 2.
    """
    scenes = [make_scene(rng, photos, glyphs, spec, augment) for _ in range(n)]
    out = {
        "image": np.stack([s.image for s in scenes]),
        "digit": np.array([s.digit for s in scenes], np.int32),
        "colour": np.array([COLOUR_NAMES.index(s.colour) for s in scenes], np.int32),
        "glyph": np.array([s.glyph for s in scenes], np.int32),
        "box": np.array([s.box for s in scenes], np.int32),
        "digit_box": np.array([s.digit_box for s in scenes], np.int32),
    }
    if stride is not None:
        out["map"] = np.stack([digit_map(s, stride) for s in scenes])
    return out
