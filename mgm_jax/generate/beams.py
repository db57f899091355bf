"""Beam search and beam sampling, with the semantics of transformers (MGM_SPEC 7.2).

B requests, K beams each, C candidates of a step, T prompt tokens, V vocabulary. A search keeps the
K best running sequences, and the K best finished ones by their mean log-probability (length penalty
1). A request is done when its best running sequence cannot become better than its worst finished
one at the present length (early stopping off).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mgm_jax.generate.sampling import restrict, step_keys
from mgm_jax.models.decoder import empty_cache, for_decoding
from mgm_jax.models.mgm import Mgm

NEVER = -1e9  # the score of what cannot be chosen; finite, as there


class Beams(NamedTuple):
    """The state of a search. Sequences hold -1 where nothing has been written."""

    step: jax.Array  # tokens written, []
    running: jax.Array  # [B, K, new]
    scores: jax.Array  # sum of log-probabilities, [B, K]
    finished: jax.Array  # [B, K, new], best first
    finished_scores: jax.Array  # mean log-probability, NEVER where there is none, [B, K]
    open: jax.Array  # whether the request can still improve, [B]
    exhausted: jax.Array  # whether no candidate of the last step goes on, []


@functools.partial(jax.jit, static_argnames=("model", "new", "stop", "beams"))
def beam_search(
    model: Mgm,
    params,
    batch,
    *,
    new: int,
    stop: tuple[int, ...],
    beams: int,
    keys=None,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
):
    """Prompts of the batch contract -> the best finished sequences [B, new] int32.

    A sequence ends with an id of `stop` (kept) or at `new` tokens; what follows is -1. Without
    `keys` the candidates of a step are the most likely ones. With `request_keys` [B] they are drawn
    without replacement from the running sequences' continuations under `temperature` (not 0),
    `top_p` and `top_k`, numbers or [B]: the original's decoding of MMMU.
    """
    apply = functools.partial(model.apply, {"params": params})
    lengths = (batch["segments"] > 0).sum(-1)  # [B]
    b, t = batch["segments"].shape
    settings = (jnp.broadcast_to(x, (b,)) for x in (temperature, top_p, top_k))
    temperature, top_p, top_k = (jnp.repeat(x, beams) for x in settings)  # [B*K]
    logits, cache = apply(
        batch, empty_cache(model.cfg.llm, b, t + new, jnp.dtype(model.dtype)), method="prefill"
    )
    params = for_decoding(params, model.cfg.llm.layers)
    apply = functools.partial(model.apply, {"params": params})
    cache = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), cache)
    lengths = jnp.repeat(lengths, beams)
    slots = jnp.arange(t + new)

    def score(logits):  # [B*K, V] float32
        scores = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        if keys is None:
            return scores
        return restrict(scores / temperature[:, None], top_p, top_k, keep=1 + len(stop))

    def advance(carry):
        state, cache = carry
        i = state.step - 1  # the newest token goes into cache slot t + i
        mask = (slots < lengths[:, None]) | ((slots >= t) & (slots <= t + i))
        tokens = state.running[:, :, i].reshape(-1)
        logits, cache = apply(tokens, lengths + i, mask, cache, t + i, method="decode")
        state, parents = choose(state, score(logits), stop, keys)
        return state, _follow(cache, parents, t)

    none = jnp.full((b, beams, new), -1, jnp.int32)
    alone = jnp.where(jnp.arange(beams) == 0, 0.0, NEVER)  # all beams start as one
    state = Beams(
        jnp.int32(0),
        none,
        jnp.broadcast_to(alone, (b, beams)),
        none,
        jnp.full((b, beams), NEVER),
        jnp.ones(b, bool),
        jnp.zeros((), bool),
    )
    state, _ = choose(state, score(jnp.repeat(logits, beams, axis=0)), stop, keys)
    state, _ = jax.lax.while_loop(
        lambda c: (c[0].step < new) & c[0].open.any() & ~c[0].exhausted, advance, (state, cache)
    )
    return state.finished[:, 0]


def choose(state: Beams, scores, stop, keys=None) -> tuple[Beams, jax.Array]:
    """One step: scores of the next tokens [B*K, V] -> (the new state, each beam's parent [B, K]).

    `stop`, `keys`: see `beam_search`.
    """
    b, beams, new = state.running.shape
    totals = scores.reshape(b, beams, -1) + state.scores[:, :, None]
    vocabulary, totals = totals.shape[-1], totals.reshape(b, -1)  # [B, K*V]
    noisy = totals
    if keys is not None:  # Gumbel's trick: the largest are a draw without replacement
        now = step_keys(keys, state.step)
        noisy += jax.vmap(lambda key: jax.random.gumbel(key, totals.shape[1:]))(now)
    _, index = jax.lax.top_k(noisy, max(2, 1 + len(stop)) * beams)  # [B, C]
    totals = jnp.take_along_axis(totals, index, axis=1)
    parents, tokens = index // vocabulary, (index % vocabulary).astype(jnp.int32)
    sequences = _take(state.running, parents).at[:, :, state.step].set(tokens)  # [B, C, new]
    ends = jnp.isin(tokens, jnp.asarray(stop, jnp.int32)) | (state.step + 1 == new)

    # The candidates that go on, best first.
    running, order = jax.lax.top_k(jnp.where(ends, totals + NEVER, totals), beams)

    # Those that end join the finished ones, if they are among the first K of the step.
    joins = ends & (jnp.arange(ends.shape[1]) < beams) & state.open[:, None]
    means = jnp.where(joins, totals / (state.step + 1), NEVER)
    merged = jnp.concatenate([state.finished_scores, means], axis=1)
    finished_scores, kept = jax.lax.top_k(merged, beams)
    finished = _take(jnp.concatenate([state.finished, sequences], axis=1), kept)

    # With a place among the finished free, any sequence that goes on improves them.
    improves = running[:, 0] / (state.step + 1) > finished_scores[:, -1]
    state = Beams(
        state.step + 1,
        _take(sequences, order),
        running,
        finished,
        finished_scores,
        state.open & improves,
        ends.all(),
    )
    return state, jnp.take_along_axis(parents, order, axis=1)


def _take(sequences, index):
    """Sequences [B, N, new] at index [B, M] -> [B, M, new]."""
    return jnp.take_along_axis(sequences, index[:, :, None], axis=1)


def _follow(cache, parents, t: int):
    """The cache of each beam continues its parent's; the prompt's t slots are the same for all."""
    b, beams = parents.shape
    rows = (jnp.arange(b)[:, None] * beams + parents).reshape(-1)
    return jax.tree.map(lambda x: x.at[:, :, t:].set(x[rows, :, t:]), cache)
