"""OCR assist: the text in pictures as a hint in the question (MGM_SPEC 5.7, 7.3); extra `ocr`.

rapidocr with onnxruntime, whose models lie in its wheel: nothing is downloaded.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence

MIN_SCORE = 0.1  # the original takes what its reader is at least so sure of
MAX_TOKENS = 256  # of a hint


@functools.cache
def _engine():
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ValueError(
            f"reading text in pictures needs rapidocr and onnxruntime ({error}): "
            "pip install 'mgm-jax[ocr]'"
        ) from error
    return RapidOCR(params={"Global.text_score": MIN_SCORE, "Global.log_level": "error"})


def read_text(picture) -> list[str]:
    """The texts in a PIL picture, as its reader orders them; none if there are none.

    ValueError without the extra `ocr`. The first call loads the models (seconds); safe in threads.
    """
    return list(_engine()(picture.convert("RGB")).txts or ())


def hint(texts: Sequence[str]) -> str:
    """What the original puts behind the question; "" for no texts."""
    return f"\nReference OCR Token: {', '.join(texts)}\n" if texts else ""


def fit_hint(
    texts: Sequence[str], tokenizer, max_tokens: int = MAX_TOKENS
) -> tuple[str, Sequence[str]]:
    """The hint with as many of the first texts as fit -> (hint, these texts).

    `max_tokens` (0 or more) are counted with the model's tokenizer, the hint's own words included.
    """

    def tokens(count: int) -> int:
        return len(tokenizer.encode(hint(texts[:count]), add_bos=False)) if count else 0

    count = bisect.bisect_right(range(len(texts) + 1), max_tokens, key=tokens) - 1
    return hint(texts[:count]), texts[:count]
