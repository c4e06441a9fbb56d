"""How often a number, a prefix and the whole account may be called: counted in the claim, so that it holds over all instances."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.database.sql_api import LEASE_S, Row, Steps, a_number, a_sid, all_at_once, in_background

HOUR_S, DAY_S = 3600.0, 86_400.0
BUCKET_S = 300.0  # CALLS_PER_DAY counts by five minutes
AT_ONCE = 50

Another = Callable[[], Steps]


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


def test_a_number_is_called_so_often_in_24_hours_whoever_asks(steps: Steps) -> None:
    number = a_number()
    for _ in range(3):
        assert call_and_end(steps, number, per_number=3)["outcome"] == "claimed"
        steps.pass_time(HOUR_S)
    fourth = steps.queue(number)
    answer = steps.claim(fourth, per_number=3)
    assert (answer["outcome"], answer["status"], answer["reason_code"]) == (
        "none",
        "queued",
        "calls_per_number_per_day",
    )
    assert steps.job(fourth)["attempts"] == 0
    assert steps.attempts(fourth) == []


def test_it_waits_until_the_first_of_them_is_a_day_old_and_not_a_second_longer(steps: Steps) -> None:
    number = a_number()
    call_and_end(steps, number)
    steps.pass_time(HOUR_S)
    call_and_end(steps, number)
    third = steps.queue(number)
    steps.claim(third, per_number=2)
    assert waits_s(steps, third) == pytest.approx(DAY_S - HOUR_S, abs=5)
    steps.pass_time(waits_s(steps, third))
    assert steps.claim(third, per_number=2)["outcome"] == "claimed"


def test_the_cap_looks_back_24_hours_at_each_moment(steps: Steps) -> None:
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


@pytest.mark.parametrize(
    ("state", "counts"),
    [
        ("accepted", True), ("in_doubt", True), ("ended", True), ("duplicate", True), ("refused", False),
        ("absent", False),
    ],
)  # fmt: skip
def test_what_rang_or_may_have_rung_counts_and_what_never_was_a_call_does_not(
    steps: Steps, state: str, counts: bool
) -> None:
    number = a_number()
    _, attempt = steps.attempt_in(state, number)
    if state in ("accepted", "in_doubt"):
        steps.status(attempt, a_sid() if state == "in_doubt" else steps.attempt(attempt)["call_sid"], "busy")
    if state == "duplicate":
        steps.status(attempt, steps.attempt(attempt)["call_sid"], "completed")
    answer = steps.claim(steps.queue(number), per_number=1)
    assert (answer["outcome"] != "claimed") is counts


def test_a_job_that_is_put_off_for_its_number_does_not_hold_up_the_next(steps: Steps) -> None:
    number = a_number()
    call_and_end(steps, number)
    steps.queue(number)
    free = steps.queue()
    assert steps.claim(per_number=1)["job"]["id"] == free


def test_a_crowd_of_jobs_for_one_busy_number_does_not_hold_up_the_next(steps: Steps) -> None:
    """Many accounts, one number: each claim puts off some of them, and commits that."""
    steps.attempt_in("accepted", number := a_number())
    crowd = [steps.queue(number) for _ in range(150)]
    free = steps.queue()
    answers = [steps.claim(), steps.claim()]
    assert answers[0] == {"outcome": "wait", "wait_s": 0.01}
    assert answers[1]["job"]["id"] == free
    assert {steps.job(job)["reason_code"] for job in crowd} == {"number_in_use"}


def test_a_job_that_is_put_off_gives_its_slot_of_the_pace_back(steps: Steps) -> None:
    number = a_number()
    call_and_end(steps, number)
    steps.pass_time(60)
    assert steps.claim(steps.queue(number), pace=0.1, per_number=1)["outcome"] == "none"
    assert steps.claim(steps.queue(), pace=0.1, per_number=1)["outcome"] == "claimed"


def test_claims_at_once_for_one_number_never_pass_its_cap(steps: Steps, another: Another) -> None:
    number = a_number()
    for _ in range(2):
        call_and_end(steps, number)
    jobs = [steps.queue(number) for _ in range(AT_ONCE)]
    callers = [another() for _ in jobs]
    todo = dict(zip(map(id, callers), jobs, strict=True))
    answers = all_at_once(lambda caller: caller.claim(todo[id(caller)], per_number=3), callers)
    claimed = [answer for answer in answers if answer["outcome"] == "claimed"]
    assert len(claimed) == 1
    steps.status(uuid.UUID(claimed[0]["attempt"]["id"]), a_sid(), "completed")
    steps.rows("update public.outbound_call_jobs set due_at = private.clock() where status = 'queued'")
    again = all_at_once(lambda caller: caller.claim(per_number=3), callers)
    assert {answer["outcome"] for answer in again} == {"none"}


def test_a_claim_that_names_no_caps_has_those_of_the_settings(steps: Steps) -> None:
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


def test_many_numbers_of_one_prefix_are_held_until_the_hour_has_passed(steps: Steps) -> None:
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


def test_other_prefixes_go_on(steps: Steps) -> None:
    for number in numbers_of_one_prefix(2):
        call_and_end(steps, number)
    assert call_and_end(steps, "+14155560100", per_prefix=2)["outcome"] == "claimed"
    assert call_and_end(steps, "+14155550199", per_prefix=2)["outcome"] == "none"


def test_a_number_that_was_called_may_be_called_again_whatever_its_prefix_does(steps: Steps) -> None:
    numbers = numbers_of_one_prefix(3)
    for number in numbers:
        call_and_end(steps, number, per_prefix=3)
    assert call_and_end(steps, numbers[0], per_prefix=3)["outcome"] == "claimed"


def test_a_prefix_cap_of_zero_is_none(steps: Steps) -> None:
    numbers = numbers_of_one_prefix(30)
    assert {call_and_end(steps, number, per_prefix=0)["outcome"] for number in numbers} == {"claimed"}


def test_claims_at_once_for_one_prefix_never_pass_its_cap(steps: Steps, another: Another) -> None:
    for number in numbers_of_one_prefix(AT_ONCE):
        steps.queue(number)
    callers = [another() for _ in range(AT_ONCE)]
    answers = all_at_once(lambda caller: caller.claim(per_prefix=7), callers)
    assert Counter(answer["outcome"] for answer in answers)["claimed"] == 7
    held = "select count(*) from public.outbound_call_jobs where reason_code = 'calls_per_prefix_per_hour' and status = 'queued'"
    assert steps.one(held) == AT_ONCE - 7


def test_repeats_to_numbers_of_a_prefix_are_no_new_numbers(steps: Steps) -> None:
    numbers = numbers_of_one_prefix(3)
    for _ in range(3):
        for number in numbers[:2]:
            assert call_and_end(steps, number, per_prefix=3)["outcome"] == "claimed"
    assert call_and_end(steps, numbers[2], per_prefix=3)["outcome"] == "claimed"
    assert call_and_end(steps, "+14155550199", per_prefix=3)["reason_code"] == "calls_per_prefix_per_hour"


def test_what_was_put_off_for_its_hours_is_no_call_of_its_prefix(steps: Steps) -> None:
    for number in numbers_of_one_prefix(5):
        steps.release(steps.start(steps.queue(number)), delay_s=9 * HOUR_S)
    assert call_and_end(steps, "+14155550199", per_prefix=1)["outcome"] == "claimed"


def test_what_is_held_for_its_prefix_waits_out_a_pause_as_well(steps: Steps) -> None:
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


def test_a_number_where_nobody_presses_a_key_is_called_seven_times_in_seven_days(steps: Steps) -> None:
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


def test_it_waits_until_the_first_of_the_seven_is_a_week_old(steps: Steps) -> None:
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


def test_a_key_pressed_once_lifts_that_limit(steps: Steps) -> None:
    press(steps, number := a_number())
    assert {call_and_end(steps, number)["outcome"] for _ in range(12)} == {"claimed"}
    assert {call_and_end(steps, other)["outcome"] for other in [a_number()] * 7} == {"claimed"}


def test_claims_at_once_for_a_seventh_call_make_one(steps: Steps, another: Another) -> None:
    number = a_number()
    for _ in range(6):
        call_and_end(steps, number)
    for _ in range(AT_ONCE):
        steps.queue(number)
    callers = [another() for _ in range(AT_ONCE)]
    answers = all_at_once(lambda caller: caller.claim(), callers)
    (claimed,) = (answer for answer in answers if answer["outcome"] == "claimed")
    steps.status(uuid.UUID(claimed["attempt"]["id"]), a_sid(), "completed")
    steps.rows("update public.outbound_call_jobs set due_at = private.clock() where status = 'queued'")
    assert {answer["outcome"] for answer in all_at_once(lambda caller: caller.claim(), callers)} == {"none"}


# --- per day ----------------------------------------------------------------------------------------------------------


def test_the_days_ceiling_pauses_all_calls_until_there_is_room_and_blames_no_job(steps: Steps) -> None:
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


def test_a_ceiling_that_was_raised_counts_once_calls_are_resumed(steps: Steps) -> None:
    call_and_end(steps, a_number(), per_day=1)
    job = steps.queue()
    assert steps.claim(job, per_day=1)["outcome"] == "paused"
    assert steps.claim(job, per_day=2)["outcome"] == "paused"
    steps.call("resume_calls")
    assert steps.claim(job, per_day=2)["outcome"] == "claimed"


def test_a_ceiling_ends_no_pause_that_somebody_made(steps: Steps) -> None:
    call_and_end(steps, a_number(), per_day=1)
    steps.call("pause_calls", reason="lunch")
    assert steps.claim(steps.queue(), per_day=1)["reason"] == "lunch"
    assert steps.one("select paused_by = 'hand' from private.call_settings")


def test_claims_at_once_for_the_days_last_call_never_pass_the_ceiling(steps: Steps, another: Another) -> None:
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


def test_what_is_about_to_be_dialed_and_may_be_given_back_pauses_nobody(steps: Steps) -> None:
    """At night: each is claimed, and put off for its hours."""
    call_and_end(steps, a_number())
    at_night = [steps.start(steps.queue()) for _ in range(2)]
    job = steps.queue()
    assert steps.claim(job, per_day=3)["outcome"] == "wait"
    assert steps.settings()["paused_until"] is None
    for attempt in at_night:
        steps.release(attempt, delay_s=9 * HOUR_S)
    assert steps.claim(job, per_day=3)["outcome"] == "claimed"


def test_a_ceiling_that_is_turned_off_counts_once_calls_are_resumed(steps: Steps) -> None:
    call_and_end(steps, a_number(), per_day=1)
    job = steps.queue()
    assert steps.claim(job, per_day=1)["outcome"] == "paused"
    assert steps.claim(job)["outcome"] == "paused"
    steps.call("resume_calls")
    assert steps.claim(job)["outcome"] == "claimed"


def test_a_ceiling_that_is_lowered_counts_from_the_next_claim(steps: Steps) -> None:
    for _ in range(4):
        call_and_end(steps, a_number(), per_day=10)
        steps.pass_time(HOUR_S)
    answer = steps.claim(steps.queue(), per_day=2)
    assert answer["outcome"] == "paused"
    # Of the last two calls the first must be a day old; calls are counted by five minutes.
    waits = steps.one("select extract(epoch from paused_until - private.clock()) from private.call_settings")
    assert DAY_S - 2 * HOUR_S - 1 <= waits <= DAY_S - 2 * HOUR_S + BUCKET_S


def test_calls_resumed_below_a_ceiling_that_is_still_reached_are_paused_again_and_that_is_told(steps: Steps) -> None:
    call_and_end(steps, a_number(), per_day=1)
    job = steps.queue()
    steps.claim(job, per_day=1)
    steps.call("resume_calls")
    assert steps.claim(job, per_day=1)["just_now"]


def test_no_24_hours_hold_more_calls_than_the_ceiling_and_none_waits_much_longer(steps: Steps) -> None:
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


def test_a_call_late_in_its_five_minutes_counts_for_the_whole_day(steps: Steps) -> None:
    steps.pass_time((240 - steps.now().timestamp()) % BUCKET_S)
    call_and_end(steps, a_number(), per_day=1)
    steps.pass_time(DAY_S - 5)
    assert steps.claim(steps.queue(), per_day=1)["outcome"] == "paused"


def test_the_counts_are_the_calls_that_were_made_and_old_ones_go(steps: Steps) -> None:
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


def test_no_claim_succeeds_once_a_pause_has_committed(steps: Steps, another: Another) -> None:
    """Claims without end on many connections; in their midst, a pause. Whoever asked after it had committed got nothing."""
    for _ in range(400):
        steps.queue()
    callers = [another() for _ in range(12)]
    boss = another()

    def work(caller: Steps) -> list[bool]:
        if caller is boss:
            while not steps.one("select exists (select from public.outbound_call_attempts)"):
                pass
            caller.call("pause_calls", reason="stop")
            caller.rows(
                "create table if not exists sandbox.calls_at_the_pause as select count(*) from public.outbound_call_attempts"
            )
            return []
        return [caller.claim()["outcome"] == "claimed" for _ in range(30)]

    claimed = sum(map(sum, all_at_once(work, [*callers, boss])))
    at_the_pause = steps.one("select count from sandbox.calls_at_the_pause")
    steps.rows("drop table sandbox.calls_at_the_pause")
    assert 0 < claimed == at_the_pause < 360


def test_a_claim_that_waited_for_a_pause_to_commit_is_paused(
    steps: Steps, another: Another, connection: psycopg.Connection[tuple[object, ...]]
) -> None:
    job, boss = steps.queue(), another()
    with in_background(connection) as start, boss.service.transaction():
        boss.call("pause_calls", reason="stop")
        future = start(steps, lambda: steps.claim(job))
        boss.service.execute("commit")
        assert future.result(10)["outcome"] == "paused"
        boss.service.execute("begin")
    assert steps.attempts(job) == []


def test_a_pause_waits_for_the_claim_before_it_and_takes_its_call_back(
    steps: Steps, another: Another, connection: psycopg.Connection[tuple[object, ...]]
) -> None:
    job, claimer = steps.queue(), another()
    with in_background(connection) as start, claimer.service.transaction():
        attempt = claimer.start(job)
        future = start(steps, lambda: steps.call("pause_calls", reason="stop"))
        claimer.service.execute("commit")
        future.result(10)
        claimer.service.execute("begin")
    steps.accept(attempt, a_sid())
    assert steps.ask()["put_off"]


def test_a_cap_holds_in_a_claim_that_waited_for_another(
    steps: Steps, another: Another, connection: psycopg.Connection[tuple[object, ...]]
) -> None:
    """What is counted is counted behind the lock: before it, neither would have seen the other."""
    first, second = (steps.queue(number) for number in numbers_of_one_prefix(2))
    claimer = another()
    with in_background(connection) as start, claimer.service.transaction():
        assert claimer.claim(first, per_prefix=1)["outcome"] == "claimed"
        future = start(steps, lambda: steps.claim(second, per_prefix=1))
        claimer.service.execute("commit")
        assert future.result(10)["reason_code"] == "calls_per_prefix_per_hour"
        claimer.service.execute("begin")


# --- what was not dialed ----------------------------------------------------------------------------------------------


def test_what_is_put_off_for_its_hours_is_due_at_that_moment_and_gives_its_slot_back(steps: Steps) -> None:
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


def test_a_refusal_before_twilio_was_asked_gives_its_slot_back(steps: Steps) -> None:
    claim = steps.claim(steps.queue(), pace=0.1)
    assert steps.call(
        "refuse_call", attempt=claim["attempt"]["id"], code="premium_rate", reason="a premium number", slot_s=10.0
    )
    assert steps.claim(steps.queue(), pace=0.1)["outcome"] == "claimed"


def test_slots_that_come_back_late_make_no_burst(steps: Steps) -> None:
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
