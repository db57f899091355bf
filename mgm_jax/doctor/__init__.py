"""`mgm-jax doctor DIR`: what a checkpoint holds, what is wrong with it, why, and what to do.

Works on our directories and on the original's. Nothing but names, shapes and small files is read;
every check runs, whatever the others found. Nothing is decided from the name of a file or folder.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from mgm_jax.convert.writers import JOURNAL
from mgm_jax.doctor.finding import LEVELS, Finding
from mgm_jax.doctor.original import adapter, original
from mgm_jax.doctor.ours import ours, own_adapter
from mgm_jax.lora.directory import RECORD

__all__ = ["Finding", "diagnose", "main"]


def diagnose(directory: str | Path) -> list[Finding]:
    """Every finding about a model directory of ours or of the original."""
    directory = Path(directory)
    if not directory.is_dir():
        return [Finding("error", f"{directory} is no directory", "a wrong path", "check the path")]
    if (directory / JOURNAL).exists() and not _finished(directory):
        return [
            Finding(
                "error",
                "the conversion that writes this directory is unfinished",
                "it was interrupted, or is still running",
                "run the same `mgm-jax convert` again: it goes on where it stopped",
            )
        ]
    if (directory / RECORD).exists():
        return list(own_adapter(directory))
    if (directory / "mgm.json").exists():
        return list(ours(directory))
    if any(directory.glob("params*")) and not (directory / "config.json").exists():
        return [
            Finding(
                "error",
                "mgm.json is missing beside params/",
                "it is written last: the writer was interrupted, or the file was not copied",
                "copy it from where the directory came from, or write the checkpoint again",
            )
        ]
    if (directory / "adapter_config.json").exists():
        return list(adapter(directory))
    return list(original(directory))


def _finished(directory: Path) -> bool:
    try:
        return json.loads((directory / JOURNAL).read_text())["finished"]
    except (ValueError, KeyError, TypeError):
        return False


def main(args) -> None:
    """Prints the findings, and one line of JSON; leaves with 1 if there is an error.

    `args`: directory, json. The JSON has the number of findings of each level, and `findings`.
    """
    findings = diagnose(args.directory)
    for level in LEVELS:
        for finding in (f for f in findings if f.level == level):
            print(finding)
    result = {level: sum(f.level == level for f in findings) for level in LEVELS}
    result = {"command": "doctor", "directory": args.directory} | result
    line = json.dumps(result | {"findings": [dataclasses.asdict(f) for f in findings]})
    if args.json:
        Path(args.json).write_text(line + "\n")
    print(line)
    if result["error"]:
        sys.exit(1)
