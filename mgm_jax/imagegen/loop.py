"""`--loop N`: the model looks at the painted picture, criticises it and writes a new prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from mgm_jax.data.files import write_json
from mgm_jax.imagegen.painter import Painted, Painter
from mgm_jax.imagegen.prompts import GEN, NO_PROMPT, find_prompt, visible

CRITIQUE = (
    "This picture was painted from the prompt: {prompt}\n"
    "What in the picture does not fit the prompt, and what could be better? "
    "Then write a better prompt." + GEN
)


@dataclasses.dataclass(frozen=True)
class Round:
    """One look at a picture: what the model said of it and what was painted then.

    `painted` is None in the last round if the model wrote no other prompt; `stopped` says so.
    """

    number: int
    critique: str
    prompt: str | None = None
    painted: Painted | None = None
    stopped: str | None = None

    def to_dict(self) -> dict:
        """For the log, as JSON."""
        values = {"round": self.number, "critique": self.critique, "prompt": self.prompt}
        file = {} if self.painted is None else {"file": self.painted.path.name}
        return values | file | ({"stopped": self.stopped} if self.stopped else {})


def improve(
    ask: Callable[[str, Image.Image], str],
    painter: Painter,
    first: Painted,
    rounds: int,
    which: str = "last",
) -> Iterator[Round]:
    """Looks at `first` and paints anew, up to `rounds` times; yields each round as it ends.

    `ask(question, picture)` is the model's answer in a fresh conversation; `which`: see
    `find_prompt`. Ends early when the model writes no prompt, or the same again. The log lies
    beside the first picture (`log_path`), whole after every round.
    """
    painted, log = (
        first,
        [{"round": 0, "prompt": first.settings["prompt"], "file": first.path.name}],
    )
    for number in range(1, rounds + 1):
        before = painted.settings["prompt"]
        answer = ask(CRITIQUE.format(prompt=before), painted.picture)
        prompt, critique = find_prompt(answer, which), visible(answer).strip()
        if prompt is None or prompt == before:
            stopped = NO_PROMPT if prompt is None else "the model wrote the same prompt again"
            done = Round(number, critique, prompt, stopped=stopped)
        else:
            painted = painter.paint(prompt, critique=critique, round=number)
            done = Round(number, critique, prompt, painted)
        log.append(done.to_dict())
        write_json(log_path(first), log)
        yield done
        if done.stopped:
            return


def log_path(first: Painted) -> Path:
    """Where the log of the loop that began with this picture is: as unique as the picture."""
    return first.path.with_suffix(".loop.json")
