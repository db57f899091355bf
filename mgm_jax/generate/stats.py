"""What an engine counts, for /metrics and /health of a server."""

from __future__ import annotations

import collections
import dataclasses
import time
from typing import Any

WINDOW = 10.0  # seconds that rates are measured over


@dataclasses.dataclass
class Stats:
    """Counters since the start; `snapshot` adds what is derived from them. Written in rounds of the
    engine, read from anywhere."""

    slots: int
    occupied: int = 0
    waiting: int = 0
    compiled: int = 0  # of `to_compile` shapes, by `Engine.warm_up`
    to_compile: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompts', those that were in memory already
    answer_tokens: int = 0
    rounds: int = 0
    finished: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(("stop", "length", "cancelled", "error"), 0)
    )
    first_token_seconds: float = 0.0  # sum over requests, from their submission
    seconds: float = 0.0  # sum over requests that were answered
    _recent: collections.deque = dataclasses.field(default_factory=collections.deque, repr=False)

    def drew(self, tokens: int) -> None:
        """Counts tokens of answers."""
        now = time.monotonic()
        self.answer_tokens += tokens
        self._recent.append((now, tokens))
        while self._recent and self._recent[0][0] < now - WINDOW:
            self._recent.popleft()

    @property
    def tokens_per_second(self) -> float:
        """Of all answers, over the last `WINDOW` seconds."""
        now = time.monotonic()
        inside = [(at, n) for at, n in list(self._recent) if at >= now - WINDOW]
        if not inside:
            return 0.0
        return sum(n for _, n in inside) / max(now - inside[0][0], 1e-3)

    @property
    def ready(self) -> bool:
        """Whether no warm-up is under way."""
        return self.compiled >= self.to_compile

    def snapshot(self) -> dict[str, Any]:
        """All of it as JSON values."""
        names = [f.name for f in dataclasses.fields(self) if not f.name.startswith("_")]
        values = {n: getattr(self, n) for n in names} | {"finished": dict(self.finished)}
        rate = round(self.tokens_per_second, 2)
        return values | {"tokens_per_second": rate, "ready": self.ready}
