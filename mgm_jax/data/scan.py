"""Walks a file of JSON records once, in bounded memory, and says where each record lies."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator

from etils import epath
from tqdm import tqdm

BLOCK = 2**20  # bytes

# A value or an error this near to the end of what was read, or an error in an open string, may come
# from the cut ("-Infinity" is the longest word of JSON in Python).
_NEAR = 12

_SPACE = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder().raw_decode

Scanned = tuple[object, int, int]  # a record or the ValueError about it, first byte, byte after


def blocks(path: str, digest) -> Iterator[bytes]:
    """The file's bytes, which go through `digest` (of hashlib) too; a slow file shows progress."""
    try:
        size = epath.Path(path).stat().length
        file = epath.Path(path).open("rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: this data file does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: found a folder, expected a JSON file") from None
    progress = tqdm(
        total=size, desc=f"scan {path}", unit="B", unit_scale=True, delay=2, mininterval=2
    )
    with file as stream, progress:
        while block := stream.read(BLOCK):
            digest.update(block)
            yield block
            progress.update(len(block))


def scan_lines(path: str, data: Iterator[bytes]) -> Iterator[Scanned]:
    """The records of a file with one JSON value a line; lines of white space do not count.

    A line that is no JSON is yielded as the ValueError that says so.
    """
    start, empty = 0, True
    for number, line in enumerate(_lines(data), 1):
        if line.strip():
            yield _parse(path, line, number, start), start, start + len(line)
            empty = False
        start += len(line) + 1
    if empty:
        raise ValueError(f"{path}: found an empty file, expected one JSON record a line")


def _lines(data):
    pieces: list[bytes] = []
    for block in data:
        first, *others = block.split(b"\n")
        pieces.append(first)
        if others:
            yield b"".join(pieces)
            yield from others[:-1]
            pieces = others[-1:]
    yield b"".join(pieces)


def _parse(path, line, number, start):
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return ValueError(f"{path} line {number}: not UTF-8 text at byte {start + error.start}")
    except json.JSONDecodeError as error:
        return ValueError(f"{path}: invalid JSON, {error.msg}: line {number} column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; 100,000 brackets
        return ValueError(f"{path} line {number}: invalid JSON, {error}")


def scan_list(path: str, data: Iterator[bytes]) -> Iterator[Scanned]:
    """The elements of a JSON list. ValueError, naming the place, where the file is none."""
    text = _Window(path, data)
    if text.peek() != "[":
        found = brief(text.text[text.at :]) or "an empty file"
        raise ValueError(f"{path}: found {found}, expected a JSON list of records")
    text.at += 1
    empty = text.peek() == "]"
    separator = "]" if empty else ","
    while separator == ",":
        yield text.value()
        separator = text.peek()
        if separator not in ("]", ","):
            raise text.error("expected ',' or ']'", text.at)
        text.at += separator == ","
    text.at += 1
    if text.peek():
        raise text.error("text after the list", text.at)
    if empty:
        raise ValueError(f"{path}: found an empty list, expected at least one record")


class _Window:
    """The part of a file's text that is being read, from `at` on."""

    def __init__(self, path: str, data: Iterator[bytes]):
        self.path, self.text, self.at = path, "", 0
        self._data, self._decoder = data, codecs.getincrementaldecoder("utf-8")()
        self._fed = 0  # bytes taken from data
        self._mark, self._byte = 0, 0  # a place in `text`, and where it is in the file
        self._line, self._column = 1, 1  # of text[0]

    def peek(self) -> str:
        """The next character that is no white space (which is passed over); "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def value(self) -> Scanned:
        """The JSON value that is next, and its place in the file."""
        self.peek()
        while True:
            try:
                (value, place), problem = _decode(self.text, self.at), ""
            except (ValueError, RecursionError) as error:
                place = getattr(error, "pos", self.at)
                problem = getattr(error, "msg", str(error))
            cut = problem.startswith("Unterminated") or place > len(self.text) - _NEAR
            if not (cut and self._more()):
                break
        if problem:
            raise self.error(problem, place)
        first = self._byte_of(self.at)
        self.at = place
        return value, first, self._byte_of(place)

    def error(self, message: str, place: int) -> ValueError:
        line, column = self._position(place)
        return ValueError(f"{self.path}: invalid JSON, {message}: line {line} column {column}")

    def _byte_of(self, place):
        part = self.text[self._mark : place]
        self._byte += len(part) if part.isascii() else len(part.encode())
        self._mark = place
        return self._byte

    def _position(self, place):
        newlines = self.text.count("\n", 0, place)
        if not newlines:
            return self._line, self._column + place
        return self._line + newlines, place - self.text.rfind("\n", 0, place)

    def _more(self) -> bool:
        """Forgets what lies before `at` and reads as much again as is left, at least a block."""
        kept, new = len(self.text) - self.at, []
        while sum(map(len, new)) <= kept and (block := next(self._data, b"")):
            new.append(self._utf8(block))
        if not any(new):
            self._utf8(b"", final=True)
            return False
        self._byte_of(self.at)
        self._line, self._column = self._position(self.at)
        self.text = self.text[self.at :] + "".join(new)
        self.at = self._mark = 0
        return True

    def _utf8(self, block, final=False):
        waiting = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(block, final)
        except UnicodeDecodeError as error:
            place = self._fed - waiting + error.start
            raise ValueError(f"{self.path}: not UTF-8 text at byte {place}") from error
        self._fed += len(block)
        return text


def brief(text: str) -> str:
    """A text that fits into a message."""
    text = text.strip()
    return text if len(text) <= 60 else text[:57] + "..."
