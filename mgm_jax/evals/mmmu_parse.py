"""How MMMU reads replies: the option that is meant, or words and numbers (MGM_SPEC 8.5)."""

from __future__ import annotations

import re

MARKS = (",", ".", "!", "?", ";", ":", "'")
INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.2e-3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # 12, 1.2
)


def parse_choice(response: str, choices: list[str], texts: dict[str, str]) -> str | None:
    """The letter that a reply means, of `choices`; None where the original draws one at random.

    `(X)` counts before a free-standing `X`, and that before an option's text (in replies of more
    than five words). Of several the one that is mentioned last.
    """
    for mark in MARKS:
        response = response.strip(mark)
    response = f" {response} "
    for left, right in ("()", "  "):
        at = {c: response.rfind(f"{left}{c}{right}") for c in choices}
        if max(at.values()) >= 0:
            return max(at, key=at.get)
    if len(response.split()) <= 5:
        return None
    lower = response.lower()
    found = [c for c, text in texts.items() if text.lower() in lower]
    return max(found, key=lambda c: lower.rfind(texts[c].lower()), default=None)


def normalize(text: str) -> list[str | float]:
    """A number rounded to two decimals, or lower-case text; a single character with its spaces."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def parse_open(response: str) -> list[str | float]:
    """The words and numbers that a reply to an open question may mean, without repetition."""
    response = response.strip().strip(".").lower()
    # The original also splits sentences before a capital, of which there are none by now.
    lines = response.split("\n")
    tails = []
    for i, line in enumerate(lines):
        indicators = (*INDICATORS, "=") if i == len(lines) - 1 else INDICATORS
        ends = [line.split(word)[-1].strip() for word in indicators if word in line]
        tail = _shortest(ends)
        if tail and tail not in MARKS:
            tails.append(tail)
    tails = tails or [response]
    found = tails + [n for tail in tails for pattern in NUMBERS for n in pattern.findall(tail)]
    return list(dict.fromkeys(value for text in found for value in normalize(text)))


def _shortest(ends: list[str]) -> str:
    """The first of the shortest ends; an empty one is replaced by what comes after it."""
    best = ""
    for end in ends:
        if not best or len(end) < len(best):
            best = end
    return best


def choice_right(answer: str | list[str], parsed: str) -> bool:
    """Whether the letter is the answer, or one of them."""
    return parsed in answer if isinstance(answer, list) else parsed == answer


def open_right(answer: str | list[str], parsed: list[str | float]) -> bool:
    """Whether an answer stands in a parsed text or equals a parsed number."""
    answers = [answer] if isinstance(answer, str) else answer
    accepted = [value for text in answers for value in normalize(text)]
    texts = [a for a in accepted if isinstance(a, str)]
    return any(
        any(t in value for t in texts) if isinstance(value, str) else value in accepted
        for value in parsed
    )
