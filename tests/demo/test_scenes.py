"""Scenes: determinism, labels that agree with the pixels, label maps, the LR view."""

import jax
import numpy as np
import pytest
import scene_batch

from mgm_jax.demo import scenes
from mgm_jax.demo.backgrounds import MILD, STRONG
from mgm_jax.demo.scenes import BACKGROUND, IGNORE, SCENE


def draw(photos, glyphs, seed=0, n=40, spec=SCENE, augment=STRONG):
    rng = np.random.default_rng(seed)
    return [scenes.make_scene(rng, photos, glyphs, spec, augment) for _ in range(n)]


def test_scene_is_a_function_of_the_generator(all_photos, parts):
    first, again = (draw(all_photos, parts["train"], n=5) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.image, b.image)
        assert (a.digit, a.colour, a.box, a.photo) == (b.digit, b.colour, b.box, b.photo)
    other = draw(all_photos, parts["train"], seed=1, n=5)
    assert not np.array_equal(first[0].image, other[0].image)


def test_a_photograph_is_never_written_to(all_photos, parts):
    before = {name: photo.copy() for name, photo in all_photos.items()}
    draw(all_photos, parts["train"], augment=MILD)
    assert all(np.array_equal(before[name], all_photos[name]) for name in before)


@pytest.mark.parametrize("augment", [STRONG, MILD], ids=["strong", "mild"])
def test_colour_position_and_digit_agree_with_the_pixels(all_photos, parts, augment):
    names = list(scenes.COLOURS)
    table = np.array(list(scenes.COLOURS.values()), np.float32)
    labels = dict(zip(parts["test"].ids.tolist(), parts["test"].labels.tolist(), strict=True))
    for scene in draw(all_photos, parts["test"], augment=augment):
        assert scene.image.shape == (192, 192, 3) and scene.image.dtype == np.uint8
        assert labels[scene.glyph] == scene.digit
        x0, y0, x1, y1 = scene.box
        assert 0 <= x0 < x1 <= 192 and 0 <= y0 < y1 <= 192
        assert SCENE.card[0] <= x1 - x0 == y1 - y0 <= SCENE.card[1]
        a, b, c, d = scene.digit_box
        assert x0 <= a < c <= x1 and y0 <= b < d <= y1
        card = scene.image[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].astype(np.float32)
        typical = np.median(card.reshape(-1, 3), 0)  # most of a card is not ink
        assert names[np.argmin(np.abs(table - typical).sum(1))] == scene.colour
        assert (card - typical).max() > 100  # the ink is light
        outside = card.copy()  # all the ink lies in the digit box
        outside[b - y0 - 1 : d - y0 - 1, a - x0 - 1 : c - x0 - 1] = typical
        assert np.abs(outside - typical).max() < 60


def test_every_colour_and_digit_is_drawn(all_photos, parts):
    batch = scene_batch.batch(
        np.random.default_rng(0), 300, all_photos, parts["train"], scene_batch.CROP
    )
    assert set(batch["colour"]) == set(range(len(scenes.COLOURS)))
    assert set(batch["digit"]) == set(range(10))


def test_place_card_keeps_the_background_around_it(parts):
    image = np.full((96, 96, 3), 77, np.uint8)
    scene = scenes.place_card(
        np.random.default_rng(0), image, parts["train"], scene_batch.CROP, photo="wall"
    )
    assert scene.photo == "wall"
    x0, y0, x1, y1 = np.clip(scene.box, 0, 96)
    around = np.ones((96, 96), bool)
    around[y0:y1, x0:x1] = False
    assert (scene.image[around] == 77).all() and (scene.image[~around] != 77).any()


def test_given_glyph_and_empty_material(all_photos, parts):
    rng = np.random.default_rng(0)
    scene = scenes.make_scene(rng, all_photos, parts["val"], glyph=7)
    assert scene.glyph == parts["val"].ids[7] and scene.digit == parts["val"].labels[7]
    with pytest.raises(ValueError, match="found 0, 400"):
        scenes.make_scene(rng, {}, parts["val"])


@pytest.mark.parametrize(
    "wrong", [{"glyph": 50}, {"card": (44, 38)}, {"canvas": 40}, {"min_inside": 0.0}]
)
def test_impossible_sizes(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        scenes.SceneSpec(**wrong)


def test_digit_map_by_hand():
    image = np.zeros((64, 64, 3), np.uint8)
    scene = scenes.Scene(image, 7, "red", (8, 16, 48, 56), (16, 24, 40, 48), "moon", 0)
    labels = scenes.digit_map(scene, 8)
    want = np.full((8, 8), BACKGROUND)
    want[2:7, 1:6] = IGNORE
    want[3:6, 2:5] = 7
    assert labels.dtype == np.int32 and np.array_equal(labels, want)
    with pytest.raises(ValueError, match="stride 7"):
        scenes.digit_map(scene, 7)


def test_digit_map_ignores_a_digit_that_is_cut():
    image = np.zeros((64, 64, 3), np.uint8)
    cut = scenes.Scene(image, 7, "red", (-16, 0, 24, 40), (-10, 6, 18, 34), "moon", 0)
    labels = scenes.digit_map(cut, 8)
    assert 7 not in labels and labels[1, 1] == IGNORE and labels[7, 7] == BACKGROUND


def test_crops_keep_most_of_the_card(all_photos, parts):
    batch = scene_batch.batch(
        np.random.default_rng(0), 60, all_photos, parts["train"], scene_batch.CROP, stride=8
    )
    assert batch["image"].shape == (60, 96, 96, 3) and batch["map"].shape == (60, 12, 12)
    boxes = batch["box"]
    sides = boxes[:, 2] - boxes[:, 0]
    shown = np.minimum(boxes[:, 2:], 96) - np.maximum(boxes[:, :2], 0)
    assert (shown >= 0.8 * sides[:, None]).all()
    assert (shown < sides[:, None]).any()
    for labels, digit in zip(batch["map"], batch["digit"], strict=True):
        assert set(np.unique(labels)) <= {BACKGROUND, IGNORE, digit}


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_lr_view_is_half_pixel_bilinear(ratio):
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    small = (2, 32 // ratio, 32 // ratio, 3)
    want = jax.image.resize(image.astype(np.float32), small, "bilinear", antialias=False)
    np.testing.assert_allclose(scenes.lr_view(image, ratio), want, atol=1e-4)
    with pytest.raises(ValueError, match="found 5"):
        scenes.lr_view(image, 5)
