"""How the next token is drawn: settings of a request, and the draw for a batch of rows.

B rows, V vocabulary. The settings of a row are data, so that rows of all kinds share one program;
its key depends on its own seed, number and step, so that an answer never depends on the batch that
it sat in.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one answer is drawn; the default is greedy.

    max_new_tokens: tokens of the answer at most, its stop id included.
    temperature: logits are divided by it; 0 takes the most likely token (with beams: the most
        likely sequences).
    top_p: draws from the likeliest tokens that together have this probability; 1 is off.
    top_k: draws from so many of the likeliest tokens; 0 is off.
    num_beams: sequences that a beam search keeps (`beams.beam_search`); 1 is no search.
    seed: of the draws, 0 to 2**32 - 1.
    stop: strings that end the answer and are not part of it, besides those of the template.
    logprobs: whether the answer comes with the log-probability of each of its tokens.

    ValueError names a value that is out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: bool = False

    def __post_init__(self):
        def check(name: str, fits: bool, expected: str):
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {expected}")

        for name, low, high in _INTEGERS:
            value, up_to = getattr(self, name), f" to {high}" if high else " or more"
            whole = isinstance(value, int) and not isinstance(value, bool)
            check(name, whole and low <= value <= (high or value), f"an integer, {low}{up_to}")
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            check(name, number, "a number")
        check("temperature", 0 <= self.temperature < float("inf"), "0 or more")
        check("top_p", 0 < self.top_p <= 1, "more than 0, up to 1")
        strings = isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop)
        check("stop", strings, "a tuple of strings that are not empty")
        check("logprobs", isinstance(self.logprobs, bool), "a bool")


_INTEGERS = (  # field, least, most
    ("max_new_tokens", 1, None),
    ("top_k", 0, None),
    ("num_beams", 1, None),
    ("seed", 0, 2**32 - 1),
)


def request_keys(seeds, numbers):
    """Seeds of requests and their numbers, each [B] -> keys [B].

    `numbers` tell apart requests of one seed (the lines of a file, say).
    """

    def one(seed, number):
        return jax.random.fold_in(jax.random.key(seed), number)

    return jax.vmap(one)(jnp.asarray(seeds, jnp.uint32), jnp.asarray(numbers, jnp.uint32))


def step_keys(keys, steps):
    """Keys of requests [B] and the steps of their answers, [B] or one number -> keys [B]."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(steps, keys.shape))


def sample(logits, keys, temperature, top_p, top_k):
    """Draws a token for each row: logits [B, V], `step_keys` [B], settings [B] -> (token, logprob).

    Token [B] int32: the likeliest where the temperature is 0. Logprob [B] float32: of that token
    under the logits as they are, without settings. Computed in float32.
    """
    logits = logits.astype(jnp.float32)
    best = jnp.argmax(logits, -1).astype(jnp.int32)

    def draw():
        warm = jnp.where(temperature > 0, temperature, 1.0)
        scores = restrict(logits / warm[:, None], top_p, top_k)
        drawn = jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)
        return jnp.where(temperature > 0, drawn, best)

    token = jax.lax.cond((temperature > 0).any(), draw, lambda: best)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token, chosen - jax.nn.logsumexp(logits, axis=-1)


def restrict(scores, top_p, top_k, keep: int = 1):
    """Scores [B, V] with -inf for all but the top k, and of these but the top p.

    top_p, top_k [B], as in `Sampling`; `keep`: tokens that stay in any case. The order (k, then p)
    and the edges are those of transformers: ties with the last token stay, and the token that
    reaches p does.
    """

    def cut():
        ranked = -jnp.sort(-scores, axis=-1)  # [B, V], best first
        rank = jnp.arange(ranked.shape[-1])
        k = jnp.where(top_k > 0, jnp.maximum(top_k, keep), ranked.shape[-1])
        inside = rank < k[:, None]
        probability = jax.nn.softmax(jnp.where(inside, ranked, -jnp.inf), axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability  # of all that is likelier
        within_p = (before < top_p[:, None]) | (top_p[:, None] >= 1)
        inside &= within_p | (rank < keep)
        least = jnp.min(jnp.where(inside, ranked, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(scores >= least, scores, -jnp.inf)

    return jax.lax.cond(((top_p < 1) | (top_k > 0)).any(), cut, lambda: scores)


def top_two_margin(logits):
    """Logits [B, V] -> how far the best is above the second best, [B] float32.

    Where it is tiny, another order of summation may choose the other token.
    """
    logits = logits.astype(jnp.float32)
    best = jnp.argmax(logits, -1, keepdims=True)
    others = jnp.where(jnp.arange(logits.shape[-1]) == best, -jnp.inf, logits)
    return jnp.max(logits, -1) - jnp.max(others, -1)
