"""The parts of scores, each against another way to work it out."""

import functools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgm_jax.evals.bleu import bleu4, tokens
from mgm_jax.evals.choice import option_letter
from mgm_jax.evals.coloninst import iou
from mgm_jax.evals.common import accuracy
from mgm_jax.evals.files import Record
from mgm_jax.evals.llavabench import parse_scores
from mgm_jax.evals.mathvista import normalize, query
from mgm_jax.evals.mme import yes_or_no
from mgm_jax.evals.mmvet import grade
from mgm_jax.evals.own_jsonl import contains, exact, relaxed
from mgm_jax.evals.scienceqa import parse
from mgm_jax.evals.vqa_text import anls, edit_distance, process, soft_scores

WORDS = st.text("ab c.", max_size=7)


@given(WORDS, WORDS)
def test_edit_distance_is_levenshtein(a, b):
    @functools.cache
    def slow(i, j):
        if min(i, j) == 0:
            return max(i, j)
        change = slow(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(slow(i - 1, j) + 1, slow(i, j - 1) + 1, change)

    assert edit_distance(a, b) == slow(len(a), len(b))


@given(st.lists(st.sampled_from(["x", "y", "z"]), min_size=10, max_size=10))
def test_soft_scores_leave_one_out(answers):
    for answer, score in soft_scores(answers).items():
        rest = [answers[:i] + answers[i + 1 :] for i in range(10)]
        mean = sum(min(1, r.count(answer) / 3) for r in rest) / 10
        assert score == pytest.approx(mean, abs=1e-12)


def test_vqa_answers_by_the_letter():
    """The examples of MGM_SPEC 8.2."""
    examples = {
        "A.B. c": "ab c",
        "3,000 dollars": "3000 dollars",
        "Coca-Cola!": "coca cola",
        "it's 5.5": "it 's 5.5",
        "a-b -c": "ab c",
        "1,000-2": "1000 2",
        "10:30": "10:30",
    }
    assert {text: process(text) for text in examples} == examples
    assert process("." * 40 + "x") == "." * 8 + "x"  # 32 go
    assert process("." * 40 + "x", periods=None) == "x"


def test_anls():
    assert anls(" Sign ", "sign") == 1.0 and anls("", " ") == 1.0
    assert anls("abcd", "abxx") == 0.5 and anls("abcd", "axxx") == 0.0


def test_bleu4_by_hand():
    """One pair: 5 of 6 words right, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours, equal lengths."""
    pair = ("a cat sat on the mat", ["A cat sat on a mat."])
    assert bleu4([pair]) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, rel=1e-8)
    short = ("a cat sat on", ["a cat sat on a mat"])  # all right, but too short
    assert bleu4([short]) == pytest.approx(math.exp(1 - 6 / 4), rel=1e-8)
    assert bleu4([short, ("x", ["y y"])]) < bleu4([short])
    assert tokens("It's NOT well-known, don't") == ["it", "'s", "not", "well-known", "do", "n't"]


def test_iou_counts_pixels():
    rng = random.Random(0)
    for _ in range(200):
        boxes = []
        for _ in range(2):
            x, y = rng.randrange(20), rng.randrange(20)
            boxes.append([x, y, x + rng.randrange(20), y + rng.randrange(20)])
        masks = np.zeros((2, 50, 50), bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            mask[y1 : y2 + 1, x1 : x2 + 1] = True
        assert iou(*boxes) == pytest.approx((masks[0] & masks[1]).sum() / masks.any(0).sum())
    assert iou([0, 0, 1], [0, 0, 1, 1]) == 0


@pytest.mark.parametrize(
    "text, letter",
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B) a dog", "B"),
        ("B. dog", "B"),
        ("The answer is B", "B"),
        ("I choose option (C).", "C"),
        ("It must be (A), I think", "A"),
        ("Dog", "B"),
        ("It shows a dog.", "B"),
        ("A dog", "B"),  # an article, not a letter
        ("A cat or a dog", None),
        ("(A) or (B)", "A"),  # a letter in front counts
        ("D", None),
        ("dogs", None),
        ("", None),
    ],
)
def test_option_letter(text, letter):
    assert option_letter(text, ["cat", "dog", "cow"]) == letter


