"""HTTP to Twilio and Supabase: one TLS context per process, one deadline per request, and a limit on each answer.

`http.client` carries both. A client above it (urllib3's pools, httpx) costs 0.2 to 0.5 ms of CPU a request (measured). The
authorities are read once, in 13 ms. Proxies of the environment count (HTTPS_PROXY, NO_PROXY), and so do
REQUESTS_CA_BUNDLE and SSL_CERT_FILE.
"""

import contextlib
import functools
import os
import select
import socket
import ssl
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage
from pathlib import Path
from urllib.parse import urlsplit

import certifi

from shared.deadline import DEADLINES, shut

MAX_ANSWER_BYTES = 4 * 1024 * 1024  # unpacked; Twilio's largest page here has 50 calls, about 100 kB
KEPT_CONNECTIONS = 32
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class HttpError(Exception):
    """The request was sent, perhaps in part, and its answer was lost."""


class NotConnected(HttpError):
    """There was no connection. Nothing was sent."""


class TooLate(HttpError):
    """No whole answer came by the deadline."""


@dataclass(frozen=True)
class HttpAnswer:
    """A whole answer; `body` is unpacked."""

    status: int
    headers: HTTPMessage
    body: bytes


@functools.cache
def tls_context() -> ssl.SSLContext:
    """The authorities are those of the first variable that is set, else certifi's."""
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
    path = next((os.environ[name] for name in names if os.environ.get(name)), certifi.where())
    if Path(path).is_dir():
        return ssl.create_default_context(capath=path)
    return ssl.create_default_context(cafile=path)


class _TlsConnection(HTTPConnection):
    default_port = 443  # else the header Host would name it


class _Exchange:
    """One request and its answer, cut at the deadline."""

    def __init__(self, deadline: float, sock: socket.socket | None) -> None:
        self.socket = sock  # http.client forgets the socket of an answer without a length
        self.over = False
        self.was_cut = False
        DEADLINES.add(deadline, self._cut)

    def _cut(self) -> None:
        if not self.over:
            self.was_cut = True
            shut(self.socket)


class DeadlinePassed(Exception):
    """The claim is too old. Raised before the body is sent, so the server never receives a complete request."""


class DeadlineBody:
    """The body of a request under a claim. It checks the clocks after the connection is made and the headers are sent."""

    def __init__(self, body: bytes, may_still_send: Callable[[], bool]) -> None:
        self._body, self._may_still_send = body, may_still_send
        self.was_sent = False

    def __iter__(self) -> Iterator[bytes]:
        if not self._may_still_send():
            raise DeadlinePassed
        self.was_sent = True
        yield self._body


class Http:
    """Requests to one base URL. Nothing is repeated and no redirect is followed. Thread-safe.

    `kept` False: each request has a connection of its own. On a kept connection that died, a request looks like one in
    doubt.
    """

    def __init__(self, base_url: str, *, kept: bool) -> None:
        parts = urlsplit(base_url)
        self._is_tls, self._host = parts.scheme == "https", parts.hostname or ""
        self._port = parts.port or (443 if self._is_tls else 80)
        self._proxy = _proxy(parts.scheme, self._host)
        self._most_idle = KEPT_CONNECTIONS if kept else 0
        self._idle: list[HTTPConnection] = []

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None = None,
        *,
        connect_s: float,
        total_s: float,
        with_body: bool = True,
    ) -> HttpAnswer:
        """Return the answer within `total_s`. Raises HttpError, and the errors of `body`.

        `connect_s` counts for each address of the host. Name resolution has the resolver's own timeout.
        `with_body` False: the answer counts when its headers are there, and the connection is closed.
        """
        connection = self._take_idle() or self._new(connect_s)
        exchange = _Exchange(time.monotonic() + total_s, connection.sock)
        is_reusable = False
        try:
            if connection.sock is None:
                self._connect(connection, exchange)
            connection.sock.settimeout(total_s)
            connection.request(method, self._target(url), body, headers)
            with connection.getresponse() as answer:
                while 102 <= answer.status < 200:  # interim, such as 103 Early Hints; http.client skips 100 alone
                    answer.headers = None  # type: ignore[assignment]  # else begin() does nothing
                    answer.begin()
                content = answer.read(MAX_ANSWER_BYTES + 1) if with_body else b""
                if with_body and answer.length:
                    raise HTTPException("the end of the answer is missing")
            if answer.headers.get("Content-Encoding") == "gzip":
                content = zlib.decompressobj(31).decompress(content, MAX_ANSWER_BYTES + 1)
            if len(content) > MAX_ANSWER_BYTES:
                raise HttpError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            if exchange.was_cut:  # an answer without a length looks whole when it is cut
                raise TimeoutError
            is_reusable = with_body and not answer.will_close and len(self._idle) < self._most_idle
        except (OSError, HTTPException, zlib.error) as error:
            if exchange.was_cut or isinstance(error, TimeoutError):
                raise TooLate(f"no whole answer in time ({total_s:g} s)") from error
            raise HttpError(f"{type(error).__name__}: {error}") from error
        finally:
            exchange.over = True
            if is_reusable:
                self._idle.append(connection)
            else:
                connection.close()
                if exchange.socket:
                    exchange.socket.close()
        return HttpAnswer(answer.status, answer.headers, content)

    def forget_connections(self) -> None:
        """Close the kept connections that are idle."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take_idle(self) -> HTTPConnection | None:
        with contextlib.suppress(IndexError):
            while True:
                connection, poll = self._idle.pop(), select.poll()
                poll.register(connection.sock, select.POLLIN)
                if not poll.poll(0):
                    return connection
                connection.close()  # readable: the server has closed it
        return None

    def _new(self, connect_s: float) -> HTTPConnection:
        kind = _TlsConnection if self._is_tls else HTTPConnection
        if self._proxy is None:
            return kind(self._host, self._port, timeout=connect_s)
        proxy = urlsplit(self._proxy)
        connection = kind(proxy.hostname or "", proxy.port or 80, timeout=connect_s)
        if self._is_tls:
            connection.set_tunnel(self._host, self._port)
        return connection

    def _connect(self, connection: HTTPConnection, exchange: _Exchange) -> None:
        """Connect within the connection's timeout, which holds for the handshake, too.

        A TLS session of an earlier connection would save nothing: Python takes as long to copy it (measured).
        """
        try:
            connection.connect()
            if self._is_tls:
                connection.sock = tls_context().wrap_socket(connection.sock, server_hostname=self._host)
            exchange.socket = connection.sock
            if exchange.was_cut:  # a slow resolver: nobody would end this exchange any more
                raise TimeoutError("the deadline passed before there was a connection")
        except (OSError, HTTPException, ValueError) as error:  # ValueError: an impossible host name
            raise NotConnected(f"{type(error).__name__}: {error}") from error

    def _target(self, url: str) -> str:
        parts = urlsplit(url)
        if self._proxy and not self._is_tls:
            return url
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _proxy(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for this host; a loopback host needs none. It is spoken to without TLS."""
    if host in LOOPBACK or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy
