"""Corpus BLEU-4 as COCO captions are scored, for the TextCaps number of TextVQA's scorer."""

from __future__ import annotations

import math
import re
from collections import Counter

# A small stand-in for the Java Treebank tokenizer that the original starts: clitics are words of
# their own, marks are dropped.
TOKEN = re.compile(
    r"\w+(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|\d+(?:[.,:]\d+)*|\w+(?:[-&/.]\w+)*|\$|%|#"
)


def tokens(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return TOKEN.findall(text.lower())


def bleu4(pairs: list[tuple[str, list[str]]]) -> float:
    """BLEU-4 of (prediction, references) over the whole corpus, closest reference length."""
    right, total = [0] * 4, [0] * 4
    length = reference_length = 0
    for prediction, references in pairs:
        words, others = tokens(prediction), [tokens(r) for r in references]
        length += len(words)
        reference_length += min((abs(len(o) - len(words)), len(o)) for o in others)[1]
        for n in range(4):
            found = _ngrams(words, n + 1)
            most = Counter()
            for other in others:
                most |= _ngrams(other, n + 1)
            total[n] += sum(found.values())
            right[n] += sum((found & most).values())
    # tiny, small: as in the COCO scorer, so that an empty order gives a number, not an error.
    score = math.prod((r + 1e-15) / (t + 1e-9) for r, t in zip(right, total, strict=True)) ** 0.25
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    return score * math.exp(1 - 1 / ratio) if ratio < 1 else score


def _ngrams(words: list[str], n: int) -> Counter:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
