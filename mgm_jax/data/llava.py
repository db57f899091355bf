"""LLaVA-format data files, as a JSON list or one JSON object a line (MGM_SPEC 6.4)."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from array import array

import numpy as np
from etils import epath

from mgm_jax.data.records import PictureFile, Record, position
from mgm_jax.data.roots import folders, place, read_roots
from mgm_jax.data.scan import blocks, brief, scan_lines, scan_list
from mgm_jax.text import RecordError

# A path that is missing as written is rewritten by the first row whose marker it contains; data
# sets ship OCR pictures as .png, and both Visual Genome folders merged into one.
REWRITES = (
    ("ocr", ((".jpg", ".png"),)),
    ("VG_100K", (("VG_100K_2", "images"), ("VG_100K", "images"))),
)


class LlavaJson:
    """A LLaVA-format JSON file: a list of {"id", "image" (path or list), "conversations"}.

    The file is checked once and only the place of each record is kept, so the object is small,
    cheap to send to worker processes, and safe to share between threads; `source[i]` reads one
    record. Image paths are relative to `image_root` (a folder, or a mapping of them as in `roots`;
    not needed for text-only files) and may not leave it; a picture that is missing under its path
    may have another name (`rewrite`). Both paths may be anywhere that `etils.epath` reads.
    `fingerprint` is the SHA-256 of the file.

    Raises FileNotFoundError for a missing file or folder and ValueError, naming file and record,
    for anything that is not in this format. `lenient` leaves records that are not in the format to
    the moment they are read; `bad` says which and why: {number: message}.
    """

    _scan = staticmethod(scan_list)

    def __init__(self, path, image_root=None, lenient: bool = False):
        self.path = os.fspath(path)
        self.image_root = None if image_root is None else read_roots(image_root)
        self.bad: dict[int, str] = {}
        spans, any_image, digest = array("q"), False, hashlib.sha256()
        scanned = self._scan(self.path, blocks(self.path, digest))
        for i, (record, start, stop) in enumerate(scanned):
            spans.extend((start, stop))
            try:
                if isinstance(record, ValueError):
                    raise record
                where = self._where(i, record)
                images = _check(record, where)
                any_image = any_image or bool(images)
                if self.image_root is not None:
                    for image in images:
                        self._place(image, where)
            except ValueError as error:
                if not lenient:
                    raise
                self.bad[i] = str(error)
        if any_image and self.image_root is None:
            raise ValueError(f"{self.path}: its records have images, expected an image folder")
        for folder in folders(self.image_root) if any_image else ():
            if not epath.Path(folder).is_dir():
                raise FileNotFoundError(f"{self.path}: image folder {folder} does not exist")
        self._spans = np.array(spans, np.int64).reshape(-1, 2)  # bytes
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index) -> Record:
        """Record `index`; negative counts from the end, IndexError beyond either end."""
        i = position(index, len(self), self.path)
        start, stop = (int(byte) for byte in self._spans[i])
        try:
            with epath.Path(self.path).open("rb") as file:
                file.seek(start)
                record = json.loads(file.read(stop - start))
        except ValueError as error:
            changed = f"{self.path} record {i}: the file changed while in use"
            raise ValueError(self.bad.get(i, changed)) from error
        where = self._where(i, record)
        images = tuple(PictureFile(self._resolve(im, where), where) for im in _check(record, where))
        return Record(_identity(record, i), images, record["conversations"], where)

    def _where(self, i, record) -> str:
        name = f"{posixpath.basename(self.path)} record {i}"
        has_id = isinstance(record, dict) and record.get("id") is not None
        return f"{name} (id {record['id']})" if has_id else name

    def _place(self, image, where) -> str:
        try:
            return place(self.image_root, image)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def _resolve(self, image, where) -> str:
        path, other = self._place(image, where), rewrite(image)
        if other != image and not epath.Path(path).exists():
            path = self._place(other, where)
        return path


class LlavaJsonl(LlavaJson):
    """The same records, one JSON object a line."""

    _scan = staticmethod(scan_lines)


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
            raise RecordError(
                f"{where}: image: found {image!r}, expected a path that stays in the image folder",
                "outside",
            )
    return images


def _kind(value) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "nothing"}
    return names.get(type(value), _brief(value))


def _brief(value) -> str:
    return brief(json.dumps(value, ensure_ascii=False))
