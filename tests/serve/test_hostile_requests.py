"""What strangers send: no crash, no 500, nothing leaks, and the server still serves."""

import base64
import io
import json
import os
import re
import resource
import socket
import struct
import zlib

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mgm_jax.serve.errors import ApiError
from mgm_jax.serve.media import Limits, decode, read_picture
from tests.serve.conftest import LIMITS, photo, uri

BODIES = int(os.environ.get("MGM_JAX_RANDOM_BODIES", "300"))
LEAK = re.compile(r"Traceback|File \"|site-packages|\.py\b|/(home|root|tmp|work|usr|etc)/")


def refused(answer, status, code=None):
    """An error in OpenAI's form, which says nothing about the machine."""
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code, error
    assert not LEAK.search(answer.text), answer.text
    return error


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/health",
        "http://localhost/x.png",
        "http://10.0.0.1/x.png",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/x.png",
        "http://[::ffff:127.0.0.1]/x.png",
        "http://2130706433/x.png",
        "https://0.0.0.0/x.png",
    ],
)
def test_private_addresses_are_not_reached(served, monkeypatch, url):
    """Also where URLs are allowed. Redirects and names: tests/test_fetch.py."""
    url = url.replace("{port}", served.url.rpartition(":")[2])
    refused(served.ask(url, "what is it"), 400, "remote_url")
    monkeypatch.setattr(served.service, "remote_urls", True)
    refused(served.ask(url, "what is it"), 400, "unfetched_image_url")
    assert served.serves()


@pytest.mark.parametrize(
    "url",
    [
        "/etc/passwd",
        "../../etc/passwd",
        "file:///etc/passwd",
        "data/images/0.png",
        "ftp://example.com/x.png",
        "data:image/png,abc",
        "",
    ],
)
def test_no_path_opens_a_file(served, url):
    body = {"type": "image_url", "image_url": {"url": url}}
    messages = [{"role": "user", "content": [body]}]
    answer = served.post({"model": "mgm", "messages": messages})
    assert "root:" not in answer.text
    refused(answer, 400, "invalid_image_url")


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/v1/models/../../../etc/passwd", "/%2e%2e"])
def test_no_route_leads_out(served, path):
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as s:
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        s.sendall(request.encode())
        answer = b"".join(iter(lambda: s.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 404") and b"root:" not in answer


def test_other_names_for_the_loopback_are_refused(served):
    """DNS rebinding: a page whose name turns to 127.0.0.1 names itself as the Host."""
    answer = httpx.get(f"{served.url}/v1/models", headers={"Host": "evil.example"})
    refused(answer, 400, "unknown_host")
    form = {"content-type": "text/plain"}
    refused(served.post(None, content=b'{"model": "mgm"}', headers=form), 400)


def bomb(side):
    """A small PNG that claims side x side pixels, all of them there."""

    def chunk(name, data):
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_decompression_bomb_is_not_decoded(served):
    data = bomb(20_000)  # 1.2 GB as RGB
    assert len(data) < LIMITS.picture_bytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    refused(served.ask(url, "what"), 413, "image_too_large")
    with pytest.raises(ApiError, match="too many pixels"):  # Pillow's own limit
        decode(data, Limits(pixels=10**10), "field")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # 128 MB
    assert served.serves()


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_of_a_gigabyte_is_not_held(served, declared):
    """Refused at its declared length, or where the stream passes the limit."""
    sent, block = 0, bytes(2**16)

    def stream():
        nonlocal sent
        for _ in range(2**14):
            sent += len(block)
            yield block

    headers = {"content-type": "application/json"}
    headers |= {"content-length": str(2**30)} if declared else {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        refused(served.post(None, content=stream(), headers=headers), 413, "request_too_large")
    except httpx.TransportError:  # the connection was closed while it was still sending
        pass
    assert sent < 2**26
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17
    assert served.serves()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"model": "mgm", "messages": []}', 400),
        (b'{"model": "gpt-5", "messages": [{"role": "user", "content": "x"}]}', 404),
        (b'{"model": "mgm", "messages": [{"role": "user", "content": ""}]}', 400),
        (b'{"model": "mgm", "messages": [{"role": "tool", "content": "x"}]}', 400),
        (b'{"model": "mgm", "messages": [{"role": "assistant", "content": "x"}]}', 400),
        (b'{"model": "mgm", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
    ],
)
def test_damaged_bodies(served, body, status):
    headers = {"content-type": "application/json"}
    refused(served.post(None, content=body, headers=headers), status)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("max_tokens", 0, "max_tokens is 0"),
        ("max_tokens", LIMITS.tokens + 1, "expected 1 to 96"),
        ("max_completion_tokens", "9", "max_completion_tokens"),
        ("temperature", -1, "temperature is -1"),
        ("top_p", 0, "top_p is 0"),
        ("top_k", -1, "top_k is -1"),
        ("stop", [""], "stop is"),
        ("stop", ["x"] * 17, "17 stop strings"),
        ("n", 2, "n: this server"),
        ("tools", [{"type": "function"}], "tools: this server"),
        ("response_format", {"type": "json_object"}, "response_format: this server"),
        ("logprobs", "yes", "logprobs"),
        ("top_logprobs", 3, "top_logprobs: this server"),
        ("ocr", True, "--ocr"),
        ("image_settings", {"colour": 1}, "image_settings"),
        ("image_settings", {"width": 9999}, "width is 9999"),
        ("image_settings", {"width": 300}, "at most 256"),
    ],
)
def test_fields_that_do_not_fit(served, field, value, named):
    assert named in refused(served.ask("hello", **{field: value}), 400)["message"]


