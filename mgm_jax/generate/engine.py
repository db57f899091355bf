"""Batched greedy generation: prefill, then one compiled decoding loop over a KV cache.

B requests, T prompt tokens (right-padded), S = T + new cache slots. Decoded tokens share cache
slots T, T + 1, ... across the batch; positions are each row's own, so padding changes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mgm_jax.data.examples import Example, batch_rows, cut, expand
from mgm_jax.data.images import load_image, to_hr
from mgm_jax.models.decoder import empty_cache
from mgm_jax.models.mgm import Mgm
from mgm_jax.text import IGNORE, IMAGE_TEXT, Turn, encode_prompt, get_template, stop_rule

_log = logging.getLogger(__name__)
BUCKET = 32  # prompt lengths are rounded up to a multiple of this, so that few shapes compile


@dataclasses.dataclass(frozen=True)
class Request:
    """One conversation to continue: `messages` are (role, text), the last one the user's.

    `images` are paths, files or PIL pictures, one for each `<image>` in the texts in order; if no
    text has one, they go in front of the first user turn, as in training.
    """

    messages: Sequence[tuple[str, str]]
    images: Sequence[Any] = ()

    def turns(self) -> list[Turn]:
        """The turns with their placeholders; ValueError if they do not match the pictures."""
        turns = [Turn(*m) for m in self.messages]
        found = sum(text.count(IMAGE_TEXT) for _, text in turns)
        if not found and self.images and turns:
            role, text = turns[0]
            turns[0] = Turn(role, f"{IMAGE_TEXT}\n" * len(self.images) + text)
        elif found != len(self.images):
            raise ValueError(
                f"request: {found} {IMAGE_TEXT} in the messages, but {len(self.images)} picture(s)"
            )
        return turns


@functools.partial(jax.jit, static_argnames=("model", "new", "stop"))
def greedy(model: Mgm, params, batch, *, new: int, stop: tuple[int, ...]):
    """Prompts of the batch contract -> most likely continuations [B, new] int32.

    A row ends with the first id of `stop` (kept); what follows is -1.
    """
    apply = functools.partial(model.apply, {"params": params})
    lengths = (batch["segments"] > 0).sum(-1)  # [B]
    b, t = batch["segments"].shape
    cache = empty_cache(model.cfg.llm, b, t + new, jnp.dtype(model.dtype))
    logits, cache = apply(batch, cache, method="prefill")
    slots = jnp.arange(t + new)
    prompt = slots < lengths[:, None]  # [B, S]

    def is_stop(token):
        return jnp.isin(token, jnp.asarray(stop, jnp.int32)) if stop else jnp.zeros(b, bool)

    def advance(carry):
        i, token, done, tokens, cache = carry
        mask = prompt | ((slots >= t) & (slots <= t + i))
        logits, cache = apply(token, lengths + i, mask, cache, t + i, method="decode")
        token = jnp.argmax(logits, -1).astype(jnp.int32)
        tokens = tokens.at[:, i + 1].set(jnp.where(done, -1, token))
        return i + 1, token, done | is_stop(token), tokens, cache

    token = jnp.argmax(logits, -1).astype(jnp.int32)
    tokens = jnp.full((b, new), -1, jnp.int32).at[:, 0].set(token)
    carry = (jnp.int32(0), token, is_stop(token), tokens, cache)
    carry = jax.lax.while_loop(lambda c: (c[0] < new - 1) & ~c[2].all(), advance, carry)
    return carry[3]


def fit(prompt: Example, max_length: int | None, infer_truncate: str) -> Example:
    """A prompt of at most `max_length` positions, pictures included (MGM_SPEC 2.4, 10.1).

    `infer_truncate`: what happens to a longer one: "error" (ValueError), "warn" (it is used as it
    is), or "cut", which drops its end in silence, as the original does.
    """
    if max_length is None or len(prompt) <= max_length:
        return prompt
    if infer_truncate == "cut":
        return cut(prompt, max_length)
    message = (
        f"a prompt has {len(prompt)} tokens with its {len(prompt.images)} picture(s), more than "
        f"the {max_length} that the model was trained with (tokenizer_model_max_length)"
    )
    if infer_truncate == "error":
        raise ValueError(f"{message}; infer_truncate is 'error', 'warn' would use it all the same")
    _log.warning("%s", message)
    return prompt


def build_prompts(
    requests: Sequence[Request],
    model: Mgm,
    tokenizer,
    template,
    max_length: int | None = None,
    infer_truncate: str = "error",
    release: bool = False,
) -> dict:
    """Requests -> a batch of right-padded prompts with their pictures (one group)."""
    examples = []
    for request in requests:
        ids = encode_prompt(template, request.turns(), tokenizer, release)
        prompt = expand(ids, [IGNORE] * len(ids), model.cfg.visual_tokens, request.images)
        examples.append(fit(prompt, max_length, infer_truncate))
    longest = max(len(e) for e in examples)
    slots = max(1, sum(len(e.images) for e in examples))
    batch, (pictures,) = batch_rows(
        examples,
        length=-(-longest // BUCKET) * BUCKET,
        groups=1,
        slots=-(-slots // len(requests)) * len(requests),
        visual_tokens=model.cfg.visual_tokens,
    )
    size = model.cfg.image.hr_size
    images = np.zeros((1, len(pictures), size, size, 3), np.uint8)
    for m, picture in enumerate(pictures):
        if picture is not None:
            if not hasattr(picture, "getpixel"):  # a path or a file, not a PIL picture
                picture = load_image(picture)
            images[0, m] = to_hr(picture, model.cfg.image)
    return batch | {"images": images}


def generate(
    model: Mgm,
    params,
    tokenizer,
    template: str,
    requests: Sequence[Request],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    progress: bool = False,
    max_length: int | None = None,
    infer_truncate: str = "error",
    llama3_released_prompt: str = "current",
    cli_eos: str = "family",
) -> list[str]:
    """Greedy answers in the order of the requests, without the ids that end them.

    `max_length`, `infer_truncate`: see `fit`; `cli_eos`: see `text.stop_rule`;
    `llama3_released_prompt`: see `switches`. Raises ValueError for pictures that do not match their
    placeholders, ImageError for unreadable ones.
    """
    template = get_template(template)
    release = llama3_released_prompt == "release" and template.name.startswith("llama_3")
    how = (tokenizer, template, max_length, infer_truncate, release)
    stop_ids, stop_strings = stop_rule(template, tokenizer, cli_eos)
    answers = []
    starts = range(0, len(requests), batch_size)
    for start in tqdm(starts, desc="answers", unit="batch", disable=not progress):
        chunk = list(requests[start : start + batch_size])
        filled = chunk + [chunk[-1]] * (min(batch_size, len(requests)) - len(chunk))
        batch = build_prompts(filled, model, *how)
        tokens = greedy(model, params, batch, new=max_new_tokens, stop=tuple(sorted(stop_ids)))
        for row in np.asarray(tokens)[: len(chunk)]:
            text = tokenizer.decode([int(i) for i in row if i >= 0 and i not in stop_ids])
            for stop in stop_strings:
                text = text.split(stop)[0]
            answers.append(text.strip())
    return answers
