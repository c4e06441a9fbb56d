"""Calls in doubt: settled by evidence, never by impatience. And what the sweep takes to look after, in which order."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.database.conftest import Another
from tests.database.sql_api import ASK_S, GIVE_UP_S, HOLD_S, LEASE_S, SETTLING_S, Steps, a_number, a_sid, all_at_once

NOTHING = {"outcome": "none"}


# --- a lease that ran out ---------------------------------------------------------------------------------------------
def test_lease_that_ran_out_is_a_doubt(steps: Steps) -> None:
    """Never a queued job. The request may have begun late in the lease: settling counts from its end, not from the claim."""
    job, attempt = steps.attempt_in("started")
    steps.pass_time(LEASE_S + 1)
    assert steps.claim()["outcome"] == "none"
    asked = steps.ask()
    assert (asked["outcome"], asked["state"], asked["lease_ran_out"]) == ("ask", "in_doubt", True)
    row = steps.attempt(attempt)
    assert (steps.job(job)["status"], row["state"]) == ("in_doubt", "in_doubt")
    assert row["doubted_at"] - row["started_at"] >= timedelta(seconds=LEASE_S)
    assert steps.accept(attempt, a_sid())["then"] == "keep"  # a dispatcher that wakes up now still tells the truth
    assert steps.job(job)["status"] == "calling"


def test_lease_that_holds_is_left_alone(steps: Steps) -> None:
    steps.attempt_in("started")
    steps.pass_time(LEASE_S - 5)
    before = steps.everything()
    assert (steps.ask(), steps.everything()) == (NOTHING, before)


# --- absent -----------------------------------------------------------------------------------------------------------
def test_absent_needs_an_ask_after_the_settling_time(steps: Steps) -> None:
    """However late its answer comes: Twilio's list was read before."""
    job, attempt = steps.attempt_in("in_doubt")
    steps.pass_time(SETTLING_S - 20)
    asked_at = steps.now()
    steps.pass_time(60)
    assert steps.settle(attempt, asked_at=asked_at, settling_s=SETTLING_S) == {"outcome": "not_yet"}
    assert (steps.attempt(attempt)["state"], steps.job(job)["status"]) == ("in_doubt", "in_doubt")
    assert steps.settle(attempt, settling_s=SETTLING_S) == {"outcome": "absent", "job_status": "queued"}
    assert (steps.attempt(attempt)["state"], steps.job(job)["reason_code"]) == ("absent", "absent")


def test_next_ask_comes_when_the_settling_time_ends(steps: Steps) -> None:
    job, attempt = steps.attempt_in("in_doubt")
    steps.pass_time(SETTLING_S - 9)
    steps.settle(attempt, settling_s=SETTLING_S)
    assert steps.job(job)["due_at"] == steps.attempt(attempt)["doubted_at"] + timedelta(seconds=SETTLING_S)


def test_silence_of_twilio_leaves_the_call_in_doubt(steps: Steps) -> None:
    """Nobody settles: the sweep could not ask. It is asked again, and never dialed."""
    job, _ = steps.attempt_in("in_doubt")
    for _ in range(50):
        steps.pass_time(3600)
        assert steps.ask()["state"] == "in_doubt"
        assert steps.claim()["outcome"] == steps.claim(job)["outcome"] == "none"
    assert steps.job(job)["status"] == "in_doubt"


def test_absent_ends_the_job_where_it_gives_up(steps: Steps) -> None:
    job, attempt = steps.attempt_in("in_doubt")
    assert steps.settle(attempt, gives_up=True) == {"outcome": "absent", "job_status": "failed"}
    assert steps.job(job)["reason_code"] == "gave_up"


def test_missing_list_is_not_an_empty_list(steps: Steps) -> None:
    _, attempt = steps.attempt_in("in_doubt")
    nothing = {"settling_s": 0.0, "ask_s": 10.0, "poll_s": ASK_S, "delays_s": [60.0]}
    for no_list in (None, Jsonb(None)):
        with pytest.raises(psycopg.Error):
            steps.call("settle_call", attempt=attempt, asked_at=steps.now(), calls=no_list, **nothing)
    assert steps.attempt(attempt)["state"] == "in_doubt"


# --- found ------------------------------------------------------------------------------------------------------------
def test_listed_call_that_nobody_else_has_is_found(steps: Steps) -> None:
    """Listed twice it is one call: Twilio's pages shift when a call is added while they are read."""
    for times in (1, 2):
        job, attempt = steps.attempt_in("in_doubt")
        found = steps.settle(attempt, *[(sid := a_sid(), "ringing")] * times, settling_s=SETTLING_S)
        assert found == {"outcome": "found", "call_sid": sid, "call_status": "ringing", "then": "keep"}
        assert (steps.attempt(attempt)["call_sid"], steps.job(job)["status"]) == (sid, "calling")


def test_calls_of_other_attempts_are_never_found(steps: Steps) -> None:
    number, of_a_deleted_job = a_number(), a_sid()
    job = steps.queue(number)
    steps.status(steps.start(job), of_a_deleted_job, "busy", delays_s=())
    steps.rows("delete from public.outbound_call_jobs where id = %s", job)
    _, earlier = steps.attempt_in("ended", number)
    _, refused = steps.attempt_in("refused", number)
    steps.accept(refused, duplicate := a_sid())
    steps.status(refused, duplicate, "completed")
    _, attempt = steps.attempt_in("in_doubt", number)
    known = [(sid, "busy") for sid in (of_a_deleted_job, steps.attempt(earlier)["call_sid"], duplicate)]
    for call in known:
        assert steps.settle(attempt, call, settling_s=SETTLING_S)["outcome"] == "not_yet"
    found = steps.settle(attempt, *known, (sid := a_sid(), "queued"), settling_s=SETTLING_S)
    assert (found["outcome"], found["call_sid"]) == ("found", sid)


