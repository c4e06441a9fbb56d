"""By hand: cancel, retry, delete. Nothing done by hand may leave a call that nobody follows, or a number blocked."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import psycopg
import pytest

from tests.database.sql_api import FINAL, LEASE_S, OPEN, Row, Steps, a_number, a_sid

STATES = ("queued", "started", "in_doubt", "accepted")


def job_in(steps: Steps, state: str, number: str) -> int:
    return steps.queue(number) if state == "queued" else steps.attempt_in(state, number)[0]


def cancel(steps: Steps, job: int) -> str:
    status: str = steps.call("cancel_call_job", job_id=job)
    return status


def retry(steps: Steps, job: int) -> str:
    status: str = steps.call("retry_call_job", job_id=job)
    return status


def follow(steps: Steps) -> None:
    """What sweeps do about canceled jobs, with a Twilio that has none of the calls in doubt, and ends what it is told to."""
    steps.pass_time(LEASE_S + 1)
    while (asked := steps.ask())["outcome"] == "ask":
        if asked["call_sid"] is None:
            steps.settle(uuid.UUID(asked["attempt"]))
        else:
            steps.status(uuid.UUID(asked["attempt"]), asked["call_sid"], "canceled")


# --- cancel -----------------------------------------------------------------------------------------------------------


def test_queued_job_is_canceled_at_once(steps: Steps) -> None:
    job = steps.queue()
    assert cancel(steps, job) == "canceled"
    row = steps.job(job)
    assert (row["status"], row["due_at"], row["reason"]) == ("canceled", None, "canceled by hand")
    assert row["finished_at"] is not None
    assert steps.claim(job)["outcome"] == "none"


@pytest.mark.parametrize(
    ("state", "status"), [("started", "dialing"), ("in_doubt", "in_doubt"), ("accepted", "calling")]
)
def test_job_under_way_is_canceled_after_its_call(steps: Steps, state: str, status: str) -> None:
    job, _ = steps.attempt_in(state)
    assert cancel(steps, job) == status
    assert steps.job(job)["cancel_requested"]


@pytest.mark.parametrize("state", STATES)
def test_canceled_job_leaves_its_number_free(steps: Steps, state: str) -> None:
    job = job_in(steps, state, number := a_number())
    cancel(steps, job)
    follow(steps)
    assert steps.job(job)["status"] == "canceled"
    assert [row["state"] for row in steps.attempts(job) if row["state"] in OPEN] == []
    assert steps.claim(steps.queue(number))["outcome"] == "claimed"


@pytest.mark.parametrize("state", STATES)
def test_to_cancel_twice_is_to_cancel_once(steps: Steps, state: str) -> None:
    job = job_in(steps, state, a_number())
    first, before = cancel(steps, job), steps.everything()
    if first == "canceled":
        with pytest.raises(psycopg.errors.RaiseException, match="nothing to cancel"):
            cancel(steps, job)
    else:
        assert cancel(steps, job) == first
    assert steps.everything()[1:] == before[1:]
    assert steps.job(job)["status"] == first


@pytest.mark.parametrize("status", FINAL)
def test_job_that_is_over_cannot_be_canceled(steps: Steps, status: str) -> None:
    job = steps.queue()
    steps.rows("update public.outbound_call_jobs set status = %s, due_at = null, finished_at = now()", status)
    with pytest.raises(psycopg.errors.RaiseException, match=f"call job {job} is {status} already"):
        cancel(steps, job)


@pytest.mark.parametrize("function", [cancel, retry])
def test_job_that_does_not_exist_is_named(steps: Steps, function: Callable[[Steps, int], str]) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="there is no call job 4711"):
        function(steps, 4711)


# --- retry ------------------------------------------------------------------------------------------------------------


def test_job_that_spent_its_attempts_is_dialed_again(steps: Steps) -> None:
    job = steps.queue()
    for _ in range(3):
        steps.status(steps.start(job), a_sid(), "busy")
        steps.rows("update public.outbound_call_jobs set due_at = private.clock() where status = 'queued'")
    assert steps.job(job)["status"] == "failed"
    assert retry(steps, job) == "queued"
    steps.status(steps.start(job), a_sid(), "busy")
    assert (steps.job(job)["status"], steps.job(job)["attempts"]) == ("failed", 4)


def test_canceled_job_that_is_retried_is_wanted_again(steps: Steps) -> None:
    job, attempt = steps.attempt_in("accepted")
    cancel(steps, job)
    follow(steps)
    retry(steps, job)
    assert steps.accept(steps.start(job), a_sid())["then"] == "keep"
    assert steps.attempt(attempt)["state"] == "ended"


def test_late_truth_about_a_retried_job_counts(steps: Steps) -> None:
    job, attempt = steps.attempt_in("in_doubt")
    steps.settle(attempt, gives_up=True)
    retry(steps, job)
    assert steps.accept(attempt, a_sid())["then"] == "keep"
    assert steps.job(job)["status"] == "calling"


@pytest.mark.parametrize("state", STATES)
def test_job_that_is_not_over_cannot_be_retried(steps: Steps, state: str) -> None:
    job = job_in(steps, state, a_number())
    with pytest.raises(psycopg.errors.RaiseException, match="only failed and canceled jobs"):
        retry(steps, job)


def test_completed_job_cannot_be_retried(steps: Steps) -> None:
    job, attempt = steps.attempt_in("accepted")
    steps.status(attempt, steps.attempt(attempt)["call_sid"], "completed")
    with pytest.raises(psycopg.errors.RaiseException, match=f"call job {job} is completed"):
        retry(steps, job)


# --- delete -----------------------------------------------------------------------------------------------------------


def delete(steps: Steps, job: int) -> None:
    steps.rows("delete from public.outbound_call_jobs where id = %s", job)


def there(steps: Steps, job: int) -> list[Row]:
    return steps.rows("select status, cancel_requested from public.outbound_call_jobs where id = %s", job)


@pytest.mark.parametrize("state", ["ended", "refused", "absent", "released"])
def test_job_not_under_way_is_deleted_with_attempts(steps: Steps, state: str) -> None:
    job, _ = steps.attempt_in(state)
    delete(steps, job)
    assert there(steps, job) == steps.attempts(job) == []


@pytest.mark.parametrize("state", OPEN)
def test_delete_of_a_job_under_way_cancels_it(steps: Steps, state: str) -> None:
    job, _ = steps.attempt_in(state)
    status = steps.job(job)["status"]
    delete(steps, job)
    assert there(steps, job) == [{"status": status, "cancel_requested": True}]
    follow(steps)
    delete(steps, job)
    assert there(steps, job) == []


def test_job_with_a_live_duplicate_is_not_deleted(steps: Steps) -> None:
    job, attempt = steps.attempt_in("duplicate")
    delete(steps, job)
    assert len(there(steps, job)) == 1
    steps.status(attempt, steps.attempt(attempt)["call_sid"], "completed")
    delete(steps, job)
    assert there(steps, job) == []


def test_call_of_a_deleted_job_is_ended(steps: Steps) -> None:
    job, attempt = steps.attempt_in("absent")
    delete(steps, job)
    assert steps.accept(attempt, a_sid())["then"] == "unknown"
