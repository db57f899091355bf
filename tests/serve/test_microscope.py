"""The mining microscope: places of tokens, and what it draws."""

import types

import numpy as np
import pytest
from PIL import Image

from mgm_jax.serve.microscope import FRAME, Mined, describe, mine, overview, region, row_major


def spec(grid, use_global):
    crops = grid**2 + use_global
    return types.SimpleNamespace(grid=grid, use_global=use_global, crops=crops)


@pytest.mark.parametrize(("grid", "use_global"), [(1, False), (2, False), (2, True), (3, True)])
def test_tokens_in_rows(grid, use_global):
    """Numbered by where they lie, in the model's order: global first, then crop by crop."""
    side = 4
    whole = np.arange((grid * side) ** 2).reshape(grid * side, grid * side)
    crops = [
        whole[i * side : (i + 1) * side, j * side : (j + 1) * side].ravel()
        for i in range(grid)
        for j in range(grid)
    ]
    order = np.concatenate([np.full(side**2, -1)] * use_global + crops)
    weights = np.repeat(order[:, None], 9, 1).astype(np.float32)
    found = row_major(weights, spec(grid, use_global))
    assert found.shape == (whole.size, 9)
    assert (found[:, 0] == whole.ravel()).all()


@pytest.fixture
def mined():
    """2 x 2 tokens of 3 x 3 positions over 60 x 60 white pixels; token (0, 1) takes one alone."""
    weights = np.full((4, 9), 1 / 9, np.float32)
    weights[1] = 0
    weights[1, 5] = 1
    return Mined(np.full((60, 60, 3), 255, np.uint8), weights)


def test_clicks_find_their_token(mined):
    assert mined.token_at(0, 0, 600) == (0, 0)
    assert mined.token_at(599, 0, 600) == (0, 1)
    assert mined.token_at(299, 301, 600) == (1, 0)
    assert mined.token_at(600, 9999, 600) == (1, 1)


def test_colour_is_what_was_mined(mined):
    """Position 5 of token (0, 1): row 1 of 3, column 2 of 3 of the upper right region."""
    drawn = np.asarray(overview(mined)).astype(int).mean(-1)
    size = len(drawn)
    assert (drawn[size // 2 + 5 :] > 250).all()
    assert drawn[size // 4, size - 20] > 250
    assert drawn[size // 4, size // 2 + 20] < 80 and drawn[20, size - 20] < 80
    framed = np.asarray(overview(mined, (0, 1)))
    assert (framed[size // 4, size // 2 + 1] == FRAME).all()
    close = np.asarray(region(mined, (0, 1))).mean(-1)
    half = (close.shape[1] - 12) // 2
    assert (close[:, :half] > 250).all()
    assert close[half // 2, -20] > 250 and close[half // 2, half + 30] < 80


def test_words(mined):
    text = describe(mined, (0, 1))
    assert "Token (0, 1) of 2 x 2" in text and "pixel (55, 15)" in text and "100%" in text
    assert "about 1.0 of its 9 positions" in text
    assert "about 9.0 of its 9 positions" in describe(mined, (1, 0))


def test_of_a_model(tiny_model):
    """Weights of every token sum to one; another picture is mined in another way."""
    noise = np.random.default_rng(0).integers(256, size=(2, 40, 40, 3), dtype=np.uint8)
    found = [mine(tiny_model, Image.fromarray(n)) for n in noise]
    assert found[0].grid == tiny_model.config.clip.grid
    np.testing.assert_allclose(found[0].weights.sum(-1), 1, atol=1e-5)
    assert abs(found[0].weights - found[1].weights).max() > 1e-6
