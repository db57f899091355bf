"""The tokenizer folder of a checkpoint: one vocabulary file and `mgm_tokenizer.json`."""

import json
from collections.abc import Mapping

from etils import epath

CONFIG_FILE = "mgm_tokenizer.json"
_REQUIRED = {
    "kind": str,
    "add_bos": bool,
    "legacy": bool,
    "pad_id": int,
    "special_tokens": dict,
}
_OPTIONAL = {"bos_id": int, "eos_id": int}  # None, or absent, for the vocabulary's own


def read(path, what: str) -> bytes:
    """The bytes of a file; FileNotFoundError names it and what was expected there."""
    path = epath.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a {what}")
    return path.read_bytes()


def read_json(path, what: str) -> dict:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or not an object.
    """
    try:
        value = json.loads(read(path, what))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); expected a {what}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: found a {type(value).__name__}, expected an object: a {what}")
    return value


def write(directory, name: str, vocabulary: bytes, kind: str, options: Mapping) -> None:
    """Writes the vocabulary file `name` and the description of the tokenizer beside it."""
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(vocabulary)
    config = json.dumps({"kind": kind, **options}, indent=2, ensure_ascii=False)
    (directory / CONFIG_FILE).write_text(config)


def read_description(directory) -> dict:
    """What `write` put into `mgm_tokenizer.json`: `kind` and the options of that kind.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or a key is missing, unknown or mistyped.
    """
    path = epath.Path(directory) / CONFIG_FILE
    config = read_json(path, "tokenizer description")
    found = {key: type(value) for key, value in config.items() if key not in _OPTIONAL}
    wrong = any(
        not isinstance(config.get(key), kind | None) or isinstance(config.get(key), bool)
        for key, kind in _OPTIONAL.items()
    )
    if found != _REQUIRED or wrong:
        found |= {key: type(config[key]) for key in _OPTIONAL if key in config}
        raise ValueError(f"{path}: found {_names(found)}, expected {_names(_REQUIRED | _OPTIONAL)}")
    return config


def _names(types: dict[str, type]) -> dict[str, str]:
    return {key: kind.__name__ for key, kind in types.items()}
