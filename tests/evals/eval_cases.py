"""Twenty questions with pictures for every benchmark, in the files that it comes in.

`build(name, folder)` writes them and returns a `Case`: where they are, and the replies of a model
that is right on the first 13. Its `summary` is the score of those replies, worked out by hand.
"""

from pathlib import Path

import cases_choice
import cases_open
from case_files import COUNT, RIGHT, Case

__all__ = ["COUNT", "RIGHT", "Case", "build"]


def build(name: str, folder: Path) -> Case:
    """The case of a benchmark, under `folder`."""
    module = cases_choice if hasattr(cases_choice, name) else cases_open
    return getattr(module, name)(Path(folder))
