"""Reading and transposing while the disk writes: work that is done ahead of its use."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
LIMIT = 256 << 20  # bytes that wait for their use


def ahead(jobs: Iterable[tuple[int, Callable[[], T]]], limit: int = LIMIT) -> Iterator[T]:
    """The results of `jobs`, pairs (bytes of the result, function), in order, made by a thread.

    The thread begins a job when nothing is left of those before it, or when its result and what is
    left of theirs hold at most `limit` bytes. A result is used up when the next one is asked for;
    drop it by then. What a job raises is raised here, after the results before it.
    """
    jobs, ready, held, stopped = list(jobs), collections.deque(), 0, False
    changed = threading.Condition()

    def make():
        nonlocal held
        for size, job in jobs:
            with changed:
                changed.wait_for(lambda: stopped or not held or held + size <= limit)  # noqa: B023
                if stopped:
                    return
                held += size
            try:
                result = (size, job(), None)
            except BaseException as e:  # handed over, whatever it is
                result = (size, None, e)
            with changed:
                ready.append(result)
                changed.notify_all()
            failed = result[2] is not None
            del result
            if failed:
                return

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        for _ in jobs:
            with changed:
                changed.wait_for(lambda: ready)
                size, value, error = ready.popleft()
            if error is not None:
                raise error
            yield value
            del value
            with changed:
                held -= size
                changed.notify_all()
    finally:
        with changed:
            stopped = True
            changed.notify_all()
        thread.join()
