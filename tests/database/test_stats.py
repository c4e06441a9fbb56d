"""What the statistics say, against rows that were counted by hand: a day with a job and an attempt in every state."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from shared.models import Redial
from shared.screening import PutOff, parse_number, screen
from shared.stats import Stats
from tests.database.sql_api import BUSY_S, DELAYS_S, LEASE_S, OURS, Row, Steps, a_number, a_sid
from tests.unit.examples import settings

HOUR_S = 3600.0
STATES = ("started", "in_doubt", "accepted", "refused", "absent", "ended", "duplicate", "released")

IDLE = {
    "queued": 0, "dialing": 0, "in_doubt": 0, "calling": 0, "completed_24h": 0, "failed_24h": 0, "canceled_24h": 0,
    "failures_24h": {}, "due": 0, "oldest_due_s": 0, "oldest_doubt_s": 0, "live_duplicates": 0, "duplicates_24h": 0,
    "calls_1h": 0, "answered_1h": 0, "calls_24h": 0, "answered_24h": 0, "opt_outs_24h": 0, "held_by_prefix": 0, "held_by_rule": {},
    "missed_signups": 0, "paused": False, "paused_by": None, "paused_until": None, "pause_reason": None, "halts": 0,
    "results_due": 0, "results_oldest_s": 0, "results_gave_up": 0,
}  # fmt: skip


def stats(steps: Steps) -> dict[str, Any]:
    return steps.answer("call_job_stats")


def told(steps: Steps) -> dict[str, Any]:
    """What is not as on an idle day."""
    return {name: value for name, value in stats(steps).items() if value != IDLE[name]}


def hours(steps: Steps, count: int = 48) -> list[Row]:
    return steps.rows("select * from public.call_stats_by_hour(%s)", count)


def without_zeros(row: Row) -> Row:
    return {name: value for name, value in row.items() if value and name != "hour"}


def call(steps: Steps, ends: str, **more: object) -> int:
    """A job whose first call ends so; no second one follows."""
    job = steps.queue()
    steps.says(steps.start(job), ends, delays_s=(), **more)
    return job


def waited(steps: Steps, seconds: float, began: datetime, told: int) -> bool:
    """At least these seconds, and at most all since then: on a slow machine more pass by themselves."""
    return round(seconds) <= told <= round((steps.now() - began).total_seconds())


def at_half_past(steps: Steps) -> None:
    """So that what a test does within minutes is within one hour of the clock."""
    now = steps.now()
    steps.pass_time((now.replace(minute=30, second=0, microsecond=0) + timedelta(hours=1) - now).total_seconds())


def test_long_queue_is_counted_to_a_limit_and_estimated(steps: Steps) -> None:
    steps.rows(
        "insert into public.outbound_call_jobs (user_id, phone_number, due_at) select gen_random_uuid(), '+1555',"
        " private.clock() + case when n > 1100 then interval '1 day' else interval '-1 day' end"
        " from generate_series(1, 1200) n"
    )
    steps.rows("analyze public.outbound_call_jobs")
    assert (told(steps)["queued"], told(steps)["due"]) == (1200, 1000)


def test_every_state_is_counted_once(steps: Steps) -> None:
    assert stats(steps) == IDLE
    began = steps.now()
    for state in STATES:
        steps.attempt_in(state)
    steps.pass_time(passed := max(*DELAYS_S, BUSY_S) + 61)
    steps.queue()
    counted = told(steps)
    for age in ("oldest_due_s", "oldest_doubt_s"):  # the released one was due at once
        assert waited(steps, passed, began, counted.pop(age)), age
    assert counted == {
        # Absent, ended (busy) and released wait for their next call, and the last one.
        "queued": 4, "due": 4, "dialing": 1, "in_doubt": 1, "calling": 1,
        # Refused, and the one whose refused call turned up: a duplicate.
        "failed_24h": 2, "failures_24h": {"number_invalid": 2}, "live_duplicates": 1, "duplicates_24h": 1,
        # Started, in doubt, accepted, ended, duplicate: they rang, may ring or may have rung.
        "calls_1h": 5, "calls_24h": 5,
    }  # fmt: skip


def test_how_jobs_ended_within_a_day(steps: Steps) -> None:
    for ends in ("completed", "completed", "busy", "no-answer", "no-answer", "failed", "canceled"):
        call(steps, ends)
    steps.call("cancel_call_job", job_id=steps.queue())
    failures = {"busy": 1, "no-answer": 2, "failed": 1}
    ended = {"completed_24h": 2, "failed_24h": 4, "canceled_24h": 2, "failures_24h": failures}
    assert told(steps) == ended | {"calls_1h": 7, "answered_1h": 2, "calls_24h": 7, "answered_24h": 2}
    steps.pass_time(2 * HOUR_S)
    assert told(steps) == ended | {"calls_24h": 7, "answered_24h": 2}
    steps.pass_time(22 * HOUR_S)
    assert told(steps) == {}


def test_persons_alone_answer_from_their_first_word(steps: Steps) -> None:
    for answered_by in ("human", "unknown", "machine_start", "fax", None):
        call(steps, "completed", answered_by=answered_by)
    for word in ("in-progress", "ringing"):
        steps.says(steps.start(steps.queue()), word)
    assert (told(steps)["calls_1h"], told(steps)["answered_1h"]) == (7, 4)


def test_calls_count_as_the_days_ceiling_counts(steps: Steps) -> None:
    for state in STATES:
        steps.attempt_in(state)
    counted = stats(steps)["calls_24h"]
    steps.pass_time(LEASE_S)  # what is about to be dialed may yet be given back, and is waited for
    job = steps.queue()
    assert steps.claim(job, per_day=counted)["outcome"] == "paused"
    steps.call("resume_calls")
    assert steps.claim(job, per_day=counted + 1)["outcome"] == "claimed"


def test_jobs_are_counted_by_the_rule_that_holds_them(steps: Steps) -> None:
    """The reasons are those of the screening, for the moment at which each job was claimed."""
    ours = settings(CALL_HOURS="strict", CALL_REDIAL_SPREAD="on")
    sunday, morning = datetime(2026, 6, 21, 17, tzinfo=UTC), datetime(2026, 6, 22, 14, tzinfo=UTC)
    redial = Redial(missed_at=morning - timedelta(hours=1), due_at=morning)
    chicago, new_york = {"timezone": "America/Chicago"}, {"timezone": "America/New_York"}
    for typed, metadata, now, missed in [
        ("+12055550100", chicago, sunday, None), ("+12565550100", chicago, sunday, redial),
        ("+12125550100", new_york, sunday - timedelta(hours=8), None),
        ("+12125550101", new_york, morning, redial), ("+12125550102", new_york, morning, redial),
    ]:  # fmt: skip
        held = screen(parse_number(typed, ours), metadata, ours, now, redial=missed)
        assert isinstance(held, PutOff)
        again = steps.now() + timedelta(hours=1)
        release = {"attempt": steps.start(steps.queue(typed)), "delay_s": 0.0, "code": held.code, "not_before": again}
        assert steps.call("release_call_job", reason=held.reason, **release)
    by_rule = {
        "Sunday in Alabama": 2, "too early or too late where this phone is, or may be": 1,
        "nobody picked up in the morning": 2,
    }  # fmt: skip
    assert told(steps) == {"queued": 5, "held_by_rule": by_rule}
    assert steps.one("select held_by_rule from public.call_stats") == by_rule
    assert Stats.model_validate(stats(steps)).held_by_rule == by_rule
    steps.pass_time(HOUR_S)
    assert told(steps)["due"] == 5
    assert "held_by_rule" not in told(steps)


def test_what_is_due_later_is_not_late(steps: Steps) -> None:
    steps.queue(due_at=steps.now() + timedelta(hours=1))
    assert told(steps) == {"queued": 1}
    began = steps.now()
    steps.queue(due_at="-infinity")
    steps.pass_time(5)
    assert waited(steps, 5, began, told(steps)["oldest_due_s"])  # it waits since it was inserted


def test_doubt_that_is_settled_is_none(steps: Steps) -> None:
    began = steps.now()
    _, attempt = steps.attempt_in("in_doubt")
    steps.pass_time(100)
    counted = told(steps)
    assert counted["in_doubt"] == 1
    assert waited(steps, 100, began, counted["oldest_doubt_s"])
    steps.settle(attempt)
    assert "oldest_doubt_s" not in told(steps)


def test_opt_outs_and_missed_sign_ups_are_counted(steps: Steps) -> None:
    steps.call("opt_out", phone_number=a_number())
    steps.pass_time(23 * HOUR_S)
    steps.call("opt_out", phone_number=a_number())
    assert told(steps) == {"opt_outs_24h": 2}
    steps.pass_time(2 * HOUR_S)
    steps.rows("insert into private.missed_signups values (gen_random_uuid(), 'a lock', private.clock())")
    assert told(steps) == {"opt_outs_24h": 1, "missed_signups": 1}


def test_pause_by_hand_tells_reason_and_end(steps: Steps) -> None:
    steps.call("pause_calls", reason="lunch")
    assert told(steps) == {"paused": True, "paused_by": "hand", "paused_until": "infinity", "pause_reason": "lunch"}
    steps.call("pause_calls", reason="lunch", until=steps.now() + timedelta(minutes=5))
    steps.pass_time(301)
    assert told(steps) == {}


def test_halt_is_remembered_until_a_call_gets_through(steps: Steps) -> None:
    job = steps.queue()
    steps.release(steps.start(job), halt_s=60)
    assert (told(steps)["paused_by"], told(steps)["halts"]) == ("halt", 1)
    steps.pass_time(61)
    assert (stats(steps)["paused"], stats(steps)["halts"]) == (False, 1)
    steps.accept(steps.start(job), a_sid())
    assert stats(steps)["halts"] == 0


def test_days_ceiling_pauses_in_its_own_name(steps: Steps) -> None:
    call(steps, "completed")
    steps.claim(steps.queue(), per_day=1)
    assert told(steps)["paused_by"] == "calls_per_day"


def test_function_view_and_service_tell_the_same(steps: Steps) -> None:
    for state in STATES:
        steps.attempt_in(state)
    steps.call("pause_calls", reason="lunch")  # any client can read its end
    query = "select public.call_job_stats() as told, to_jsonb(s) as view, s.paused_until from public.call_stats s"
    ((told, view, paused_until),) = [tuple(row.values()) for row in steps.rows(query)]
    assert (view, paused_until) == (told, "infinity")
    assert set(Stats.model_fields) == set(told)
    assert Stats.model_validate(told).model_dump(mode="json") == told


# --- by the hour ------------------------------------------------------------------------------------------------------
def test_hour_counts_each_call_in_one_column(steps: Steps) -> None:
    at_half_past(steps)
    for ends in ("completed", "completed", "busy", "no-answer", "failed", "canceled"):
        call(steps, ends)
    call(steps, "completed", answered_by="machine_start")
    for state in ("started", "in_doubt", "accepted", "refused", "absent", "duplicate"):
        steps.attempt_in(state)
    _, waits = steps.attempt_in("accepted")
    steps.call("put_off_call", attempt=waits, not_before=steps.now() + timedelta(hours=9), code="hours", reason="night")
    steps.says(waits, "canceled")
    this, *before = hours(steps)
    counted = {
        "calls": 10, "answered": 2, "not_reached": 5, "put_off": 1, "under_way": 1, "duplicates": 1,
        "in_doubt": 1, "refused": 1, "absent": 1,
    }  # fmt: skip
    assert without_zeros(this) == counted
    assert [without_zeros(row) for row in before] == [{}] * 47


def test_hours_go_back_and_include_empty_ones(steps: Steps) -> None:
    at_half_past(steps)
    call(steps, "completed")
    steps.pass_time(3 * HOUR_S)
    call(steps, "busy")
    rows = hours(steps, 5)
    assert [without_zeros(row) for row in rows] == [
        {"calls": 1, "not_reached": 1}, {}, {}, {"calls": 1, "answered": 1}, {},
    ]  # fmt: skip
    assert {earlier["hour"] - later["hour"] for later, earlier in pairwise(rows)} == {timedelta(hours=-1)}
    assert rows[0]["hour"] <= steps.now() < rows[0]["hour"] + timedelta(hours=1)
    assert steps.rows("select * from public.call_stats_per_hour") == hours(steps, 48)


def test_hours_that_make_no_sense_are_refused_by_name(steps: Steps) -> None:
    for count in (0, -1, 2161, None):
        with pytest.raises(psycopg.errors.RaiseException, match="p_hours must be between"):
            steps.call("call_stats_by_hour", hours=count)


# --- our number -------------------------------------------------------------------------------------------------------
def test_attempt_keeps_the_number_that_calls(steps: Steps) -> None:
    _, attempt = steps.attempt_in("in_doubt")
    assert steps.attempt(attempt)["from_e164"] == OURS
    steps.pass_time(3600)
    assert steps.call("claim_open_call", hold_s=60.0, ask_s=60.0, give_up_s=90_000.0)["from_e164"] == OURS


def test_older_code_without_our_number_loses_nothing(steps: Steps) -> None:
    job, attempt = steps.queue(), uuid4()
    steps.call("claim_call_job", attempt=attempt, job_id=job, lease_s=60.0, calls_per_second=1000.0, busy_s=60.0)
    assert steps.attempt(attempt)["from_e164"] is None
    assert steps.accept(attempt, a_sid())["then"] == "keep"
