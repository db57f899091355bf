"""`POST /v1/images/generations`: pictures from prompts, through an `ImageBackend`."""

from __future__ import annotations

import base64
import logging
import re
import time

from fastapi import APIRouter, Request

from mgm_jax.imagegen import ImageGenError, ImageSettings, generate_image, png_bytes
from mgm_jax.serve.connection import body_of, while_connected
from mgm_jax.serve.errors import ApiError, requester_errors
from mgm_jax.serve.media import Limits
from mgm_jax.serve.schema import PaintBody, parse
from mgm_jax.serve.service import Service

_log = logging.getLogger(__name__)


def router(service: Service) -> APIRouter:
    """The route, over a service."""
    routes = APIRouter()

    @routes.post("/v1/images/generations")
    async def generations(request: Request):
        check_painter(service)
        with service.admit():
            body = parse(PaintBody, await body_of(request, service.limits))
            with requester_errors():
                count = _count(body, service)
                settings = [read_settings(body, k, service.limits) for k in range(count)]
            data = []
            for one in settings:
                work = service.paint(paint, service, body.prompt, one)
                png, used = await while_connected(request, work)
                revised = used.get("revised_prompt", used["prompt"])
                encoded = base64.b64encode(png).decode()
                data.append({"b64_json": encoded, "revised_prompt": revised})
            return {"created": int(time.time()), "data": data}

    return routes


def check_painter(service: Service) -> None:
    """ApiError 400 if the server has nothing that paints."""
    if service.backend is None:
        message = "this server paints no pictures; start it with --gen-backend"
        raise ApiError(400, message, code="no_image_backend")


def paint(service: Service, prompt: str, settings: ImageSettings) -> tuple[bytes, dict]:
    """A prompt -> (a PNG with its settings inside, the settings); ValueError for what the back end
    can't follow, ApiError 500 if it fails. Blocks."""
    try:
        picture, used = generate_image(service.backend, prompt, settings)
    except ImageGenError as error:
        _log.error("the image back end failed", exc_info=error)
        message = "the image back end failed; the server's log says why"
        raise ApiError(500, message, code="image_backend_failed") from None
    except ValueError as error:
        raise ApiError(400, str(error)) from None
    return png_bytes(picture, used), used


def check_side(settings: ImageSettings, limits: Limits) -> ImageSettings:
    """The settings; ApiError 400 for pictures over the limit."""
    for side in ("width", "height"):
        value = getattr(settings, side)
        if value is not None and value > limits.painted_side:
            message = f"{side} is {value}, expected at most {limits.painted_side}"
            raise ApiError(400, message, param=side)
    return settings


def read_settings(body: PaintBody, number: int, limits: Limits) -> ImageSettings:
    """Those of the `number`-th picture of a request; a given seed counts up with them."""
    size = {}
    if body.size not in (None, "auto"):
        if not (match := re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", body.size)):
            message = f"size is {body.size[:40]!r}, expected WIDTHxHEIGHT"
            raise ApiError(400, message, param="size")
        size = {"width": int(match[1]), "height": int(match[2])}
    if body.response_format not in (None, "b64_json"):
        message = "response_format: this server keeps no files, expected b64_json"
        raise ApiError(400, message, param="response_format")
    settings = ImageSettings(
        negative_prompt=body.negative_prompt,
        seed=None if body.seed is None else (body.seed + number) % 2**32,
        steps=body.steps,
        guidance=body.guidance,
        **size,
    )
    return check_side(settings, limits)


def _count(body: PaintBody, service: Service) -> int:
    count, most = (1 if body.n is None else body.n), service.limits.painted
    if not 1 <= count <= most:
        raise ApiError(400, f"n is {count}, expected 1 to {most}", param="n")
    return count
