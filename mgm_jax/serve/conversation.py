"""Messages of OpenAI's form -> the conversation that the model reads, and how to answer it."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable

from PIL import Image

from mgm_jax.generate.chat import number_pictures
from mgm_jax.generate.prompts import Request
from mgm_jax.generate.sampling import Sampling
from mgm_jax.imagegen import GEN
from mgm_jax.ocr import fit_hint, read_text
from mgm_jax.serve.errors import ApiError
from mgm_jax.serve.media import Limits
from mgm_jax.serve.schema import ChatBody, ImagePart, Message
from mgm_jax.text import IMAGE_TEXT, Turn, images_first

SYSTEM = ("system", "developer")
MAX_STOPS = 16


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What the engine is asked, and the texts that OCR hinted at."""

    request: Request
    ocr: tuple[str, ...]


def read_messages(
    body: ChatBody,
    limits: Limits,
    read: Callable[[str, str], Image.Image],
    tokenizer,
    ocr_tokens: int,
) -> Conversation:
    """`read(url, field)` gives a picture. Pictures keep their places between texts; those that all
    stand behind a message's text go in front of it, as in training. With `ocr`, each message with
    pictures ends in a hint of the texts in them, of at most `ocr_tokens` tokens.

    ApiError 400 names the message that does not fit. Decodes pictures: not for the event loop.
    """
    found = sum(isinstance(p, ImagePart) for m in body.messages for p in m.parts())
    if found > limits.pictures:
        message = f"found {found} pictures, expected at most {limits.pictures} in a request"
        raise ApiError(400, message, param="messages", code="too_many_images")
    system, turns, images, texts = [], [], [], []
    for n, message in enumerate(body.messages):
        if message.role in SYSTEM and not turns:
            system.append(_system_text(message, f"messages.{n}"))
            continue
        expected = "assistant" if len(turns) % 2 else "user"
        if message.role != expected:
            text = f"messages.{n}.role is {message.role!r}, expected {expected!r}: user and "
            text += "assistant alternate, system messages stand in front"
            raise ApiError(400, text, param=f"messages.{n}.role")
        text, shown = _turn(message, n, read)
        if body.ocr and shown:
            hint, used = fit_hint([t for s in shown for t in read_text(s)], tokenizer, ocr_tokens)
            text += literal(hint)
            texts += used
        turns.append(Turn(message.role, text))
        images += shown
    if not len(turns) % 2:
        raise ApiError(400, "the last message is not the user's", param="messages")
    if body.generate_image:
        turns[-1] = Turn("user", turns[-1].text + GEN)
    first = [("system", "\n".join(system))] if system else []
    return Conversation(Request([*first, *number_pictures(turns)], images), tuple(texts))


def literal(text: str) -> str:
    """A text of which no part is taken for a picture's placeholder."""
    return text.replace(IMAGE_TEXT, f"{IMAGE_TEXT[0]} {IMAGE_TEXT[1:]}")


def _system_text(message: Message, field: str) -> str:
    if any(isinstance(p, ImagePart) for p in message.parts()):
        raise ApiError(400, f"{field}: a system message holds no picture", param=field)
    return literal("\n".join(p.text for p in message.parts()))


def _turn(message: Message, n: int, read) -> tuple[str, list[Image.Image]]:
    lines, images = [], []
    for k, part in enumerate(message.parts()):
        field = f"messages.{n}.content.{k}"
        if not isinstance(part, ImagePart):
            lines.append(literal(part.text))
        elif message.role == "assistant":
            raise ApiError(400, f"{field}: only users show pictures", param=field)
        else:
            lines.append(IMAGE_TEXT)
            images.append(read(part.image_url.url, f"{field}.image_url.url"))
    last_text = max((k for k, line in enumerate(lines) if line != IMAGE_TEXT), default=-1)
    behind = IMAGE_TEXT not in lines[: last_text + 1]
    text = "\n".join(lines)
    if not text.strip():
        raise ApiError(400, f"messages.{n} is empty", param=f"messages.{n}.content")
    return (images_first(text) if images and behind else text), images


def read_sampling(body: ChatBody, limits: Limits) -> Sampling:
    """How the answer is drawn: greedy unless a temperature is given. ApiError 400."""
    tokens = body.max_completion_tokens
    tokens = body.max_tokens if tokens is None else tokens
    tokens = limits.tokens if tokens is None else tokens
    if not 1 <= tokens <= limits.tokens:
        text = f"max_tokens is {tokens}, expected 1 to {limits.tokens}, this server's limit"
        raise ApiError(400, text, param="max_tokens")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stop) > MAX_STOPS:
        text = f"found {len(stop)} stop strings, expected at most {MAX_STOPS}"
        raise ApiError(400, text, param="stop")
    given = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
    return Sampling(
        max_new_tokens=tokens,
        seed=secrets.randbits(32) if body.seed is None else body.seed % 2**32,
        stop=stop,
        logprobs=bool(body.logprobs),
        **{name: value for name, value in given.items() if value is not None},
    )
