"""Where training records come from: random access by index (MGM_SPEC 6.4)."""

from __future__ import annotations

import json
import operator
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# A path that is missing as written is rewritten by the first row whose marker it contains; data
# sets ship OCR pictures as .png, and both Visual Genome folders merged into one.
REWRITES = (
    ("ocr", ((".jpg", ".png"),)),
    ("VG_100K", (("VG_100K_2", "images"), ("VG_100K", "images"))),
)

_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Record:
    """One conversation. `images` are full paths, in order; none for text-only records.

    `conversations` is the file's list of {"from", "value"}; `where` names the record in messages.
    """

    id: str
    images: tuple[str, ...]
    conversations: list
    where: str

    def to_dict(self) -> dict:
        """The record as a LLaVA JSON object; `image` (a path, or a list of several) if any."""
        image = self.images[0] if len(self.images) == 1 else list(self.images)
        head = {"id": self.id, "image": image} if self.images else {"id": self.id}
        return head | {"conversations": self.conversations}


class LlavaJson:
    """A LLaVA-format JSON file: a list of {"id", "image" (path or list), "conversations"}.

    The file is checked once and only the place of each record is kept, so the object is small,
    cheap to send to worker processes, and safe to share between threads; `source[i]` reads one
    record. Image paths are relative to `image_root` (not needed for text-only files) and may not
    leave it. Raises FileNotFoundError for a missing file or folder and ValueError, naming file and
    record, for anything that is not in this format.
    """

    def __init__(self, path, image_root=None):
        self.path = os.fspath(path)
        self.image_root = None if image_root is None else os.fspath(image_root)
        spans, any_image = [], False
        for i, (record, start, stop) in enumerate(_scan(self.path)):
            images = _check(record, self._where(i, record))
            any_image = any_image or bool(images)
            spans.append((start, stop))
        if not spans:
            raise ValueError(f"{self.path}: found an empty list, expected at least one record")
        if any_image and self.image_root is None:
            raise ValueError(f"{self.path}: its records have images, expected an image folder")
        if any_image and not os.path.isdir(self.image_root):
            raise FileNotFoundError(f"{self.path}: image folder {self.image_root} does not exist")
        self._spans = np.asarray(spans, np.int64)  # [records, 2], bytes

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index) -> Record:
        """Record `index`; negative counts from the end, IndexError beyond either end."""
        i = operator.index(index)
        i = i + len(self) if i < 0 else i
        if not 0 <= i < len(self):
            raise IndexError(f"{self.path}: no record {index}, found {len(self)} records")
        start, stop = (int(byte) for byte in self._spans[i])
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                record = json.loads(file.read(stop - start))
        except ValueError as error:
            raise ValueError(f"{self.path} record {i}: the file changed while in use") from error
        where = self._where(i, record)
        images = tuple(self._resolve(image) for image in _check(record, where))
        return Record(_identity(record, i), images, record["conversations"], where)

    def _where(self, i, record) -> str:
        name = f"{os.path.basename(self.path)} record {i}"
        has_id = isinstance(record, dict) and record.get("id") is not None
        return f"{name} (id {record['id']})" if has_id else name

    def _resolve(self, image) -> str:
        path = os.path.join(self.image_root, image)
        if not os.path.exists(path):
            path = os.path.join(self.image_root, rewrite(image))
        return path


def rewrite(image: str) -> str:
    """The other name under which data sets ship `image`, or the same (MGM_SPEC 6.4)."""
    for marker, replacements in REWRITES:
        if marker in image:
            for old, new in replacements:
                image = image.replace(old, new)
            break
    return image


def _identity(record, i) -> str:
    found = record.get("id")
    return str(i if found is None else found)


def _check(record, where) -> list[str]:
    """The record's relative image paths; ValueError if the record is not in the format."""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: found {_kind(record)}, expected an object")
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        found = "an empty list" if turns == [] else _kind(turns)
        raise ValueError(f"{where}: conversations: found {found}, expected a list of turns")
    for t, turn in enumerate(turns):
        keys = turn if isinstance(turn, dict) else {}
        if not all(isinstance(keys.get(key), str) for key in ("from", "value")):
            raise ValueError(
                f'{where}: conversations[{t}]: found {_brief(turn)}, expected {{"from": text, '
                '"value": text}'
            )
    images = record.get("image")
    images = [] if images is None else images if isinstance(images, list) else [images]
    for image in images:
        if not isinstance(image, str) or not image:
            raise ValueError(f"{where}: image: found {_brief(image)}, expected a path")
        inside = posixpath.normpath(image)
        if posixpath.isabs(inside) or inside == ".." or inside.startswith("../"):
            raise ValueError(
                f"{where}: image: found {image!r}, expected a path that stays in the image folder"
            )
    return images


def _scan(path) -> Iterator[tuple[object, int, int]]:
    """Yield (record, first byte, byte after) of each element of a JSON list."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: this data file does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: found a folder, expected a JSON file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}") from error
    at = _SPACE.match(text).end()
    if text[at : at + 1] != "[":
        found = _brief_text(text[at:]) or "an empty file"
        raise ValueError(f"{path}: found {found}, expected a JSON list of records")
    decode, separator, last, byte = json.JSONDecoder().raw_decode, "[", 0, 0
    try:
        end = _SPACE.match(text, at + 1).end()
        if text[end : end + 1] == "]":
            at, separator = end, "]"
        while separator != "]":
            start = _SPACE.match(text, at + 1).end()
            record, end = decode(text, start)
            first = byte + len(text[last:start].encode())
            byte, last = first + len(text[start:end].encode()), end
            yield record, first, byte
            at = _SPACE.match(text, end).end()
            separator = text[at : at + 1]
            if separator not in (",", "]"):
                raise json.JSONDecodeError("expected ',' or ']'", text, at)
        if _SPACE.match(text, at + 1).end() != len(text):
            raise json.JSONDecodeError("text after the list", text, at + 1)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: invalid JSON, {error}") from error


def _kind(value) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "nothing"}
    return names.get(type(value), _brief(value))


def _brief(value) -> str:
    return _brief_text(json.dumps(value, ensure_ascii=False))


def _brief_text(text) -> str:
    text = text.strip()
    return text if len(text) <= 60 else text[:57] + "..."
