"""What happens in the sandbox, as it happens: one line of events, fed from every thread, heard by any number of listeners."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Event = dict[str, Any]
KEPT = 20_000


class Events:
    """Keeps the last KEPT events. An event has `id` (rising), `at` (milliseconds since 1970), `kind`, and facts of its kind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._last = 0
        self._listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Queue[Event]]] = []

    def tell(self, kind: str, *, at: float | None = None, **facts: Any) -> None:
        """From any thread. at: when it happened, if that was not just now."""
        with self._lock:
            self._last += 1
            event = {"id": self._last, "at": time.time() * 1000 if at is None else at, "kind": kind, **facts}
            self._kept.append(event)
            for loop, queue in self._listeners:
                loop.call_soon_threadsafe(queue.put_nowait, event)

    def kept(self) -> list[Event]:
        with self._lock:
            return list(self._kept)

    def clear(self) -> None:
        """Forget the kept ones."""
        with self._lock:
            self._kept.clear()

    @contextmanager
    def listen(self, after: int = 0) -> Iterator[asyncio.Queue[Event]]:
        """A queue of the kept events whose id is above `after`, and of every later one. Inside a running loop."""
        listener = asyncio.get_running_loop(), asyncio.Queue[Event]()
        with self._lock:
            for event in self._kept:
                if event["id"] > after:
                    listener[1].put_nowait(event)
            self._listeners.append(listener)
        try:
            yield listener[1]
        finally:
            with self._lock:
                self._listeners.remove(listener)
