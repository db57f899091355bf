"""What a server has: an engine that warms up, a painter, limits, and counts of requests."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mgm_jax.generate.engine import Engine
from mgm_jax.imagegen import ImageBackend
from mgm_jax.serve.errors import ApiError
from mgm_jax.serve.media import Limits

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Service:
    """Everything that requests share.

    name: of the model, which requests have to give. backend: paints, None for no pictures.
    remote_urls: whether pictures are fetched from public http(s) URLs. ocr: whether requests may
    switch it on. api_key: asked of all requests but those to /health, if not "".
    decoders: pictures that are decoded at a time.
    """

    engine: Engine
    name: str = "mgm"
    limits: Limits = Limits()
    backend: ImageBackend | None = None
    remote_urls: bool = False
    ocr: bool = False
    ocr_tokens: int = 256
    api_key: str = ""
    decoders: int = 4
    on_failure: Callable[[], None] | None = None  # called if the engine cannot warm up
    ready: bool = dataclasses.field(default=False, init=False)
    closing: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self):
        self.created = int(time.time())
        self.open_requests = 0
        self._decoders = ThreadPoolExecutor(self.decoders, thread_name_prefix="decode")
        self._painters = ThreadPoolExecutor(1, thread_name_prefix="paint")  # it has one model
        self._warmer = threading.Thread(target=self._warm_up, name="warm-up", daemon=True)

    @property
    def most_requests(self) -> int:
        """Those that are answered, and those that wait."""
        return self.engine.stats.slots + self.engine.queue

    def start(self) -> None:
        """Compiles in a thread, and answers requests from then on."""
        self.engine.start()
        self._warmer.start()

    def close(self) -> None:
        """Ends the warm-up at its next shape, and the engine."""
        self.closing = True
        self._warmer.join()
        self.engine.close()
        for pool in (self._decoders, self._painters):
            pool.shutdown(wait=False, cancel_futures=True)

    def _warm_up(self) -> None:
        start = time.monotonic()

        def progress(name: str, done: int, of: int) -> None:
            if self.closing:
                raise InterruptedError
            seconds = time.monotonic() - start
            print(f"compiling {done}/{of}: {name} ({seconds:.0f} s)", file=sys.stderr, flush=True)

        try:
            self.engine.warm_up(progress)
        except InterruptedError:
            return
        except Exception:
            _log.exception("the engine cannot warm up")
            if self.on_failure:
                self.on_failure()
            return
        self.ready = True

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """A place for one request; ApiError 503 while compiling, 429 when there is none."""
        if self.closing or not self.ready:
            stats = self.engine.stats
            message = f"compiling: {stats.compiled} of {stats.to_compile} shapes are done"
            raise ApiError(503, message, code="not_ready", close=True)
        if self.open_requests >= self.most_requests:
            message = f"{self.most_requests} requests are open already; try again later"
            raise ApiError(429, message, code="queue_full", close=True)
        self.open_requests += 1
        try:
            yield
        finally:
            self.open_requests -= 1

    async def decode(self, function: Callable[..., T], *args) -> T:
        """Runs what decodes pictures in a thread, few at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *args)

    async def paint(self, function: Callable[..., T], *args) -> T:
        """Runs what paints in a thread, one at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._painters, function, *args)
