"""A function over many numbers in worker processes: in order, with progress, in bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_function: Callable | None = None  # of this worker process


def _start(function: Callable) -> None:
    global _function
    _function = function
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # the parent was killed: nobody waits for what this process does


def _work(start: int, stop: int) -> list:
    return [_function(i) for i in range(start, stop)]


def parallel_map(
    function: Callable[[int], T],
    count: int,
    *,
    workers: int | None = None,
    chunk: int = 64,
    name: str = "",
    unit: str = "record",
) -> Iterator[T]:
    """Yields function(0), ..., function(count - 1), in this order.

    `workers` processes (default: all cores; 0: this one) get `chunk` numbers at a time, and at most
    a few chunks ahead of what has been taken. `function` is pickled once for each worker, so it may
    hold a source. What it raises is raised here. A bar on stderr shows rate and ETA where `name` is
    given.
    """
    workers = os.cpu_count() if workers is None else workers
    chunks = deque((at, min(at + chunk, count)) for at in range(0, count, chunk))
    workers = min(workers, len(chunks))
    with tqdm(total=count, desc=name, unit=unit, disable=not name, mininterval=2) as bar:
        if workers < 1:
            for i in range(count):
                yield function(i)
                bar.update()
            return
        spawn = multiprocessing.get_context("spawn")  # jax's threads do not survive a fork
        pool = ProcessPoolExecutor(workers, spawn, initializer=_start, initargs=(function,))
        try:
            ahead: deque = deque()
            while chunks or ahead:
                while chunks and len(ahead) < 4 * workers:
                    ahead.append(pool.submit(_work, *chunks.popleft()))
                found = ahead.popleft().result()
                bar.update(len(found))
                yield from found
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
