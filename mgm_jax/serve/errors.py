"""What goes wrong with a request, as OpenAI's JSON: never a traceback, never a path."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An answer with an error. `param`: the field that is wrong; `code`: a word for programs.

    `close`: the connection ends with it, because the rest of the request is not read.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        close: bool = False,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.close = close

    def body(self) -> dict:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        values = {"message": self.message, "type": _TYPES.get(self.status, kind)}
        return {"error": values | {"param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {"Connection": "close"} if self.close else {}
        headers |= {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        headers |= {"Retry-After": "1"} if self.status in (429, 503) else {}
        return JSONResponse(self.body(), self.status, headers)


FAILED = "the server failed at this request; its log says why"


@contextlib.contextmanager
def requester_errors() -> Iterator[None]:
    """Around what checks a request: its ValueErrors are the client's fault."""
    try:
        yield
    except ValueError as error:
        raise ApiError(400, str(error)) from error


def add_handlers(app: FastAPI) -> None:
    """Makes the app answer all errors in this form."""

    @app.exception_handler(ApiError)
    async def _(request: Request, error: ApiError):
        return error.response()

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException):
        return ApiError(error.status_code, str(error.detail), code="http_error").response()

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception):
        return ApiError(500, FAILED).response()
