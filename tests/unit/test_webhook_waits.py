"""A webhook waits for its turn to call, for a moment; of a crowd only a few do, and the sweep takes the others."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from typing import Any, cast

import pytest

from function import webhook
from function.webhook import MAX_WAITERS, handle
from shared.dispatcher import Dispatcher
from shared.models import StepResult

CROWD = 4 * MAX_WAITERS


class Busy:
    """The pace lets nobody through at once, and everybody who asks a second time. None is answered before all have asked."""

    def __init__(self, crowd: int, wait_s: float = 0.05) -> None:
        self._all_asked = threading.Barrier(crowd)
        self._wait_s = wait_s
        self._seen: set[int] = set()

    def dial_one(self, job_id: int) -> StepResult:
        if job_id in self._seen:
            return StepResult("called", job_id)
        self._seen.add(job_id)
        self._all_asked.wait(30)
        return StepResult("waiting", job_id, wait_s=self._wait_s)


def post(job_id: int, busy: Busy) -> Any:
    body = {"type": "INSERT", "schema": "public", "table": "outbound_call_jobs", "record": {"id": job_id}}
    return handle(json.dumps(body).encode(), cast(Dispatcher, busy))["did"]


def test_webhook_waits_briefly_and_leaves_the_rest_to_sweeps() -> None:
    assert post(1, Busy(crowd=1)) == "called"
    assert post(1, Busy(crowd=1, wait_s=webhook.MAX_WAIT_SECONDS)) == "waiting"


def test_busy_process_leaves_the_job_to_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each dial may wait 25 s for a slow Twilio, and the threads for /voice stay free."""
    monkeypatch.setattr(webhook, "TWILIO_WAITERS", taken := threading.BoundedSemaphore(1))
    taken.acquire()
    never = cast(Dispatcher, None)
    body = {"type": "INSERT", "schema": "public", "table": "outbound_call_jobs", "record": {"id": 7}}
    assert handle(json.dumps(body).encode(), never) == {"did": "waiting", "job": 7}


def test_crowd_of_webhooks_leaves_threads_for_twilio(monkeypatch: pytest.MonkeyPatch) -> None:
    leave = threading.Event()
    monkeypatch.setattr(webhook, "TWILIO_WAITERS", threading.BoundedSemaphore(CROWD))
    monkeypatch.setattr("function.webhook.time.sleep", lambda _s: leave.wait(30))
    busy = Busy(CROWD)
    with ThreadPoolExecutor(CROWD) as threads:
        answers = [threads.submit(post, job_id, busy) for job_id in range(1, CROWD + 1)]
        first = islice(as_completed(answers, timeout=30), CROWD - MAX_WAITERS)
        assert {answer.result() for answer in first} == {"waiting"}
        leave.set()
    assert [answer.result() for answer in answers].count("called") == MAX_WAITERS
