"""Where training records come from: `open_source` finds out what a path holds and opens it."""

from __future__ import annotations

from etils import epath

from mgm_jax.data.array_record import ArrayRecords
from mgm_jax.data.llava import LlavaJson, LlavaJsonl, rewrite
from mgm_jax.data.records import Source
from mgm_jax.data.skip import Kept, read_skip_list, write_skip_list

__all__ = [
    "ArrayRecords",
    "Kept",
    "LlavaJson",
    "LlavaJsonl",
    "open_source",
    "read_skip_list",
    "rewrite",
    "write_skip_list",
]

FORMATS = (
    "a JSON list of records, JSON records one a line, a folder made by `mgm-jax data build`, or a "
    "TFDS folder (dataset_info.json and features.json)"
)


def open_source(path, images=None, skip=None, lenient: bool = False) -> Source:
    """The records in `path`, of a kind decided by what is found there (`FORMATS`).

    `images` is the picture folder of a JSON file (ValueError where pictures lie inside the data
    set). `skip` is a skip list: its records are left out, and only they may be malformed; with
    `lenient`, malformed records raise when they are read. Empty texts mean "not given".
    """
    path = epath.Path(path)
    if path.is_dir():
        source = _open_folder(path, images)
    elif path.exists():
        source = _file_class(path)(path, images or None, lenient=lenient or bool(skip))
    else:
        raise FileNotFoundError(f"{path}: this data file or folder does not exist")
    if not skip:
        return source
    skipped = read_skip_list(skip, source)
    if isinstance(source, LlavaJson) and not lenient:
        for number, message in source.bad.items():
            if number not in skipped:
                raise ValueError(f"{message} (not on the skip list {skip})")
    return Kept(source, skipped)


def _open_folder(path, images) -> Source:
    if (path / "dataset.json").exists() or (path / "journal" / "plan.json").exists():
        kind = ArrayRecords
    elif (path / "dataset_info.json").exists() and (path / "features.json").exists():
        from mgm_jax.data.tfds import TfdsSource as kind
    else:
        names = sorted(child.name for child in path.iterdir())
        found = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "nothing"
        raise ValueError(f"{path}: found a folder with {found}, expected {FORMATS}")
    if images:
        raise ValueError(
            f"{path}: its pictures lie inside the data set, but the picture folder {images} is "
            "given; leave it out"
        )
    return kind(path)


def _file_class(path) -> type[LlavaJson]:
    with path.open("rb") as file:
        head = file.read(4096).lstrip(b" \t\r\n")
    if head[:1] in (b"[", b"{"):
        return LlavaJson if head[:1] == b"[" else LlavaJsonl
    found = f"a file that starts with {head[:20]!r}" if head else "an empty file"
    raise ValueError(f"{path}: {found}, expected {FORMATS}")
