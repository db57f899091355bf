"""The original's label arithmetic (MGM_SPEC 5.5), for `mismatch_policy="mask_sample"` alone.

It tokenises each round of the rendered text again and walks over the ids by the lengths it finds.
Where the lengths do not add up, labels slip or the whole sample loses its loss. Samples that were
dead in the original's training are dead here, and no mask of the default path is made this way.
"""

from collections.abc import Sequence

from mgm_jax.text import conversation
from mgm_jax.text.conversation import Segment, Turn
from mgm_jax.text.templates import IGNORE, IMAGE_ID, RoundRule, Template


def original_labels(
    segments: Sequence[Segment],
    template: Template,
    tokenizer,
    ids: Sequence[int],
    images: bool,
    max_len: int | None,
) -> list[int]:
    """Labels for the ids of rendered segments, as the original computes them.

    Args:
        segments, template: what `ids` were rendered from; the template has `original_rounds`.
        ids: the ids, cut already where the original cuts them.
        images: whether `<image>` is a placeholder in the text.
        max_len: the original compares its sum only below this length; None: always.

    Returns:
        One label for each id: the id itself, or -100; -100 throughout for a dead sample.
    """
    rule = template.original_rounds
    keep, at = [False] * len(ids), rule.start
    for n, part in enumerate(_rounds("".join(s.text for s in segments), rule)):
        if part.count(rule.mark) != 1:
            break
        shift = rule.legacy if tokenizer.legacy else rule.later_nonlegacy * (n > 0)
        instruction = part[: part.index(rule.mark) + len(rule.mark)]
        answer = at + _count(instruction, tokenizer, images) + rule.instruction_extra + shift
        at += _count(part, tokenizer, images) + shift
        keep[answer:at] = [True] * len(keep[answer:at])
    total = sum(i != tokenizer.pad_id for i in ids)
    if (max_len is None or at < max_len) and at != total:
        return [IGNORE] * len(ids)
    return _labels(ids, keep)


def signal_text(template: Template, turns: Sequence[Turn]) -> tuple[str, ...]:
    """The text of a format of `original_signals`: the system, a part for each turn, an end."""
    roles = {"user": template.user.header, "assistant": template.assistant.header}
    parts = (f"### {roles[role]} {text}\n" for role, text in turns)
    return f"{template.original_signals}\n\n", *parts, "### "


def signal_labels(parts: Sequence[str], tokenizer, ids: Sequence[int], images: bool) -> list[int]:
    """Labels for the ids of `signal_text`: what the user says is masked but for two ids of "###".

    The bos of each part that is measured counts, so the masks drift by one a turn, as they did.
    """
    at, keep = _count(parts[0], tokenizer, images), [True] * len(ids)
    keep[:at] = [False] * len(keep[:at])
    for n, part in enumerate(parts[1:-1]):
        length = _count(part, tokenizer, images)
        if n % 2 == 0:
            keep[at + 2 : at + length] = [False] * len(keep[at + 2 : at + length])
        at += length
    return _labels(ids, keep)


def _count(text: str, tokenizer, images: bool) -> int:
    return len(conversation.encode([Segment(text, False)], tokenizer, images)[0])


def _labels(ids: Sequence[int], keep: Sequence[bool]) -> list[int]:
    return [i if k and i != IMAGE_ID else IGNORE for i, k in zip(ids, keep, strict=True)]


def _rounds(text: str, rule: RoundRule) -> list[str]:
    parts = text.split(rule.end)
    if not rule.grouped:
        return parts
    pairs = (parts[n : n + 2] for n in range(3, len(parts), 2))
    return [rule.end.join(group) for group in (parts[:3], *pairs)]
