"""Data sets that `mgm-jax data build` makes: records with their pictures in ArrayRecord shards.

    records-00000-of-00012.array_record  ...  one element a record
    index.npz        of each record: what planning needs, see `Index`
    dataset.json     shards with sizes and SHA-256, source and options; written last
    journal/         what each shard holds, so that a build can go on or mend a shard

An element is a msgpack map: {"id": text, "where": the source's name of the record, "conversations":
the list of turns, "images": [{"name": text, "data": bytes of the picture file}, ...]}.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgpack
import numpy as np
from etils import epath
from grain.sources import ArrayRecordDataSource

from mgm_jax.data.files import read_json, sha256
from mgm_jax.data.parallel import parallel_map
from mgm_jax.data.records import Encoded, Record, position

FORMAT, VERSION = "mgm-jax records", 1
REMEDY = "run the same `mgm-jax data build` again: it makes anew what is missing or damaged"


@dataclasses.dataclass(frozen=True)
class File:
    """A file of the data set, as `dataset.json` lists it; the index has 0 records."""

    name: str
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Index:
    """Of each of n records: pictures and signed words (MGM_SPEC 6.4) int32 [n], bytes of its
    element int64 [n]; of each of all pictures, in order: widths and heights int32, in pixels."""

    pictures: np.ndarray
    words: np.ndarray
    bytes: np.ndarray
    widths: np.ndarray
    heights: np.ndarray

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[int]]) -> Index:
        types = {"bytes": np.int64}
        return cls(**{n: np.array(v, types.get(n, np.int32)) for n, v in columns.items()})

    @classmethod
    def join(cls, parts: Sequence[Index]) -> Index:
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})

    def dump(self) -> bytes:
        stream = io.BytesIO()
        np.savez(stream, **vars(self))
        return stream.getvalue()


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """All records of a shard, in the words of ArrayRecordDataSource; it need not be opened."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class ArrayRecords:
    """The records of a folder that `mgm-jax data build` made: a `records.Source`.

    Shards are opened when they are first read, in each process; threads share them. The folder may
    be on a disk or in a bucket of Google Cloud Storage (gs://, which ArrayRecord reads itself).
    OSError or ValueError, naming the file and the remedy, for whatever is missing, has another size
    or was made by a newer version; reading a damaged record is a ValueError.
    """

    def __init__(self, directory):
        self.path = os.fspath(directory).rstrip("/")
        root = epath.Path(self.path)
        scheme = self.path.partition("://")[0] if "://" in self.path else "file"
        if scheme not in ("file", "gs"):
            raise ValueError(
                f"{self.path}: ArrayRecord reads from disks and gs://, found {scheme}://; copy the "
                "folder to a disk"
            )
        if not (root / "dataset.json").exists():
            raise FileNotFoundError(
                f"{root}: has no dataset.json, the build is not finished; {REMEDY}"
            )
        self.shards, self._index = _files(root / "dataset.json")
        with ThreadPoolExecutor(16) as threads:  # one after the other is slow in a bucket
            list(threads.map(functools.partial(_check_size, root), (*self.shards, self._index)))
        self._ends = np.cumsum([shard.records for shard in self.shards])
        self._data = ArrayRecordDataSource(
            [_Instruction(os.fspath(root / s.name), 0, s.records, s.records) for s in self.shards]
        )
        hashes = "".join(shard.sha256 for shard in self.shards)
        self.fingerprint = hashlib.sha256(hashes.encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index) -> Record:
        """Record `index`; negative counts from the end, IndexError beyond either end."""
        i = position(index, len(self), self.path)
        try:
            record = decode(self._data[i], f"{os.path.basename(self.path)} record {i}")
        except Exception as error:  # ArrayRecord raises RuntimeError, msgpack several kinds
            s = int(np.searchsorted(self._ends, i, side="right"))
            inside = i - int(self._ends[s]) + self.shards[s].records
            raise ValueError(
                f"{self.path}/{self.shards[s].name} record {inside} (record {i} of the data set): "
                f"damaged or not readable ({error}); {REMEDY}"
            ) from error
        return record

    def index(self) -> Index:
        """The index file; ValueError if it is damaged."""
        path = epath.Path(self.path) / self._index.name
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self._index.sha256:
            raise ValueError(f"{path}: damaged, its SHA-256 is another; {REMEDY}")
        with np.load(io.BytesIO(data)) as arrays:
            return Index(**arrays)

    def verify(self, workers: int | None = None) -> list[str]:
        """Reads all files; a message for each that is damaged."""
        files = (*self.shards, self._index)
        check = functools.partial(_fault, self.path, files)
        found = parallel_map(
            check, len(files), workers=workers, chunk=1, name="checksums", unit="file"
        )
        return [message for message in found if message]


def encode(record: Record, pictures: Sequence[tuple[str, bytes]]) -> bytes:
    """An element: the record with the names and bytes of its pictures."""
    value = {
        "id": record.id,
        "where": record.where,
        "conversations": record.conversations,
        "images": [{"name": name, "data": data} for name, data in pictures],
    }
    return msgpack.packb(value, unicode_errors="surrogatepass")  # JSON escapes can hold surrogates


def decode(element: bytes, name: str) -> Record:
    """The record of an element; messages call it `name` and say where it came from."""
    value = msgpack.unpackb(element, unicode_errors="surrogatepass")
    where = f"{name}, from {value['where']}"
    images = tuple(Encoded(image["name"], image["data"], where) for image in value["images"])
    return Record(value["id"], images, value["conversations"], where)


def _files(path) -> tuple[tuple[File, ...], File]:
    """Shards and index that `dataset.json` lists."""
    description = read_json(path, "data set of `mgm-jax data build`")
    found, version = description.get("format"), description.get("version")
    if found != FORMAT or not isinstance(version, int):
        raise ValueError(f"{path}: format: found {found!r} {version!r}, expected {FORMAT!r}")
    if version > VERSION:
        raise ValueError(
            f"{path}: made by a newer mgm_jax (version {version} of the format, this one reads "
            f"{VERSION}); update mgm_jax, or build the data set again"
        )
    try:
        shards = tuple(File(**shard) for shard in description["shards"])
        index = File(**description["index"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: a field is missing or unknown ({error}); {REMEDY}") from error
    if not shards:
        raise ValueError(f"{path}: lists no shard; {REMEDY}")
    return shards, index


def _check_size(root, file: File) -> None:
    path = root / file.name
    try:
        size = path.stat().length
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: this file of the data set is missing; {REMEDY}") from None
    if size != file.bytes:
        raise ValueError(f"{path}: found {size} bytes, expected {file.bytes}; {REMEDY}")


def _fault(root: str, files: Sequence[File], number: int) -> str:
    path = epath.Path(root) / files[number].name
    found = sha256(path)
    if found == files[number].sha256:
        return ""
    return f"{path}: damaged, found SHA-256 {found}, expected {files[number].sha256}; {REMEDY}"
