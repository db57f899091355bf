"""What a caller of the engine holds: a request on its way, and its answer."""

from __future__ import annotations

import asyncio
import dataclasses
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future

from mgm_jax.generate.prompts import Request
from mgm_jax.generate.sampling import Sampling


class Full(RuntimeError):
    """The engine's queue has no room for another request."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A finished answer.

    text: without stop ids, stop strings and white space around it.
    ids: what was drawn, the stop id or the ids of the stop string included.
    finish: "stop", "length" (of the answer or of the cache) or "cancelled".
    prompt_tokens: those of the text and of the pictures; reused_tokens: of these, not read again.
    logprobs: of each id under the model itself, if they were asked for.
    margins: how far the best logit of each step was above the second best.
    """

    text: str
    ids: tuple[int, ...]
    finish: str
    prompt_tokens: int
    reused_tokens: int
    logprobs: tuple[float, ...] | None
    margins: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Delta:
    """A piece of an answer: text that is final, and the ids (with their log-probabilities, if they
    were asked for) drawn since the last piece."""

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None


class Ticket:
    """A submitted request. All methods may be called from any thread."""

    def __init__(
        self,
        request: Request,
        sampling: Sampling,
        number: int,
        on_token: Callable[[Delta], None] | None,
    ):
        self.request, self.sampling, self.number = request, sampling, number
        self.cancelled = False
        self.submitted = time.monotonic()
        self._on_token = on_token
        self._future: Future[Answer] = Future()
        self._lock = threading.Lock()
        self._sent: list[Delta] = []
        self._listeners: list[Callable[[Delta | None], None]] = []

    def result(self, timeout: float | None = None) -> Answer:
        """Waits for the answer; raises what ended the request. TimeoutError after `timeout`
        seconds. Somebody has to drive the engine meanwhile (`Engine.start`)."""
        return self._future.result(timeout)

    def outcome(self) -> Answer | Exception:
        """The answer, or what ended the request; it has to be done."""
        return self._future.exception(0) or self._future.result(0)

    def done(self) -> bool:
        return self._future.done()

    def cancel(self) -> None:
        """Ends the request at the engine's next step; the answer is what there is by then."""
        self.cancelled = True

    def stream(self) -> Iterator[Delta]:
        """The pieces of the answer from the first one on, as they come; raises what ended the
        request. Closing the iterator cancels it."""
        pieces: queue.SimpleQueue[Delta | None] = queue.SimpleQueue()
        self._listen(pieces.put)
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            self.result()
        finally:
            self.cancel()

    async def astream(self) -> AsyncIterator[Delta]:
        """`stream` for asyncio."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue()

        def tell(piece):
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except RuntimeError:  # the loop is closed: nobody listens any more
                self.cancel()

        self._listen(tell)
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            self.result()
        finally:
            self.cancel()

    def _listen(self, listener: Callable[[Delta | None], None]) -> None:
        with self._lock:
            for piece in self._sent:
                listener(piece)
            if self.done():
                listener(None)
            self._listeners.append(listener)

    # --- the engine's side ---

    def send(self, piece: Delta) -> None:
        """Hands a piece on; an exception of the caller's function is the caller's."""
        if self._on_token is not None:
            self._on_token(piece)
        with self._lock:
            self._sent.append(piece)
            for listener in self._listeners:
                listener(piece)

    def end(self, answer: Answer | BaseException) -> None:
        with self._lock:
            if isinstance(answer, BaseException):
                self._future.set_exception(answer)
            else:
                self._future.set_result(answer)
            for listener in self._listeners:
                listener(None)
