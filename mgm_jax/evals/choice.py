"""Which option a reply means, where the original leaves that to a server (rules of our own)."""

from __future__ import annotations

import re

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def option_letter(text: str, options: list[str]) -> str | None:
    """The letter that `text` gives for one of `options`, or None.

    In this order: a letter that stands first ("B", "B.", "(B) a dog"), one after "answer is" or
    "option", the only letter in parentheses, the text of an option, the only option whose text
    occurs in the reply.
    """
    letters = LETTERS[: len(options)]
    text = text.strip()
    first = re.match(rf"\(?([{letters}])(?:[).:,]|\s*$|$)", text)
    said = re.findall(rf"(?i:answer is|answer:|option)\s*\(?([{letters}])\b", text)
    inside = re.findall(rf"\(([{letters}])\)", text)
    for found in (first and [first[1]], said, inside):
        if found and len(set(found)) == 1:
            return found[0]
    plain = text.rstrip(".").casefold()
    names = [str(o).strip().rstrip(".").casefold() for o in options]
    if plain in names:
        return letters[names.index(plain)]
    mentioned = [x for x, n in zip(letters, names, strict=True) if n and _mentions(plain, n)]
    return mentioned[0] if len(mentioned) == 1 else None


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
