"""The answers of an evaluation while it runs: appended as they come, found again by a rerun.

`FOLDER/asked.json` says which model answers and how; `FOLDER/answers/` has a file of JSON lines for
each process. A line's key is a hash of all that its answer depends on. A process that is killed
leaves at most half a line, which is dropped. Imports no jax.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from mgm_jax.data.files import read_json, write_json
from mgm_jax.evals.files import show
from mgm_jax.json_lines import JsonLines


class Answer(NamedTuple):
    """What came of a question.

    text: the reply, or "" if there is an error. tokens: how many were generated, the one that ended
    it included. finish: "stop" or "length". margin: the least distance of the two best logits over
    its steps. error: why the question could not be asked.
    """

    index: int
    text: str
    tokens: int
    finish: str
    margin: float | None
    error: str | None = None


class Answers:
    """The answers in `folder` to questions of these hashes (by index), given by `identity`."""

    def __init__(self, folder, identity: Mapping[str, Any], questions: Sequence[str]):
        self._folder = epath.Path(folder)
        self._identity = json.loads(json.dumps(identity))
        text = json.dumps(self._identity, sort_keys=True)
        self._keys = [hashlib.sha256((text + q).encode()).hexdigest()[:32] for q in questions]
        self._lines: JsonLines | None = None

    def begin(self) -> None:
        """Writes who answers, for a first run. One process calls it; ValueError as `check` has."""
        if not (self._folder / "asked.json").exists():
            (self._folder / "answers").mkdir(parents=True, exist_ok=True)
            write_json(self._folder / "asked.json", self._identity)

    def check(self) -> None:
        """ValueError if the answers that are there are of another model or of other settings;
        every process calls it, after `begin`."""
        file = self._folder / "asked.json"
        if not file.exists():
            raise FileNotFoundError(
                f"{file}: process 0 has written it and this process does not see it; the folder of "
                "--out has to be one that all processes share"
            )
        found = read_json(file, "description of an evaluation")
        for key in self._identity.keys() | found.keys():
            if found.get(key) != self._identity.get(key):
                raise ValueError(
                    f"{self._folder}: the answers there are of {key} {show(found.get(key))}, this "
                    f"run has {show(self._identity.get(key))}; use another --out, or delete it"
                )

    def read(self) -> dict[int, Answer]:
        """All answers by index, of whatever process. ValueError for one to another question."""
        found: dict[int, Answer] = {}
        for file in sorted((self._folder / "answers").glob("*.jsonl")):
            whole, _, _ = file.read_bytes().rpartition(b"\n")
            for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
                answer = self._parse(line, f"{file}:{number}")
                # An error is told again by a rerun, which may be in another process's file.
                if answer.index not in found or answer.error is None:
                    found[answer.index] = answer
        return found

    def _parse(self, line: bytes, where: str) -> Answer:
        try:
            values = json.loads(line)
            key, answer = values.pop("key"), Answer(**values)
        except (ValueError, TypeError, AttributeError, KeyError):
            raise ValueError(f"{where}: not an answer of an evaluation; delete the line") from None
        if not (0 <= answer.index < len(self._keys) and self._keys[answer.index] == key):
            raise ValueError(
                f"{where}: this answers another question than number {answer.index} of this run; "
                f"the questions have changed: use another --out, or delete {self._folder}"
            )
        return answer

    def append(self, process: int, answers: Sequence[Answer]) -> None:
        """Writes lines to this process's file; they are on the disk on return. OSError."""
        if not answers:
            return
        path = self._folder / "answers" / f"{process}.jsonl"
        try:
            self._lines = self._lines or JsonLines(path, sync=True)
            self._lines.write(*(a._asdict() | {"key": self._keys[a.index]} for a in answers))
        except OSError as error:
            raise OSError(f"{path}: cannot write it ({error.strerror or error})") from error

    def close(self) -> None:
        if self._lines:
            self._lines.close()
