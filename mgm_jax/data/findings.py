"""What `mgm-jax data check` can find: one row for each kind, and a finding of one record."""

from __future__ import annotations

import re
from typing import NamedTuple


class Kind(NamedTuple):
    """`level` is "error" (training stops at such a record) or "warning" (training takes it)."""

    name: str
    level: str
    title: str
    meaning: str
    remedy: str


_PICTURE_REMEDY = "fetch or copy the file again, or put the record on the skip list"
_TEXT_REMEDY = "correct the record, or put it on the skip list"

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "record",
            "error",
            "Unreadable record",
            "It cannot be read, or its fields are not those of the format.",
            "correct the record, or put it on the skip list; if a shard is damaged, copy it again",
        ),
        Kind(
            "outside",
            "error",
            "Path out of the folder",
            "The picture's path leads out of the image folder.",
            "move the picture into the folder and correct the path",
        ),
        Kind(
            "shard",
            "error",
            "Damaged shard",
            "A file of the data set is missing or not what was written.",
            "copy the file again, or build the data set again",
        ),
        Kind(
            "role",
            "error",
            "Unknown speaker",
            "A turn is from somebody else than human and gpt.",
            _TEXT_REMEDY,
        ),
        Kind(
            "alternation",
            "error",
            "Turns do not alternate",
            "After the human's first turn, gpt's and human's turns must alternate.",
            _TEXT_REMEDY,
        ),
        Kind(
            "unanswered",
            "error",
            "No answer at the end",
            "The last turn is the human's: nothing to learn from it.",
            _TEXT_REMEDY,
        ),
        Kind("empty_question", "error", "Empty question", "A human's turn is empty.", _TEXT_REMEDY),
        Kind("empty_answer", "error", "Empty answer", "One of gpt's turns is empty.", _TEXT_REMEDY),
        Kind(
            "placeholders",
            "error",
            "Wrong count of <image>",
            "The human's turns must hold one <image> for each picture, gpt's turns none.",
            _TEXT_REMEDY,
        ),
        Kind(
            "unicode",
            "error",
            "Invalid text",
            "A turn is not valid Unicode: it has half of a surrogate pair.",
            _TEXT_REMEDY,
        ),
        Kind(
            "template",
            "error",
            "Does not fit the template",
            "The chat template takes other conversations than this one.",
            "choose another template, or put the record on the skip list",
        ),
        Kind(
            "too_long",
            "error",
            "Too long",
            "More tokens, visual ones included, than a row holds.",
            "raise the length, shorten the conversation, or put the record on the skip list",
        ),
        Kind(
            "refused",
            "error",
            "Refused by training",
            "Training cannot encode the record for another reason.",
            _TEXT_REMEDY,
        ),
        Kind(
            "missing_picture",
            "error",
            "Missing picture",
            "The picture's file does not exist.",
            "check --images, fetch the file, or put the record on the skip list",
        ),
        Kind(
            "unreadable_picture",
            "error",
            "Picture that may not be read",
            "It is a folder, or reading it failed or is not allowed.",
            "correct its permissions or its path",
        ),
        Kind("empty_picture", "error", "Empty picture", "The file has no bytes.", _PICTURE_REMEDY),
        Kind(
            "corrupt_picture",
            "error",
            "Corrupt picture",
            "It cannot be decoded: damaged, or of an unknown format.",
            _PICTURE_REMEDY,
        ),
        Kind(
            "truncated_picture",
            "error",
            "Truncated picture",
            "Its file ends too early.",
            _PICTURE_REMEDY,
        ),
        Kind(
            "unsupported_picture",
            "error",
            "Unsupported samples",
            "Its samples have no fixed range: 32-bit integers or floats.",
            "convert it to 8 or 16 bits a sample",
        ),
        Kind(
            "too_many_pixels",
            "error",
            "Too many pixels",
            "More pixels than allowed; it was not decoded.",
            "make it smaller, or put the record on the skip list",
        ),
        Kind(
            "too_long_strip",
            "error",
            "Too long a strip",
            "So long and narrow that resizing it would need too much memory.",
            "cut it, or put the record on the skip list",
        ),
        Kind(
            "duplicate",
            "warning",
            "Duplicate",
            "Same pictures and same conversation as an earlier record.",
            "leave it out, unless it is there twice on purpose",
        ),
        Kind(
            "duplicate_id",
            "warning",
            "Repeated id",
            "An earlier record of the same source has the same id.",
            "harmless in training; ids in messages name two records",
        ),
        Kind(
            "extreme_aspect",
            "warning",
            "Extreme aspect ratio",
            "One side is more than 10 times the other: most of the square is padding.",
            "look at it; cut it if nothing can be seen",
        ),
        Kind(
            "tiny_picture",
            "warning",
            "Tiny picture",
            "The longer side is below 28 pixels, two patches of the low-resolution encoder.",
            "look at it; it may stand for one that could not be fetched",
        ),
        Kind(
            "animation",
            "warning",
            "Several frames",
            "An animation or a file of several pictures: the first one is used.",
            "none needed if the first one is meant",
        ),
        Kind(
            "rotated",
            "warning",
            "Rotated by EXIF",
            "EXIF asks viewers to turn the picture; training does not, as the original did not.",
            "turn the pixels themselves if it matters",
        ),
    )
}

MAX_ASPECT = 10  # long side by short side
TINY = 28  # pixels of the longer side


class Finding(NamedTuple):
    """What was found in record `number` of source `source` (both count from 0).

    `text` names record and file; `picture` is the picture's place in the record, if it is about one
    and -1 otherwise. `number` is -1 if the source as a whole is meant.
    """

    kind: str
    source: int
    number: int
    text: str
    picture: int = -1


def printable(text: str, most: int = 400) -> str:
    """Text in one line that any terminal and any file takes: control characters and halves of
    surrogate pairs are escaped, what is too long is cut in the middle."""
    text = re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]",
        lambda found: found[0].encode("unicode_escape").decode(),
        text,
    )
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"
