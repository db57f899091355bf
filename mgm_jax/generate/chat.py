"""A conversation with a model about pictures: its state. No terminal, no commands."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from mgm_jax.generate.pictures import Shown
from mgm_jax.generate.prompts import Request
from mgm_jax.generate.sampling import Sampling
from mgm_jax.text import IMAGE_TEXT, Turn

# (request, how to draw) -> the answer's text, in pieces as they are made.
Stream = Callable[[Request, Sampling], Iterator[str]]


@dataclasses.dataclass
class Chat:
    """The history that is sent with every question.

    turns: the texts as the model read them, with a placeholder for each picture.
    images: the pictures of the turns, in order; pending: those of the next question.
    system: takes the place of the template's system text, if not None.
    """

    stream: Stream
    sampling: Sampling = Sampling()
    system: str | None = None
    turns: list[Turn] = dataclasses.field(default_factory=list)
    images: list[Shown] = dataclasses.field(default_factory=list)
    pending: list[Shown] = dataclasses.field(default_factory=list)

    def clear(self) -> None:
        """Forgets turns and pictures; keeps settings and the system text."""
        self.turns, self.images, self.pending = [], [], []

    def ask(self, question: str, suffix: str = "") -> Iterator[str]:
        """Streams the answer to a question about all pictures so far; `suffix` goes behind it.

        Turns and pictures join the history when the answer ends, or is stopped by closing the
        iterator or by Ctrl-C, with the text up to there. An error, or no text at all, leaves the
        history and the pending pictures as they were.
        """
        suffix = suffix.replace(IMAGE_TEXT, "")  # text that OCR read is no placeholder
        turn = Turn("user", place_pictures(question, len(self.pending)) + suffix)
        answer = ""
        pieces = self._answer([*self.turns, turn], [*self.images, *self.pending])
        try:
            with contextlib.closing(pieces):
                for piece in pieces:
                    answer += piece
                    yield piece
        except (KeyboardInterrupt, GeneratorExit):
            self._keep(turn, answer)
            raise
        self._keep(turn, answer)

    def ask_about(self, question: str, picture: Image.Image) -> str:
        """The answer to one question about one picture, outside of this conversation."""
        turn = Turn("user", place_pictures(question, 1))
        return "".join(self._answer([turn], [Shown("", picture)])).strip()

    def _answer(self, turns: Sequence[Turn], images: Sequence[Shown]) -> Iterator[str]:
        system = [] if self.system is None else [("system", self.system)]
        request = Request([*system, *number_pictures(turns)], [i.picture for i in images])
        return self.stream(request, self.sampling)

    def _keep(self, turn: Turn, answer: str) -> None:
        answer = answer.replace(IMAGE_TEXT, "").strip()
        if answer:
            self.turns += [turn, Turn("assistant", answer)]
            self.images += self.pending
            self.pending = []


def place_pictures(question: str, count: int) -> str:
    """The question with a placeholder for each of `count` pictures: in front, a line each, or where
    the question itself has them; ValueError if it has another number."""
    found = question.count(IMAGE_TEXT)
    if found not in (0, count):
        raise ValueError(f"found {found} {IMAGE_TEXT} in the question, but {count} new picture(s)")
    return question if found else f"{IMAGE_TEXT}\n" * count + question


def number_pictures(turns: Sequence[Turn]) -> list[Turn]:
    """`<image>` -> `Image k:<image>`, if there are several (MGM_SPEC 5.7)."""
    if sum(turn.text.count(IMAGE_TEXT) for turn in turns) < 2:
        return list(turns)
    number = itertools.count(1)
    return [
        Turn(role, re.sub(IMAGE_TEXT, lambda _: f"Image {next(number)}:{IMAGE_TEXT}", text))
        for role, text in turns
    ]
