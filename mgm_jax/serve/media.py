"""Pictures of requests: data URIs and, where allowed, URLs -> PIL pictures, within limits.

Nothing in a request is ever taken for the name of a file.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io

from PIL import Image

from mgm_jax.data.images import explain, to_rgb
from mgm_jax.fetch import FetchError, fetch
from mgm_jax.serve.errors import ApiError

# Decoders that strangers may reach. Others of Pillow's run programs (EPS) or are rarely tested.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_ORIENTATION = 0x0112  # EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for; ValueError for a limit below 1."""

    body_bytes: int = 64 * 2**20
    body_seconds: float = 60.0  # to send it
    picture_bytes: int = 20 * 2**20  # of a file, encoded as PNG, JPEG, ...
    pixels: int = 50_000_000  # of a picture
    pictures: int = 16
    tokens: int = 1024  # of an answer
    painted: int = 4  # pictures of one request to /v1/images/generations
    painted_side: int = 2048  # pixels

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}, expected >= 1")


def read_picture(url: str, limits: Limits, remote: bool, param: str) -> Image.Image:
    """The picture of an `image_url`, upright and RGB. `remote`: whether http(s) URLs are fetched.

    ApiError (400, 413 for what is over a limit) with `param` as the field.
    """
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        data = _data_uri(url, limits, param)
    elif scheme in ("http", "https") and remote:
        try:
            data = fetch(url, max_bytes=limits.picture_bytes)
        except FetchError as error:
            raise ApiError(400, str(error), param=param, code="unfetched_image_url") from None
    elif scheme in ("http", "https"):
        message = "this server fetches no URLs; send the picture as data:image/...;base64,..."
        raise ApiError(400, message, param=param, code="remote_url")
    else:
        raise ApiError(
            400, "expected data:image/...;base64,...", param=param, code="invalid_image_url"
        )
    return decode(data, limits, param)


def _data_uri(url: str, limits: Limits, param: str) -> bytes:
    head, comma, encoded = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        message = "found a data URI without ;base64, expected data:image/...;base64,..."
        raise ApiError(400, message, param=param, code="invalid_image_url")
    if len(encoded) > limits.picture_bytes * 4 // 3 + 4:
        raise _too_big(f"more than {limits.picture_bytes} bytes", param)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: letters outside of ASCII
        raise ApiError(
            400, f"damaged base64: {error}", param=param, code="invalid_base64"
        ) from None


def decode(data: bytes, limits: Limits, param: str) -> Image.Image:
    """An encoded picture -> RGB, turned upright as its EXIF says; of an animation the first frame.

    The size in its header is judged before a pixel is decoded. ApiError as `read_picture`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > limits.pixels:
                message = f"{width} x {height} pixels, expected at most {limits.pixels}"
                raise _too_big(message, param)
            picture.load()
            turn = _TURNS.get(picture.getexif().get(_ORIENTATION))
            rgb = to_rgb(picture)
            return rgb if turn is None else rgb.transpose(turn)
    except ApiError:
        raise
    except Image.DecompressionBombError:
        raise _too_big(f"too many pixels, expected at most {limits.pixels}", param) from None
    except Exception as error:  # decoders also raise SyntaxError, struct.error, EOFError, ...
        message = f"{explain(error, f'in {param}')}; known formats: {', '.join(FORMATS)}"
        raise ApiError(400, message, param=param, code="invalid_image") from None


def _too_big(found: str, param: str) -> ApiError:
    return ApiError(413, f"a picture has {found}", param=param, code="image_too_large")


def png_uri(data: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(data).decode()
