"""Counts over all records of a check: findings by kind and by folder, repeats, sizes, lengths."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mgm_jax.data.check_record import NO_PICTURE, Facts
from mgm_jax.data.findings import KINDS, Finding, printable

KEEP = 100  # findings of each kind that are kept with their texts
FOLDERS = 100  # listed in the summary; the smaller ones are added up
OTHERS = "(others)"
COUNTED = ("records", "pictures", "errors", "warnings")  # of a folder; the last two: findings
PERCENTS = (50, 90, 95, 99)


class Report:
    """What a check found; `examples` has the first findings of each kind, `kinds` counts them all.

    Takes `Facts` in the order of `places` and keeps a few numbers of each record only. `reasons`,
    (source, record) -> text of its first error, is kept if `keep_reasons`: it grows with them.
    """

    def __init__(
        self,
        places: np.ndarray,  # int64 [records, 2]: source, record number
        names: Sequence[str],  # of the sources, for messages
        levels: Mapping[str, str],  # kind -> what it counts as
        keep_reasons: bool = False,
    ):
        self.places, self.names, self.levels = places, names, levels
        self.reasons: dict[tuple[int, int], str] | None = {} if keep_reasons else None
        self.examples: dict[str, list[Finding]] = {}
        self.kinds, self._totals = Counter(), Counter()
        self._folders: dict[str, Counter] = {}
        self._folder_of: list[Counter] = []  # of each record
        self._bad = np.zeros(len(places), bool)
        self._pixels, self._tokens = array("q"), array("q")
        self._content, self._identity = bytearray(), bytearray()

    def add(self, i: int, facts: Facts) -> None:
        """The facts of the i-th record; to be called for all of them, in order."""
        folder = self._folder(facts.folder)
        folder["records"] += 1
        for picture in facts.pictures:
            self._folder(picture.folder)["pictures"] += 1
            self._totals["bytes"] += max(0, picture.size)
            if picture.pixels >= 0:
                self._pixels.append(picture.pixels)
        count = len(facts.pictures)
        self._totals["pictures"] += count
        self._totals["multi_image"] += count > 1
        self._totals["text_only"] += facts.folder == NO_PICTURE
        self._totals["turns"] += facts.turns
        if facts.tokens >= 0:
            self._tokens.append(facts.tokens)
        self._content += facts.content
        self._identity += facts.identity
        self._folder_of.append(folder)
        for finding in facts.findings:
            self._find(finding, i)

    def finish(self) -> None:
        """Adds the findings that need all records: repeats."""
        for kind, digests, what in (
            ("duplicate", self._content, "the same pictures and conversation as"),
            ("duplicate_id", self._identity, "the same id as"),
        ):
            for later, first in repeats(np.frombuffer(digests, np.uint64).reshape(-1, 2)):
                text = f"{self._name(later)}: {what} {self._name(first)}"
                self._find(Finding(kind, *self.places[later].tolist(), text), later)

    def add_shard(self, source: int, text: str) -> None:
        """A damaged file of a source."""
        self._find(Finding("shard", source, -1, text))

    def summary(self) -> dict[str, Any]:
        """Totals, counts and shares, ready for JSON; None for what was not measured."""
        levels = Counter()
        for kind, count in self.kinds.items():
            levels[self.levels[kind]] += count
        tokens = np.asarray(self._tokens)
        names = [*(f"p{p}" for p in PERCENTS), "max"]
        lengths = np.percentile(tokens, [*PERCENTS, 100], method="higher") if len(tokens) else None
        pixels = np.asarray(self._pixels)
        return {
            "records": len(self.places),
            "pictures": self._totals["pictures"],
            "text_only": self._totals["text_only"],
            "multi_image": self._totals["multi_image"],
            "turns": self._totals["turns"],
            "bytes": self._totals["bytes"] if len(pixels) else None,
            "pixels": {"median": int(np.median(pixels)), "max": int(pixels.max())}
            if len(pixels)
            else None,
            "tokens": None if lengths is None else dict(zip(names, lengths.tolist(), strict=True)),
            "errors": levels["error"],
            "warnings": levels["warning"],
            "bad_records": int(self._bad.sum()),
            "kinds": {kind: self.kinds[kind] for kind in KINDS if self.kinds[kind]},
            "sources": self._listed(),
        }

    def _find(self, finding: Finding, i: int | None = None) -> None:
        level = self.levels[finding.kind]
        self.kinds[finding.kind] += 1
        examples = self.examples.setdefault(finding.kind, [])
        if len(examples) < KEEP:
            examples.append(finding)
        if i is None:
            return
        self._folder_of[i][f"{level}s"] += 1
        if level == "error":
            self._bad[i] = True
            if self.reasons is not None:
                self.reasons.setdefault((finding.source, finding.number), finding.text)

    def _folder(self, name: str) -> Counter:
        if name not in self._folders:
            self._folders[name] = Counter(dict.fromkeys(COUNTED, 0))
        return self._folders[name]

    def _listed(self) -> dict[str, dict[str, int]]:
        ordered = sorted(self._folders.items(), key=lambda item: -item[1]["records"])
        listed = {name: dict(counts) for name, counts in ordered[:FOLDERS]}
        if len(ordered) > FOLDERS:
            small = [counts for _, counts in ordered[FOLDERS:]]
            listed[OTHERS] = {key: sum(counts[key] for counts in small) for key in COUNTED}
        return listed

    def _name(self, i: int) -> str:
        source, number = self.places[i]
        return printable(f"{self.names[source]} record {number}")


def repeats(digests: np.ndarray) -> list[tuple[int, int]]:
    """uint64 [n, 2] -> (i, first number with the digest of i) of all that came before, by i.

    Digests of zeros are left out.
    """
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal ones keep their order
    ordered = digests[order]
    same = np.zeros(len(order), bool)
    same[1:] = (ordered[1:] == ordered[:-1]).all(1) & ordered[1:].any(1)
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    later = np.flatnonzero(same)
    found = np.stack([order[later], order[first[later]]], 1)
    return [(int(i), int(j)) for i, j in found[np.argsort(found[:, 0])]]


def totals(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what a summary of `mgm-jax data check` counts, for people."""
    pixels, tokens = summary["pixels"], summary["tokens"]
    found = [
        ("records", f"{summary['records']:,}"),
        ("left out", f"{summary['skipped']:,} on the skip list" if summary["skipped"] else ""),
        ("text only", f"{summary['text_only']:,}"),
        ("several pictures", f"{summary['multi_image']:,}"),
        ("turns", f"{summary['turns']:,}"),
        ("pictures", f"{summary['pictures']:,}"),
        ("bytes", f"{summary['bytes']:,}" if pixels else ""),
        ("pixels", f"median {pixels['median']:,}, most {pixels['max']:,}" if pixels else ""),
        ("tokens", ", ".join(f"{k} {v:,}" for k, v in tokens.items()) if tokens else ""),
        ("errors", f"{summary['errors']:,} in {summary['bad_records']:,} records"),
        ("warnings", f"{summary['warnings']:,}"),
        ("time", f"{summary['seconds']:,} s, {summary['records_per_s']:,} records/s"),
    ]
    return [(name, value) for name, value in found if value]
