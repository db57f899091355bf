"""A client at the other end: its body within limits, and whether it is still there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

from mgm_jax.serve.errors import ApiError
from mgm_jax.serve.media import Limits
from mgm_jax.serve.schema import read_body

T = TypeVar("T")


async def body_of(request: Request, limits: Limits) -> bytes:
    """`read_body` with an end: ApiError 408 for a body that takes too long."""
    try:
        async with asyncio.timeout(limits.body_seconds):
            return await read_body(request, limits.body_bytes)
    except TimeoutError:
        message = f"the body took more than {limits.body_seconds:g} seconds"
        raise ApiError(408, message, code="slow_request", close=True) from None


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of some work, which is cancelled when the client goes; its body has to be read.

    ApiError 499, which nobody will see, if it does.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "the client has gone")
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await working


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
