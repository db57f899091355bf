"""Files from the web that a stranger may name: http(s) only, public addresses only, with limits.

A name is resolved once, every address of it is judged, and the connection goes to a judged address
itself, so that the name cannot mean another one a moment later. Each redirect is judged anew. No
proxy, no cookie, no credentials.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse

MAX_BYTES = 20 * 2**20
SECONDS = 20.0
REDIRECTS = 3
_BLOCK = 2**16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class FetchError(OSError):
    """A URL that may not or cannot be fetched; the message names it and says why."""


def fetch(url: str, *, max_bytes: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
    """The body at a URL.

    `max_bytes` of it at most, and `seconds` for each connection with its answer, of which there are
    at most `REDIRECTS` + 1. Raises FetchError for everything that goes wrong.
    """
    at = url
    for _ in range(REDIRECTS + 1):
        try:
            body, at = _get(at, max_bytes, seconds)
        except FetchError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FetchError(f"{url}: cannot fetch it ({error or type(error).__name__})") from error
        if at is None:
            return body
    raise FetchError(f"{url}: more than {REDIRECTS} redirects")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet: none that is private, loopback, link-local,
    shared, multicast, reserved, or an IPv6 form of such an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:  # how a network without IPv4 reaches IPv4
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        inner = (ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ()))
        if ip.is_site_local or any(v4 and not is_public(str(v4)) for v4 in inner):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _get(url: str, max_bytes: int, seconds: float) -> tuple[bytes, str | None]:
    """One request -> (body, None), or (b"", the URL that it redirects to)."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FetchError(f"{url}: expected http:// or https:// and a host")
    if parts.username is not None or parts.password is not None:
        raise FetchError(f"{url}: a name and password in a URL are not sent")
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    address = _resolve(parts.hostname, port, url)
    path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    query = urllib.parse.quote(parts.query, safe="/?%:@!$&'()*+,;=~")
    end = time.monotonic() + seconds
    connection = _Pinned(parts.hostname, port, address, parts.scheme == "https", seconds)
    with contextlib.closing(connection):
        timer = threading.Timer(seconds, connection.abort)  # also ends an answer that trickles in
        timer.daemon = True
        timer.start()
        try:
            headers = {"Accept-Encoding": "identity", "User-Agent": "mgm-jax"}
            connection.request("GET", f"{path}?{query}" if query else path, headers=headers)
            reply = connection.getresponse()
            if reply.status in (301, 302, 303, 307, 308):
                return b"", urllib.parse.urljoin(url, reply.headers.get("Location", ""))
            if reply.status != 200:
                raise FetchError(f"{url}: found status {reply.status}, expected 200")
            if (declared := reply.length) is not None and declared > max_bytes:
                raise FetchError(f"{url}: found {declared} bytes, expected at most {max_bytes}")
            body = bytearray()
            while block := reply.read(_BLOCK):
                body += block
                if len(body) > max_bytes:
                    raise FetchError(f"{url}: found more than {max_bytes} bytes")
            if time.monotonic() >= end or len(body) < (declared or 0):  # cut by `abort`, or theirs
                raise ConnectionError("the answer ends too early")
            return bytes(body), None
        except FetchError:
            raise
        except (OSError, http.client.HTTPException, ValueError):
            if time.monotonic() >= end:
                raise FetchError(f"{url}: no answer within {seconds:g} seconds") from None
            raise
        finally:
            timer.cancel()


def _resolve(host: str, port: int, url: str) -> str:
    """The address to connect to; FetchError unless all addresses of the name are public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchError(f"{url}: the host {host!r} is not known ({error})") from None
    addresses = [info[4][0] for info in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise FetchError(f"{url}: {host!r} is no public address, so it is not fetched")
    return addresses[0]


class _Pinned(http.client.HTTPConnection):
    """A connection to a given address in the name of a host."""

    def __init__(self, host: str, port: int, address: str, tls: bool, seconds: float):
        super().__init__(host, port, timeout=seconds)
        self.address, self.tls = address, tls
        self.default_port = 443 if tls else 80  # which the Host header leaves out
        self.opened = None  # the socket; http.client forgets its own before the body is read

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), self.timeout)
        if self.tls:
            self.sock = ssl.create_default_context().wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
        self.opened = self.sock
        if self.tls:
            self.sock.do_handshake()

    def abort(self) -> None:
        """Ends what another thread waits for."""
        if self.opened is not None:
            with contextlib.suppress(OSError):
                self.opened.shutdown(socket.SHUT_RDWR)
