"""A judge behind a URL: any server that speaks OpenAI's chat completions. Imports no jax.

Replies are kept in a folder, one file each under the hash of what was asked, so a rerun asks only
for what is missing. What failed is told in the end, with the ids of its questions.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etils import epath
from tqdm import tqdm

from mgm_jax.data.files import write_json
from mgm_jax.evals.common import Ask
from mgm_jax.evals.files import read_mapping, show
from mgm_jax.evals.judge_http import USAGE, Failed, Patience, ask

HOPELESS = 8  # so many failures without any reply: the other questions are not asked
BYTES_A_TOKEN = 3.5  # English has about 4, other scripts fewer


class JudgeError(ValueError):
    """A judge that cannot be asked, or questions that it gave no judgement of."""


@dataclass
class HttpJudge:
    """A `common.Judge`.

    url: the API's root, such as http://localhost:8000/v1.
    cache: the folder of replies.
    key_env: the environment variable of the key; where it is not set, no key is sent.
    concurrency: requests at a time. attempts: for each question. timeout: seconds for a reply.
    backoff: seconds before the second attempt, doubled for each other; Retry-After goes before it.
    price_in, price_out: US dollars for a million tokens of prompts, of replies.
    budget: dollars that one call of `many` may cost by estimate; needs both prices.
    keep_unread: a reply that the benchmark cannot read counts as the benchmark counts it (MM-Vet 0,
        LLaVA-Bench -1 -1); without, it is an error, and a rerun asks again.
    body: more fields of the request; None takes one away.
    """

    url: str
    model: str
    cache: Any
    key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    attempts: int = 5
    timeout: float = 120.0
    backoff: float = 1.0
    price_in: float | None = None
    price_out: float | None = None
    budget: float | None = None
    keep_unread: bool = False
    body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"judge: url is {self.url!r}, expected http://... or https://...")
        for name in ("concurrency", "attempts", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"judge: {name} is {getattr(self, name)}, expected more than 0")
        if self.budget is not None and None in (self.price_in, self.price_out):
            raise ValueError("judge: a budget needs the prices of prompts and replies")
        self.url = self.url.rstrip("/").removesuffix("/chat/completions")
        self.cache = epath.Path(self.cache)

    @property
    def name(self) -> str:
        """For results: which model judged, and where."""
        return f"{self.model} at {self.url}"

    def __call__(self, prompt: str, **settings) -> str:
        """The reply to one prompt; JudgeError."""
        return self.many([Ask(prompt, **settings)])[0]

    def many(self, asks: Sequence[Ask]) -> list[str]:
        """Replies in order. JudgeError if any is missing; the others are in the cache by then."""
        keys = [self._key(a) for a in asks]
        distinct = dict(zip(reversed(keys), reversed(asks), strict=True))
        replies = {key: self._cached(key, a) for key, a in distinct.items()}
        wanted = {key: distinct[key] for key in dict.fromkeys(keys) if replies[key] is None}
        self._announce(list(wanted.values()), len(distinct))
        failed = self._ask_all(wanted, replies) if wanted else {}
        missing = [(a, key) for a, key in zip(asks, keys, strict=True) if replies[key] is None]
        if missing:
            raise JudgeError(self._complaint(missing, failed, len(asks)))
        return [replies[key] for key in keys]

    # --- what is asked ---

    def _request(self, a: Ask) -> dict[str, Any]:
        """The body of a question's request."""
        messages = [{"role": "system", "content": a.system}] if a.system else []
        messages.append({"role": "user", "content": a.prompt})
        body = {"model": self.model, "messages": messages}
        body |= {"temperature": a.temperature, "max_tokens": a.max_tokens, **self.body}
        return {name: value for name, value in body.items() if value is not None}

    def _key(self, a: Ask) -> str:
        text = json.dumps([self.url, self._request(a)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _cached(self, key: str, a: Ask) -> str | None:
        path = self.cache / f"{key}.json"
        if not path.exists():
            return None
        reply = read_mapping(path).get("reply")
        if not isinstance(reply, str):
            raise JudgeError(f"{path}: found no text 'reply'; without this file it is asked again")
        return reply if self.keep_unread or a.readable(reply) else None

    def _announce(self, wanted: list[Ask], distinct: int) -> None:
        """Says what will be asked and what it may cost; JudgeError above the budget."""
        text = f"judge {self.name}: {len(wanted)} to ask, {distinct - len(wanted)} answered before"
        cost = 0.0
        if wanted:
            size = sum(len((a.system or "").encode()) + len(a.prompt.encode()) for a in wanted)
            prompts, replies = round(size / BYTES_A_TOKEN), sum(a.max_tokens for a in wanted)
            text += f"; about {prompts:,} tokens of prompts, at most {replies:,} of replies"
            if None not in (self.price_in, self.price_out):
                cost = (prompts * self.price_in + replies * self.price_out) / 1e6
                text += f", about ${cost:.2f} at most"
        if self.budget is not None and cost > self.budget:
            raise JudgeError(f"{text}: above the budget of ${self.budget:.2f}, nothing was asked")
        print(text, file=sys.stderr)

    # --- asking ---

    def _ask_all(self, wanted: dict[str, Ask], replies: dict[str, str | None]) -> dict[str, str]:
        """Fills `replies`, `concurrency` at a time; returns {key: why it failed}, others aside."""
        try:
            import httpx2
        except ImportError:
            raise JudgeError("a judge needs httpx2: pip install 'mgm-jax[evals]'") from None
        secret = os.environ.get(self.key_env, "")
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        stop, pool = threading.Event(), concurrent.futures.ThreadPoolExecutor(self.concurrency)
        limits = httpx2.Limits(max_connections=self.concurrency)
        with httpx2.Client(headers=headers, timeout=self.timeout, limits=limits) as client:
            try:
                jobs = {pool.submit(self._ask, client, k, a, stop): k for k, a in wanted.items()}
                _wait(jobs)
            finally:
                stop.set()  # before the client goes, which the jobs that still run use
                pool.shutdown(cancel_futures=True)
        failed, tokens = {}, [0, 0]
        for job, key in jobs.items():
            try:
                replies[key], usage = job.result()
                tokens = [t + usage[n] for t, n in zip(tokens, USAGE, strict=True)]
            except Failed as error:
                failed[key] = str(error).replace(secret, "***") if secret else str(error)
            except concurrent.futures.CancelledError:
                continue
        print(f"judge: {tokens[0]:,} tokens of prompts, {tokens[1]:,} of replies", file=sys.stderr)
        return failed

    def _ask(self, client, key: str, a: Ask, stop: threading.Event) -> tuple[str, dict[str, int]]:
        """(reply, usage); the reply is in the cache when this returns, or if it is unreadable."""
        url = self.url + "/chat/completions"
        patience = Patience(self.attempts, self.backoff)
        body = self._request(a)
        reply, usage = ask(client, url, body, patience, stop, a.cut)
        self.cache.mkdir(parents=True, exist_ok=True)
        entry = {"url": self.url, "request": body, "reply": reply, "usage": usage}
        write_json(self.cache / f"{key}.json", entry)
        if not (self.keep_unread or a.readable(reply)):
            raise Failed(f"the reply cannot be read: {reply[:80]!r}")
        return reply, usage

    def _complaint(self, missing, failed: Mapping[str, str], total: int) -> str:
        """Which questions have no judgement, and why; those that were not tried come last."""
        told = [f"question {show(a.id)}: {failed[key]}" for a, key in missing if key in failed]
        text = f"judge {self.name}: no judgement of {len(missing)} of {total} questions: "
        text += "; ".join(told[:5])
        if len(told) > 5:
            text += f"; {len(told) - 5} more failed"
        if len(missing) > len(told):
            text += f"; {len(missing) - len(told)} were not asked any more"
        return f"{text}. Replies are kept in {self.cache}: run the same command again to go on"


def _wait(jobs) -> None:
    """Until all are done, or it is clear that the others would fail, too."""
    failures = 0
    finished = concurrent.futures.as_completed(jobs)
    progress = tqdm(finished, desc="judge", total=len(jobs), disable=None)  # in a terminal
    for count, job in enumerate(progress, 1):
        error = job.exception()
        if error is not None and (not isinstance(error, Failed) or error.fatal):
            return
        failures += error is not None
        if failures == count >= HOPELESS:
            return
