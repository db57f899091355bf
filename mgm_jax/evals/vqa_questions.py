"""LLaVA's question files: lines of question_id, image, text and category (MGM_SPEC 8.1)."""

from __future__ import annotations

from collections.abc import Iterator

from mgm_jax.evals.common import Question
from mgm_jax.evals.files import field, picture, read_records


def questions(path, images, options) -> Iterator[Question]:
    """Lines of a question file. What a benchmark wants said is in the text already."""
    for line in read_records(path):
        name = field(line, "image")
        yield Question(
            id=field(line, "question_id", (str, int)),
            prompt=field(line, "text"),
            images=(picture(images, name, line.where),),
            meta={k: line[k] for k in ("category", "image") if k in line},
        )
