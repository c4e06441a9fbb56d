"""Deadlines of a connection and of a claim. A socket's timeout counts each read; a deadline counts the whole exchange.

A peer that sends one byte a second never runs into a timeout. At the deadline the socket is shut down, so the thread that
waits on it returns at once.
"""

import contextlib
import heapq
import itertools
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

RESOLUTION_SECONDS = 0.1  # a cut may come this much late; most deadlines are never reached, and each look costs CPU


@dataclass(frozen=True)
class ClaimClock:
    """The moment of a claim by two clocks. The monotonic clock never jumps; the wall clock runs while a machine sleeps."""

    monotonic: float
    wall: float

    @classmethod
    def now(cls) -> "ClaimClock":
        return cls(time.monotonic(), time.time())

    def age_s(self) -> float:
        now = ClaimClock.now()
        return max(now.monotonic - self.monotonic, abs(now.wall - self.wall))

    def is_fresh(self, within_s: float) -> bool:
        """False after a freeze: another process may have claimed the same by now."""
        return self.age_s() <= within_s


class Deadlines:
    """One thread per process that makes due cuts. It starts with the first deadline, so after a fork."""

    def __init__(self) -> None:
        self._pending: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, when: float, cut: Callable[[], None]) -> None:
        """Call `cut` at `when`, by the monotonic clock. It must not block, and do nothing if it is no longer needed."""
        with self._changed:
            heapq.heappush(self._pending, (when, next(self._order), cut))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()
            elif self._pending[0][2] is cut:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._pending or (left := self._pending[0][0] - time.monotonic()) > 0:
                    self._changed.wait(max(left, RESOLUTION_SECONDS) if self._pending else None)
                cut = heapq.heappop(self._pending)[2]
            cut()


DEADLINES = Deadlines()


def shut(connection: socket.socket | None, how: int = socket.SHUT_RDWR) -> None:
    """Wake the thread that waits on this socket: it reads the end of the stream. TLS state stays untouched."""
    with contextlib.suppress(OSError):
        if connection is not None:
            socket.socket.shutdown(connection, how)
