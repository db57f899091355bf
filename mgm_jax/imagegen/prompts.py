"""How a model is asked for a picture and how it answers (MGM_SPEC 7.4).

The question ends in ` <GEN>`; the answer has the prompt between `<h>` and `</h>`. Both are ordinary
text to the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

GEN = " <GEN>"
# The original sends this with every prompt.
NEGATIVE_PROMPT = (
    "out of frame, lowres, text, error, cropped, worst quality, low quality, jpeg artifacts, ugly, "
    "duplicate, morbid, mutilated, out of frame, extra fingers, mutated hands, poorly drawn hands, "
    "poorly drawn face, mutation, deformed, blurry, dehydrated, bad anatomy, bad proportions, "
    "extra limbs, cloned face, disfigured, gross proportions, malformed limbs, missing arms, "
    "missing legs, extra arms, extra legs, fused fingers, too many fingers, long neck, username, "
    "watermark, signature"
)
NO_PROMPT = "the model wrote no prompt for a picture (no <h>...</h> in its answer)"

_LAST = re.compile(r"<h>((?:(?!<h>).)*?)</h>", re.DOTALL)  # from the last <h> in front of a </h>
_FIRST = re.compile(r"<h>(.*?)</h>", re.DOTALL)
_HIDDEN = re.compile(rf"{_LAST.pattern}|</?h>| ?<GEN>", re.DOTALL)
_TAGS = ("<h>", "</h>", GEN, GEN.strip())


def find_prompt(answer: str, which: str = "last") -> str | None:
    """The prompt in an answer, or None if there is none or it is blank.

    `which`: the "last" one, as the original's command line takes it, or the "first", as its worker
    does; ValueError for anything else.
    """
    if which not in ("first", "last"):
        raise ValueError(f"which is {which!r}, expected 'first' or 'last'")
    if which == "first":
        found = _FIRST.findall(answer)[:1]
    else:
        found = _LAST.findall(answer)[-1:]
    return (found[0].strip() or None) if found else None


def visible(answer: str) -> str:
    """The answer for a reader: without its prompts and without left-over tags."""
    return _HIDDEN.sub("", answer)


def visible_pieces(pieces: Iterable[str]) -> Iterator[str]:
    """`visible` of a text that arrives in pieces: the pieces that come out join to just that.

    What may still become a tag or lies behind an open `<h>` is held back until it is decided.
    """
    text, shown = "", 0
    for piece in pieces:
        text += piece
        now = visible(decided(text))
        if len(now) > shown:
            yield now[shown:]
            shown = len(now)
    rest = visible(text)[shown:]
    if rest:
        yield rest


def decided(text: str) -> str:
    """The start of a text whose visible form nothing that follows can change."""
    start = text.find("<h>", text.rfind("</h>") + 1)
    if start >= 0:
        return text[:start]
    longest = max(map(len, _TAGS)) - 1
    for n in range(min(longest, len(text)), 0, -1):
        if any(tag != text[-n:] and tag.startswith(text[-n:]) for tag in _TAGS):
            return text[:-n]
    return text
