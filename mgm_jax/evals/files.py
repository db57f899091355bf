"""Files of benchmarks: records that know where they stand, and errors that say it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath


class Record(dict):
    """A JSON object that knows its `source`, a file, and its place in it, such as ":12"."""

    def __init__(self, value: dict, source, place: str = ""):
        super().__init__(value)
        self.source, self.place = str(source), place

    @property
    def where(self) -> str:
        """Source and place, for messages."""
        return self.source + self.place


def read_json(path) -> Any:
    """The one JSON value in a file; ValueError with file and line if it is none."""
    text = _text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None


def read_records(path) -> list[Record]:
    """Records of a JSON list, of JSON lines, or of objects written one behind the other."""
    text, decoder = _text(path), json.JSONDecoder()
    records, at, line = [], 0, 1
    while True:
        begin = at
        while at < len(text) and text[at] in " \t\r\n\ufeff":
            at += 1
        line += text.count("\n", begin, at)
        if at == len(text):
            return records
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{error.lineno}: not JSON: {error.msg} (a line that was cut off?)"
            ) from None
        if isinstance(value, list) and not records and not text[end:].strip():
            return [_record(v, path, f", record {i}") for i, v in enumerate(value)]
        records.append(_record(value, path, f":{line}"))
        line += text.count("\n", at, end)
        at = end


def read_mapping(path) -> dict[str, Any]:
    """A JSON file of one object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: found {describe(value)}, expected one JSON object")
    return value


def field(record: Record, name: str, kind: type | tuple[type, ...] = str) -> Any:
    """`record[name]`, which must be there and be of `kind`; ValueError says where it is not."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    expected = " or ".join(k.__name__ for k in kinds)
    if name not in record:
        found = ", ".join(map(repr, record)) or "nothing"
        raise ValueError(f"{record.where}: no field {name!r} ({expected}), found {found}")
    value = record[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(
            f"{record.where}: field {name!r} is {describe(value)}, expected {expected}"
        )
    return value


def by_key(records: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, Record]:
    """Records by their key; ValueError names both places of one that stands there twice."""
    found: dict[Any, Record] = {}
    for record in records:
        name = key(record)
        if name in found:
            raise ValueError(f"{record.where}: {show(name)} stands in {found[name].where} already")
        found[name] = record
    return found


def check_known(predictions: Iterable[Record], known, key, source) -> None:
    """ValueError for the first prediction whose key is not one of `known`, those of `source`."""
    for record in predictions:
        if key(record) not in known:
            like = next(iter(known), None)
            example = "" if like is None else f"; a question there: {show(like)}"
            raise ValueError(
                f"{record.where}: no question for {show(key(record))} in {source}{example}"
            )


def check_complete(wanted, found, source, predictions: list[Record]) -> None:
    """ValueError if questions of `source` have no prediction."""
    missing = [k for k in wanted if k not in found]
    if missing:
        first = ", ".join(show(k) for k in missing[:3])
        raise ValueError(
            f"{predictions[0].source}: no prediction for {len(missing)} of {len(wanted)} questions "
            f"of {source}: {first}{', ...' if len(missing) > 3 else ''}"
        )


def picture(folder, name: str, where: str):
    """The path of a question's picture; FileNotFoundError names the question that has none."""
    path = epath.Path(folder) / name
    if not path.exists():
        raise FileNotFoundError(f"{where}: picture {path} does not exist")
    return path


def show(key: Any) -> str:
    """A key in a message: a long prompt is cut."""
    text = repr(key)
    return text if len(text) <= 120 else f"{text[:117]}..."


def describe(value: Any) -> str:
    """A value in a message, with its type."""
    return f"{show(value)} ({type(value).__name__})"


def write_json(path, value: Any, indent: int | None = None) -> None:
    """Writes JSON, making the folder."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False))


def _text(path) -> str:
    path = epath.Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: found a folder, expected a file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: this file does not exist")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None


def _record(value: Any, source, place: str) -> Record:
    if not isinstance(value, dict):
        raise ValueError(f"{source}{place}: found {describe(value)}, expected a JSON object")
    return Record(value, source, place)