def test_several_listed_calls_bind_none_however_late(steps: Steps) -> None:
    job, attempt = steps.attempt_in("in_doubt")
    for later_s in (0, SETTLING_S + 1):
        steps.pass_time(later_s)
        answer = steps.settle(attempt, (a_sid(), "queued"), (a_sid(), "ringing"), settling_s=SETTLING_S)
        assert answer == {"outcome": "ambiguous", "calls": 2}
        assert (steps.attempt(attempt)["call_sid"], steps.job(job)["status"]) == (None, "in_doubt")
        assert steps.job(job)["due_at"] > steps.now()


def test_several_calls_that_ended_hold_no_canceled_job(steps: Steps) -> None:
    job, attempt = steps.attempt_in("in_doubt", number := a_number())
    first, second = a_sid(), a_sid()
    steps.pass_time(SETTLING_S + 1)
    steps.call("cancel_call_job", job_id=job)
    for status, settling_s in (
        ("ringing", SETTLING_S), ("in-progress", SETTLING_S),  # it may be ours, and must not go on
        ("busy", 2 * SETTLING_S),  # too early
    ):  # fmt: skip
        answer = steps.settle(attempt, (first, "completed"), (second, status), settling_s=settling_s)
        assert answer == {"outcome": "ambiguous", "calls": 2}
    answer = steps.settle(attempt, (first, "completed"), (second, "busy"), settling_s=SETTLING_S)
    assert answer == {"outcome": "absent", "job_status": "canceled"}
    assert steps.claim(steps.queue(number))["outcome"] == "claimed"


def test_attempts_that_are_not_in_doubt_stay_settled(steps: Steps) -> None:
    for state in ("started", "accepted", "ended", "refused", "absent", "duplicate", "released"):
        _, attempt = steps.attempt_in(state)
        before = steps.everything()
        answers = [steps.settle(attempt, *calls) for calls in ([(a_sid(), "ringing")], [])]
        assert (answers, steps.everything()) == ([{"outcome": "settled"}] * 2, before), state


def test_job_canceled_in_doubt_is_looked_after_at_once(steps: Steps) -> None:
    job, _ = steps.attempt_in("in_doubt")
    assert steps.call("cancel_call_job", job_id=job) == "in_doubt"
    assert steps.ask()["end"]


# --- what the sweep takes ---------------------------------------------------------------------------------------------
def test_duplicate_calls_are_followed_up_first(steps: Steps) -> None:
    steps.attempt_in("in_doubt")
    _, duplicate = steps.attempt_in("duplicate")
    steps.pass_time(HOLD_S + LEASE_S)
    asked = steps.ask()
    assert (asked["attempt"], asked["state"], asked["end"]) == (str(duplicate), "duplicate", True)
    assert steps.ask()["state"] == "in_doubt"


def test_call_without_callbacks_is_asked_after(steps: Steps) -> None:
    job, attempt = steps.attempt_in("accepted")
    assert steps.ask() == NOTHING
    steps.pass_time(ASK_S)
    asked, row = steps.ask(), steps.attempt(attempt)
    expected = {"state": "accepted", "end": False, "job_id": job} | {k: row[k] for k in ("call_sid", "phone_e164")}
    assert {key: asked[key] for key in expected} == expected


@pytest.mark.parametrize(("state", "again_s"), [("in_doubt", HOLD_S), ("accepted", ASK_S), ("duplicate", HOLD_S)])
def test_calls_taken_are_held_and_come_again(steps: Steps, state: str, again_s: float) -> None:
    steps.attempt_in(state)
    for seconds in (ASK_S, again_s + 1):
        steps.pass_time(seconds)
        assert (steps.ask().get("state"), steps.ask()) == (state, NOTHING)


def test_duplicate_that_ended_is_not_taken_again(steps: Steps) -> None:
    _, attempt = steps.attempt_in("duplicate")
    assert steps.ask()["state"] == "duplicate"
    steps.says(attempt, "completed")
    steps.pass_time(10 * HOLD_S)
    assert steps.ask() == NOTHING


def test_duplicate_that_never_ends_frees_its_number(steps: Steps) -> None:
    steps.attempt_in("duplicate", number := a_number())
    steps.pass_time(GIVE_UP_S + 1)
    assert steps.ask()["state"] == "duplicate"
    steps.pass_time(HOLD_S + 1)
    assert steps.ask() == NOTHING
    assert steps.claim(steps.queue(number))["outcome"] == "claimed"


def test_sweeps_at_once_take_each_call_once(steps: Steps, another: Another) -> None:
    for state in ("in_doubt", "accepted", "duplicate") * 8:
        steps.attempt_in(state)
    steps.pass_time(ASK_S + 1)

    def sweep(mine: Steps) -> list[str]:
        return [asked["attempt"] for asked in iter(mine.ask, NOTHING)]

    taken = [attempt for one in all_at_once(sweep, [another() for _ in range(4)]) for attempt in one]
    assert len(taken) == len(set(taken)) == 24


def test_call_held_by_another_sweep_is_passed_over(steps: Steps, another: Another) -> None:
    (_, first), (_, second) = (steps.attempt_in("in_doubt") for _ in range(2))
    steps.pass_time(60)
    mine, theirs = another(), another()
    theirs.service.execute("set statement_timeout = '5s'")
    with mine.service.transaction(force_rollback=True):
        assert mine.ask()["attempt"] == str(first)
        assert (theirs.ask()["attempt"], theirs.ask()) == (str(second), NOTHING)
