"""The bodies of requests. Unknown fields are ignored, as OpenAI's clients expect; known ones that
would change an answer and are not built are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mgm_jax.serve.errors import ApiError

# Fields of OpenAI's that are not built -> the values that ask for nothing.
REFUSED = {
    "n": (None, 1),
    "best_of": (None, 1),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "top_logprobs": (None, 0),
}


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class TextPart(_Body):
    type: Literal["text"]
    text: str


class ImageUrl(_Body):
    url: str


class ImagePart(_Body):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def parts(self) -> list[TextPart | ImagePart]:
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return self.content


class StreamOptions(_Body):
    include_usage: bool = False


class ChatBody(_Body):
    """`POST /v1/chat/completions`; the fields from `top_k` on are not OpenAI's."""

    model_config = ConfigDict(extra="allow")  # for `refuse_unbuilt`

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    logprobs: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: int | None = None
    ocr: bool = False
    generate_image: bool = False
    image_settings: dict[str, Any] = {}


class PaintBody(_Body):
    """`POST /v1/images/generations`; the fields from `seed` on are not OpenAI's."""

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    response_format: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None


T = TypeVar("T", bound=_Body)


def parse(schema: type[T], body: bytes) -> T:
    """JSON -> a checked body; ApiError 400 names the field that does not fit."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"])) or None
        raise ApiError(400, f"{field or 'the body'}: {first['msg']}", param=field) from None


def refuse_unbuilt(values: dict[str, Any]) -> None:
    """ApiError 400 for a field of REFUSED that asks for something."""
    for field, neutral in REFUSED.items():
        if values.get(field) not in neutral:
            message = f"{field}: this server does not build it; leave it out"
            raise ApiError(400, message, param=field, code="unsupported")


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request, of which no more than `limit` bytes are ever held; ApiError 413 as
    soon as there are more, 400 for another content type than JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page of another origin can send any other type without asking first.
        raise ApiError(400, f"found content type {kind!r}, expected application/json", close=True)
    message = f"the body has more than {limit} bytes"
    too_big = ApiError(413, message, code="request_too_large", close=True)
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise too_big
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > limit:
            raise too_big
    return bytes(body)
