"""OCR hints: their words, their cap, and the reader itself where it is installed."""

import sys

import pytest
from PIL import Image, ImageDraw, ImageFont

from mgm_jax import ocr


class Letters:
    """A tokenizer with a token a letter."""

    def encode(self, text, add_bos=None):
        assert add_bos is False
        return list(text)


def test_the_hint_of_the_original():
    assert ocr.hint(["STOP", "5 km"]) == "\nReference OCR Token: STOP, 5 km\n"
    assert ocr.hint([]) == ""


@pytest.mark.parametrize("count", range(4))
def test_a_hint_is_capped_in_tokens(count):
    """The first texts that fit, whole; one token less and the last of them is gone."""
    texts = ["one", "two", "three"]
    size = len(ocr.hint(texts[:count]))
    assert ocr.fit_hint(texts, Letters(), size) == (ocr.hint(texts[:count]), texts[:count])
    if count:
        assert len(ocr.fit_hint(texts, Letters(), size - 1)[1]) == count - 1
    assert ocr.fit_hint(texts, Letters(), 10_000)[1] == texts


def test_with_a_real_tokenizer(tiny_tokenizer):
    from mgm_jax.text import load_tokenizer

    tokenizer = load_tokenizer(tiny_tokenizer)
    hint, texts = ocr.fit_hint(["digit"] * 50, tokenizer, 60)
    assert 0 < len(texts) < 50 and len(tokenizer.encode(hint, add_bos=False)) <= 60


def test_without_the_extra(monkeypatch):
    ocr._engine.cache_clear()
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ValueError, match=r"needs rapidocr and onnxruntime .*'mgm-jax\[ocr\]'"):
        ocr.read_text(Image.new("RGB", (8, 8)))


def test_reading():
    pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `ocr` is not installed")
    picture = Image.new("L", (400, 120), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=32)
    draw.text((20, 10), "Platform 9", fill="black", font=font)
    draw.text((20, 60), "Departs 14:25", fill="black", font=font)
    assert ocr.read_text(picture) == ["Platform 9", "Departs 14:25"]
    assert ocr.read_text(Image.new("RGB", (64, 64), "white")) == []
