"""gunicorn's thread worker, with deadlines for clients, and the shares of its threads.

A person on the line waits for /voice, so neither slow clients nor a slow Twilio may hold the last thread. A client has
READ_SECONDS to send its request. Of the clients that make a thread wait, STALLED_CLIENTS may take that long; the rest have
CROWDED_SECONDS. gunicorn itself waits for a client's next byte for ever.
"""

import os
import socket
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import gunicorn.config
import structlog
from gunicorn.http.errors import ParseException
from gunicorn.workers.gthread import TConn, ThreadWorker

from shared.deadline import DEADLINES, shut

log = structlog.get_logger()

READ_SECONDS: Final = 5.0
CROWDED_SECONDS: Final = 0.1
LINGER_SECONDS: Final = 1.0

# As functions-framework counts them.
THREADS: Final = int(os.environ.get("THREADS") or (os.cpu_count() or 1) * 4)
STALLED_CLIENTS: Final = max(1, THREADS // 8)
# Threads of webhooks and status callbacks that may wait for Twilio, or for a slot of the rate. 10 of 16 carry 50 calls a second
# while Twilio answers in 100 ms; with sweeps and stalled clients at their most, two stay free for /voice.
TWILIO_WAITERS = threading.BoundedSemaphore(max(1, THREADS * 5 // 8))
SWEEPS = threading.BoundedSemaphore(max(1, THREADS // 8))


class Crowd:
    """The clients that make a thread wait, the oldest first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._since: dict[socket.socket, float] = {}
        self._lock = threading.Lock()

    def enter(self, client: socket.socket) -> None:
        with self._lock:
            self._since[client] = time.monotonic()
            is_crowded = len(self._since) > self._limit
        if is_crowded:
            DEADLINES.add(time.monotonic() + CROWDED_SECONDS, self._thin_out)

    def has(self, client: socket.socket) -> bool:
        with self._lock:
            return client in self._since

    def leave(self, client: socket.socket) -> None:
        with self._lock:
            self._since.pop(client, None)

    def _thin_out(self) -> None:
        with self._lock:
            surplus = len(self._since) - self._limit
            oldest = list(self._since.items())[: max(0, surplus)]
            late = time.monotonic() - CROWDED_SECONDS
            for client, since in oldest:
                if since <= late:
                    del self._since[client]
                    shut(client, socket.SHUT_RD)


class ClientSocket(socket.socket):
    """A client's connection. A read that has to wait is counted, and ends with the deadline of its request."""

    request: Any  # gunicorn's, while it is handled

    def begin(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._is_watched = False

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        timeout = self.gettimeout()
        # With a timeout, recv() would wait here, uncounted. gunicorn sets one to skip an unread body.
        self.settimeout(0)
        try:
            return super().recv(size, flags)
        except BlockingIOError:
            pass
        finally:
            self.settimeout(timeout)
        if not self._is_watched:
            self._is_watched = True
            DEADLINES.add(self._deadline, partial(self._cut, self._deadline))
        CROWD.enter(self)
        try:
            return super().recv(size, flags)
        finally:
            CROWD.leave(self)

    def _cut(self, deadline: float) -> None:
        if self._deadline == deadline and CROWD.has(self):
            shut(self, socket.SHUT_RD)  # the answer, 408, can still be sent


CROWD = Crowd(STALLED_CLIENTS)


class Worker(ThreadWorker):
    """Serves each request in a thread, like its parent."""

    def enqueue_req(self, conn: TConn) -> None:
        if not isinstance(conn.sock, ClientSocket):
            conn.sock = ClientSocket(fileno=conn.sock.detach())
        super().enqueue_req(conn)

    def handle(self, conn: TConn) -> Any:
        conn.data_ready = True  # the first byte is waited for in recv(), where it is counted
        conn.sock.begin(READ_SECONDS)
        result = super().handle(conn)
        if result is False:
            self._linger(conn.sock)
        return result

    def handle_request(self, req: Any, conn: TConn) -> Any:
        conn.sock.request = req
        return super().handle_request(req, conn)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """gunicorn answers invalid HTTP itself, and logs nothing at the level that functions-framework sets."""
        if isinstance(exc, ParseException):
            log.warning("refused", kind="bad_request", reason=f"invalid HTTP ({type(exc).__name__})")
        super().handle_error(req, client, addr, exc)

    def _linger(self, client: ClientSocket) -> None:
        """Let the client read its answer before the close. gunicorn would wait for it in the thread that accepts."""
        try:
            client.begin(LINGER_SECONDS)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
            client.shutdown(socket.SHUT_RD)
        except OSError:
            pass


def close_after(environ: Mapping[str, Any]) -> None:
    """Close the connection after this answer, and say so in it. gunicorn drops the header `Connection` of an application."""
    if isinstance(client := environ.get("gunicorn.socket"), ClientSocket):
        client.request.force_close()


def install() -> None:
    """Make this the worker of `functions-framework`, which hands gunicorn no other settings than its own."""
    gunicorn.config.WorkerClass.default = f"{__name__}.{Worker.__name__}"
