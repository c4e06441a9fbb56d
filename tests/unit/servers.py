"""Servers on real sockets that answer well, badly or never, for the tests of our requests."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trustme

Reply = Callable[[socket.socket], None]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def server(
    *replies: Reply, tls: ssl.SSLContext | None = None, requests: list[bytes] | None = None, at_once: bool = False
) -> Iterator[str]:
    """Give each connection, in order, its reply to each of its requests; the last reply serves all later ones. -> the URL

    `requests` receives each request whole. `at_once`: it replies to the connection itself.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    number = itertools.count()

    def serve(connection: socket.socket, reply: Reply) -> None:
        with contextlib.suppress(OSError), connection:
            connection = tls.wrap_socket(connection, server_side=True) if tls else connection
            if at_once:
                reply(connection)
            data = b""
            while more := connection.recv(65536):
                data += more
                head, end, body = data.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                if end and len(body) >= int(length[1] if length else 0):
                    if requests is not None:
                        requests.append(data)
                    data = b""
                    reply(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                reply = replies[min(next(number), len(replies) - 1)]
                threading.Thread(target=serve, args=(connection, reply), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def certified() -> tuple[ssl.SSLContext, trustme.CA]:
    """A server's context, and the authority that signed its certificate."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context, authority


def say(text: bytes) -> Reply:
    return lambda connection: connection.sendall(text)


def answer(body: object, status: str = "200 OK", kind: str = "application/json") -> Reply:
    """A whole answer; `body` is a text as it stands, or a value in JSON."""
    text = (body if isinstance(body, str) else json.dumps(body)).encode()
    return say(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)


def closing(text: bytes = b"") -> Reply:
    def reply(connection: socket.socket) -> None:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_RDWR)

    return reply


DRIP_S = 10.0  # an answer that is cut ends in less than half of it, also on a busy machine


def dripping(start: bytes, drop: bytes) -> Reply:
    def reply(connection: socket.socket) -> None:
        connection.sendall(start)
        for _ in range(500):
            connection.sendall(drop)
            time.sleep(DRIP_S / 500)

    return reply


def endless(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"\r\n")
    while True:
        connection.sendall(b" " * 65536)


def silent(_connection: socket.socket) -> None:
    """Never answer; the client gives up."""
