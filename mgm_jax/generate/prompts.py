"""Requests -> the batch of prompts that a model reads: right-padded token rows and pictures."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from mgm_jax.data.examples import Example, batch_rows, cut, expand
from mgm_jax.data.images import load_image, to_hr
from mgm_jax.models.mgm import Mgm
from mgm_jax.text import IGNORE, IMAGE_TEXT, Turn, encode_prompt

_log = logging.getLogger(__name__)
BUCKET = 32  # prompt lengths are rounded up to a multiple of this, so that few shapes compile


@dataclasses.dataclass(frozen=True)
class Request:
    """One conversation to continue: `messages` are (role, text), the last one the user's.

    A first message of the role "system" takes the place of the template's own system text.
    `images` are paths, files or PIL pictures, one for each `<image>` in the texts in order; if no
    text has one, they go in front of the first user turn, as in training.
    """

    messages: Sequence[tuple[str, str]]
    images: Sequence[Any] = ()

    @property
    def system(self) -> str | None:
        """The system text, if the messages have one."""
        return self.messages[0][1] if self.messages and self.messages[0][0] == "system" else None

    def turns(self) -> list[Turn]:
        """The turns with their placeholders; ValueError if they do not match the pictures."""
        turns = [Turn(*m) for m in self.messages[0 if self.system is None else 1 :]]
        found = sum(text.count(IMAGE_TEXT) for _, text in turns)
        if not found and self.images and turns:
            role, text = turns[0]
            turns[0] = Turn(role, f"{IMAGE_TEXT}\n" * len(self.images) + text)
        elif found != len(self.images):
            raise ValueError(
                f"request: {found} {IMAGE_TEXT} in the messages, but {len(self.images)} picture(s)"
            )
        return turns


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


def encode_request(
    request: Request,
    visual_tokens: int,
    tokenizer,
    template,
    max_length: int | None = None,
    infer_truncate: str = "error",
    release: bool = False,
) -> Example:
    """A request as token arrays, its pictures not yet read; ValueError where it does not `fit`."""
    if request.system is not None:
        template = template.with_system(request.system)
    ids = encode_prompt(template, request.turns(), tokenizer, release)
    prompt = expand(ids, [IGNORE] * len(ids), visual_tokens, request.images)
    return fit(prompt, max_length, infer_truncate)


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
    how = (model.cfg.visual_tokens, tokenizer, template, max_length, infer_truncate, release)
    examples = [encode_request(request, *how) for request in requests]
    longest = max(len(e) for e in examples)
    slots = max(1, sum(len(e.images) for e in examples))
    batch, (pictures,) = batch_rows(
        [[e] for e in examples],
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
