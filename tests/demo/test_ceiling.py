"""The LR ceiling: its inputs are the scenes' own LR pixels; a short run gives a sane figure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.demo import ceiling, scenes
from mgm_jax.demo.scenes import SCENE

random_pose = jax.jit(ceiling.random_pose, static_argnums=(1, 2, 3))
lr_ink = jax.jit(ceiling.lr_ink, static_argnums=(2, 3))


def test_lr_ink_is_the_lr_view_of_a_drawn_card(parts):
    ratio, side = 8, 41
    size = -(-(side + ratio) // ratio)
    for seed in range(12):
        glyph = parts["test"].images[seed]
        corner = np.array([seed % ratio, 5 * seed % ratio])
        drawn, _ = scenes.draw_glyph(np.random.default_rng(seed), glyph, side, SCENE)
        rng = np.random.default_rng(seed)  # the same draws, in `draw_glyph`'s order
        scale = rng.uniform(*SCENE.scale) * SCENE.glyph / 28
        angle = np.deg2rad(rng.uniform(-SCENE.rotation, SCENE.rotation))
        centre = corner + side / 2 + rng.uniform(-SCENE.shift, SCENE.shift, 2)
        canvas = np.zeros((size * ratio, size * ratio, 1), np.float32)
        canvas[corner[1] : corner[1] + side, corner[0] : corner[0] + side, 0] = drawn
        fields = (np.zeros(2), centre, np.array(scale), np.array(angle))
        pose = ceiling.Pose(*(jnp.asarray(value)[None] for value in fields))
        got = ceiling.lr_ink(jnp.asarray(glyph)[None], pose, ratio, size)[0]
        want = scenes.lr_view(canvas, ratio)[..., 0]
        np.testing.assert_allclose(got, want, atol=4e-3)  # Pillow rounds to 1/255
        assert want.max() > 0.1


def test_poses_stay_within_the_scene_spec():
    pose = random_pose(jax.random.key(0), 2000, SCENE, 8)
    assert set(np.unique(pose.offset)) == set(np.arange(0, 8, 0.5).tolist())
    assert SCENE.scale[0] <= (pose.scale * 28 / SCENE.glyph).min() + 1e-6
    assert (pose.scale * 28 / SCENE.glyph).max() <= SCENE.scale[1] + 1e-6
    assert np.abs(np.rad2deg(pose.angle)).max() <= SCENE.rotation
    shift = pose.centre - pose.offset - SCENE.glyph / 2
    assert 0.9 * SCENE.shift < np.abs(shift).max() <= SCENE.shift + 1e-6


def test_the_window_loses_no_ink(parts):
    """What lies outside the window is blank: nothing that could be read is withheld."""
    size = ceiling.window(SCENE, 8)
    images = jnp.asarray(parts["val"].images)
    pose = random_pose(jax.random.key(0), len(images), SCENE, 8)
    around = ceiling.Pose(pose.offset, pose.centre + 16, pose.scale, pose.angle)
    wide = np.asarray(lr_ink(images, around, 8, size + 4))
    inner = np.asarray(lr_ink(images, pose, 8, size))
    np.testing.assert_allclose(wide[:, 2:-2, 2:-2], inner, atol=1e-4)
    assert wide.sum() - inner.sum() < 1e-3 * inner.sum()


def test_aligned_grid_takes_the_offset_out():
    """A linear ramp of ink reads the same at the glyph's places, whatever the offset."""
    places = (np.arange(8) + 0.5) * 3 + 8
    for x, y in [(0.0, 0.0), (2.5, 7.0)]:
        centres = (np.arange(6) + 0.5) * 8
        ink = jnp.asarray(centres[:, None] - y + 2 * (centres[None, :] - x))[None]
        offset = jnp.array([[x + 8, y + 8]])
        got = ceiling.aligned(ink, offset, 24, 8)[0]
        np.testing.assert_allclose(got, places[:, None] + 2 * places[None, :], atol=1e-4)


def test_a_short_run_beats_chance():
    result = ceiling.lr_ceiling(0, steps=60, batch_size=64)
    assert 0.15 < result["accuracy"] < 0.5
    assert set(result["validation"]) == set(ceiling.CLASSIFIERS)
    assert result["classifier"] == max(result["validation"], key=result["validation"].get)


def test_training_follows_the_seed(parts):
    model = ceiling.Mlp(SCENE.glyph, 8, width=16)

    def train(seed):
        params = ceiling.train_classifier(model, seed, parts["train"], SCENE, 8, 3, 16)
        return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])

    first = train(0)
    assert np.array_equal(first, train(0)) and not np.array_equal(first, train(1))


def test_odd_ratio():
    with pytest.raises(ValueError, match="found 7"):
        ceiling.lr_ceiling(0, ratio=7)
