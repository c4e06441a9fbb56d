"""HTTP to Twilio and Supabase: one TLS context per process, one deadline per request, and a limit on each answer.

urllib3 carries both. Making a TLS context reads the whole file of authorities, 13 ms of CPU (measured); the handshake
takes 0.6 ms. Proxies of the environment count (HTTPS_PROXY, NO_PROXY), and so do REQUESTS_CA_BUNDLE and SSL_CERT_FILE.
"""

import functools
import os
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, ProxyManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import DecodeError
from urllib3.exceptions import TimeoutError as HttpTimeout

from shared.deadline import DEADLINES, shut

MAX_ANSWER_BYTES = 4 * 1024 * 1024  # unpacked; Twilio's largest page here has 50 calls, about 100 kB
KEPT_CONNECTIONS = 32
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class HttpAnswer:
    """A whole answer; `body` is unpacked."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@functools.cache
def tls_context() -> ssl.SSLContext:
    """The authorities are those of the first variable that is set, else certifi's."""
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
    path = next((os.environ[name] for name in names if os.environ.get(name)), certifi.where())
    if Path(path).is_dir():
        return ssl.create_default_context(capath=path)
    return ssl.create_default_context(cafile=path)


class _Exchange:
    """One request and its answer, cut at the deadline."""

    def __init__(self, deadline: float) -> None:
        self.connection: HTTPConnection | None = None
        self.socket: socket.socket | None = None
        self.over = False
        self.was_cut = False
        DEADLINES.add(deadline, self._cut)

    def _cut(self) -> None:
        if not self.over:
            self.was_cut = True
            # http.client forgets the socket of an answer without a length, and knows it alone during the handshake.
            shut(self.socket or (self.connection.sock if self.connection else None))


_current = threading.local()


def _note(connection: HTTPConnection) -> None:
    """Tell this thread's exchange which connection it uses, and its socket once connected."""
    _current.exchange.connection = connection
    _current.exchange.socket = connection.sock


class _Connection(HTTPConnection):
    def connect(self) -> None:
        _note(self)
        super().connect()
        _note(self)

    def request(self, *arguments: Any, **named: Any) -> None:
        _note(self)
        super().request(*arguments, **named)


class _TlsConnection(_Connection, HTTPSConnection):
    """The same over TLS: `super()` above is then HTTPSConnection."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class DeadlinePassed(Exception):
    """The claim is too old. Raised before the body is sent, so the server never receives a complete request."""


class DeadlineBody:
    """The body of a request under a claim. It checks the clocks after the connection is made and the headers are sent."""

    def __init__(self, body: bytes, in_time: Callable[[], bool]) -> None:
        self._body, self._in_time = body, in_time
        self.was_sent = False

    def __iter__(self) -> Iterator[bytes]:
        if not self._in_time():
            raise DeadlinePassed
        self.was_sent = True
        yield self._body


class Http:
    """Requests to one base URL. Nothing is repeated and no redirect is followed. Thread-safe, if `kept`.

    `kept` False: one connection, for one request. On a kept connection that died, a request looks like one in doubt.
    """

    def __init__(self, base_url: str, *, kept: bool) -> None:
        parts = urlsplit(base_url)
        options: dict[str, Any] = {"num_pools": 2, "maxsize": KEPT_CONNECTIONS if kept else 1}
        if parts.scheme == "https":
            options["ssl_context"] = tls_context()
        proxy = _proxy(parts.scheme, parts.hostname or "")
        self._pools = ProxyManager(proxy, **options) if proxy else PoolManager(**options)
        self._pools.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

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
        """Return the answer within `total_s`, or raise urllib3's exceptions; its TimeoutError at the deadline.

        `connect_s` counts for each address of the host. Name resolution has the resolver's own timeout.
        `with_body` False: the answer counts when its headers are there, and the connection is closed.
        """
        _current.exchange = exchange = _Exchange(time.monotonic() + total_s)
        too_late = HttpTimeout(f"no whole answer within {total_s:g} s")
        try:
            response = self._pools.urlopen(
                method,
                url,
                body=body,
                headers=headers,
                timeout=Timeout(connect=connect_s, read=total_s),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            content = response.read(MAX_ANSWER_BYTES + 1) if with_body else b""
            if not with_body:
                response.close()
            elif len(content) > MAX_ANSWER_BYTES:
                response.close()
                raise DecodeError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            response.release_conn()
        except Exception as error:
            if exchange.was_cut:
                raise too_late from error
            raise
        finally:
            exchange.over = True
        if exchange.was_cut:  # an answer without a length looks whole when it is cut
            raise too_late
        return HttpAnswer(response.status, response.headers, content)

    def forget_connections(self) -> None:
        """Close the kept connections that are idle."""
        self._pools.clear()


def _proxy(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for this host; a loopback host needs none."""
    if host in LOOPBACK or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy
