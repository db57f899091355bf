"""Files that appear whole or not at all, on a disk or in a bucket."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator

from etils import epath


@contextlib.contextmanager
def whole_file(path) -> Iterator[epath.Path]:
    """A path on a disk to write to; in the end the file replaces `path` all at once.

    A process that is killed leaves at most `<name>.<number>.partial` behind.
    """
    path = epath.Path(path)
    # two writers of one file do not meet in one partial file
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with contextlib.ExitStack() as stack:
        local = partial
        if "://" in os.fspath(path):
            local = epath.Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
        try:
            yield local
            if local != partial:
                local.copy(partial)
            else:
                _to_disk(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _to_disk(path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_whole(path, data: bytes) -> None:
    """Writes `path`: its bytes appear all at once, in the place of what was there. OSError, naming
    it, if that cannot be done."""
    try:
        with whole_file(path) as local:
            local.write_bytes(data)
    except OSError as error:
        raise OSError(f"{path}: cannot write it ({error.strerror or error})") from error


def write_json(path, value) -> None:
    """`write_whole` of a value as indented JSON."""
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path, what: str) -> dict:
    """The JSON object in `path`; ValueError, or FileNotFoundError, saying `what` was expected."""
    path = epath.Path(path)
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: this {what} does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: found a folder, expected a {what}") from None
    except ValueError as error:
        raise ValueError(f"{path}: invalid JSON ({error}), expected a {what}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: found a {type(value).__name__}, expected a {what}")
    return value


def sha256(path) -> str:
    """Of the bytes of a file, in bounded memory."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
