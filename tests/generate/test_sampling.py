"""Draws against transformers' processors and against the probabilities that they leave."""

import jax
import numpy as np
import pytest

from mgm_jax.generate.sampling import (
    Sampling,
    request_keys,
    restrict,
    sample,
    step_keys,
    top_two_margin,
)

V = 12
LOGITS = np.random.default_rng(0).normal(size=(4, V)).astype(np.float32) * 2


def settings(rows, temperature=1.0, top_p=1.0, top_k=0):
    one = (np.float32(temperature), np.float32(top_p), np.int32(top_k))
    return tuple(np.full(rows, x) for x in one)


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("top_p,top_k", [(1.0, 0), (0.7, 0), (1.0, 4), (0.6, 5), (0.01, 1)])
def test_restricted_scores_are_those_of_transformers(top_p, top_k, keep):
    torch = pytest.importorskip("torch", reason="PyTorch is the independent reference")
    generation = pytest.importorskip("transformers.generation", reason="the reference")
    expected = torch.from_numpy(LOGITS)
    if top_k:
        expected = generation.TopKLogitsWarper(top_k, min_tokens_to_keep=keep)(None, expected)
    if top_p < 1:
        expected = generation.TopPLogitsWarper(top_p, min_tokens_to_keep=keep)(None, expected)
    _, p, k = settings(4, 1.0, top_p, top_k)
    np.testing.assert_array_equal(restrict(LOGITS, p, k, keep), expected.numpy())


def test_greedy_rows_and_log_probabilities():
    keys = request_keys([0] * 4, np.arange(4))
    token, logprob = jax.jit(sample)(LOGITS, keys, *settings(4, 0.0, 0.5, 3))
    np.testing.assert_array_equal(token, LOGITS.argmax(-1))
    expected = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(-1, keepdims=True))
    np.testing.assert_allclose(logprob, expected.max(-1), atol=1e-6)
    ordered = np.sort(LOGITS, -1)
    np.testing.assert_allclose(top_two_margin(LOGITS), ordered[:, -1] - ordered[:, -2], rtol=1e-6)


def test_draws_follow_the_probabilities():
    """20,000 draws of one row: each token within 5 standard deviations; none outside of top k."""
    n, temperature, top_k = 20000, 0.8, 6
    logits = np.broadcast_to(LOGITS[:1], (n, V))
    keys = step_keys(request_keys([7] * n, [0] * n), np.arange(n))
    token, _ = jax.jit(sample)(logits, keys, *settings(n, temperature, 1.0, top_k))
    scores = LOGITS[0].astype(np.float64) / temperature
    p = np.where(scores >= np.sort(scores)[-top_k], np.exp(scores), 0)
    p /= p.sum()
    counts = np.bincount(token, minlength=V)
    assert (counts[p == 0] == 0).all()
    assert (np.abs(counts - n * p) <= 5 * np.sqrt(n * p * (1 - p))).all()


def test_a_draw_depends_on_its_own_row_alone():
    """The same row in another batch, beside rows with other settings; other keys differ."""
    draw = jax.jit(sample)
    logits = np.broadcast_to(LOGITS[:1], (64, V))
    seeds, numbers, steps = np.full(64, 3), np.arange(64) // 8, np.arange(64) % 8
    together, _ = draw(logits, step_keys(request_keys(seeds, numbers), steps), *settings(64, 2.0))
    mixed = [np.array(a) for a in settings(4, 2.0)]
    mixed[0][1:], mixed[2][2] = 0.0, 3  # temperature, top_k of the others
    for row in (0, 9, 63):
        keys = request_keys([3, 1, 1, 1], [numbers[row], 0, 1, 2])
        keys = step_keys(keys, np.array([steps[row], 0, 0, 0]))
        assert draw(LOGITS[[0, 1, 2, 3]], keys, *mixed)[0][0] == together[row]
    assert len(set(np.asarray(together).tolist())) > 4


@pytest.mark.parametrize(
    "values,words",
    [
        (dict(max_new_tokens=0), "max_new_tokens is 0, expected an integer, 1 or more"),
        (dict(temperature=-0.1), "temperature is -0.1, expected 0 or more"),
        (dict(temperature=float("nan")), "temperature is nan"),
        (dict(temperature="hot"), "temperature is 'hot', expected a number"),
        (dict(top_p=0.0), "top_p is 0.0, expected more than 0"),
        (dict(top_p=True), "top_p is True"),
        (dict(top_k=-1), "top_k is -1"),
        (dict(top_k=2.5), "top_k is 2.5, expected an integer"),
        (dict(num_beams=0), "num_beams is 0"),
        (dict(seed=2**32), "seed is 4294967296, expected an integer, 0 to 4294967295"),
        (dict(stop="###"), "stop is '###', expected a tuple of strings"),
        (dict(stop=("",)), "stop is"),
        (dict(logprobs=1), "logprobs is 1, expected a bool"),
    ],
)
def test_settings_out_of_range(values, words):
    with pytest.raises(ValueError) as caught:
        Sampling(**values)
    assert words in str(caught.value)
