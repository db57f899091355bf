"""What a published data set needs, and with --root what of it is there.

Without NAME all recipes are listed. With NAME and --root, the JSON file's size and the number of
files in each picture folder are compared with what was published; `mgm-jax data check` then reads
every record and picture. The last line printed is JSON. Exit code 1 if something is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping

from etils import epath
from tqdm import tqdm

from mgm_jax.data.files import write_whole
from mgm_jax.data.recipes import RECIPES, Folder, Recipe, get_recipe, sources_of
from mgm_jax.data.roots import place
from mgm_jax.data.sources import open_source
from mgm_jax.doctor.finding import LEVELS, Finding


def count_files(recipe: Recipe, root, roots: Mapping[str, str] | None = None) -> dict:
    """Number of files in each of the recipe's folders; None where there is no folder.

    Subfolders included; progress goes to stderr.
    """
    images = sources_of(recipe, root, roots)[recipe.name]["images"]
    counts = {}
    for folder in recipe.folders:
        path = epath.Path(place(images, f"{folder.name}/"))
        counts[folder.name] = None
        if path.is_dir():
            with tqdm(desc=str(path), unit="file", mininterval=2) as bar:
                for _, _, files in path.walk():
                    bar.update(len(files))
                counts[folder.name] = bar.n
    return counts


def check_recipe(
    recipe: Recipe,
    root,
    roots: Mapping[str, str] | None = None,
    *,
    counts: Mapping | None = None,
    read: bool = False,
) -> list[Finding]:
    """What is missing ("error") or odd ("warning") where a recipe lies in `root`; [] if nothing.

    `counts` is what `count_files` gave (counted here if None); `read` reads the JSON file to count
    its records, too. `roots`: see `sources_of`.
    """
    found = []
    source = sources_of(recipe, root, roots)[recipe.name]
    counts = count_files(recipe, root, roots) if counts is None else counts
    for folder in recipe.folders:
        directory = place(source["images"], f"{folder.name}/").rstrip("/")
        found += _folder(folder, directory, counts[folder.name])
    path = epath.Path(source["path"])
    if not path.exists():
        cause, get = "not downloaded, or under another name", f"download it from {recipe.url}"
        return [Finding("error", f"{path}: missing", cause, get), *found]
    found += _range(f"{path}: bytes", path.stat().length, recipe.size)
    if read and recipe.records:
        count = len(open_source(source["path"], source["images"] or None))
        found += _range(f"{path}: records", count, recipe.records)
    others = (r for r in RECIPES if recipe.name == r.inside or recipe.inside == r.name)
    for other in others:
        if (path.parent / other.json).exists():
            inner, outer = (recipe, other) if recipe.inside else (other, recipe)
            found.append(
                Finding(
                    "warning",
                    f"{inner.json} lies beside {outer.json}, which already holds its records",
                    "both come from the same place",
                    f"name only one of them in data.sources: leave out {inner.json}",
                )
            )
    return found


def _folder(folder: Folder, path: str, count: int | None) -> list[Finding]:
    """The finding about a picture folder with `count` files, if any."""
    get = f"get {folder.source} from {folder.url}"
    cause = "; ".join(filter(None, ("not downloaded, or not unpacked", folder.note)))
    if not count:
        what = f"{path}: {'missing' if count is None else 'empty'}"
        return [Finding("error", what, cause, get)] if folder.needed else []
    if folder.pictures and count < folder.pictures:
        what = f"{path}: found {count:,} files, expected {folder.pictures:,}"
        return [Finding("warning", what, cause, f"{get}; `mgm-jax data check` names the missing")]
    return []


def _range(what: str, found: int, expected: tuple[int, int]) -> list[Finding]:
    least, most = expected
    if least <= found <= most:
        return []
    return [
        Finding(
            "warning",
            f"{what}: found {found:,}, expected {least:,} to {most:,}",
            "another or an older version (before April 2024 ALLaVA's pictures had other names), "
            "or an unfinished download",
            "download it again, or go on if you mean this version",
        )
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", nargs="?", help=", ".join(recipe.name for recipe in RECIPES))
    parser.add_argument("--root", metavar="DIR", help="where the recipe's files lie")
    parser.add_argument(
        "--folder",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a picture folder that lies elsewhere; may be repeated",
    )
    parser.add_argument("--read", action="store_true", help="count the JSON file's records, too")
    parser.add_argument("--json", metavar="FILE", help="write the last line to FILE too")


def main(args: argparse.Namespace) -> None:
    """Prints the table, findings and one line of JSON; leaves with 1 if something is missing."""
    recipes = [get_recipe(args.name)] if args.name else RECIPES
    roots = dict(_folder_option(text) for text in args.folder)
    if not args.name and args.root:
        raise ValueError("--root: expected a recipe's NAME with it")
    if not args.root and (roots or args.read):
        raise ValueError("--folder, --read: expected --root DIR with it")
    result: dict = {"command": "data recipes"}
    if args.root:
        (recipe,) = recipes
        counts = count_files(recipe, args.root, roots)
        findings = check_recipe(recipe, args.root, roots, counts=counts, read=args.read)
        print(describe(recipe, counts))
        print(*findings, sep="\n")
        result |= {"recipe": recipe.name, "root": args.root, "files": counts}
        result |= {level: sum(f.level == level for f in findings) for level in LEVELS[1:]}
        result["findings"] = [dataclasses.asdict(finding) for finding in findings]
    else:
        print(*(describe(recipe) for recipe in recipes), sep="\n\n")
        result["recipes"] = [dataclasses.asdict(recipe) for recipe in recipes]
    line = json.dumps(result)
    if args.json:
        write_whole(args.json, (line + "\n").encode())
    print(line)
    if result.get("error"):
        sys.exit(1)


def describe(recipe: Recipe, counts: Mapping | None = None) -> str:
    """The recipe as a table in plain text, with the files found in each folder if counted."""
    size = " to ".join(f"{n / 1e6:,g}" for n in recipe.size)
    records = " to ".join(f"{n:,}" for n in recipe.records) if recipe.records else "unknown"
    lines = [
        f"{recipe.name}: {recipe.json}, {size} MB, records: {records}",
        f"  {recipe.url}, licence: {recipe.licence}",
    ]
    lines += [f"  note: {note}" for note in recipe.notes]
    if recipe.inside:
        lines += [f"  note: {recipe.inside} holds all of these records: never train on both"]
    if recipe.folders:
        lines += [f"  {'folder':14} {'found':>9} {'expected':>9}  pictures"]
    for folder in recipe.folders:
        there = _number(counts[folder.name], "missing") if counts else ""
        expected = _number(folder.pictures, "unknown") if folder.needed else "not used"
        lines += [f"  {folder.name:14} {there:>9} {expected:>9}  {folder.source}"]
        if counts is None:  # else the findings say what is to be done
            details = [folder.url, f"licence: {folder.licence or 'no statement found'}"]
            details += [f"note: {folder.note}"] if folder.note else []
            lines += [f"{'':38}{text}" for text in details]
    return "\n".join(lines)


def _number(count: int | None, otherwise: str) -> str:
    return otherwise if count is None else f"{count:,}"


def _folder_option(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ValueError(f"--folder: found {text!r}, expected NAME=DIR")
    return name, path
