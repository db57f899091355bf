"""Prompts in answers, as the original's command line and worker take them (MGM_SPEC 7.4)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgm_jax.imagegen import GEN, find_prompt, visible, visible_pieces
from mgm_jax.imagegen.prompts import NEGATIVE_PROMPT


@pytest.mark.parametrize(
    "answer,last,first,shown",
    [
        ("Sure! <h>a red cat</h>", "a red cat", "a red cat", "Sure! "),
        ("<h>one</h> or <h> two\n</h>.", "two", "one", " or ."),
        ("<h>a<h>b</h>", "b", "a<h>b", "a"),
        ("no prompt", None, None, "no prompt"),
        ("open <h>end", None, None, "open end"),
        ("blank <h> </h>", None, None, "blank "),
        ("echo <GEN>", None, None, "echo"),
        ("", None, None, ""),
    ],
)
def test_prompts_of_answers(answer, last, first, shown):
    assert find_prompt(answer) == find_prompt(answer, "last") == last
    assert find_prompt(answer, "first") == first
    assert visible(answer) == shown


def test_the_last_prompt_is_the_originals():
    """Its expression, on answers where the tags pair up."""
    for answer in ("<h>a</h>", "x<h>a</h>y<h>b</h>z", "<h>a<h>b</h>"):
        assert find_prompt(answer) == answer.split("</h>")[-2].split("<h>")[-1]


def test_which_is_one_of_two():
    with pytest.raises(ValueError, match="which is 'middle', expected 'first' or 'last'"):
        find_prompt("<h>a</h>", "middle")


def test_the_texts_of_the_spec():
    assert GEN == " <GEN>"
    words = NEGATIVE_PROMPT.split(", ")
    assert (words[0], words[-1], len(words)) == ("out of frame", "signature", 38)


PIECES = st.lists(st.sampled_from(["<h>", "</h>", " <GEN>", "<", "h>", "/", " ", "cat", "<h", "G"]))


@given(PIECES, st.integers(1, 5))
def test_a_stream_shows_what_the_whole_answer_shows(parts, size):
    """However the text is cut, and nothing is ever taken back."""
    text = "".join(parts)
    pieces = [text[n : n + size] for n in range(0, len(text), size)]
    assert "".join(visible_pieces(pieces)) == visible(text)


def test_text_in_front_of_a_prompt_is_shown_at_once():
    def pieces():
        yield "Here: <h>a c"
        raise RuntimeError("asked for more before it showed what it had")

    assert next(visible_pieces(pieces())) == "Here: "
