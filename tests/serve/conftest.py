"""One server over a tiny random model, in a thread of its own."""

import base64
import contextlib
import dataclasses
import io
import threading
import time

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from mgm_jax.generate.engine import Engine
from mgm_jax.imagegen import make_backend
from mgm_jax.serve.app import create_app
from mgm_jax.serve.guard import LOOPBACK
from mgm_jax.serve.media import Limits
from mgm_jax.serve.service import Service

LIMITS = Limits(
    body_bytes=2**20, picture_bytes=2**18, pixels=10**6, pictures=4, tokens=96, painted_side=256
)
LENGTHS = dict(max_length=160, prefill_buckets=(), prefill_batch=4, decode_steps=4)


@dataclasses.dataclass
class Served:
    """A server, and what its /health said before it was ready."""

    service: Service
    url: str
    early: tuple[int, dict]

    def post(self, body, path="/v1/chat/completions", **kwargs) -> httpx.Response:
        kwargs = kwargs if "content" in kwargs else kwargs | {"json": body}
        return httpx.post(self.url + path, timeout=120, **kwargs)

    def ask(self, *content, **more) -> httpx.Response:
        """A question of texts and picture URLs."""
        parts = [
            {"type": "image_url", "image_url": {"url": c}}
            if c.startswith(("data:", "http"))
            else {"type": "text", "text": c}
            for c in content
        ]
        messages = [{"role": "user", "content": parts}]
        return self.post({"model": "mgm", "messages": messages, "max_tokens": 4} | more)

    def serves(self) -> bool:
        """Whether it still answers, and nothing is left open."""
        answer = self.ask("hello")
        return answer.status_code == 200 and self.service.open_requests == 0


@contextlib.contextmanager
def running(app):
    """The URL of an app that uvicorn serves."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wait_until(true, seconds=120):
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def served(tiny_model):
    engine = Engine(tiny_model, slots=8, queue=64, **LENGTHS)
    service = Service(engine, limits=LIMITS, backend=make_backend("placeholder"))
    compiles, go = engine.warm_up, threading.Event()
    engine.warm_up = lambda progress: go.wait() and compiles(progress)
    with running(create_app(service, hosts=LOOPBACK)) as url:
        early = httpx.get(f"{url}/health")
        go.set()
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 200)
        yield Served(service, url, (early.status_code, early.json()))


def uri(image, kind="PNG", **options):
    """A PIL picture as a data URI."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def photo(seed) -> Image.Image:
    """Random colours in large blocks."""
    pixels = np.random.default_rng(seed).integers(256, size=(4, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((90, 60), Image.Resampling.NEAREST)


class Scripted:
    """A tokenizer whose answers say a given text, three letters a token, whatever is drawn."""

    def __init__(self, tokenizer, text):
        self._tokenizer, self._script = tokenizer, text

    def decode(self, ids):
        return self._script[: 3 * len(ids)]

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)
