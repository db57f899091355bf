"""The weight files of a directory, each for itself: what can be read, and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from mgm_jax.convert.extents import Extent
from mgm_jax.convert.readers import KINDS, NOT_WEIGHTS, file_extents
from mgm_jax.doctor.finding import Finding, error

AGAIN = "download that file again (compare its size with the one on the hub)"
POINTER = b"version https://git-lfs"  # what git keeps in place of a large file


def gather(directory: Path) -> tuple[dict[str, Extent], list[Finding]]:
    """The tensors of all readable files that `readers.open_source` would read, and what is wrong.

    No exception but for what the system raises on the directory itself.
    """
    found: list[Finding] = []
    files, where = [], {}
    for kind in KINDS:
        files = sorted(f for p in kind for f in directory.glob(p) if f.name not in NOT_WEIGHTS)
        index = next(iter(sorted(directory.glob(kind[0] + ".index.json"))), None)
        if index:
            where, wrong = read_index(index)
            found += wrong
            files = sorted({directory / f for f in where.values()}) if where else files
            found += absent(index, where, files)
        if files or index:
            break
    else:
        found.append(error("no weights (*.safetensors or *.bin)", "not downloaded", AGAIN))
    tensors: dict[str, Extent] = {}
    for file in (f for f in files if f.exists()):
        try:
            extents = file_extents(file)
        except (ValueError, OSError) as e:
            found.append(unreadable(file, e))
            continue
        if twice := sorted(tensors.keys() & extents.keys()):
            found.append(
                error(
                    f"{len(twice)} tensors are in both {tensors[twice[0]].file.name} and "
                    f"{file.name}, such as {twice[0]!r}",
                    "two copies of the model in one directory (such as whole and in shards)",
                    "move one of the copies away",
                )
            )
        tensors |= extents
    return tensors, found + list(misplaced(where, tensors))


def read_index(index: Path) -> tuple[dict[str, str], list[Finding]]:
    """Its map from tensors to files; empty and a finding if it has none."""
    try:
        where = json.loads(index.read_text())["weight_map"]
        return {str(k): str(v) for k, v in where.items()}, []
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        return {}, [error(f"{index}: not an index of shards ({e!r})", "a damaged file", AGAIN)]


def absent(index: Path, where: Mapping[str, str], files: list[Path]) -> Iterator[Finding]:
    """The shards that an index names and that are not there."""
    for file in (f for f in files if not f.exists()):
        lost = sum(f == file.name for f in where.values())
        yield error(
            f"{index.name} names {file.name}, which is absent ({lost} tensors)",
            "the download or copy was not complete",
            f"download {file.name} into {index.parent}",
        )


def misplaced(where: Mapping[str, str], tensors: Mapping[str, Extent]) -> Iterator[Finding]:
    """Tensors that are in another shard than the index says."""
    wrong = [n for n, f in where.items() if n in tensors and tensors[n].file.name != f]
    if wrong:
        name = wrong[0]
        yield error(
            f"the index says that {name!r} is in {where[name]}, but it is in "
            f"{tensors[name].file.name} ({len(wrong)} tensors)",
            "index and shards are of different downloads or exports",
            "download the index (*.index.json) and the shards of one revision",
        )


def unreadable(file: Path, e: Exception) -> Finding:
    """Why a file cannot be read."""
    if isinstance(e, OSError):
        return error(
            e, "the system does not let it be read", "check the file's rights and the disk"
        )
    with open(file, "rb") as stream:
        start = stream.read(len(POINTER))
    if start == POINTER:
        return error(
            f"{file} is a Git LFS pointer, not the weights",
            "the repository was cloned without Git LFS",
            "run `git lfs pull` in the clone, or download the file itself",
        )
    return error(e, "a truncated or damaged file", AGAIN)