def test_yes_or_no_of_mme():
    texts = {"Yes": "yes", "no": "no", "No, it is": "no", " yes": "yes", "It is": "other"}
    texts |= {"Maybe yes": "other", "Not": "no", "nyes": "yes", "": "other"}
    assert {text: yes_or_no(text) for text in texts} == texts


def test_scienceqa_letters():
    texts = {"B": "B", "E": "E", "F": "FAILED", "C. dog": "C", "C.": "FAILED", "b": "FAILED"}
    texts |= {"The answer is D.": "D", "The answer is D": "FAILED", "The answer is Z!": "Z"}
    texts |= {"The answer is A. The answer is A.": "FAILED", "(A)": "FAILED", "": "FAILED"}
    assert {text: parse(text) for text in texts} == texts


def problem(**fields):
    base = {"question_type": "free_form", "answer_type": "text", "choices": None, "unit": None}
    return Record(base | {"question": "How?", "precision": None} | fields, "testmini.json")


def test_mathvista_answers():
    choice = problem(question_type="multi_choice", choices=["red", "green", "blue"])
    texts = {"(b)": "green", "C": "blue", "green!": "green", "D": "red", "": "red", "(Z)": "red"}
    assert {text: normalize(text, choice) for text in texts} == texts
    whole = problem(answer_type="integer")
    assert [normalize(x, whole) for x in ("3.9", 4)] == ["3", "4"]
    assert [normalize(x, whole) for x in ("x", "inf", None)] == [None] * 3
    one, two = problem(answer_type="float", precision=1), problem(answer_type="float", precision=2)
    assert [normalize("2", one), normalize("1.25", one), normalize("2.675", two)] == [
        "2.0",
        "1.2",
        "2.67",
    ]
    odd = problem(answer_type="float", precision=1.0)
    assert normalize("1.5", odd) is None  # as in the original
    assert normalize([1, 2], problem(answer_type="list")) == "[1, 2]"


def test_mathvista_query():
    text = query(problem(question_type="multi_choice", choices=["1", "2"], unit="cm"))
    assert text == (
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, "
        "at the end.\nQuestion: How? (Unit: cm)\nChoices:\n(A) 1\n(B) 2"
    )
    hints = {
        ("integer", None): "requiring an integer answer and provide the final value, e.g., 1, 2, 3",
        ("float", 1): "requiring a floating-point number with one decimal place and provide the "
        "final value, e.g., 1.2, 1.3, 1.4",
        ("float", 2): "requiring a floating-point number with two decimal places and provide the "
        "final value, e.g., 1.23, 1.34, 1.45",
        ("list", None): "requiring a Python list as an answer and provide the final list, e.g., "
        "[1, 2, 3], [1.2, 1.3, 1.4]",
    }
    for (kind, precision), hint in hints.items():
        text = query(problem(answer_type=kind, precision=precision))
        assert text == f"Hint: Please answer the question {hint}, at the end.\nQuestion: How?"


def test_what_judges_say():
    replies = {"0.8": 0.8, "Score: 1.0.": 1.0, "1": 1.0, "0": 0.0, "8/10": None, "no": None}
    replies |= {"1.5": None, "12": None, "I give 0.5, since": 0.5, "": None}
    assert {reply: grade(reply) for reply in replies} == replies
    reviews = {"8 9.5\nGood": [8, 9.5], "7,6": [7, 6], "7, 6": [-1, -1], "eight 9": [-1, -1]}
    assert {reply: parse_scores(reply) for reply in reviews} == reviews


def test_own_metrics():
    assert exact(" Paris.", "paris") == 1 and exact("in Paris", "Paris") == 0
    replies = ("95", "105.1", "$1,04", "100%", "hundred")
    assert [relaxed(reply, "100") for reply in replies] == [1, 0, 1, 0, 0]
    assert relaxed("Red", "red") == 1 and relaxed("5%", "0.05") == 1 and relaxed("0.1", "0") == 0
    assert contains("An oak tree", "Oak.") == 1 and contains("elm", "oak") == 0


def test_accuracy_of_nothing_is_zero():
    assert accuracy([]) == {"accuracy": 0.0}
