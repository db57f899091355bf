"""What a check says: a finding, with the likely cause and the remedy unless all is well."""

from __future__ import annotations

import dataclasses

LEVELS = ("ok", "warning", "error")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found, and, unless all is well, the likely cause and the remedy."""

    level: str
    what: str
    cause: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        lines = [f"{self.level:7}  {self.what}"]
        lines += [f"{'':9}{k}: {v}" for k, v in (("cause", self.cause), ("do", self.remedy)) if v]
        return "\n".join(lines)


def ok(what: str) -> Finding:
    return Finding("ok", what)


def error(what, cause: str, remedy: str) -> Finding:
    return Finding("error", str(what), cause, remedy)
