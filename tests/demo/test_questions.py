"""Questions: one right answer to each wording, captions that tell digit and colour."""

import numpy as np
import pytest

from mgm_jax.demo import questions
from mgm_jax.demo.scenes import COLOUR_NAMES, Scene

BOX = (0, 0, 1, 1)


def scene(digit, colour):
    return Scene(np.zeros((1, 1, 3), np.uint8), digit, colour, BOX, BOX, "moon", 0)


def test_wordings_are_many_and_distinct():
    for table in questions.QUESTIONS.values():
        assert len({question for question, _ in table}) == len(table) >= 6
        assert len({form for _, form in table}) == 2
    assert len(questions.FORMS) == sum(len(table) for table in questions.QUESTIONS.values())


def test_expected_answers():
    ask = questions.expected
    assert ask("What digit is on the card? Answer with one digit.", scene(7, "red")) == "7"
    sentence = ask("Read the card. Answer in a sentence.", scene(0, "red"))
    assert sentence == "The digit on the card is 0."
    assert ask("What colour is the card? Answer with one word.", scene(7, "orange")) == "orange"
    sentence = ask("Name the colour of the card. Answer in a sentence.", scene(7, "blue"))
    assert sentence == "The card is blue."
    with pytest.raises(ValueError, match="What now"):
        ask("What now?", scene(7, "red"))


def test_the_wording_says_which_answer_it_wants():
    for question, form in questions.FORMS.items():
        assert question.endswith("sentence.") == form.endswith(".")


def test_captions_tell_digit_and_colour():
    rng = np.random.default_rng(0)
    seen = {questions.caption(scene(4, "orange"), rng) for _ in range(60)}
    assert len(seen) == len(questions.CAPTIONS)
    assert "An orange card with the digit 4." in seen
    assert all("orange" in text and "4" in text and "a orange" not in text for text in seen)


def test_vocabulary_covers_all_texts():
    texts = questions.vocabulary()
    rng = np.random.default_rng(0)
    for colour in COLOUR_NAMES:
        one = scene(3, colour)
        assert {questions.expected(question, one) for question in questions.FORMS} <= set(texts)
        assert questions.caption(one, rng) in texts
    assert set(questions.FORMS) <= set(texts) and len(set(texts)) == len(texts)
