"""What is asked about a scene and the one right answer to each wording.

A wording says which form of answer it wants, so the answer is a function of question and scene
and greedy decoding can be compared exactly.
"""

from __future__ import annotations

import numpy as np

from mgm_jax.demo.scenes import COLOUR_NAMES, Scene

SHORT_DIGIT, LONG_DIGIT = "{digit}", "The digit on the card is {digit}."
SHORT_COLOUR, LONG_COLOUR = "{colour}", "The card is {colour}."

DIGIT_QUESTIONS = (  # (question, form of the answer)
    ("What digit is on the card? Answer with one digit.", SHORT_DIGIT),
    ("Which number is written on the card? Answer with one digit.", SHORT_DIGIT),
    ("Read the card. Answer with one digit.", SHORT_DIGIT),
    ("Which digit does the card show? Answer with one digit.", SHORT_DIGIT),
    ("What digit is on the card? Answer in a sentence.", LONG_DIGIT),
    ("Which number is written on the card? Answer in a sentence.", LONG_DIGIT),
    ("Read the card. Answer in a sentence.", LONG_DIGIT),
    ("Which digit does the card show? Answer in a sentence.", LONG_DIGIT),
)
COLOUR_QUESTIONS = (
    ("What colour is the card? Answer with one word.", SHORT_COLOUR),
    ("Which colour does the card have? Answer with one word.", SHORT_COLOUR),
    ("Name the colour of the card. Answer with one word.", SHORT_COLOUR),
    ("What is the card's colour? Answer with one word.", SHORT_COLOUR),
    ("What colour is the card? Answer in a sentence.", LONG_COLOUR),
    ("Which colour does the card have? Answer in a sentence.", LONG_COLOUR),
    ("Name the colour of the card. Answer in a sentence.", LONG_COLOUR),
    ("What is the card's colour? Answer in a sentence.", LONG_COLOUR),
)
QUESTIONS = {"digit": DIGIT_QUESTIONS, "colour": COLOUR_QUESTIONS}
FORMS = {question: form for table in QUESTIONS.values() for question, form in table}

CAPTIONS = (
    "{a} {colour} card with the digit {digit}.",
    "The digit {digit} on {a} {colour} card.",
    "{a} {colour} card that shows a {digit}.",
    "A picture with {a} {colour} card and the digit {digit}.",
)


def _fill(form: str, scene: Scene) -> str:
    article = "an" if scene.colour[0] in "aeiou" else "a"
    text = form.format(a=article, colour=scene.colour, digit=scene.digit)
    return text[0].upper() + text[1:] if form.startswith("{a}") else text


def expected(question: str, scene: Scene) -> str:
    """The exact answer to one of the wordings. Raises ValueError for any other question."""
    if question not in FORMS:
        raise ValueError(f"no expected answer for question {question!r}: not a wording of the demo")
    return _fill(FORMS[question], scene)


def ask(rng: np.random.Generator, kind: str) -> str:
    """A random wording of a kind in `QUESTIONS`."""
    table = QUESTIONS[kind]
    return table[rng.integers(len(table))][0]


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One sentence with colour and digit, in a random wording: stage 1's text."""
    return _fill(CAPTIONS[rng.integers(len(CAPTIONS))], scene)


def vocabulary() -> list[str]:
    """Every text that the demo can show: all wordings and, for each colour and digit, all answers.

    A tokenizer trained on these covers the demo.
    """
    nothing = np.zeros((1, 1, 3), np.uint8)
    box = (0, 0, 1, 1)
    forms = [*dict.fromkeys(FORMS.values()), *CAPTIONS]
    scenes = [Scene(nothing, d, c, box, box, "", 0) for c in COLOUR_NAMES for d in range(10)]
    return [*FORMS, *dict.fromkeys(_fill(form, scene) for scene in scenes for form in forms)]
