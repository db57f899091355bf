"""One record judged as training would: what is wrong with its text and its pictures, and facts.

The verdicts are training's own: the encoder, the decoder and their errors, which say their kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from mgm_jax.data.findings import MAX_ASPECT, TINY, Finding, printable
from mgm_jax.data.images import ImageError, check_size, explain, load_image
from mgm_jax.data.pipeline import Encoder
from mgm_jax.data.records import Encoded, Picture, Record, Source
from mgm_jax.models.config import ImageSpec
from mgm_jax.text import RecordError, check_turns, turns_from_record

ORIENTATION = 0x0112  # EXIF tag; 1 is upright
NO_PICTURE, UNREADABLE = "(no picture)", "(unreadable)"  # stand for a folder


@dataclasses.dataclass(frozen=True)
class Rules:
    """What records are judged by. Without an `encoder` texts are not tokenised; more than `length`
    tokens are too many (None: no limit). Larger pictures than `max_pixels` are not decoded, and
    none is opened with `pictures=False`."""

    spec: ImageSpec
    max_pixels: int
    encoder: Encoder | None = None
    length: int | None = None
    pictures: bool = True


class PictureFacts(NamedTuple):
    """`size` is that of the file in bytes; -1 stands for unknown. `content` is what tells pictures
    apart: a digest of the bytes, or the name of one that was not read."""

    folder: str
    size: int
    pixels: int
    content: bytes


class Facts(NamedTuple):
    """A record's findings and what is counted. `folder` is the top folder of its first picture;
    `tokens` is -1 if unknown; the digests are 16 bytes, all zero if the record is unreadable."""

    findings: list[Finding]
    folder: str = UNREADABLE
    turns: int = 0
    tokens: int = -1
    pictures: tuple[PictureFacts, ...] = ()
    content: bytes = bytes(16)
    identity: bytes = bytes(16)


@dataclasses.dataclass(frozen=True)
class Judge:
    """judge(i) -> Facts of the i-th record to check, places[i] = (source, record number)."""

    sources: tuple[Source, ...]
    places: np.ndarray  # int64 [records, 2]
    rules: Rules

    def __call__(self, i: int) -> Facts:
        place = source, number = self.places[i].tolist()
        try:
            record = self.sources[source][number]
        except (ValueError, OSError) as error:
            kind = getattr(error, "kind", "record")
            return Facts([Finding(kind, *place, printable(str(error)))])
        root = getattr(self.sources[source], "image_root", None)
        root = root if isinstance(root, str) else ""  # several folders: names say which
        findings, tokens = [], -1
        try:
            tokens = count_tokens(record, self.rules)
        except ValueError as error:
            kind = getattr(error, "kind", "refused")
            findings.append(Finding(kind, *place, printable(str(error))))
        pictures = []
        for n, picture in enumerate(record.images):
            folder = top_folder(picture.name, root)
            if self.rules.pictures:
                facts, found = look(picture, record.where, folder, self.rules)
                findings += (Finding(kind, *place, printable(text), n) for kind, text in found)
            else:
                facts = PictureFacts(folder, -1, -1, _digest(picture.name))
            pictures.append(facts)
        return Facts(
            findings,
            pictures[0].folder if pictures else NO_PICTURE,
            len(record.conversations),
            tokens,
            tuple(pictures),
            _digest(*(p.content for p in pictures), json.dumps(record.conversations)),
            _digest(str(source), record.id),
        )


def count_tokens(record: Record, rules: Rules) -> int:
    """The tokens that training makes of a record, or -1 without an encoder.

    Raises ValueError, a RecordError where training names the kind, if training would refuse it.
    """
    if rules.encoder is not None:
        text, placeholders = rules.encoder.measure(record)
        tokens = text + placeholders * rules.encoder.visual_tokens
        if rules.length is not None and tokens > rules.length:
            raise RecordError(
                f"{record.where}: {tokens} tokens with {len(record.images)} picture(s), expected "
                f"at most {rules.length}",
                "too_long",
            )
        return tokens
    turns = turns_from_record(record.to_dict(), record.where)
    check_turns(turns, len(record.images), record.where)
    for n, turn in enumerate(turns):
        try:
            turn.text.encode()
        except UnicodeEncodeError as error:
            raise RecordError(f"{record.where}: turn {n}: {error}", "unicode") from error
    return -1


def look(
    picture: Picture, where: str, folder: str, rules: Rules
) -> tuple[PictureFacts, list[tuple[str, str]]]:
    """Reads and decodes a picture -> (facts, findings as (kind, text))."""
    size, pixels, content = -1, -1, _digest(picture.name)
    fault: ImageError | None = None
    try:
        with picture.open() as file:
            data = file.read()
        size, content = len(data), _digest(data)
        if not data:
            raise ImageError("the file has no bytes", "empty_picture")
        with Image.open(io.BytesIO(data)) as header:
            width, height = header.size
            pixels = width * height
            if pixels > rules.max_pixels:
                raise ImageError(
                    f"found {width} x {height} = {pixels:,} pixels, expected at most "
                    f"{rules.max_pixels:,}",
                    "too_many_pixels",
                )
            check_size(header.size, rules.spec)
            name = f"{where}: picture {picture.name}"
            found = [(kind, f"{name}: {text}") for kind, text in _oddities(header)]
    except Exception as error:  # as in `load_image`
        fault = explain(error, picture.name, where)
    else:
        try:
            load_image(Encoded(picture.name, data), where)
        except ImageError as error:
            fault = error
    if fault is not None:
        found = [(fault.kind, str(fault))]
    return PictureFacts(folder, size, pixels, content), found


def _oddities(header: Image.Image) -> Iterator[tuple[str, str]]:
    """(kind, text) of what training takes, but perhaps was not meant."""
    short, long = sorted(header.size)
    size = "{} x {} pixels".format(*header.size)
    if long > MAX_ASPECT * short:
        yield "extreme_aspect", f"found {size}"
    if long < TINY:
        yield "tiny_picture", f"found {size}"
    with contextlib.suppress(Exception):  # training does not read the second frame
        if getattr(header, "is_animated", False):
            yield "animation", f"found several frames ({header.format}), the first one is used"
    with contextlib.suppress(Exception):  # nor EXIF
        # Asking a PNG for EXIF that its header does not announce would decode it.
        announced = "exif" in header.info or header.format == "TIFF"
        if announced and (found := header.getexif().get(ORIENTATION, 1)) != 1:
            yield "rotated", f"found EXIF orientation {found}, which training ignores"


def top_folder(name: str, root: str) -> str:
    """The first folder of a picture's path below `root`; "." for one that lies in it."""
    first, slash, _ = name.removeprefix(root).lstrip("/").partition("/")
    return printable(first) if slash else "."


def _digest(*parts: str | bytes) -> bytes:
    """16 bytes that differ if any part does."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little") + data)
    return state.digest()
