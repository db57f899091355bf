"""The index that rows are planned from: tokens, pictures and words of each record.

Reading it takes the text of every record through template and tokenizer, but opens no picture. It
is kept on disk under a key of all that it depends on.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io

import numpy as np
from etils import epath

from mgm_jax.data.files import write_whole
from mgm_jax.data.parallel import parallel_map
from mgm_jax.data.records import Source

VERSION = 1  # of the file's format


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Of each record of a source, int32 [n]: ids of its text, placeholders among them, pictures,
    and the words by which the original grouped (negative without a picture, MGM_SPEC 6.4)."""

    text: np.ndarray
    placeholders: np.ndarray
    pictures: np.ndarray
    words: np.ndarray

    def __len__(self) -> int:
        return len(self.text)

    def tokens(self, visual_tokens: int) -> np.ndarray:
        """Tokens with `visual_tokens` for each placeholder; int32 [n]."""
        return self.text + self.placeholders * np.int32(visual_tokens)


def words(conversations) -> int:
    """Whitespace-separated words over all turns."""
    return sum(len(turn["value"].split()) for turn in conversations)


def measure(encoder, source: Source, i: int) -> tuple[int, int, int, int]:
    """One row of the index; ValueError, naming the record, if it cannot be trained on."""
    record = source[i]
    text, placeholders = encoder.measure(record)
    sign = 1 if record.images else -1
    return text, placeholders, len(record.images), sign * words(record.conversations)


def read_lengths(
    source: Source, encoder, directory=None, *, workers: int | None = None, name: str = ""
) -> Lengths:
    """The index of `source` as `encoder` (an `Encoder`) sees it, from `directory` if it is there.

    ValueError, naming the record, for the first one that cannot be trained on.
    """
    key = hashlib.sha256(repr((VERSION, source.fingerprint, encoder.identity())).encode())
    file = directory and epath.Path(directory) / f"lengths-{key.hexdigest()[:24]}.npz"
    if file and file.exists():
        with file.open("rb") as stream, np.load(stream) as found:
            return Lengths(**found)
    rows = parallel_map(
        functools.partial(measure, encoder, source),
        len(source),
        workers=0 if len(source) < 4096 else workers,  # below, starting them takes longer
        chunk=512,
        name=name and f"lengths of {name}",
    )
    count = len(source) * len(dataclasses.fields(Lengths))
    flat = np.fromiter((value for row in rows for value in row), np.int32, count)
    lengths = Lengths(*np.ascontiguousarray(flat.reshape(len(source), -1).T))
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(stream := io.BytesIO(), **vars(lengths))
        write_whole(file, stream.getvalue())
    return lengths
