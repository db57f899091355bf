"""Continuous batching: requests join and leave a batch of slots while the others go on.

A round of the engine (`step`) reads the prompts of waiting requests into free slots, decodes some
tokens for all occupied slots in one compiled loop, and hands on what was drawn. An answer depends
on its request alone, not on its neighbours, its slot or the time of its arrival.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh

from mgm_jax.data.images import load_image, to_hr
from mgm_jax.generate.device import Device, Prompt
from mgm_jax.generate.prefix import Lru, picture_hash, prefix_of
from mgm_jax.generate.prompts import Request
from mgm_jax.generate.sampling import Sampling
from mgm_jax.generate.stats import Stats
from mgm_jax.generate.text_stream import TextStream
from mgm_jax.generate.tickets import Answer, Delta, Full, Ticket
from mgm_jax.text import get_template, stop_rule

_log = logging.getLogger(__name__)
BUCKETS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
GREEDY = Sampling()


@dataclasses.dataclass
class Job:
    """A request that waits to be read, or whose answer is being written."""

    ticket: Ticket
    prompt: Prompt
    stream: TextStream
    reused: int = 0
    logprobs: list[float] = dataclasses.field(default_factory=list)
    margins: list[float] = dataclasses.field(default_factory=list)


class Engine:
    """Answers requests with a loaded model (`api.LoadedModel`).

    slots: answers that are written at a time. max_length: tokens of a prompt (pictures included)
    and its answer. mesh: that of the parameters; slots have to divide by its batch axes.
    prefill_buckets: prompt lengths that compile; prefill_batch: prompts read at a time;
    decode_steps: tokens between two looks at the queue. queue: requests that wait at most.
    prefix_bytes, picture_bytes: memory for beginnings of prompts and for visual tokens that may be
    asked about again; 0 keeps none. cli_eos: see `text.stop_rule`.

    `step` and `answers` drive it in the caller's thread; `start` does so in a thread of its own
    until `close`, which a `with` block calls. ValueError for sizes that do not fit.
    """

    def __init__(
        self,
        model,
        *,
        slots: int = 8,
        max_length: int = 2048,
        mesh: Mesh | None = None,
        prefill_buckets: Sequence[int] = BUCKETS,
        prefill_batch: int = 4,
        decode_steps: int = 8,
        queue: int = 1024,
        prefix_bytes: int = 2**28,
        picture_bytes: int = 2**28,
        cli_eos: str = "family",
    ):
        sizes = dict(slots=slots, max_length=max_length, prefill_batch=prefill_batch)
        sizes |= dict(decode_steps=decode_steps, queue=queue)
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, expected 1 or more")
        self.model, self.max_length, self.queue = model, max_length, queue
        self.cli_eos = cli_eos
        self._template = get_template(model.template)
        self._stop, self._stop_strings = stop_rule(self._template, model.tokenizer, cli_eos)
        self._mesh = mesh
        with self._on_mesh():
            self.device = Device(
                model.module,
                model.params,
                slots=slots,
                max_length=max_length,
                mesh=mesh,
                buckets=prefill_buckets,
                batch=prefill_batch,
                steps=decode_steps,
                stop=self._stop,
                prefixes=Lru(prefix_bytes),
                pictures=Lru(picture_bytes),
            )
        self.stats = Stats(slots=slots)
        self._running: dict[int, Job] = {}  # slot -> its job; changed in rounds alone
        self._round = threading.RLock()
        self._changed = threading.Condition()  # of the three that follow
        self._preparing = 0
        self._ready: collections.deque[Job] = collections.deque()
        self._closed = False
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="prompts")
        self._thread: threading.Thread | None = None

    # --- what callers use ---

    def submit(
        self,
        request: Request,
        sampling: Sampling = GREEDY,
        on_token: Callable[[Delta], None] | None = None,
        number: int = 0,
    ) -> Ticket:
        """Puts a request in the queue. `on_token` is called with each piece of the answer, from the
        thread that drives the engine. `number` tells the draws of requests of one seed apart.

        Raises Full when the queue is full, ValueError for beams, RuntimeError after `close`. What
        is wrong with the request itself comes out of its ticket.
        """
        if sampling.num_beams > 1:
            raise ValueError(
                f"num_beams is {sampling.num_beams}, expected 1: an engine does not search; "
                "`LoadedModel.generate` and `mgm-jax predict` do"
            )
        ticket = Ticket(request, sampling, number, on_token)
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed")
            if self._preparing + len(self._ready) >= self.queue:
                raise Full(f"{self.queue} requests wait already")
            self._preparing += 1
            self._pool.submit(self._prepare, ticket)
        return ticket

    def answers(
        self, requests: Iterable[tuple[Request, Sampling, int]]
    ) -> Iterator[Answer | Exception]:
        """Drives the engine through (request, sampling, number)s -> in their order, the answer of
        each or what ended it. It reads a few requests ahead."""
        requests, tickets = iter(requests), collections.deque()
        ahead = min(self.queue, 4 * self.device.count)
        try:
            while True:
                for request, sampling, number in itertools.islice(requests, ahead - len(tickets)):
                    tickets.append(self.submit(request, sampling, number=number))
                if not tickets:
                    return
                while not tickets[0].done():
                    self.step()
                yield tickets.popleft().outcome()
        finally:
            for ticket in tickets:
                ticket.cancel()

    def warm_up(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Compiles every shape that requests may have. `progress(name, done, of)` is called before
        each of them, and in the end with the name "ready"."""
        work = self.device.work()
        for done, (name, compile_) in enumerate([*work, ("ready", lambda: None)]):
            self.stats.compiled, self.stats.to_compile = done, len(work)
            if progress:
                progress(name, done, len(work))
            with self._round, self._on_mesh():
                compile_()

    def start(self) -> Engine:
        """Drives the engine in a thread of its own."""
        self._thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Ends the thread; what is not answered yet is cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()
        self._pool.shutdown()
        with self._round:
            for job in [*self._running.values(), *self._ready]:
                self._finish(job, "cancelled")
            self._running.clear()
            self._ready.clear()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # --- rounds ---

    def run(self) -> None:
        """Rounds until `close`. The error of a round ends the requests in it, not the engine."""
        while not self._closed:
            try:
                busy = self.step()
            except Exception as error:
                _log.exception("a round of the engine failed; the requests in it end")
                self._fail(error)
                continue
            with self._changed:
                if not busy:
                    self._changed.wait_for(self._has_news)

    def _has_news(self) -> bool:
        return bool(self._closed or self._preparing or self._ready)

    def step(self) -> bool:
        """One round; waits if all that there is to do is being prepared. False when there is
        nothing left to do."""
        with self._round, self._on_mesh():
            with self._changed:
                self.stats.waiting = self._preparing + len(self._ready)
                if not self._running:
                    self._changed.wait_for(lambda: self._ready or not self._preparing)
            self._drop_cancelled()
            self._admit()
            if self._running:
                self._decode()
            self.stats.rounds += 1
            self.stats.occupied = len(self._running)
            with self._changed:
                self.stats.waiting = self._preparing + len(self._ready)
                return bool(self._running or self.stats.waiting)

    def _on_mesh(self):
        return jax.set_mesh(self._mesh) if self._mesh is not None else contextlib.nullcontext()

    def _drop_cancelled(self) -> None:
        for row, job in list(self._running.items()):
            if job.ticket.cancelled:
                self._finish(self._running.pop(row), "cancelled")
        with self._changed:
            dropped = [j for j in self._ready if j.ticket.cancelled]
            for job in dropped:
                self._ready.remove(job)
        for job in dropped:
            self._finish(job, "cancelled")

    def _admit(self) -> None:
        """Reads waiting prompts into free slots: one group a round while others are answered."""
        while len(self._running) < self.device.count and (group := self._next_group()):
            busy = bool(self._running)
            free = (r for r in range(self.device.count) if r not in self._running)
            rows = list(itertools.islice(free, len(group)))
            route = self.device.route(group[0].prompt)
            for row, job in zip(rows, group, strict=True):
                self._running[row] = job
                job.reused = self.device.route(job.prompt).start
                self.stats.prompt_tokens += len(job.prompt.example)
                self.stats.reused_tokens += job.reused
            drawn = self.device.read([j.prompt for j in group], rows, route)
            for row, token, logprob, margin in zip(rows, *drawn, strict=True):
                self._take(row, [token], [logprob], [margin])
            if busy:
                return

    def _next_group(self) -> list[Job]:
        """The first that waits, and others that are read in the same way. Of several with the same
        unread beginning only the first: the others will find it in memory. Too few to be worth a
        large batch go by the smallest."""
        few, many = self.device.sizes[0], self.device.sizes[-1]
        most = min(self.device.count - len(self._running), many)
        with self._changed:
            if not self._ready:
                return []
            group, beginnings = [], set()
            first = self.device.route(self._ready[0].prompt)
            for job in self._ready:
                route = self.device.route(job.prompt)
                same = route.bucket == first.bucket and bool(route.start) == bool(first.start)
                key = job.prompt.prefix and job.prompt.prefix[1]
                if not same or (key in beginnings and not route.start):
                    continue
                group.append(job)
                if key and self.device.prefixes.limit:
                    beginnings.add(key)
                if len(group) == most:
                    break
            group = group[: few if 2 * len(group) <= many else many]
            for job in group:
                self._ready.remove(job)
            return group

    def _decode(self) -> None:
        alive = np.zeros(self.device.count, bool)
        alive[list(self._running)] = True
        with self._changed:
            eager = bool(self._ready)
        drawn = self.device.decode(alive, eager)
        for row in list(self._running):
            tokens, logprobs, margins = (x[row].tolist() for x in drawn)
            count = tokens.index(-1) if -1 in tokens else len(tokens)
            self._take(row, tokens[:count], logprobs[:count], margins[:count])

    def _take(self, row: int, tokens, logprobs, margins) -> None:
        """Hands on what was drawn for a slot, and frees it if that ends its answer."""
        if not tokens:
            return
        job = self._running[row]
        ticket, stream = job.ticket, job.stream
        before = len(stream.ids)
        text = stream.push([int(t) for t in tokens])
        used = len(stream.ids) - before
        job.logprobs += [float(x) for x in logprobs[:used]]
        job.margins += [float(x) for x in margins[:used]]
        self.stats.drew(used)
        if before == 0:
            self.stats.first_token_seconds += time.monotonic() - ticket.submitted
        finish = None
        if stream.stopped or stream.ids[-1] in self._stop:
            finish = "stop"
        elif len(stream.ids) >= job.prompt.left:
            finish = "length"
        try:
            text += stream.finish() if finish else ""
            wanted = tuple(job.logprobs[before:]) if ticket.sampling.logprobs else None
            ticket.send(Delta(text, tuple(stream.ids[before:]), wanted))
        except Exception as error:  # the caller's function
            self._running.pop(row)
            self._reject(ticket, error)
            return
        if finish:
            self._finish(self._running.pop(row), finish)

    def _finish(self, job: Job, reason: str) -> None:
        answer = Answer(
            text=job.stream.text,
            ids=tuple(job.stream.ids),
            finish=reason,
            prompt_tokens=len(job.prompt.example),
            reused_tokens=job.reused,
            logprobs=tuple(job.logprobs) if job.ticket.sampling.logprobs else None,
            margins=tuple(job.margins),
        )
        self.stats.finished[reason] += 1
        self.stats.seconds += time.monotonic() - job.ticket.submitted
        job.ticket.end(answer)

    def _reject(self, ticket: Ticket, error: Exception) -> None:
        self.stats.finished["error"] += 1
        ticket.end(error)

    def _fail(self, error: Exception) -> None:
        """After a round that failed: its requests end, and the slots are made anew."""
        with self._round, self._on_mesh():
            for job in self._running.values():
                self._reject(job.ticket, error)
            self._running.clear()
            self.device.reset()

    # --- prompts, in threads of their own ---

    def _prepare(self, ticket: Ticket) -> None:
        try:
            job = self._job(ticket)
        except Exception as error:
            job = None
            self._reject(ticket, error)
        with self._changed:
            self._preparing -= 1
            if job:
                self._ready.append(job)
            self._changed.notify_all()

    def _job(self, ticket: Ticket) -> Job:
        """Tokens and pictures of a request; ValueError or ImageError where they cannot be used."""
        example = self.model.encode(ticket.request)
        if len(example) > self.max_length:
            raise ValueError(
                f"a prompt has {len(example)} tokens with its {len(example.images)} picture(s), "
                f"more than the {self.max_length} of the engine (max_length)"
            )
        spec, pixels = self.model.config.image, []
        for image in example.images:
            picture = image if hasattr(image, "getpixel") else load_image(image)
            pixels.append(to_hr(picture, spec))
        hashes = tuple(map(picture_hash, pixels))
        room = self.max_length - len(example) + 1  # the last token is not written
        prompt = Prompt(
            example,
            tuple(pixels),
            hashes,
            prefix_of(example, hashes),
            ticket.sampling,
            ticket.number,
            min(ticket.sampling.max_new_tokens, room),
        )
        stops = (*self._stop_strings, *ticket.sampling.stop)
        return Job(ticket, prompt, TextStream(self._text, stops))

    def _text(self, ids: Sequence[int]) -> str:
        return self.model.tokenizer.decode([i for i in ids if i not in self._stop])
