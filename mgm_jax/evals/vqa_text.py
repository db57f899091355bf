"""How VQA answers are compared: the answer processor, soft accuracy, ANLS (MGM_SPEC 8.2)."""

from __future__ import annotations

import re

from mgm_jax.evals.vqa_contractions import CONTRACTIONS

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(i)
    for i, word in enumerate("one two three four five six seven eight nine ten".split(), 1)
}
ARTICLES = {"a", "an", "the"}
# The original's look-behind lacks its "<": what is left is a period that no digit follows.
PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
# It also passes a flag where `re.sub` takes a count, so that 32 periods go and no more.
PERIODS = 32


def process(text: str, periods: int | None = PERIODS) -> str:
    """An answer in the form that answers are compared in. `periods`: the most that are removed."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    # A mark at a word's edge goes, one between letters becomes a space: judged on the text as it
    # was. (The original also looks for a comma between digits, but commas are gone by now.)
    before = text
    for mark in PUNCTUATION:
        touching = f"{mark} " in before or f" {mark}" in before
        text = text.replace(mark, "" if touching else " ")
    text = PERIOD.sub("", text, count=periods or 0)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(w, w) for w in words if w not in ARTICLES)


def soft_scores(answers: list[str], periods: int | None = PERIODS) -> dict[str, float]:
    """Processed answer -> score, of ten people's answers.

    The mean over the ten sets that leave one out of min(1, matches / 3), summed in their order.
    """
    processed = [process(a, periods) for a in answers]
    scores = {}
    for answer in dict.fromkeys(processed):
        matches = processed.count(answer)
        parts = [min(1, float(matches - (other == answer)) / 3) for other in processed]
        scores[answer] = sum(parts) / len(parts)
    return scores


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance in characters."""
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def anls(prediction: str, answer: str) -> float:
    """1 - distance / longer length, of stripped lower-case texts; 0 below a half."""
    a, b = prediction.lower().strip(), answer.lower().strip()
    if not a and not b:  # where the original divides by zero
        return 1.0
    similarity = 1 - edit_distance(a, b) / max(len(a), len(b))
    return similarity if similarity >= 0.5 else 0.0
