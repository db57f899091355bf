"""One training example's text: a LLaVA record to ids and labels (MGM_SPEC 5.4, 5.5).

Strict by default: whatever the original drops, merges or masks without a word is an error here.
`faithful=True` gives what the original gives, dead samples included.
"""

import logging

from mgm_jax.text import conversation
from mgm_jax.text.conversation import Segment, Turn
from mgm_jax.text.templates import IGNORE, IMAGE_ID, IMAGE_TEXT, Template, get_template

_log = logging.getLogger(__name__)


def encode_record(
    record: dict,
    template: str | Template,
    tokenizer,
    max_len: int | None,
    *,
    faithful: bool = False,
    truncate: bool = False,
    where: str = "record",
) -> tuple[list[int], list[int]]:
    """Tokenises one record.

    Args:
        record: `{"conversations": [{"from", "value"}, ...], "image": name | [names] | absent}`.
        template: a template or its name.
        tokenizer: has `encode_with_offsets`, bos_id, pad_id, add_bos, legacy.
        max_len: most ids allowed, each picture counted as one; None for no limit.
        faithful: reproduce the original: text without pictures is cut at `max_len` and the rest is
            not cut, several placeholders of a turn become one, nothing about pictures or empty
            answers is checked, and a sample whose rounds the original cannot re-measure carries no
            loss at all (logged as a warning).
        truncate: cut at `max_len` instead of refusing (strict only).
        where: what error messages call the record.

    Returns:
        (ids, labels): ids with -200 for each picture; labels are the ids themselves, or -100 where
        no loss is taken. Pictures always have -100.

    Raises:
        ValueError: see `turns_from_record`; in strict mode also pictures that do not match their
            placeholders, an empty turn, no answer at the end, or too many ids. The
            messages start with `where`.
    """
    template = get_template(template)
    if faithful and truncate:
        raise ValueError("truncate=True has no meaning with faithful=True, which has its own rule")
    if max_len is not None and max_len < 1:
        raise ValueError(f"max_len is {max_len}, expected a positive number or None")
    turns = conversation.turns_from_record(record, where)
    pictures = conversation.record_images(record, where)
    if not faithful:
        _check_turns(turns, len(pictures), where)
    if template.caption_only and (len(turns) != 2 or IMAGE_TEXT not in turns[0].text):
        raise ValueError(
            f"{where}: template {template.name} takes one question with {IMAGE_TEXT} and one "
            f"answer, found {len(turns)} turns, the first is {turns[0].text[:80]!r}"
        )

    if pictures:
        turns = [Turn(r, conversation.images_first(text, collapse=faithful)) for r, text in turns]
    # In text without pictures "<image>" is a word, but captions are cut at it in any case.
    images = bool(pictures) or template.caption_only
    segments = conversation.render(template, turns)
    text = "".join(segment.text for segment in segments)
    follow = faithful and template.original_rounds is not None
    if follow:
        segments = _original_segments(text, template)
    try:
        ids, mask = conversation.encode(segments, tokenizer, images)
    except ValueError as error:  # a text that is not valid Unicode
        raise ValueError(f"{where}: {error}") from error
    labels = [i if carries_loss else IGNORE for i, carries_loss in zip(ids, mask, strict=True)]

    if faithful:
        if not images:
            ids, labels = ids[:max_len], labels[:max_len]
        if follow and _is_dead(text, template, tokenizer, images, ids, max_len):
            labels = [IGNORE] * len(labels)
        if all(label == IGNORE for label in labels):
            _log.warning("%s: no token of this sample carries loss (as in the original)", where)
        return ids, labels

    if max_len is not None and len(ids) > max_len:
        if not truncate:
            raise ValueError(f"{where}: {len(ids)} tokens, expected at most {max_len}")
        if IMAGE_ID in ids[max_len:]:
            raise ValueError(f"{where}: cutting {len(ids)} tokens at {max_len} loses a picture")
        ids, labels = ids[:max_len], labels[:max_len]
    if all(label == IGNORE for label in labels):
        raise ValueError(f"{where}: no answer token within the first {len(ids)} tokens")
    return ids, labels


def _check_turns(turns, pictures: int, where: str) -> None:
    for n, (role, text) in enumerate(turns):
        if not text.replace(IMAGE_TEXT, "x").strip():
            raise ValueError(f"{where}: turn {n} ({role}) is empty, expected text")
        if role == "assistant" and IMAGE_TEXT in text:
            raise ValueError(
                f"{where}: turn {n} ({role}) holds {IMAGE_TEXT}, expected only in the human's turns"
            )
    if turns[-1].role != "assistant":
        raise ValueError(f"{where}: turn {len(turns) - 1} is the last and has no answer")
    if pictures != (found := sum(text.count(IMAGE_TEXT) for _, text in turns)):
        raise ValueError(
            f"{where}: found {found} {IMAGE_TEXT} in the text, expected {pictures}: one for each "
            "picture of the record"
        )


def _original_segments(text: str, template: Template) -> list[Segment]:
    """The text cut where the original looks for its rounds, not where the turns are.

    The two differ when a message holds the strings that a round is found by, or is empty. Nothing
    from the first round on that does not have exactly one answer carries loss.
    """
    rule, lead = template.original_rounds, template.assistant.lead
    segments, at = [], 0
    for part in text.split(rule.end):
        if part.count(rule.mark) != 1:
            break
        stop = min(at + len(part) + len(rule.end), len(text))
        answer = at + part.index(rule.mark) + len(rule.mark) - len(lead)
        segments += [Segment(text[at:answer], False), Segment(text[answer:stop], True)]
        at = stop
    return [*segments, Segment(text[at:], False)]


def _is_dead(text: str, template: Template, tokenizer, images, ids, max_len) -> bool:
    """Whether the original masks the whole sample: its own arithmetic misses the end.

    It tokenises each round again and adds up the lengths; if the sum stays below `max_len` and is
    not the number of ids that are no padding, it gives the sample up (MGM_SPEC 5.5).
    """
    rule, end = template.original_rounds, 1
    for n, part in enumerate(text.split(rule.end)):
        if part.count(rule.mark) != 1:
            break
        end += len(conversation.encode([Segment(part, False)], tokenizer, images)[0])
        end += rule.later_nonlegacy if n and not tokenizer.legacy else 0
    total = sum(i != tokenizer.pad_id for i in ids)
    return (max_len is None or end < max_len) and end != total
