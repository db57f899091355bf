"""One question to a server of OpenAI's chat completions: attempts, waits, what errors mean."""

from __future__ import annotations

import concurrent.futures
import email.utils
import random
import threading
import time
from typing import Any, NamedTuple

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
FATAL = (401, 402, 403, 404, 405)  # every other question would get the same
USAGE = ("prompt_tokens", "completion_tokens")
LONGEST_WAIT = 600.0  # seconds; a server that asks for more is not waited for


class Failed(Exception):
    """A question got no reply; `fatal` where no other would get one."""

    def __init__(self, why: str, fatal: bool = False):
        super().__init__(why)
        self.fatal = fatal


class _Again(Exception):
    """Worth another attempt, after `wait` seconds if the server said so."""

    def __init__(self, why: str, wait: float | None = None):
        super().__init__(why)
        self.wait = wait


class Patience(NamedTuple):
    """How often, and how long to wait: `backoff` seconds, doubled each time, up to a minute."""

    attempts: int = 5
    backoff: float = 1.0


def ask(
    client, url: str, body: dict[str, Any], patience: Patience, stop: threading.Event, cut=False
):
    """A request's body -> (reply, usage); Failed says why there is none.

    `cut`: a prompt that is too long for the model loses its first tenth and goes again, as in
    MathVista's extraction. CancelledError once `stop` is set: nothing is sent any more.
    """
    for attempt in range(patience.attempts):
        try:
            while True:
                if stop.is_set():
                    raise concurrent.futures.CancelledError
                answer, too_long = _send(client, url, body)
                if not too_long:
                    return _reply(answer)
                if not cut:
                    raise Failed(too_long)
                body = _without_a_tenth(body)
        except _Again as error:
            why, wait = str(error), error.wait
        if wait is None:
            wait = random.uniform(0.5, 1.0) * min(60.0, patience.backoff * 2**attempt)
        if wait > LONGEST_WAIT:
            raise Failed(f"{why}; the server asks to come back in {wait:.0f} s")
        if attempt + 1 < patience.attempts:
            stop.wait(wait)
    raise Failed(f"{why}; {patience.attempts} attempts")


def _send(client, url: str, body: dict) -> tuple[dict, str]:
    """One request -> (the answer's JSON, ""), or ({}, why) if the prompt is too long."""
    import httpx2

    try:
        response = client.post(url, json=body)
    except httpx2.TimeoutException:
        raise _Again("timed out") from None
    except httpx2.RequestError as error:
        raise _Again(f"no connection: {error or type(error).__name__}") from None
    status, (code, message) = response.status_code, _error(response)
    said = f"status {status}: {message}"
    if status in FATAL or code == "insufficient_quota":
        raise Failed(said, fatal=True)
    if status in RETRIED:
        raise _Again(said, _retry_after(response.headers.get("retry-after")))
    if status in (400, 413) and ("context_length" in code or "context length" in message):
        return {}, said
    if status != 200:
        raise Failed(said, fatal=status < 400)
    try:
        return response.json(), ""
    except ValueError:
        raise _Again(f"the answer is not JSON: {response.text[:80]!r}") from None


def _reply(answer) -> tuple[str, dict[str, int]]:
    """The reply's text in an answer, and the tokens that it took."""
    try:
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        message, reason = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
        tokens = {name: int(usage.get(name) or 0) for name in USAGE}
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise _Again(f"the answer is no chat completion: {str(answer)[:80]}") from None
    if refusal or reason == "content_filter":
        raise Failed(f"the judge refuses: {str(refusal or reason)[:80]!r}")
    if not isinstance(text, str) or not text.strip():
        raise _Again(f"the reply is empty (finish_reason {reason!r})")
    return text, tokens


def _error(response) -> tuple[str, str]:
    """(code, message) of an error's body, in the protocol's form or as text."""
    try:
        error = response.json()["error"]
        return str(error.get("code") or ""), str(error["message"])[:200]
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", response.text.strip()[:200] or response.reason_phrase


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None


def _without_a_tenth(body: dict) -> dict:
    *before, last = body["messages"]
    text = last["content"]
    return body | {"messages": [*before, last | {"content": text[max(1, len(text) // 10) :]}]}
