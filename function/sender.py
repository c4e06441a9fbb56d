"""Tell results beside the requests: in threads of their own, so that neither Twilio nor a person waits for a receiver.

Cloud Run may take the CPU from an instance that answers no request. The sweep therefore waits a while for the sender.
"""

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

import structlog

from shared.jobs import Jobs, JobsUnavailable
from shared.results import Results
from shared.settings import Settings

T = TypeVar("T")

log = structlog.get_logger()

THREADS: Final = 4
SHARE_OF_SWEEP: Final = 0.2
"""The part of a sweep's time that it may wait for the sender."""


class Sender:
    """One per process. Its threads are daemons: of a process that ends, the lease of an event runs out, and it is sent again."""

    def __init__(self, settings: Settings, jobs: Jobs, *, patient: bool = True) -> None:
        self._results = Results(settings, jobs) if settings.result_url else None
        self._sweep_s = settings.sweep_timeout_seconds
        self._patience_s = self._sweep_s * SHARE_OF_SWEEP if patient else 0.0
        self._changed = threading.Condition()
        self._running = 0
        self._again = False
        self._is_awaited = False

    def wake(self) -> None:
        """Send the events that are due. Returns at once; without RESULT_URL nothing happens."""
        if self._results is None:
            return
        with self._changed:
            if self._running == THREADS:
                self._again = True
                return
            try:
                threading.Thread(target=self._work, args=(self._results,), name="sender", daemon=True).start()
            except RuntimeError as error:  # no more threads can be started; Twilio's callback must not fail for it
                log.warning("results wait for the next sweep", kind="results_wait", reason=str(error))
                return
            self._running += 1

    def tell_beside(self, sweep: Callable[[], T]) -> T:
        """Run a sweep, and tell results beside it. Then wait for the sender, within the time of one sweep."""
        end = time.monotonic() + self._sweep_s
        self.wake()
        report = sweep()
        self.wake()  # for what ended in this sweep
        self.rest(end)
        return report

    def rest(self, until: float) -> None:
        """Wait until nothing is being sent, for a share of a sweep at most, and not longer than `until` (monotonic).

        One thread waits at a time: others, which /voice may need, return at once.
        """
        with self._changed:
            if not self._is_awaited:
                self._is_awaited = True
                left = min(self._patience_s, until - time.monotonic())
                self._changed.wait_for(lambda: self._running == 0, timeout=max(0.0, left))
                self._is_awaited = False

    def _work(self, results: Results) -> None:
        is_over = False
        while not is_over:
            try:
                self._tell_all(results)
            except JobsUnavailable as error:
                log.warning("results wait: the database did not answer", kind="results_wait", reason=str(error))
            except Exception:
                log.exception("internal error: results wait for the next sweep")
            with self._changed:
                is_over, self._again = not self._again, False
                self._running -= is_over
                self._changed.notify_all()

    def _tell_all(self, results: Results) -> None:
        is_first = True
        while claimed := results.claim():
            if not is_first:
                self.wake()  # more than one is due: another thread helps
            is_first = False
            results.tell(*claimed)
