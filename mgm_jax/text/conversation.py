"""Conversations: records to turns, turns to segments, segments to ids and loss masks.

A template renders turns into segments `(text, carries_loss)`. The segments are joined, the joined
text is cut at its image placeholders, and each text between two of them is tokenised in one call;
a token carries loss if its first character lies in a segment that does. So a mask is a property of
the rendered text, and no length is ever re-measured to make one.
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from mgm_jax.text.templates import IMAGE_ID, IMAGE_TEXT, Template

ROLES = ("user", "assistant")
_SPEAKERS = {"human": "user", "gpt": "assistant"}


class Turn(NamedTuple):
    """One message: `role` is "user" or "assistant"."""

    role: str
    text: str


class Segment(NamedTuple):
    """A stretch of rendered text, and whether the model is trained to produce it."""

    text: str
    carries_loss: bool


class RecordError(ValueError):
    """A record that cannot be trained on; `kind` names what is wrong in a word."""

    def __init__(self, message: str, kind: str = "record"):
        super().__init__(message)
        self.kind = kind


def turns_from_record(record: dict, where: str = "record") -> tuple[Turn, ...]:
    """The turns of a LLaVA record's `conversations`, starting with the user's (MGM_SPEC 5.4.1).

    One leading turn that is not the human's is dropped, as the original does.

    Raises:
        RecordError: no conversations, an unknown speaker, a text that is no string, or turns that
            do not alternate; the message starts with `where`.
    """
    if not isinstance(record, dict):
        raise RecordError(f"{where}: found a {type(record).__name__}, expected a dict")
    conversations = record.get("conversations")
    if not isinstance(conversations, list | tuple) or not conversations:
        raise RecordError(f"{where}: conversations is {conversations!r}, expected a list of turns")
    turns = []
    for n, message in enumerate(conversations):
        if not isinstance(message, dict) or message.get("from") not in _SPEAKERS:
            speaker = message.get("from") if isinstance(message, dict) else message
            raise RecordError(
                f"{where}: conversations[{n}] is from {speaker!r}, expected 'human' or 'gpt'",
                "role",
            )
        if not isinstance(text := message.get("value"), str):
            raise RecordError(f"{where}: conversations[{n}].value is {text!r}, expected a string")
        turns.append(Turn(_SPEAKERS[message["from"]], text))
    if turns[0].role != "user":
        turns = turns[1:]
    check_alternation(turns, where)
    return tuple(turns)


def check_alternation(turns: Sequence[Turn], where: str) -> None:
    """Raises RecordError unless turns go user, assistant, user, ... and there is at least one."""
    if not turns:
        raise RecordError(
            f"{where}: no user turn, expected a conversation that the user starts", "alternation"
        )
    for n, (turn, role) in enumerate(zip(turns, itertools.cycle(ROLES), strict=False)):
        if turn[0] != role:
            raise RecordError(
                f"{where}: turn {n} is the role {turn[0]!r}, expected {role!r}: "
                "user and assistant alternate and the user starts",
                "alternation",
            )


def record_images(record: dict, where: str = "record") -> list[str]:
    """The picture names of a record's `image`: a name, a list of names, or none.

    Raises:
        RecordError: `image` is something else, or an empty list or name.
    """
    image = record.get("image")
    if image is None:
        return []
    names = list(image) if isinstance(image, list | tuple) else [image]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise RecordError(f"{where}: image is {image!r}, expected a file name or a list of them")
    return names


def images_first(text: str, collapse: bool = False) -> str:
    """Moves the placeholders of a turn to its front, a line each (MGM_SPEC 5.4.2).

    `collapse` keeps only one of several, as the original does. A text without any is unchanged.
    """
    if not (count := text.count(IMAGE_TEXT)):
        return text
    lines = [IMAGE_TEXT] * (1 if collapse else count)
    return "\n".join([*lines, text.replace(IMAGE_TEXT, "").strip()]).strip()


def render(
    template: Template, turns: Sequence[Turn], open_turn: bool = False
) -> tuple[Segment, ...]:
    """Renders turns into segments; `open_turn` ends with the header the model answers after.

    Raises:
        ValueError: the turns do not alternate from the user on, an open turn does not follow the
            user, the template holds one question and one answer only, or its first turn, which
            carries the system text, is empty.
    """
    check_alternation(turns, f"template {template.name}")
    if open_turn and turns[-1][0] != "user":
        raise ValueError(f"template {template.name}: an open turn has to follow the user's")
    if template.caption_only and len(turns) != (1 if open_turn else 2):
        raise ValueError(
            f"template {template.name}: found {len(turns)} turns, expected one question and "
            f"{'no' if open_turn else 'one'} answer"
        )
    if template.caption_only and not open_turn:
        pictures, caption = IMAGE_TEXT * turns[0][1].count(IMAGE_TEXT), turns[1][1]
        return Segment(pictures, False), Segment(caption + template.assistant.tail, True)

    if template.first_user is not None and not turns[0][1]:
        raise ValueError(f"template {template.name}: the first turn is empty, expected text")
    segments = [Segment(template.system, False)]
    for n, (name, text) in enumerate(turns):
        role = template.assistant if name == "assistant" else template.user
        if n == 0 and template.first_user is not None:
            role = template.first_user
        segments.append(Segment(role.header, False))
        if text:
            segments.append(Segment(role.lead + text + role.tail, name == "assistant"))
    if open_turn:
        segments.append(Segment(template.assistant.header, False))
    return tuple(segments)


def encode(
    segments: Sequence[Segment], tokenizer, images: bool = True, release: bool = False
) -> tuple[list[int], list[bool]]:
    """Ids of the joined segments with -200 for each `<image>`, and which ids carry loss.

    The bos id comes once, in front (MGM_SPEC 5.5). A token over a border belongs to the segment of
    its first character. Placeholders and bos never carry loss. `images=False` takes `<image>` for
    ordinary text. `release` is the quirk that MGM-8B was trained with (MGM_SPEC 5.6): bos comes
    even if the tokenizer adds none, and the first token behind each placeholder is left out.
    """
    text = "".join(segment.text for segment in segments)
    ends = list(itertools.accumulate(len(segment.text) for segment in segments))
    ids = [tokenizer.bos_id] if tokenizer.add_bos or release else []
    mask = [False] * len(ids)
    at = 0
    for n, piece in enumerate(text.split(IMAGE_TEXT) if images else [text]):
        if n:
            ids.append(IMAGE_ID)
            mask.append(False)
            at += len(IMAGE_TEXT)
        piece_ids, spans = tokenizer.encode_with_offsets(piece)
        skip = 1 if release and n else 0
        ids += piece_ids[skip:]
        for start, _ in spans[skip:]:
            segment = min(bisect.bisect_right(ends, at + start), len(ends) - 1)
            mask.append(segments[segment].carries_loss)
        at += len(piece)
    return ids, mask


def render_prompt(template: Template, turns: Sequence[Turn]) -> str:
    """The text to generate from: the history and the open turn of the assistant (MGM_SPEC 5.7)."""
    return "".join(segment.text for segment in render(template, turns, open_turn=True))


def encode_prompt(
    template: Template, turns: Sequence[Turn], tokenizer, release: bool = False
) -> list[int]:
    """The ids of `render_prompt`, with -200 for each `<image>`; `release`: see `encode`."""
    return encode(render(template, turns, open_turn=True), tokenizer, release=release)[0]


def stop_rule(
    template: Template, tokenizer, cli_eos: str = "family"
) -> tuple[frozenset[int], tuple[str, ...]]:
    """What ends an answer: token ids, and those stop strings that are no single special token.

    `cli_eos="family"` takes all that the template names; "tokenizer", as the original's command
    line, the tokenizer's end-of-sequence id alone.

    Raises:
        ValueError: `cli_eos` is something else.
    """
    if cli_eos not in ("family", "tokenizer"):
        raise ValueError(f"cli_eos is {cli_eos!r}, expected 'family' or 'tokenizer'")
    if cli_eos == "tokenizer":
        return frozenset({tokenizer.eos_id} - {-1}), ()
    ids = {tokenizer.special_tokens[s] for s in template.stop if s in tokenizer.special_tokens}
    if template.stop_on_eos and tokenizer.eos_id >= 0:
        ids.add(tokenizer.eos_id)
    strings = tuple(s for s in template.stop if s not in tokenizer.special_tokens)
    return frozenset(ids), strings
