"""Records that a run leaves out: an explicit list, made for one data set, in a JSON file.

    {"format": "mgm-jax skip list 1",
     "fingerprint": <of the source>,
     "records": {"17": "picture coco/1.jpg: the file is missing", ...}}

`mgm-jax data check --write-skip` writes it. Training never drops a record that is not on the list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from mgm_jax.data.files import read_json, write_json
from mgm_jax.data.records import Record, Source, position

FORMAT = "mgm-jax skip list 1"
REMEDY = "make a new list with `mgm-jax data check --write-skip`"


def write_skip_list(path, source: Source, reasons: Mapping[int, str]) -> None:
    """Writes the list: `reasons` says, for each number of a record to leave out, why."""
    records = {str(number): reasons[number] for number in sorted(reasons)}
    content = {"format": FORMAT, "fingerprint": source.fingerprint, "records": records}
    _check(path, content, len(source))
    write_json(path, content)


def read_skip_list(path, source: Source) -> dict[int, str]:
    """{number of a record: why it is left out}.

    FileNotFoundError for a missing file; ValueError for what is no skip list, for a list that was
    made for another data set, and for numbers that are not records of `source`.
    """
    content = read_json(path, "skip list")
    _check(path, content, len(source))
    if content["fingerprint"] != source.fingerprint:
        raise ValueError(
            f"{path}: this skip list was made for a data set with fingerprint "
            f"{content['fingerprint']}, found one with {source.fingerprint}; {REMEDY}"
        )
    return {int(number): reason for number, reason in content["records"].items()}


def _check(path, content, count):
    if content.get("format") != FORMAT:
        found = content.get("format")
        raise ValueError(f"{path}: format: found {found!r}, expected {FORMAT!r}; {REMEDY}")
    if not isinstance(content.get("fingerprint"), str):
        raise ValueError(f"{path}: fingerprint: expected a text; {REMEDY}")
    records = content.get("records")
    if not isinstance(records, dict):
        raise ValueError(f'{path}: records: expected {{"number": "reason"}}; {REMEDY}')
    for number, reason in records.items():
        if not (number.isascii() and number.isdecimal() and int(number) < count):
            raise ValueError(
                f"{path}: records: found number {number!r}, expected 0 to {count - 1}; {REMEDY}"
            )
        if not isinstance(reason, str):
            raise ValueError(f"{path}: records: {number}: found {reason!r}, expected a text")


class Kept:
    """The records of `source` that are not on a skip list, in their order: a `records.Source`.

    `skipped` holds numbers of records (a mapping to the reasons, say). Messages keep the original
    record numbers. ValueError if nothing is left.
    """

    def __init__(self, source: Source, skipped):
        numbers = np.unique(np.fromiter(skipped, np.int64, len(skipped)))
        if len(numbers) == len(source):
            raise ValueError(f"all {len(source)} records are on the skip list, nothing is left")
        self.source = source
        self.skipped = numbers
        text = f"{source.fingerprint} without {numbers.tolist()}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._kept_before = numbers - np.arange(len(numbers))  # records kept before each skipped

    def __len__(self) -> int:
        return len(self.source) - len(self.skipped)

    def number(self, index: int) -> int:
        """The number that record `index` has in `source`."""
        i = position(index, len(self), "records that are not skipped")
        return i + int(np.searchsorted(self._kept_before, i, side="right"))

    def __getitem__(self, index: int) -> Record:
        return self.source[self.number(index)]
