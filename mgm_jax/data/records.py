"""What the data pipeline is made of: records, their pictures, and sources that hand them out."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import operator
import os
from typing import Protocol, runtime_checkable

from etils import epath


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A picture that lies inside its data set: the file's bytes, and what messages call it."""

    name: str
    data: bytes = dataclasses.field(repr=False)
    where: str = dataclasses.field(default="", compare=False)  # its record, in messages

    def open(self) -> io.BytesIO:
        return io.BytesIO(self.data)

    def stamp(self) -> str:
        """Differs if the bytes do."""
        return hashlib.sha256(self.data).hexdigest()


@dataclasses.dataclass(frozen=True)
class PictureFile:
    """A picture file, anywhere that `etils.epath` reads (a disk, gs://, ...)."""

    name: str  # its full path
    where: str = dataclasses.field(default="", compare=False)  # its record, in messages

    def open(self):
        return epath.Path(self.name).open("rb")

    def stamp(self) -> str:
        """Differs if size or time of change do. OSError if the file is missing."""
        if "://" in self.name:  # epath's times are whole seconds
            stat = epath.Path(self.name).stat()
            return f"{stat.length} {stat.mtime}"
        stat = os.stat(self.name)
        return f"{stat.st_size} {stat.st_mtime_ns}"


Picture = PictureFile | Encoded


@dataclasses.dataclass(frozen=True)
class Record:
    """One conversation. `images` in order; none for text-only records.

    `conversations` is the file's list of {"from", "value"}; `where` names the record in messages.
    """

    id: str
    images: tuple[Picture, ...]
    conversations: list
    where: str

    def to_dict(self) -> dict:
        """The record as a LLaVA JSON object; `image` (a name, or a list of several) if any."""
        names = [picture.name for picture in self.images]
        head = {"id": self.id, "image": names[0] if len(names) == 1 else names} if names else {}
        return {"id": self.id} | head | {"conversations": self.conversations}


def position(index, count: int, name: str) -> int:
    """`index` as 0 <= i < count; negative counts from the end, IndexError beyond either end."""
    i = operator.index(index)
    i = i + count if i < 0 else i
    if not 0 <= i < count:
        raise IndexError(f"{name}: no record {index}, found {count} records")
    return i


@runtime_checkable
class Source(Protocol):
    """Records by index, read when asked for. Cheap to pickle; safe to share between threads.

    `source[i]` takes 0 <= i < len(source) (IndexError beyond) and raises ValueError, naming file
    and record, for a record that cannot be read. `fingerprint` is a short hex text that differs if
    any record does (contents of picture files outside the data set are not part of it).
    """

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...
