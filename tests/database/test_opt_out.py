"""Stop means stop: opt-outs, and the pause that takes back what waits in Twilio's queue."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from tests.database.conftest import Another
from tests.database.sql_api import ASK_S, Row, Steps, a_number, a_sid


def opt_out(steps: Steps, number: str, **more: object) -> Row:
    return steps.answer("opt_out", phone_number=number, **more)


# --- opt-outs ---------------------------------------------------------------------------------------------------------
def test_number_that_opted_out_is_not_dialed(steps: Steps) -> None:
    opt_out(steps, number := a_number())
    job, other = steps.queue(number), steps.queue()
    assert steps.claim()["job"]["id"] == other
    assert steps.brief(job) == ("canceled", 0, "opted_out")
    assert steps.job(job)["reason"] == "the number has opted out of calls"
    assert steps.attempts(job) == []
    answer = steps.claim(steps.queue(number))  # a webhook is told so
    assert (answer["outcome"], answer["status"], answer["reason_code"]) == ("none", "canceled", "opted_out")


def test_number_typed_otherwise_is_seen_once_it_is_read(steps: Steps) -> None:
    opt_out(steps, number := a_number())
    job = steps.queue("(415) 555-0100")
    assert steps.claim(job)["outcome"] == "unparsed"
    assert steps.call("set_call_number", job_id=job, phone_number="(415) 555-0100", phone_e164=number)
    assert steps.claim(job)["status"] == "canceled"


def test_queued_jobs_of_the_number_are_canceled_at_once(steps: Steps) -> None:
    number = a_number()
    jobs, other = [steps.queue(number), steps.queue(number)], steps.queue()
    assert opt_out(steps, number) == {"canceled": 2, "ending": 0, "jobs": 2, "calls": 0}
    assert opt_out(steps, number) == {"canceled": 0, "ending": 0, "jobs": 2, "calls": 0}
    assert [steps.brief(job) for job in jobs] == [("canceled", 0, "opted_out")] * 2
    assert steps.job(other)["status"] == "queued"


@pytest.mark.parametrize("state", ["started", "in_doubt", "accepted"])
def test_open_call_of_the_number_is_ended_and_canceled(steps: Steps, state: str) -> None:
    job, attempt = steps.attempt_in(state, number := a_number())
    assert opt_out(steps, number) == {"canceled": 0, "ending": 1, "jobs": 1, "calls": 1}
    assert steps.job(job)["cancel_requested"]
    if state != "started":  # the sweep comes for it at once
        found = steps.ask()
        assert (found["attempt"], found["end"]) == (str(attempt), True)
    assert steps.accept(attempt, steps.attempt(attempt)["call_sid"] or a_sid())["then"] == "end"
    steps.says(attempt, "canceled")
    assert steps.brief(job) == ("canceled", 1, "opted_out")


def test_call_that_opts_out_ends_by_itself(steps: Steps) -> None:
    job, attempt = steps.attempt_in("accepted", number := a_number())
    queued = steps.queue(number)
    answer = opt_out(steps, number, how="key press", attempt=attempt)
    assert answer == {"canceled": 1, "ending": 0, "jobs": 2, "calls": 1}
    assert steps.job(queued)["status"] == "canceled"
    assert steps.says(attempt, "in-progress")["then"] == "keep"
    steps.says(attempt, "completed")
    assert steps.job(job)["status"] == "completed"


def test_failed_call_is_not_redialed_after_an_opt_out(steps: Steps) -> None:
    job, attempt = steps.attempt_in("accepted", number := a_number())
    opt_out(steps, number, attempt=attempt)
    steps.says(attempt, "failed")
    steps.make_due(job)
    assert steps.claim(job)["status"] == "canceled"


def test_late_truth_after_an_opt_out_is_ended(steps: Steps) -> None:
    job, attempt = steps.attempt_in("absent", number := a_number())
    steps.change_job(job, status="failed", due_at=None, finished_at=steps.now(), reason_code="absent")
    opt_out(steps, number)
    sid = a_sid()
    assert steps.accept(attempt, sid)["then"] == "end"
    steps.status(attempt, sid, "canceled")
    assert steps.job(job)["reason_code"] == "opted_out"


def test_opt_out_outlives_user_job_and_retention(steps: Steps) -> None:
    user = steps.sign_up(number := a_number())
    for how in ("key press in the call", "again"):
        opt_out(steps, number, how=how)
    steps.rows("delete from auth.users where id = %s", user)
    steps.pass_time(400 * 86_400)
    steps.call("prune_call_jobs", retention_days=1)
    assert [row["how"] for row in steps.rows("select how from public.call_opt_outs")] == ["key press in the call"]


def test_opt_out_unseen_by_the_claim_ends_the_call(steps: Steps, another: Another) -> None:
    """The job came after opt_out had looked for jobs, and was claimed before opt_out had committed."""
    number, slow = a_number(), another()
    with slow.service.transaction():
        opt_out(slow, number)
        job = steps.queue(number)
        attempt = steps.start(job)
    assert steps.accept(attempt, a_sid())["then"] == "end"
    assert steps.job(job)["cancel_code"] == "opted_out"


# --- the pause, and calls in Twilio's queue ---------------------------------------------------------------------------
def stop(steps: Steps) -> None:
    steps.call("pause_calls", reason="the script is wrong")


@pytest.mark.parametrize("resumed", ["before its end is told", "afterwards"])
def test_call_in_twilios_queue_is_remade_after_the_pause(steps: Steps, resumed: str) -> None:
    job, attempt = steps.attempt_in("accepted")
    stop(steps)
    found = steps.ask()
    sid = steps.attempt(attempt)["call_sid"]
    assert (found["call_sid"], found["put_off"], found["end"]) == (sid, True, False)
    if resumed == "before its end is told":
        steps.call("resume_calls")
    steps.says(attempt, "canceled")
    assert (steps.brief(job)[:2], steps.job(job)["finished_at"]) == (("queued", 0), None)
    if resumed == "afterwards":
        assert steps.claim(job)["outcome"] == "paused"
        steps.call("resume_calls")
    assert steps.claim(job, per_number=1)["outcome"] == "claimed"
    assert steps.job(job)["attempts"] == 1


@pytest.mark.parametrize("word", ["initiated", "ringing", "in-progress"])
def test_call_that_has_left_the_queue_goes_on(steps: Steps, word: str) -> None:
    job, attempt = steps.attempt_in("accepted")
    steps.says(attempt, word)
    stop(steps)
    assert steps.says(attempt, word)["then"] == "keep"
    steps.pass_time(ASK_S)
    assert (steps.ask()["put_off"], steps.ask()) == (False, {"outcome": "none"})
    steps.says(attempt, "completed")
    assert steps.job(job)["status"] == "completed"


def test_calls_learned_of_during_the_pause_are_put_off(steps: Steps) -> None:
    (_, started), (_, in_doubt) = (steps.attempt_in(state) for state in ("started", "in_doubt"))
    stop(steps)
    assert steps.accept(started, a_sid())["then"] == "keep"
    first = steps.ask()
    assert steps.settle(in_doubt, (a_sid(), "queued"))["outcome"] == "found"
    found = [(asked["attempt"], asked["put_off"]) for asked in (first, steps.ask())]
    assert found == [(str(started), True), (str(in_doubt), True)]


def test_halt_takes_no_call_back(steps: Steps) -> None:
    steps.attempt_in("accepted")
    assert steps.release(steps.attempt_in("started")[1], halt_s=60.0)
    steps.pass_time(1)
    assert steps.ask() == {"outcome": "none"}


def test_call_answered_during_the_pause_is_ended(steps: Steps) -> None:
    job, attempt = steps.attempt_in("accepted")
    steps.says(attempt, "ringing")
    stop(steps)
    assert steps.says(attempt, "in-progress")["then"] == "end"
    steps.says(attempt, "completed")
    assert steps.brief(job) == ("canceled", 1, "paused")
    steps.call("resume_calls")
    assert steps.call("retry_call_job", job_id=job) == "queued"
    assert steps.claim(job)["outcome"] == "claimed"


# --- a call that would leave Twilio's queue too late ------------------------------------------------------------------
def put_off(steps: Steps, attempt: uuid.UUID) -> object:
    at, code = steps.now() + timedelta(hours=9), "outside_calling_hours"
    return steps.call("put_off_call", attempt=attempt, not_before=at, code=code, reason="night there")


def test_call_put_off_is_made_later_unspent(steps: Steps) -> None:
    job, attempt = steps.attempt_in("accepted")
    assert put_off(steps, attempt)
    assert steps.ask()["put_off"]  # until Twilio says that it is over
    steps.says(attempt, "canceled")
    assert steps.brief(job) == ("queued", 0, "outside_calling_hours")
    assert steps.job(job)["due_at"] - steps.now() > timedelta(hours=8, minutes=59)
    steps.pass_time(9 * 3600)
    assert steps.claim(job, per_number=1)["outcome"] == "claimed"
    assert [(a["state"], a["number"]) for a in steps.attempts(job)] == [("ended", 1), ("started", 1)]


def test_call_that_got_through_before_its_cancel_counts(steps: Steps) -> None:
    for word, status in (("completed", "completed"), ("busy", "queued"), ("no-answer", "queued")):
        job, attempt = steps.attempt_in("accepted")
        put_off(steps, attempt)
        steps.says(attempt, word)
        assert (steps.brief(job)[:2], steps.attempt(attempt)["put_off_until"]) == ((status, 1), None), word


def test_calls_in_twilios_queue_alone_can_be_put_off(steps: Steps) -> None:
    _, initiated = steps.attempt_in("accepted")
    steps.says(initiated, "initiated")
    states = ("started", "in_doubt", "ended", "refused", "absent", "duplicate")
    attempts = [initiated, *(steps.attempt_in(state)[1] for state in states)]
    before = steps.everything()
    assert [attempt for attempt in attempts if put_off(steps, attempt)] == []
    assert steps.everything() == before


def test_canceled_job_is_never_put_off(steps: Steps) -> None:
    job, attempt = steps.attempt_in("accepted")
    assert put_off(steps, attempt)
    steps.call("cancel_call_job", job_id=job)
    assert not put_off(steps, attempt)
    steps.says(attempt, "canceled")
    assert steps.job(job)["status"] == "canceled"