def test_long_prompts_and_many_pictures(served):
    assert "more than the 160" in refused(served.ask("what " * 300), 400)["message"]
    stream = served.ask("what " * 300, stream=True)  # an error before the first event
    assert "more than the 160" in refused(stream, 400)["message"]
    refused(served.ask(*[uri(photo(1))] * 5, "what"), 400, "too_many_images")


@pytest.mark.parametrize("tail", ["!!!!", "A", "=AAA", "é", "AAAA\n?"])
def test_malformed_base64(served, tail):
    url = "data:image/png;base64,iVBORw0KGgo" + tail
    answer = served.ask(url, "what")
    assert refused(answer, 400)["code"] in ("invalid_base64", "invalid_image")


@pytest.mark.parametrize("cut", [0, 8, 30, 60])
def test_cut_pictures(served, cut):
    data = base64.b64decode(uri(photo(1)).partition(",")[2])[:cut]
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    refused(served.ask(url, "what"), 400, "invalid_image")


def test_formats_that_run_programs_are_unknown():
    data = io.BytesIO()
    photo(1).save(data, "EPS")
    with pytest.raises(ApiError, match="PNG, JPEG, WEBP, GIF, BMP"):
        decode(data.getvalue(), LIMITS, "field")


def test_unusual_pictures_are_read():
    """Animated, CMYK, alpha, palette, gray, 16 bits: all become RGB, each in its own way."""
    rgb = photo(1)

    def read(image, kind, **options):
        return np.asarray(read_picture(uri(image, kind, **options), LIMITS, False, "field"))

    expected = np.asarray(rgb)
    assert (read(rgb, "PNG") == expected).all()
    frames = dict(save_all=True, append_images=[photo(2)])
    assert (read(rgb, "PNG", **frames) == expected).all()  # the first frame
    assert read(rgb, "GIF", **frames).shape == expected.shape
    assert (read(rgb, "WEBP", lossless=True, **frames) == expected).all()
    assert abs(read(rgb.convert("CMYK"), "JPEG", quality=95).astype(int) - expected).mean() < 12
    clear = rgb.convert("RGBA")
    clear.putalpha(9)
    assert (read(clear, "PNG") == expected).all()
    gray = np.arange(60 * 90, dtype=np.uint16).reshape(60, 90) * 12
    deep = Image.fromarray(gray)
    assert (read(deep, "PNG") == (gray >> 8)[..., None]).all()
    assert read(rgb.quantize(7), "PNG").shape == expected.shape
    assert (read(rgb.convert("L"), "PNG")[..., 0] == np.asarray(rgb.convert("L"))).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_pictures_upright(orientation):
    """As Pillow's own function turns them, which keeps no mode but that of the file."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    photo(1).save(data, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(data)).convert("RGB")
    found = decode(data.getvalue(), LIMITS, "field")
    assert found.size == expected.size and found.tobytes() == expected.tobytes()


def test_a_placeholder_in_a_text_is_no_picture(served):
    for content in (["<image>", "x"], ["<im", "age>"], ["<im<image>age>"]):
        assert served.ask(*content).status_code == 200
    answer = served.ask(uri(photo(1)), "<image> what")
    assert answer.status_code == 200


# --- random bodies ---

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
URLS = st.sampled_from(["", "data:", "file:///etc/passwd", "http://10.0.0.1", "data:x;base64,AAAA"])
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "x"]) | JSON},
    optional={"text": st.text(max_size=30) | JSON, "image_url": st.builds(dict, url=URLS) | JSON},
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | JSON},
    optional={"content": st.text(max_size=30) | st.lists(PART, max_size=3) | JSON},
)
SMALL = st.integers(-2, 3) | JSON
BODY = JSON | st.fixed_dictionaries(
    {"model": st.just("mgm") | JSON, "messages": st.lists(MESSAGE, max_size=3) | JSON},
    optional={
        "max_tokens": SMALL,
        "temperature": st.floats(0, 2) | JSON,
        "top_p": st.floats() | JSON,
        "top_k": SMALL,
        "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3) | JSON,
        "seed": SMALL,
        "n": SMALL,
        "stream": st.booleans() | JSON,
        "stream_options": JSON,
        "logprobs": st.booleans() | JSON,
        "generate_image": st.booleans() | JSON,
        "image_settings": JSON,
    },
)
PAINT = st.fixed_dictionaries(
    {"prompt": st.text(max_size=20) | JSON},
    optional={"n": SMALL, "size": st.sampled_from(["8x8", "0x9", "9999x1"]) | JSON, "seed": SMALL},
)


@pytest.fixture(scope="module")
def http(served):
    with httpx.Client(base_url=served.url, timeout=120) as client:
        yield client


@settings(max_examples=BODIES, deadline=None, database=None, suppress_health_check=HealthCheck)
@given(body=BODY, paint=PAINT)
def test_random_bodies(http, body, paint):
    for path, value in (("/v1/chat/completions", body), ("/v1/images/generations", paint)):
        content = json.dumps(value).encode()
        answer = http.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400, 404, 413), (value, answer.text)
        assert not LEAK.search(answer.text) or answer.status_code == 200


def test_it_still_serves(served):
    assert served.serves()
