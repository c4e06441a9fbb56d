"""How often a number, a prefix and the whole account may be called: counted in the claim, so that it holds over all instances."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

import pytest

from tests.database.conftest import Another
from tests.database.sql_api import LEASE_S, Row, Steps, a_number, a_sid, all_at_once, behind

HOUR_S, DAY_S = 3600.0, 86_400.0
BUCKET_S = 300.0  # CALLS_PER_DAY counts by five minutes
AT_ONCE = 50


def call_and_end(steps: Steps, number: str, **caps: Any) -> Row:
    """A job of its own to this number, dialed and over. -> what the claim said"""
    claim = steps.claim(steps.queue(number), **caps)
    if claim["outcome"] == "claimed":
        steps.status(uuid.UUID(claim["attempt"]["id"]), a_sid(), "completed")
    return claim


def waits_s(steps: Steps, job: int) -> float:
    return float((steps.job(job)["due_at"] - steps.now()).total_seconds())


def numbers_of_one_prefix(count: int) -> list[str]:
    return [f"+14155550{n}" for n in range(100, 100 + count)]


# --- per number -------------------------------------------------------------------------------------------------------
def test_number_is_called_so_often_in_24_hours(steps: Steps) -> None:
    """Whoever asks, and again once the first call is a day old: not a second later."""
    number = a_number()
    for _ in range(3):
        assert call_and_end(steps, number, per_number=3)["outcome"] == "claimed"
        steps.pass_time(HOUR_S)
    fourth = steps.queue(number)
    answer = steps.claim(fourth, per_number=3)
    told = (answer["outcome"], answer["status"], answer["reason_code"])
    assert told == ("none", "queued", "calls_per_number_per_day")
    assert (steps.job(fourth)["attempts"], steps.attempts(fourth)) == (0, [])
    assert waits_s(steps, fourth) == pytest.approx(DAY_S - 3 * HOUR_S, abs=5)
    steps.pass_time(waits_s(steps, fourth))
    assert steps.claim(fourth, per_number=3)["outcome"] == "claimed"


def test_cap_looks_back_24_hours_at_each_moment(steps: Steps) -> None:
    """Three a day, and never four in any 24 hours: no midnight sets it back."""
    number, called_at = a_number(), []
    steps.rows("update private.call_settings set calls_without_key = 100")
    start = steps.now()
    for _ in range(60):
        if call_and_end(steps, number, per_number=3)["outcome"] == "claimed":
            called_at.append((steps.now() - start).total_seconds())
        steps.pass_time(HOUR_S)
    assert len(called_at) == 9
    assert all(later - earlier >= DAY_S for earlier, later in zip(called_at, called_at[3:], strict=False))


def test_attempts_that_may_have_rung_count_for_their_number(steps: Steps) -> None:
    seen = {}
    for state in ("accepted", "in_doubt", "ended", "duplicate", "refused", "absent"):
        number = a_number()
        _, attempt = steps.attempt_in(state, number)
        if state in ("accepted", "in_doubt", "duplicate"):
            sid = a_sid() if state == "in_doubt" else steps.attempt(attempt)["call_sid"]
            steps.status(attempt, sid, "completed" if state == "duplicate" else "busy")
        seen[state] = steps.claim(steps.queue(number), per_number=1)["outcome"] != "claimed"
    assert seen == dict.fromkeys(("accepted", "in_doubt", "ended", "duplicate"), True) | {
        "refused": False,
        "absent": False,
    }


def test_job_put_off_for_its_number_holds_up_nobody(steps: Steps) -> None:
    number = a_number()
    call_and_end(steps, number)
    steps.queue(number)
    free = steps.queue()
    assert steps.claim(per_number=1)["job"]["id"] == free


def test_crowd_for_one_busy_number_holds_up_nobody(steps: Steps) -> None:
    """Many accounts, one number: each claim puts off some of them, and commits that."""
    steps.attempt_in("accepted", number := a_number())
    crowd = [steps.queue(number) for _ in range(150)]
    free = steps.queue()
    answers = [steps.claim(), steps.claim()]
    assert answers[0] == {"outcome": "wait", "wait_s": 0.01}
    assert answers[1]["job"]["id"] == free
    assert {steps.job(job)["reason_code"] for job in crowd} == {"number_in_use"}


def test_job_put_off_gives_its_slot_back(steps: Steps) -> None:
    number = a_number()
    call_and_end(steps, number)
    steps.pass_time(60)
    assert steps.claim(steps.queue(number), pace=0.1, per_number=1)["outcome"] == "none"
    assert steps.claim(steps.queue(), pace=0.1, per_number=1)["outcome"] == "claimed"


@pytest.mark.parametrize(("calls", "per_number"), [(2, 3), (6, None)], ids=["a day", "without a key"])
def test_claims_at_once_never_pass_a_numbers_caps(
    steps: Steps, another: Another, calls: int, per_number: int | None
) -> None:
    number = a_number()
    for _ in range(calls):
        call_and_end(steps, number)
    for _ in range(AT_ONCE):
        steps.queue(number)
    callers = [another() for _ in range(AT_ONCE)]
    answers = all_at_once(lambda caller: caller.claim(per_number=per_number), callers)
    (claimed,) = (answer for answer in answers if answer["outcome"] == "claimed")
    steps.status(uuid.UUID(claimed["attempt"]["id"]), a_sid(), "completed")
    steps.rows("update public.outbound_call_jobs set due_at = private.clock() where status = 'queued'")
    again = all_at_once(lambda caller: caller.claim(per_number=per_number), callers)
    assert {answer["outcome"] for answer in again} == {"none"}


def test_claim_without_caps_has_those_of_the_settings(steps: Steps) -> None:
    """Older code calls the function without them."""

    def claim(number: str) -> str:
        told = {"attempt": (attempt := uuid.uuid4()), "lease_s": LEASE_S, "busy_s": 60.0, "calls_per_second": 1000.0}
        outcome: str = steps.call("claim_call_job", job_id=steps.queue(number), **told)["outcome"]
        if outcome == "claimed":
            steps.status(attempt, a_sid(), "completed")
        return outcome

    assert [claim("+14155560100") for _ in range(4)] == ["claimed"] * 3 + ["none"]
    assert [claim(number) for number in numbers_of_one_prefix(21)] == ["claimed"] * 20 + ["none"]


# --- per prefix -------------------------------------------------------------------------------------------------------
def test_numbers_of_one_prefix_are_held_for_an_hour(steps: Steps) -> None:
    numbers = numbers_of_one_prefix(8)
    outcomes = [call_and_end(steps, number, per_prefix=5)["outcome"] for number in numbers]
    assert outcomes == ["claimed"] * 5 + ["none"] * 3
    held = steps.rows(
        "select id, reason_code, attempts from public.outbound_call_jobs where status = 'queued' order by id"
    )
    assert [(row["reason_code"], row["attempts"]) for row in held] == [("calls_per_prefix_per_hour", 0)] * 3
    assert steps.call("call_job_stats")["held_by_prefix"] == 3
    assert waits_s(steps, held[0]["id"]) == pytest.approx(HOUR_S, abs=5)
    steps.pass_time(HOUR_S)
    assert [steps.claim(per_prefix=5)["outcome"] for _ in range(4)] == ["claimed"] * 3 + ["none"]


def test_prefix_cap_of_zero_is_no_cap(steps: Steps) -> None:
    numbers = numbers_of_one_prefix(30)
    assert {call_and_end(steps, number, per_prefix=0)["outcome"] for number in numbers} == {"claimed"}


def test_claims_at_once_never_pass_a_prefixs_cap(steps: Steps, another: Another) -> None:
    for number in numbers_of_one_prefix(AT_ONCE):
        steps.queue(number)
    callers = [another() for _ in range(AT_ONCE)]
    answers = all_at_once(lambda caller: caller.claim(per_prefix=7), callers)
    assert Counter(answer["outcome"] for answer in answers)["claimed"] == 7
    held = "select count(*) from public.outbound_call_jobs where reason_code = 'calls_per_prefix_per_hour' and status = 'queued'"
    assert steps.one(held) == AT_ONCE - 7


def test_cap_of_a_prefix_counts_its_numbers_once(steps: Steps) -> None:
    numbers = numbers_of_one_prefix(3)
    for number in [*numbers[:2] * 3, numbers[2], numbers[0]]:
        assert call_and_end(steps, number, per_prefix=3)["outcome"] == "claimed"
    assert call_and_end(steps, "+14155550199", per_prefix=3)["reason_code"] == "calls_per_prefix_per_hour"
    assert call_and_end(steps, "+14155560100", per_prefix=3)["outcome"] == "claimed"  # of another prefix


def test_job_put_off_is_no_call_of_its_prefix(steps: Steps) -> None:
    for number in numbers_of_one_prefix(5):
        steps.release(steps.start(steps.queue(number)), delay_s=9 * HOUR_S)
    assert call_and_end(steps, "+14155550199", per_prefix=1)["outcome"] == "claimed"


def test_job_held_for_its_prefix_waits_out_pauses(steps: Steps) -> None:
    numbers = numbers_of_one_prefix(2)
    call_and_end(steps, numbers[0])
    held = steps.queue(numbers[1])
    steps.claim(held, per_prefix=1)
    steps.call("pause_calls", reason="fraud?")
    steps.pass_time(HOUR_S)
    assert steps.claim(held, per_prefix=1)["outcome"] == "paused"
    steps.call("resume_calls")
    assert steps.claim(held, per_prefix=1)["outcome"] == "claimed"


# --- without a key ----------------------------------------------------------------------------------------------------
def press(steps: Steps, number: str) -> None:
    """The person is called and presses a key that means something."""
    attempt, sid = steps.start(steps.queue(number)), a_sid()
    steps.call("record_call_answer", attempt=attempt, call_sid=sid, ask_s=60.0, question="q", meaning="yes", digits="1")
    steps.status(attempt, sid, "completed")


def test_number_without_a_key_is_called_seven_times_weekly(steps: Steps) -> None:
    number, called_at = a_number(), []
    start = steps.now()
    for _ in range(45):
        job = steps.queue(number, user_id=uuid.uuid4())  # whoever asks
        if steps.claim(job)["outcome"] == "claimed":
            called_at.append((steps.now() - start).total_seconds())
            steps.status(uuid.UUID(str(steps.attempts(job)[0]["id"])), a_sid(), "completed")
        else:
            assert steps.job(job)["reason_code"] == "calls_without_key"
            steps.call("cancel_call_job", job_id=job)
        steps.pass_time(8 * HOUR_S)
    assert len(called_at) > 10
    assert all(later - earlier >= 7 * DAY_S for earlier, later in zip(called_at, called_at[7:], strict=False))


def test_eighth_call_waits_until_the_first_is_week_old(steps: Steps) -> None:
    number = a_number()
    for _ in range(7):
        call_and_end(steps, number)
        steps.pass_time(HOUR_S)
    eighth = steps.queue(number)
    steps.claim(eighth)
    assert waits_s(steps, eighth) == pytest.approx(7 * (DAY_S - HOUR_S), abs=5)
    assert steps.job(eighth)["reason"] == steps.one("select private.put_off_reason('calls_without_key')")
    steps.pass_time(waits_s(steps, eighth))
    assert steps.claim(eighth)["outcome"] == "claimed"


def test_key_pressed_once_lifts_the_weekly_limit(steps: Steps) -> None:
    press(steps, number := a_number())
    assert {call_and_end(steps, number)["outcome"] for _ in range(12)} == {"claimed"}
    assert {call_and_end(steps, other)["outcome"] for other in [a_number()] * 7} == {"claimed"}


# --- per day ----------------------------------------------------------------------------------------------------------
def test_ceiling_of_a_day_pauses_calls_until_room(steps: Steps) -> None:
    for _ in range(2):
        call_and_end(steps, a_number(), per_day=3)
        steps.pass_time(HOUR_S)
    call_and_end(steps, a_number(), per_day=3)
    job = steps.queue()
    before = steps.job(job)
    answer = steps.claim(job, per_day=3)
    assert (answer["outcome"], answer["just_now"], answer["reason"]) == ("paused", True, "CALLS_PER_DAY is reached")
    assert steps.job(job) == before
    assert steps.call("call_job_stats")["pause_reason"] == "CALLS_PER_DAY is reached"
    assert not steps.claim(job, per_day=3).get("just_now")
    steps.pass_time(DAY_S - 2 * HOUR_S + BUCKET_S)
    steps.accept(steps.start(job), a_sid())
    assert steps.claim(steps.queue(), per_day=3)["outcome"] == "paused"


@pytest.mark.parametrize("raised", [2, None], ids=["raised", "turned off"])
def test_ceiling_that_was_changed_counts_after_resume(steps: Steps, raised: int | None) -> None:
    call_and_end(steps, a_number(), per_day=1)
    job = steps.queue()
    assert steps.claim(job, per_day=1)["outcome"] == "paused"
    steps.call("resume_calls")
    assert steps.claim(job, per_day=1)["just_now"]  # still reached: paused again, and that is told
    assert steps.claim(job, per_day=raised)["outcome"] == "paused"
    steps.call("resume_calls")
    assert steps.claim(job, per_day=raised)["outcome"] == "claimed"


def test_ceiling_ends_no_pause_made_by_hand(steps: Steps) -> None:
    call_and_end(steps, a_number(), per_day=1)
    steps.call("pause_calls", reason="lunch")
    assert steps.claim(steps.queue(), per_day=1)["reason"] == "lunch"
    assert steps.one("select paused_by = 'hand' from private.call_settings")


def test_claims_at_once_never_pass_the_days_ceiling(steps: Steps, another: Another) -> None:
    for _ in range(4):
        call_and_end(steps, a_number())
    for _ in range(AT_ONCE):
        steps.queue()
    callers = [another() for _ in range(AT_ONCE)]
    answers = all_at_once(lambda caller: caller.claim(per_day=5), callers)
    assert Counter(answer["outcome"] for answer in answers) == {"claimed": 1, "wait": AT_ONCE - 1}
    (last,) = (answer for answer in answers if answer["outcome"] == "claimed")
    steps.accept(uuid.UUID(last["attempt"]["id"]), a_sid())
    # As many as there are jobs: a claim that finds each of them locked by another's answers "none".
    answers = all_at_once(lambda caller: caller.claim(per_day=5), callers[1:])
    assert {answer["outcome"] for answer in answers} == {"paused"}
    assert sum(answer.get("just_now", False) for answer in answers) == 1


def test_claims_that_may_be_released_pause_nobody(steps: Steps) -> None:
    """At night: each is claimed, and put off for its hours."""
    call_and_end(steps, a_number())
    at_night = [steps.start(steps.queue()) for _ in range(2)]
    job = steps.queue()
    assert steps.claim(job, per_day=3)["outcome"] == "wait"
    assert steps.settings()["paused_until"] is None
    for attempt in at_night:
        steps.release(attempt, delay_s=9 * HOUR_S)
    assert steps.claim(job, per_day=3)["outcome"] == "claimed"


def test_ceiling_that_is_lowered_counts_at_once(steps: Steps) -> None:
    for _ in range(4):
        call_and_end(steps, a_number(), per_day=10)
        steps.pass_time(HOUR_S)
    answer = steps.claim(steps.queue(), per_day=2)
    assert answer["outcome"] == "paused"
    # Of the last two calls the first must be a day old; calls are counted by five minutes.
    waits = steps.one("select extract(epoch from paused_until - private.clock()) from private.call_settings")
    assert DAY_S - 2 * HOUR_S - 1 <= waits <= DAY_S - 2 * HOUR_S + BUCKET_S


def test_24_hours_never_hold_more_calls_than_allowed(steps: Steps) -> None:
    called_at = []
    start = steps.now()
    for gap_s in [61.0, 299.0, 4001.0, 7.0, 86_000.0, 301.0, 30_000.0] * 30:
        steps.queue()
        if steps.claim(per_day=3)["outcome"] == "claimed":
            called_at.append((steps.now() - start).total_seconds())
            attempt = steps.one("select id from public.outbound_call_attempts where state = 'started'")
            steps.status(attempt, a_sid(), "completed")
        steps.pass_time(gap_s)
    assert len(called_at) > 60
    assert all(later - earlier >= DAY_S for earlier, later in zip(called_at, called_at[3:], strict=False))


def test_call_late_in_its_bucket_counts_all_day(steps: Steps) -> None:
    steps.pass_time((240 - steps.now().timestamp()) % BUCKET_S)
    call_and_end(steps, a_number(), per_day=1)
    steps.pass_time(DAY_S - 5)
    assert steps.claim(steps.queue(), per_day=1)["outcome"] == "paused"


def test_counts_are_the_calls_made_and_are_pruned(steps: Steps) -> None:
    for _ in range(3):
        call_and_end(steps, a_number())
        steps.pass_time(HOUR_S)
    steps.release(steps.start(steps.queue()), delay_s=9 * HOUR_S)
    steps.refuse(steps.start(steps.queue()))
    steps.release(steps.start(steps.queue()), halt_s=60.0)
    assert steps.one("select sum(calls) from private.call_counts") == 3
    steps.pass_time(2 * DAY_S)
    steps.call("prune_call_jobs", retention_days=90)
    assert steps.rows("select * from private.call_counts") == []


# --- the pause, at the same moment ------------------------------------------------------------------------------------
def test_pause_behind_a_claim_takes_its_call_back(steps: Steps, another: Another) -> None:
    job, claimer = steps.queue(), another()
    attempt, _ = behind(claimer, lambda: claimer.start(job), steps, lambda: steps.call("pause_calls", reason="stop"))
    assert steps.claim(steps.queue())["outcome"] == "paused"
    steps.accept(attempt, a_sid())
    assert steps.ask()["put_off"]


def test_cap_holds_in_a_claim_behind_another(steps: Steps, another: Another) -> None:
    """What is counted is counted behind the lock: before it, neither would have seen the other."""
    one, two = (steps.queue(number) for number in numbers_of_one_prefix(2))
    claimer = another()
    first, second = behind(
        claimer, lambda: claimer.claim(one, per_prefix=1), steps, lambda: steps.claim(two, per_prefix=1)
    )
    assert (first["outcome"], second["reason_code"]) == ("claimed", "calls_per_prefix_per_hour")


# --- what was not dialed ----------------------------------------------------------------------------------------------
def test_job_put_off_for_hours_gives_its_slot_back(steps: Steps) -> None:
    job = steps.queue()
    claim = steps.claim(job, pace=0.1)
    at = steps.one("select private.clock() + interval '9 hours'")
    assert steps.call(
        "release_call_job", attempt=claim["attempt"]["id"], delay_s=0.0, code="outside_calling_hours", reason="night there",
        not_before=at, slot_s=10.0,
    )  # fmt: skip
    assert steps.job(job)["due_at"] == at
    assert (steps.job(job)["attempts"], steps.attempts(job)) == (0, [])
    assert steps.claim(steps.queue(), pace=0.1)["outcome"] == "claimed"
    assert steps.claim(steps.queue(), pace=0.1)["outcome"] == "wait"


def test_refusal_before_dialing_gives_its_slot_back(steps: Steps) -> None:
    claim = steps.claim(steps.queue(), pace=0.1)
    assert steps.call(
        "refuse_call", attempt=claim["attempt"]["id"], code="premium_rate", reason="a premium number", slot_s=10.0
    )
    assert steps.claim(steps.queue(), pace=0.1)["outcome"] == "claimed"


def test_slots_given_back_late_make_no_burst(steps: Steps) -> None:
    attempts = []
    for _ in range(8):
        attempts.append(steps.claim(steps.queue(), pace=1.0)["attempt"]["id"])
        steps.pass_time(1)
    for attempt in attempts:
        steps.call("release_call_job", attempt=attempt, delay_s=LEASE_S, code="hours", reason="late", slot_s=1.0)
    for _ in range(8):
        steps.queue()
    outcomes = [steps.claim(pace=1.0)["outcome"] for _ in range(8)]
    assert outcomes == ["claimed"] + ["wait"] * 7
