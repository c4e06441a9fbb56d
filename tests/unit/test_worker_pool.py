"""A sweep's threads: few claims, all jobs, and every error told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from function.sweep import DIALING_THREADS, WorkerPool
from shared.models import Step, StepResult

JOBS = 20
CALL_SECONDS = 0.05


class Queue:
    """Jobs, a rate of calls, and a Twilio that takes CALL_SECONDS."""

    def __init__(self, jobs: int, interval_s: float = 0.0) -> None:
        self.jobs, self.interval_s = jobs, interval_s
        self.claims = self.dialing = self.most_dialing = 0
        self._next_slot = time.monotonic()
        self._lock = threading.Lock()

    def claim(self) -> Step:
        with self._lock:
            self.claims += 1
            if not self.jobs:
                return StepResult("nothing")
            if (wait_s := self._next_slot - time.monotonic()) > 0:
                return StepResult("waiting", wait_s=wait_s)
            self._next_slot = time.monotonic() + self.interval_s
            self.jobs -= 1
            return self.dial

    def dial(self) -> StepResult:
        with self._lock:
            self.dialing += 1
            self.most_dialing = max(self.most_dialing, self.dialing)
        time.sleep(CALL_SECONDS)
        with self._lock:
            self.dialing -= 1
        return StepResult("called", 1)


def swept(claim: Callable[[], Step], limit: int = 1000) -> tuple[WorkerPool, list[BaseException]]:
    pool = WorkerPool(claim, DIALING_THREADS, limit, time.monotonic() + 30, threading.Event())
    with ThreadPoolExecutor(DIALING_THREADS) as executor:
        pool.start(executor)
        return pool, pool.join()


def test_sweep_ends_when_idle_halted_or_at_its_limit() -> None:
    queue = Queue(0)
    assert (swept(queue.claim)[1], queue.claims) == ([], 1)
    assert swept(Queue(JOBS).claim, limit=7)[0].counts == {"called": 7}
    steps = iter([StepResult("halted", 1)])
    pool, errors = swept(lambda: next(steps))
    assert (pool.counts, errors) == ({"halted": 1}, [])


def test_sweep_waits_for_slots_in_one_thread() -> None:
    """Each call costs its claim, and at most one that came too early."""
    queue = Queue(JOBS, interval_s=0.02)
    pool, _ = swept(queue.claim)
    assert pool.counts == {"called": JOBS}
    assert queue.claims <= 2 * JOBS + DIALING_THREADS


def test_full_queue_uses_all_dialing_threads() -> None:
    queue = Queue(8 * DIALING_THREADS)
    assert swept(queue.claim)[0].counts == {"called": 8 * DIALING_THREADS}
    assert queue.most_dialing == DIALING_THREADS


def test_error_of_a_thread_ends_the_others() -> None:
    queue = Queue(1000)

    def claim() -> Step:
        if queue.jobs < 990:
            raise RuntimeError("the database is away")
        return queue.claim()

    pool, errors = swept(claim)
    assert {str(error) for error in errors} == {"the database is away"}
    assert sum(pool.counts.values()) == 11
