"""Fetching what a stranger names: addresses, redirects, limits."""

import http.server
import socket
import threading
import time

import pytest

from mgm_jax import fetch as fetching
from mgm_jax.fetch import FetchError, fetch, is_public


@pytest.mark.parametrize(
    "address,public",
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),  # cloud metadata
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("::127.0.0.1", False),
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1
        ("64:ff9b::7f00:1", False),  # NAT64 of 127.0.0.1
        ("64:ff9b::808:808", True),
    ],
)
def test_public_addresses(address, public):
    assert is_public(address) == public


@pytest.mark.parametrize(
    "url,why",
    [
        ("file:///etc/passwd", "expected http:// or https:// and a host"),
        ("ftp://example.com/a", "expected http:// or https://"),
        ("http://", "and a host"),
        ("http://user:secret@example.com/", "a name and password in a URL are not sent"),
        ("http://example.com:99999/", "cannot fetch it"),
        ("http://127.0.0.1/", "'127.0.0.1' is no public address"),
        ("http://[::1]/", "'::1' is no public address"),
        ("http://2130706433/", "is no public address"),  # 127.0.0.1 as a number
        ("http://0x7f.1/", "is no public address"),
        ("http://localhost/", "'localhost' is no public address"),
        ("http://169.254.169.254/latest/meta-data/", "is no public address"),
    ],
)
def test_what_is_never_fetched(url, why):
    with pytest.raises(FetchError, match=why):
        fetch(url)


def test_names_of_private_addresses(monkeypatch):
    """One private address among those of a name is enough."""

    def resolve(host, port, **_):
        found = {"both.test": ["8.8.8.8", "10.0.0.1"], "none.test": []}[host]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for host in ("both.test", "none.test"):
        with pytest.raises(FetchError, match=f"'{host}' is no public address"):
            fetch(f"http://{host}/")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        kind = self.path.split("?")[0].strip("/")
        if kind in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[kind])
            self.end_headers()
            return
        self.send_response(404 if kind == "missing" else 200)
        if kind in ("big", "short"):
            self.send_header("Content-Length", {"big": "5000000", "short": "20"}[kind])
        self.end_headers()
        try:
            if kind == "endless":
                while True:
                    self.wfile.write(b"x" * 65536)
            if kind == "trickle":
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            self.wfile.write(b"the body")
        except OSError:
            """The client left."""

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture
def server(monkeypatch):
    """A server on 127.0.0.1, which counts as public here; other loopback addresses do not."""
    monkeypatch.setattr(fetching, "is_public", lambda a: a == "127.0.0.1" or is_public(a))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.redirects = [], {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_body(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # is not asked
    server.redirects = {"moved": "/here?a=1", "here": "picture.png"}
    assert fetch(f"{server.url}/ü b?q=ä") == b"the body"
    assert fetch(f"{server.url}/moved") == b"the body"
    assert [path for path, _ in server.seen] == [
        "/%C3%BC%20b?q=%C3%A4",
        "/moved",
        "/here?a=1",
        "/picture.png",
    ]
    headers = server.seen[0][1]
    assert headers["Host"] == server.url.removeprefix("http://")
    assert not {"Cookie", "Authorization", "Referer"} & set(headers)


def test_the_judged_address_is_the_one_that_is_connected_to(server, monkeypatch):
    """A name that means another address the second time gains nothing: there is no second time."""
    answers, real = iter(["127.0.0.1", "10.0.0.1"]), socket.getaddrinfo

    def resolve(host, *args, **kwargs):
        return real(next(answers) if host == "rebind.test" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert fetch(f"http://rebind.test:{server.server_port}/") == b"the body"
    assert next(answers) == "10.0.0.1"
    assert server.seen[0][1]["Host"] == f"rebind.test:{server.server_port}"


@pytest.mark.parametrize(
    "target,why",
    [
        ("http://127.0.0.2/", "'127.0.0.2' is no public address"),
        ("http://169.254.169.254/", "is no public address"),
        ("file:///etc/passwd", "expected http://"),
        ("/again", "more than 3 redirects"),
    ],
)
def test_redirects_are_judged(server, target, why):
    server.redirects = {"again": target}
    with pytest.raises(FetchError, match=why):
        fetch(f"{server.url}/again")
    assert len(server.seen) <= 4


@pytest.mark.parametrize(
    "path,why",
    [
        ("missing", "found status 404, expected 200"),
        ("big", "found 5000000 bytes, expected at most 1000000"),
        ("endless", "found more than 1000000 bytes"),
        ("trickle", "no answer within 0.5 seconds"),
        ("short", "the answer ends too early"),
    ],
)
def test_limits(server, path, why):
    start = time.monotonic()
    with pytest.raises(FetchError, match=why):
        fetch(f"{server.url}/{path}", max_bytes=1_000_000, seconds=0.5 if path == "trickle" else 9)
    assert time.monotonic() - start < 4
