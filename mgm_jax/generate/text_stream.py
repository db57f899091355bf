"""Token ids in, text out piece by piece: what is sent is never taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"  # what decoders give for a part of a character


class TextStream:
    """The text of one answer as its ids come.

    decode: ids -> text. stops: strings that end the answer; no part of one is ever sent. The pieces
    together are the answer without white space around it: a part of a character, the beginning of
    what may become a stop string, and white space are held back until it is clear what they are.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]):
        self._decode, self._stops = decode, tuple(stops)
        self.ids: list[int] = []
        self.text = ""  # what has been sent
        self.stopped = False  # a stop string has come

    def push(self, ids: Sequence[int]) -> str:
        """The next ids -> the text that can be sent. Those behind a stop string are dropped."""
        whole = self._decode([*self.ids, *ids])
        if self._find_stop(whole) is None:
            self.ids += ids
            return self._send(whole, self._safe_end(whole))
        for i in ids:
            self.ids.append(i)
            whole = self._decode(self.ids)
            if (end := self._find_stop(whole)) is not None:
                self.stopped = True
                return self._send(whole, end)
        raise AssertionError("the ids together have a stop string")

    def finish(self) -> str:
        """What is still held back, at the end of the answer."""
        if self.stopped:
            return ""
        whole = self._decode(self.ids)
        return self._send(whole, len(whole))

    def _send(self, whole: str, end: int) -> str:
        body = whole[:end].strip()
        piece = body[len(self.text) :]
        self.text += piece
        return piece

    def _find_stop(self, text: str) -> int | None:
        found = [at for at in map(text.find, self._stops) if at >= 0]
        return min(found, default=None)

    def _safe_end(self, text: str) -> int:
        """How much of the text nothing that follows can change."""
        text = text.rstrip(INCOMPLETE)
        starts = [0]
        for stop in self._stops:
            starts += [n for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return len(text) - max(starts)
