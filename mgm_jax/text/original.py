"""The original's label arithmetic (MGM_SPEC 5.5), for `mismatch_policy="mask_sample"` alone.

It tokenises each round of the rendered text again and walks over the ids by the lengths it finds.
Where the lengths do not add up, labels slip or the whole sample loses its loss. Samples that were
dead in the original's training are dead here, and no mask of the default path is made this way.
"""

from collections.abc import Sequence

from mgm_jax.text import conversation
from mgm_jax.text.conversation import Segment
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

    def count(text: str) -> int:
        return len(conversation.encode([Segment(text, False)], tokenizer, images)[0])

    keep, at = [False] * len(ids), rule.start
    for n, part in enumerate(_rounds("".join(s.text for s in segments), rule)):
        if part.count(rule.mark) != 1:
            break
        shift = rule.legacy if tokenizer.legacy else rule.later_nonlegacy * (n > 0)
        instruction = part[: part.index(rule.mark) + len(rule.mark)]
        answer = at + count(instruction) + rule.instruction_extra + shift
        at += count(part) + shift
        keep[answer:at] = [True] * len(keep[answer:at])
    total = sum(i != tokenizer.pad_id for i in ids)
    if (max_len is None or at < max_len) and at != total:
        return [IGNORE] * len(ids)
    return [i if k and i != IMAGE_ID else IGNORE for i, k in zip(ids, keep, strict=True)]


def _rounds(text: str, rule: RoundRule) -> list[str]:
    parts = text.split(rule.end)
    if not rule.grouped:
        return parts
    pairs = (parts[n : n + 2] for n in range(3, len(parts), 2))
    return [rule.end.join(group) for group in (parts[:3], *pairs)]
