"""One shard of a data set: records are read, pictures decoded once (and made smaller), written."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterable, Iterator

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from PIL import Image

from mgm_jax.data.array_record import File, encode
from mgm_jax.data.files import read_json, sha256, whole_file, write_json
from mgm_jax.data.images import load_image
from mgm_jax.data.lengths import words
from mgm_jax.data.records import Encoded, Picture, Record, Source

# One record a chunk, for random access; pictures are compressed already.
WRITER = "group_size:1,uncompressed"
CHECK = (
    "`mgm-jax data check --write-skip` finds all such records, and `data build --skip` leaves them "
    "out"
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the bytes of a data set besides its source."""

    images: str = ""  # picture names are relative to this folder
    max_size: int | None = None  # of a picture's longer side, in pixels
    quality: int | None = None  # of JPEG pictures that are made smaller
    records_per_shard: int = 4096


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the index: pictures, signed words, bytes of the element, sizes of its pictures."""

    pictures: int
    words: int
    bytes: int
    sizes: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class BuildShard:
    """Number of a shard -> its journal entry {"file": `File`, "index": columns of `Index`}.

    A shard that its journal entry describes, down to the SHA-256, is kept as it is.
    """

    source: Source
    out: str
    options: Options
    shards: int

    def __call__(self, shard: int) -> dict:
        root, name = epath.Path(self.out), f"records-{shard:05d}-of-{self.shards:05d}.array_record"
        journal = root / "journal" / f"{name}.json"
        if journal.exists() and (root / name).exists():
            entry = read_json(journal, "journal of a build")
            if sha256(root / name) == entry["file"]["sha256"]:
                return entry
        first = shard * self.options.records_per_shard
        stop = min(first + self.options.records_per_shard, len(self.source))
        with whole_file(root / name) as local:
            rows = write_elements(local, self._elements(range(first, stop)))
            file = File(name, len(rows), local.stat().length, sha256(local))
        entry = {"file": dataclasses.asdict(file), "index": _columns(rows)}
        write_json(journal, entry)
        return entry

    def _elements(self, numbers: Iterable[int]) -> Iterator[tuple[Row, bytes]]:
        for number in numbers:
            try:
                record = self.source[number]
                pictures = [self._picture(picture, record) for picture in record.images]
            except ValueError as error:
                raise ValueError(f"{error}. {CHECK}") from error
            try:
                element = encode(record, [(name, data) for name, data, _ in pictures])
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{record.where}: cannot be stored, {error}") from error
            count = words(record.conversations) * (1 if pictures else -1)
            sizes = tuple(size for _, _, size in pictures)
            yield Row(len(pictures), count, len(element), sizes), element

    def _picture(self, picture: Picture, record: Record) -> tuple[str, bytes, tuple[int, int]]:
        """Name, bytes, and size in pixels, as stored; ImageError if it cannot be decoded."""
        try:
            with picture.open() as file:
                data = file.read()
        except OSError:
            load_image(picture, record.where)  # says what is wrong
            raise
        name = picture.name
        if self.options.images:
            name = name.removeprefix(self.options.images.rstrip("/") + "/")
        decoded = load_image(Encoded(picture.name, data), record.where)
        if self.options.max_size and max(decoded.size) > self.options.max_size:
            decoded, data = shrink(decoded, data, self.options.max_size, self.options.quality)
        return name, data, decoded.size


def shrink(picture: Image.Image, data: bytes, size: int, quality: int) -> tuple[Image.Image, bytes]:
    """An RGB picture with its longer side `size` pixels, and as a file: JPEG if `data` is, or PNG.

    Nothing but the pixels is kept of the file.
    """
    width, height = (max(1, round(n * size / max(picture.size))) for n in picture.size)
    small = picture.resize((width, height), Image.Resampling.LANCZOS)
    with Image.open(io.BytesIO(data)) as original:
        is_jpeg = original.format in ("JPEG", "MPO")  # MPO: JPEG with more pictures behind it
    stream = io.BytesIO()
    kind = {"format": "JPEG", "quality": quality} if is_jpeg else {"format": "PNG"}
    small.save(stream, **kind)
    return small, stream.getvalue()


def write_elements(path, elements: Iterable[tuple[Row, bytes]]) -> list[Row]:
    """Writes an ArrayRecord file on a disk; OSError, naming it, if the disk does not take it."""
    rows = []
    try:
        writer = ArrayRecordWriter(os.fspath(path), WRITER)
        for row, element in elements:
            writer.write(element)
            rows.append(row)
        writer.close()
    except RuntimeError as error:  # what ArrayRecord raises
        raise OSError(f"{path}: cannot be written, {error}") from error
    return rows


def _columns(rows: list[Row]) -> dict[str, list[int]]:
    return {
        "pictures": [row.pictures for row in rows],
        "words": [row.words for row in rows],
        "bytes": [row.bytes for row in rows],
        "widths": [width for row in rows for width, _ in row.sizes],
        "heights": [height for row in rows for _, height in row.sizes],
    }
