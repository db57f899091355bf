"""Work ahead of its use: order, the bytes that it may hold, and what goes wrong in it."""

import threading
import time

import pytest

from mgm_jax.convert.ahead import ahead


def test_in_order_and_within_the_limit():
    """At most `limit` bytes are begun and not used up; a larger result comes alone."""
    sizes, held, most = [3, 4, 5, 1, 20, 2, 9, 9], [0], [0]
    lock = threading.Lock()

    def make(i):
        def job():
            with lock:
                held[0] += sizes[i]
                most[0] = max(most[0], held[0] if sizes[i] <= 10 else sizes[i])
                assert held[0] <= 10 or held[0] == sizes[i]
            time.sleep(0.01)
            return i

        return sizes[i], job

    found = []
    for i in ahead([make(i) for i in range(len(sizes))], limit=10):
        time.sleep(0.005 * (i % 3))
        found.append(i)
        with lock:
            held[0] -= sizes[i]
    assert found == list(range(len(sizes))) and 7 <= most[0] <= 20
    assert list(ahead([])) == []


def test_it_runs_ahead():
    made = threading.Event()
    results = ahead([(1, lambda: "first"), (1, made.set)], limit=2)
    assert next(results) == "first" and made.wait(5)
    assert list(results) == [None]


def test_an_error_comes_after_the_results_before_it():
    def fail():
        raise ValueError("no such tensor")

    def never():
        raise AssertionError("begun after an error")

    results = ahead([(1, lambda: 1), (1, fail), (1, never)])
    assert next(results) == 1
    with pytest.raises(ValueError, match="no such tensor"):
        next(results)


def test_left_early():
    """A user that stops leaves no thread behind."""
    before, begun = threading.active_count(), []
    results = ahead([(1, lambda i=i: begun.append(i)) for i in range(100)], limit=2)
    next(results)
    results.close()
    assert threading.active_count() == before and len(begun) < 5
