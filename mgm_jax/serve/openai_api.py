"""`/v1/chat/completions` and `/v1/models`, as OpenAI's clients speak them."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from mgm_jax.generate.text_stream import INCOMPLETE
from mgm_jax.generate.tickets import Answer, Delta, Full, Ticket
from mgm_jax.imagegen import NO_PROMPT, ImageSettings, decided, find_prompt, visible
from mgm_jax.serve.connection import body_of, while_connected
from mgm_jax.serve.conversation import Conversation, read_messages, read_sampling
from mgm_jax.serve.errors import FAILED, ApiError, requester_errors
from mgm_jax.serve.images import check_painter, check_side, paint
from mgm_jax.serve.media import png_uri, read_picture
from mgm_jax.serve.schema import ChatBody, parse, refuse_unbuilt
from mgm_jax.serve.service import Service

_WINDOW = 8  # ids in front of one that decide how it is written


def router(service: Service) -> APIRouter:
    """The routes, over a service."""
    routes = APIRouter()

    @routes.get("/v1/models")
    async def models():
        return {"object": "list", "data": [_model(service)]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str):
        _check_model(service, name)
        return _model(service)

    @routes.post("/v1/chat/completions")
    async def completions(request: Request):
        with contextlib.ExitStack() as stack:
            stack.enter_context(service.admit())
            body = parse(ChatBody, await body_of(request, service.limits))
            reply = Reply(service, body, *await _ask(service, body, request))
            stack.callback(reply.ticket.cancel)
            with requester_errors():  # what is wrong with a request comes with the first piece
                first = await while_connected(request, anext(reply.pieces, None))
            if not body.stream:
                return await while_connected(request, reply.whole(first))
            return _Stream(reply.events(first), stack.pop_all())

    return routes


def _model(service: Service) -> dict:
    values = {"id": service.name, "object": "model", "created": service.created}
    return values | {"owned_by": "mgm-jax", "max_model_len": service.engine.max_length}


def _check_model(service: Service, name: str) -> None:
    if name != service.name:
        message = f"the model {name[:100]!r} is not here, expected {service.name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


async def _ask(
    service: Service, body: ChatBody, request: Request
) -> tuple[Conversation, ImageSettings, Ticket]:
    """Checks all of a request and gives it to the engine."""
    _check_model(service, body.model)
    refuse_unbuilt(body.model_extra or {})
    if body.ocr and not service.ocr:
        raise ApiError(400, "this server reads no text; start it with --ocr", param="ocr")
    if body.generate_image:
        check_painter(service)
    limits = service.limits

    def read(url: str, field: str):
        return read_picture(url, limits, service.remote_urls, field)

    args = (body, limits, read, service.engine.model.tokenizer, service.ocr_tokens)
    with requester_errors():
        sampling = read_sampling(body, limits)
        try:
            settings = check_side(ImageSettings(**body.image_settings), limits)
        except TypeError as error:  # a field that is not there
            raise ApiError(400, f"image_settings: {error}", param="image_settings") from None
        conversation = await while_connected(request, service.decode(read_messages, *args))
        try:
            ticket = service.engine.submit(conversation.request, sampling)
        except Full as error:
            raise ApiError(429, str(error), code="queue_full") from None
    return conversation, settings, ticket


class Reply:
    """One answer on its way, as a whole or in chunks."""

    def __init__(
        self,
        service: Service,
        body: ChatBody,
        conversation: Conversation,
        settings: ImageSettings,
        ticket: Ticket,
    ):
        self._service, self._body, self._settings = service, body, settings
        self._conversation, self.ticket = conversation, ticket
        self.pieces = ticket.astream()
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._ids: list[int] = []

    async def whole(self, first: Delta | None) -> dict:
        """The object `chat.completion`."""
        scores = []
        async for piece in _chain(first, self.pieces):
            scores += self._scores(piece)
        answer = self._answer()
        message = {"role": "assistant", "content": self._shown(answer.text), "refusal": None}
        message |= self._hints() | await self._painted(answer)
        choice = {"index": 0, "message": message, "finish_reason": answer.finish}
        choice["logprobs"] = {"content": scores} if self._body.logprobs else None
        values = self._head("chat.completion") | {"choices": [choice]}
        return values | {"usage": _usage(answer)}

    async def events(self, first: Delta | None) -> AsyncIterator[str]:
        """Server-sent events of `chat.completion.chunk` objects. An error is the last event."""
        try:
            async for chunk in self._chunks(first):
                yield _event(chunk)
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.body())
        except Exception:
            yield _event(ApiError(500, FAILED).body())
            raise

    async def _chunks(self, first: Delta | None) -> AsyncIterator[dict]:
        yield self._chunk({"role": "assistant", "content": ""} | self._hints())
        text = sent = ""
        async for piece in _chain(first, self.pieces):
            text += piece.text
            ready = self._shown(decided(text)) if self._body.generate_image else text
            scores = self._scores(piece)
            if len(ready) > len(sent) or scores:
                logprobs = {"content": scores} if self._body.logprobs else None
                yield self._chunk({"content": ready[len(sent) :]}, logprobs=logprobs)
                sent = ready
        answer = self._answer()
        if rest := self._shown(answer.text)[len(sent) :]:
            yield self._chunk({"content": rest})
        if painted := await self._painted(answer):
            yield self._chunk(painted)
        yield self._chunk({}, answer.finish)
        if self._body.stream_options and self._body.stream_options.include_usage:
            head = self._head("chat.completion.chunk")
            yield head | {"choices": [], "usage": _usage(answer)}

    def _head(self, kind: str) -> dict:
        values = {"id": self._id, "object": kind, "created": self._created}
        return values | {"model": self._service.name}

    def _chunk(self, delta: dict, finish: str | None = None, logprobs: dict | None = None) -> dict:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _answer(self) -> Answer:
        answer = self.ticket.result(0)
        if answer.finish == "cancelled":
            raise ApiError(503, "the server is closing", code="closing")
        return answer

    def _shown(self, text: str) -> str:
        return visible(text) if self._body.generate_image else text

    def _hints(self) -> dict:
        """What OCR put into the question: the user may see it."""
        return {"ocr": list(self._conversation.ocr)} if self._body.ocr else {}

    async def _painted(self, answer: Answer) -> dict:
        """`images` as data URIs and the prompt that they came from, or why there is none."""
        if not self._body.generate_image:
            return {}
        prompt = find_prompt(answer.text)
        if prompt is None:
            return {"images": [], "image_prompt": None, "image_error": NO_PROMPT}
        png, _ = await self._service.paint(paint, self._service, prompt, self._settings)
        return {"images": [png_uri(png)], "image_prompt": prompt}

    def _scores(self, piece: Delta) -> list[dict]:
        """The tokens of a piece with their log-probabilities; the stop id's text is empty."""
        if not self._body.logprobs:
            return []
        scores = []
        for token, logprob in zip(piece.ids, piece.logprobs, strict=True):
            text = self._written(token)
            values = {"token": text, "logprob": logprob, "bytes": list(text.encode())}
            scores.append(values | {"top_logprobs": []})
        return scores

    def _written(self, token: int) -> str:
        """What a token adds to the text; a character of several tokens comes with the last."""
        decode = self._service.engine.model.tokenizer.decode
        before = decode(self._ids[-_WINDOW:]).rstrip(INCOMPLETE)
        self._ids.append(token)
        return decode(self._ids[-_WINDOW - 1 :]).rstrip(INCOMPLETE)[len(before) :]


async def _chain(first: Delta | None, rest: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
    if first is not None:
        yield first
        async for piece in rest:
            yield piece


def _usage(answer: Answer) -> dict[str, Any]:
    drawn = len(answer.ids)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": drawn,
        "total_tokens": answer.prompt_tokens + drawn,
        "prompt_tokens_details": {"cached_tokens": answer.reused_tokens},
    }


def _event(values: dict) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"


class _Stream(StreamingResponse):
    """Events; when they end, or the client goes, what the request holds is let go."""

    def __init__(self, events: AsyncIterator[str], held: contextlib.ExitStack):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._held = held

    async def __call__(self, scope, receive, send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)
