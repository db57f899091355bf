"""Greedy decoding with a KV cache against the original's (float32, CPU).

Scores 2e-4 at every step, with the original's tokens fed back; free-running tokens are equal up to
the first step whose two best scores are within 1e-3 of each other.
"""

import jax
import numpy as np
import pytest
from golden_case import IGNORE, make_batch

from mgm_jax.generate.batches import greedy
from mgm_jax.models.decoder import empty_cache

NEW = 20
ROWS, LENGTH = 3, 48  # one shape for all, so that everything compiles once

PROMPTS = {  # tag -> (ids key, pictures of each row)
    "gen0": ("gen0", [["0"]]),
    "gen1": ("gen1", [["0", "1"]]),
    "gen2_textonly_with_dummy_image": ("gen2", [["2"]]),
    "gen3_textonly_no_image": ("gen2", [[]]),
    "genb_left": ("genb", [["0"], ["1"], ["2"]]),
}


def prompt(golden, features, tag):
    key, images = PROMPTS[tag]
    ids = golden["inputs"][f"{key}_input_ids"]
    mask = golden["inputs"].get(f"{key}_attention_mask", np.ones_like(ids))
    labels = np.full_like(ids, IGNORE)
    return make_batch(features, ids, labels, mask, images, length=LENGTH, rows=ROWS)


@pytest.fixture(scope="module")
def steps(loaded):
    model, params = loaded

    @jax.jit
    def prefill(batch):
        cache = empty_cache(model.cfg.llm, ROWS, LENGTH + NEW)
        return model.apply({"params": params}, batch, cache, method="prefill")

    @jax.jit
    def decode(*args):
        return model.apply({"params": params}, *args, method="decode")

    return prefill, decode


@pytest.mark.parametrize("tag", list(PROMPTS))
def test_tokens(golden, loaded, features, tag):
    model, params = loaded
    g = golden["generate"]
    found = np.asarray(greedy(model, params, prompt(golden, features, tag), new=NEW, stop=()))
    for row, expected in enumerate(g[f"{tag}_tokens"]):
        close = np.flatnonzero(g[f"{tag}_margins"][row] < 1e-3)
        sure = close[0] if len(close) else NEW
        assert sure > 0
        np.testing.assert_array_equal(found[row, :sure], expected[:sure])


@pytest.mark.parametrize("tag", list(PROMPTS))
def test_scores_of_prefill_and_every_step(golden, features, steps, tag):
    prefill, decode = steps
    batch = prompt(golden, features, tag)
    tokens, scores = (golden["generate"][f"{tag}_{k}"] for k in ("tokens", "scores"))
    rows = len(tokens)
    fed = np.zeros((ROWS, NEW), np.int32)
    fed[:rows] = tokens
    lengths = (batch["segments"] > 0).sum(-1)
    slots = np.arange(LENGTH + NEW)
    logits, cache = prefill(batch)
    for i in range(NEW):
        np.testing.assert_allclose(logits[:rows], scores[:, i], atol=2e-4, rtol=0)
        mask = (slots < lengths[:, None]) | ((slots >= LENGTH) & (slots <= LENGTH + i))
        logits, cache = decode(fed[:, i], lengths + i, mask, cache, LENGTH + i)


def test_prompts_of_different_lengths_do_not_disturb_each_other(golden, loaded, features):
    """Each row of a mixed batch continues as it does alone."""
    model, params = loaded
    together = prompt(golden, features, "genb_left")
    lengths = (together["segments"] > 0).sum(-1)
    assert len(set(lengths)) == ROWS
    found = np.asarray(greedy(model, params, together, new=NEW, stop=()))
    for row in range(ROWS):
        alone = {
            k: np.where((np.arange(ROWS) == row)[:, None], v, -1 if k == "visual_index" else 0)
            for k, v in together.items()
            if k != "features"
        }
        alone["features"] = together["features"]
        np.testing.assert_array_equal(
            found[row], np.asarray(greedy(model, params, alone, new=NEW, stop=()))[row]
        )


def test_a_row_ends_at_its_first_stop_id(golden, loaded, features):
    """gen0 stops where the original does; with two ids, each row ends at the earlier; then -1."""
    model, params = loaded
    g = golden["generate"]
    eos, expected = int(g["gen0_eos_id"]), g["gen0_eos_tokens"].reshape(-1)
    batch = prompt(golden, features, "genb_left")
    free = np.asarray(greedy(model, params, batch, new=NEW, stop=()))
    stop = (eos, int(free[1, 2]))
    found = np.asarray(greedy(model, params, batch, new=NEW, stop=stop))
    for row in range(ROWS):
        ends = np.flatnonzero(np.isin(free[row], stop))
        end = ends[0] + 1 if len(ends) else NEW
        np.testing.assert_array_equal(found[row, :end], free[row, :end])
        assert (found[row, end:] == -1).all()
    first = np.asarray(
        greedy(model, params, prompt(golden, features, "gen0"), new=NEW, stop=(eos,))
    )
    np.testing.assert_array_equal(first[0][first[0] >= 0], expected)
