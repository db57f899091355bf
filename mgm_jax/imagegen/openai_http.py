"""Back end `openai_http`: any server with OpenAI's `POST /v1/images/generations`."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import http.client
import json
import os
import urllib.error
import urllib.request

from mgm_jax.data.images import ImageError, load_image
from mgm_jax.data.records import Encoded
from mgm_jax.imagegen.base import ImageGenError

MAX_REPLY = 64 * 2**20  # bytes
# Fields that are not OpenAI's, but which servers of open models understand.
EXTENSIONS = ("negative_prompt", "seed", "steps", "guidance")


@dataclasses.dataclass(frozen=True)
class OpenaiHttp:
    """A client of one server.

    url: its base, up to and with /v1.
    model: its name for the model; "" leaves the field out.
    key_env: the environment variable with the API key; none is sent if it is not set.
    extensions: the server also understands `negative_prompt`, `seed`, `steps` and `guidance`.
    response_format: "b64_json"; "" leaves the field out, for models that always answer so.
    timeout: seconds that the server may be silent.
    """

    url: str
    model: str = ""
    key_env: str = "OPENAI_API_KEY"
    extensions: bool = False
    response_format: str = "b64_json"
    timeout: float = 300.0

    name = "openai_http"

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is {self.url!r}, expected http:// or https://")
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout!r}, expected more than 0 seconds")

    @property
    def supports(self) -> frozenset[str]:
        return frozenset({"width", "height", *(EXTENSIONS if self.extensions else ())})

    def generate(self, prompt, *, width, height, init_image=None, **values):
        """See `ImageBackend`. Width and height go together."""
        if (width is None) != (height is None):
            raise ValueError(f"width is {width} and height {height}, expected both or none")
        body = {"prompt": prompt, "n": 1}
        size = {} if width is None else {"size": f"{width}x{height}"}
        named = {"model": self.model, "response_format": self.response_format}
        body |= size | {k: v for k, v in named.items() if v}
        body |= {k: v for k, v in values.items() if v is not None}
        reply = self._post(body)
        picture, revised = self._picture(reply)
        used = {k: v for k, v in values.items() if v is not None} | {"server": self.url}
        used |= {"model": self.model} if self.model else {}
        used |= {"revised_prompt": revised} if isinstance(revised, str) else {}
        return picture, used | {"width": picture.width, "height": picture.height}

    def _post(self, body: dict) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_env, "").strip():
            if not (key.isascii() and key.isprintable()):  # http.client would quote it in its error
                raise self._error(f"the key in {self.key_env} holds characters that no key has")
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self.url.rstrip('/')}/images/generations"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as r:
                reply = r.read(MAX_REPLY + 1)
        except urllib.error.HTTPError as error:
            reason = _message(error.read(2**16)) or error.reason
            raise self._error(f"status {error.code}: {reason}") from None
        except TimeoutError:
            raise self._error(f"no answer within {self.timeout:g} seconds") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                reason = f"no answer within {self.timeout:g} seconds"
            raise self._error(f"{reason}") from None
        if len(reply) > MAX_REPLY:
            raise self._error(f"the answer has more than {MAX_REPLY} bytes")
        return reply

    def _picture(self, reply: bytes):
        """The answer's bytes -> (PIL picture, the prompt as the server changed it, or None)."""
        try:
            item = json.loads(reply)["data"][0]
            encoded = base64.b64decode(item["b64_json"], validate=True)
        except (ValueError, KeyError, IndexError, TypeError, binascii.Error) as error:
            start = reply[:80].decode(errors="replace")
            raise self._error(
                f"the answer starts with {start!r}, expected data[0].b64_json "
                f"({type(error).__name__}: {error})"
            ) from None
        try:
            return load_image(Encoded("in the answer", encoded)), item.get("revised_prompt")
        except ImageError as error:
            raise self._error(f"{error}") from None

    def _error(self, reason: str) -> ImageGenError:
        return ImageGenError(f"openai_http: {self.url}: {reason}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: it would carry the API key to another host."""

    def redirect_request(self, *args):
        return None


def _message(body: bytes) -> str:
    """The message in OpenAI's form of an error; "" if it has another."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return ""
