"""A stand-in for Cloud Scheduler: posts a sweep, waits for its end, and a little later posts the next."""

from __future__ import annotations

import contextlib
import threading

import httpx


class Scheduler:
    """Runs in a thread of its own from start() to stop(). `held` is held during a sweep; another holder keeps sweeps out.

    `wanted` is cleared while nobody looks: a sweep costs 30 ms of CPU.
    """

    def __init__(self, function_url: str, dispatch_secret: str, every_s: float = 1.0) -> None:
        self._url = f"{function_url}/sweep"
        self._headers = {"Authorization": f"Bearer {dispatch_secret}", "Content-Type": "application/json"}
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self.held = threading.Lock()
        self.wanted = threading.Event()
        self.wanted.set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Does not wait for a sweep under way."""
        self._stopping.set()

    def _run(self) -> None:
        with httpx.Client(timeout=httpx.Timeout(90, connect=2)) as client:
            while not self._stopping.wait(self._every_s):
                if not self.wanted.is_set():
                    continue
                # While the function starts again, nobody answers.
                with self.held, contextlib.suppress(httpx.TransportError):
                    client.post(self._url, headers=self._headers, content=b"{}")
