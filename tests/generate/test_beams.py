"""Beam search against transformers' on the same weights, token by token (float32)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgm_jax.generate.batches import greedy
from mgm_jax.generate.beams import Beams, beam_search, choose
from mgm_jax.generate.sampling import request_keys
from tests.generate.conftest import VOCABULARY, text_batch

NEW = 12
LENGTHS = (9, 4, 7, 9, 5, 3)
PROMPTS = [np.random.default_rng(i).integers(3, VOCABULARY, n) for i, n in enumerate(LENGTHS)]


def theirs(model, row, stop, beams):
    import torch

    found = model.generate(
        torch.from_numpy(row[None]),
        max_new_tokens=NEW,
        num_beams=beams,
        do_sample=False,
        eos_token_id=list(stop) or None,
        pad_token_id=0,
    )[0, len(row) :]
    return found.tolist()


def ours(row, stop):
    """Up to the stop id, which is kept."""
    return [int(i) for i in row if i >= 0]


def upto_stop(tokens, stop):
    ends = [i for i, t in enumerate(tokens) if t in stop]
    return tokens[: ends[0] + 1] if ends else tokens


@pytest.mark.parametrize("beams,stop", [(3, tuple(range(3, 30))), (4, ())])
def test_search_equals_transformers(llama_pair, beams, stop):
    """Many stop ids, so that sequences of all lengths end and compete; and none at all."""
    module, params, model = llama_pair
    batch = text_batch(PROMPTS, 12)
    found = np.asarray(beam_search(module, params, batch, new=NEW, stop=stop, beams=beams))
    expected = [upto_stop(theirs(model, row, stop, beams), stop) for row in PROMPTS]
    assert [ours(row, stop) for row in found] == expected
    assert len({len(e) for e in expected}) > 1 or not stop
    likeliest = np.asarray(greedy(module, params, batch, new=NEW, stop=stop))
    assert (found != likeliest).any()  # a search that is none would not be seen


def test_sampled_beams_depend_on_their_key_alone(llama_pair):
    """Other rows and other places in the batch change nothing; another seed does."""
    module, params, _ = llama_pair

    def search(rows, seed=1):
        keys = request_keys([seed] * len(rows), rows)
        batch = text_batch([PROMPTS[i] for i in rows], 12)
        settings = dict(keys=keys, temperature=1.5, top_k=20)
        return np.asarray(
            beam_search(module, params, batch, new=NEW, stop=(7,), beams=3, **settings)
        )

    found = search([0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(search([5, 4, 3, 2, 1, 0]), found[::-1])
    assert (search([0, 1, 2, 3, 4, 5], seed=2) != found).any()


def test_sampled_candidates_are_drawn_without_replacement():
    """One step of one beam: of two candidates, drawn with P = p_i p_j / (1 - p_i), the likelier
    one runs on."""
    p, n = np.array([0.5, 0.25, 0.15, 0.1]), 6000
    scores = np.log(np.broadcast_to(p, (n, 4))).astype(np.float32)
    nothing, zeros = jnp.full((n, 1, 3), -1, jnp.int32), jnp.zeros((n, 1))
    state = Beams(0, nothing, zeros, nothing, zeros - 1e9, jnp.ones(n, bool), False)
    keys = request_keys([0] * n, np.arange(n))
    state, _ = jax.jit(choose, static_argnames="stop")(state, scores, stop=(), keys=keys)
    counts = np.bincount(state.running[:, 0, 0], minlength=4)
    chance = np.zeros(4)
    for i, j in itertools.permutations(range(4), 2):
        chance[min(i, j)] += p[i] * p[j] / (1 - p[i])
    assert (np.abs(counts - n * chance) <= 5 * np.sqrt(n * chance * (1 - chance)) + 1e-9).all()
