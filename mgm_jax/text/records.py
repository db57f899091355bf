"""One training example's text: a LLaVA record to ids and labels (MGM_SPEC 5.4, 5.5).

Strict by default: whatever the original drops, merges or masks without a word is an error here.
`mgm_jax.switches` names each difference; `faithful=True` takes the original's side of all of them.
"""

import logging
from collections.abc import Sequence

from mgm_jax.switches import choose
from mgm_jax.text import conversation
from mgm_jax.text.conversation import RecordError, Segment, Turn
from mgm_jax.text.original import original_labels, signal_labels, signal_text
from mgm_jax.text.templates import IGNORE, IMAGE_ID, IMAGE_TEXT, Template, get_template

_log = logging.getLogger(__name__)


FAITHFUL = choose("text", faithful=True)


def encode_record(
    record: dict,
    template: str | Template,
    tokenizer,
    max_len: int | None,
    *,
    faithful: bool = False,
    truncate: bool = False,
    where: str = "record",
    **switches,
) -> tuple[list[int], list[int]]:
    """Tokenises one record.

    Args:
        record: `{"conversations": [{"from", "value"}, ...], "image": name | [names] | absent}`.
        template: a template or its name.
        tokenizer: has `encode_with_offsets`, bos_id, pad_id, add_bos, legacy.
        max_len: most ids allowed, each picture counted as one; None for no limit.
        faithful: the original's side of every switch that `switches` does not set. Samples without
            any loss are then logged as warnings.
        truncate: cut at `max_len` instead of refusing (with `input_policy="refuse"` only).
        where: what error messages call the record.
        **switches: those of `mgm_jax.switches` that act in text.

    Returns:
        (ids, labels): ids with -200 for each picture; labels are the ids themselves, or -100 where
        no loss is taken. Pictures always have -100.

    Raises:
        ValueError: see `turns_from_record`; an unknown switch or value; with
            `input_policy="refuse"` also pictures that do not match their placeholders, an empty
            turn, no answer at the end, or too many ids. The messages start with `where`.
    """
    switch = choose("text", faithful, switches)
    template = _switched(get_template(template), switch)
    accept = switch["input_policy"] == "accept"
    if accept and truncate:
        raise ValueError(
            "truncate=True has no meaning with faithful=True or input_policy='accept', which have "
            "their own rule"
        )
    if max_len is not None and max_len < 1:
        raise ValueError(f"max_len is {max_len}, expected a positive number or None")
    turns = conversation.turns_from_record(record, where)
    pictures = conversation.record_images(record, where)
    if not accept:
        check_turns(turns, len(pictures), where)
    if template.caption_only and (len(turns) != 2 or IMAGE_TEXT not in turns[0].text):
        raise RecordError(
            f"{where}: template {template.name} takes one question with {IMAGE_TEXT} and one "
            f"answer, found {len(turns)} turns, the first is {turns[0].text[:80]!r}",
            "template",
        )

    if pictures:
        turns = [Turn(role, _place_images(text, template, switch)) for role, text in turns]
    # In text without pictures "<image>" is a word, but captions are cut at it in any case.
    images = bool(pictures) or template.caption_only
    follow = switch["mismatch_policy"] == "mask_sample"
    signals = ()
    if follow and template.original_signals is not None:
        signals = signal_text(template, turns)
        segments = tuple(Segment(part, False) for part in signals)
    else:
        segments = conversation.render(template, turns)
    release = switch["llama3_released_prompt"] == "release" and template.name.startswith("llama_3")
    try:
        ids, mask = conversation.encode(segments, tokenizer, images, release=release)
        cut = max_len if accept and not images else None
        ids, mask = ids[:cut], mask[:cut]
        if signals:
            labels = signal_labels(signals, tokenizer, ids, images)
        elif follow and template.original_rounds and not release:
            labels = original_labels(segments, template, tokenizer, ids, images, max_len)
        else:
            labels = [i if loss else IGNORE for i, loss in zip(ids, mask, strict=True)]
    except ValueError as error:  # a text that is not valid Unicode
        raise RecordError(f"{where}: {error}", "unicode") from error

    if accept:
        if all(label == IGNORE for label in labels):
            _log.warning("%s: no token of this sample carries loss (as in the original)", where)
        return ids, labels
    if max_len is not None and len(ids) > max_len:
        if not truncate:
            raise ValueError(f"{where}: {len(ids)} tokens, expected at most {max_len}")
        if IMAGE_ID in ids[max_len:]:
            raise ValueError(f"{where}: cutting {len(ids)} tokens at {max_len} loses a picture")
        ids, labels = ids[:max_len], labels[:max_len]
    if switch["mismatch_policy"] == "span" and all(label == IGNORE for label in labels):
        raise ValueError(f"{where}: no answer token within the first {len(ids)} tokens")
    return ids, labels


def _switched(template: Template, switch: dict) -> Template:
    if template.name == "llama_3" and switch["llama3_assistant_header"] == "assistant":
        return get_template("llama_3_assistant")
    return template


def _place_images(text: str, template: Template, switch: dict) -> str:
    text = conversation.images_first(text, collapse=not switch["multi_image_training"])
    return text.replace(IMAGE_TEXT, template.image_text)


def check_turns(turns: Sequence[Turn], pictures: int, where: str) -> None:
    """Raises RecordError, starting with `where`, unless the turns of a record with this number of
    pictures can be trained on: texts, answers, and one placeholder for each picture."""
    for n, (role, text) in enumerate(turns):
        if not text.replace(IMAGE_TEXT, "x").strip():
            kind = "empty_answer" if role == "assistant" else "empty_question"
            raise RecordError(f"{where}: turn {n} ({role}) is empty, expected text", kind)
        if role == "assistant" and IMAGE_TEXT in text:
            raise RecordError(
                f"{where}: turn {n} ({role}) holds {IMAGE_TEXT}, expected only in the "
                "human's turns",
                "placeholders",
            )
    if turns[-1].role != "assistant":
        raise RecordError(
            f"{where}: turn {len(turns) - 1} is the last and has no answer", "unanswered"
        )
    if pictures != (found := sum(text.count(IMAGE_TEXT) for _, text in turns)):
        raise RecordError(
            f"{where}: found {found} {IMAGE_TEXT} in the text, expected {pictures}: one for each "
            "picture of the record",
            "placeholders",
        )
