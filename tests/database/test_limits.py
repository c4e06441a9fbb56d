"""How often a number, a prefix and the whole account may be called: counted in the claim, so that it holds over all instances."""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from tests.database.conftest import Another
from tests.database.sql_api import LEASE_S, Row, Steps, a_number, a_sid, all_at_once, behind

HOUR_S, DAY_S = 3600.0, 86_400.0
BUCKET_S = 300.0  # CALLS_PER_DAY counts by five minutes
AT_ONCE = 50


def call_and_end(steps: Steps, number: str, **caps: Any) -> Row:
    """A job of its own to this number, dialed and over. -> what the claim said"""
    return end(steps, steps.claim(steps.queue(number), **caps))


def end(steps: Steps, claim: Row) -> Row:
    """If it dials, its call ends."""
    if claim["outcome"] == "claimed":
        steps.status(uuid.UUID(claim["attempt"]["id"]), a_sid(), "completed")
    return claim


def claim_all(callers: list[Steps], **caps: Any) -> list[Row]:
    return all_at_once(lambda caller: caller.claim(**caps), callers)


def outcomes(claims: list[Row]) -> dict[str, int]:
    return Counter(claim["outcome"] for claim in claims)


def waits_s(steps: Steps, job: int) -> float:
    return float((steps.job(job)["due_at"] - steps.now()).total_seconds())


def numbers_of_one_prefix(count: int) -> list[str]:
    return [f"+14155550{n}" for n in range(100, 100 + count)]


# --- how often --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("code", "caps", "calls", "wait_s"),
    [
        ("calls_per_number_per_day", {"per_number": 3}, 3, DAY_S - 3 * 60),
        ("calls_without_key", {}, 7, 7 * DAY_S - 7 * 60),
        ("calls_per_prefix_per_hour", {"per_prefix": 5}, 5, HOUR_S - 60),
    ],
)
def test_call_beyond_a_cap_waits_until_there_is_room(
    steps: Steps, code: str, caps: dict[str, Any], calls: int, wait_s: float
) -> None:
    """For a number until its first call is a day (or a week) old; for a prefix until its last one is an hour old."""
    numbers = numbers_of_one_prefix(calls + 1) if "per_prefix" in caps else [a_number()] * (calls + 1)
    for number in numbers[:-1]:
        assert call_and_end(steps, number, **caps)["outcome"] == "claimed"
        steps.pass_time(60)
    job = steps.queue(numbers[-1])
    answer = steps.claim(job, **caps)
    assert (answer["outcome"], answer["status"], answer["reason_code"]) == ("none", "queued", code)
    assert (steps.brief(job), steps.attempts(job)) == (("queued", 0, code), [])
    assert steps.job(job)["reason"] == steps.one("select private.in_words(%s)", code)
    assert steps.call("call_job_stats")["held_by_prefix"] == ("per_prefix" in caps)
    assert waits_s(steps, job) == pytest.approx(wait_s, abs=5)
    steps.pass_time(waits_s(steps, job))
    assert steps.claim(job, **caps)["outcome"] == "claimed"


@pytest.mark.parametrize(
    ("caps", "calls", "span_s", "gaps_s", "at_least"),
    [
        ({"per_number": 3}, 3, DAY_S, [HOUR_S] * 60, 9),
        ({}, 7, 7 * DAY_S, [8 * HOUR_S] * 45, 11),
        ({"per_day": 3}, 3, DAY_S, [61.0, 299.0, 4001.0, 7.0, 86_000.0, 301.0, 30_000.0] * 30, 61),
    ],
    ids=["number", "number without a key", "account"],
)
def test_no_span_ever_holds_more_calls_than_allowed(
    steps: Steps, caps: dict[str, int], calls: int, span_s: float, gaps_s: list[float], at_least: int
) -> None:
    """At each moment it looks back so far: no midnight sets it back."""
    number, called_at, start = a_number(), [], steps.now()
    if "per_number" in caps:
        steps.rows("update private.call_settings set calls_without_key = 100")
    for gap_s in gaps_s:
        if call_and_end(steps, a_number() if "per_day" in caps else number, **caps)["outcome"] == "claimed":
            called_at.append((steps.now() - start).total_seconds())
        steps.pass_time(gap_s)
    spans = [later - earlier for earlier, later in zip(called_at, called_at[calls:], strict=False)]
    assert min(spans) >= span_s
    assert len(called_at) >= at_least


# --- per number -------------------------------------------------------------------------------------------------------
def test_attempts_that_may_have_rung_count_for_their_number(steps: Steps) -> None:
    ends = {"accepted": "busy", "in_doubt": "busy", "duplicate": "completed"}
    counts = {}
    for state in ("accepted", "in_doubt", "ended", "duplicate", "refused", "absent"):
        _, attempt = steps.attempt_in(state, number := a_number())
        if state in ends:
            steps.says(attempt, ends[state])
        counts[state] = steps.claim(steps.queue(number), per_number=1)["outcome"] != "claimed"
    assert [state for state in counts if not counts[state]] == ["refused", "absent"]


def test_job_put_off_for_its_number_holds_up_nobody(steps: Steps) -> None:
    call_and_end(steps, number := a_number())
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
    call_and_end(steps, number := a_number())
    steps.pass_time(60)
    assert steps.claim(steps.queue(number), pace=0.1, per_number=1)["outcome"] == "none"
    assert steps.claim(steps.queue(), pace=0.1, per_number=1)["outcome"] == "claimed"


@pytest.mark.parametrize(("calls", "per_number"), [(2, 3), (6, None)], ids=["a day", "without a key"])
def test_claims_at_once_never_pass_a_numbers_caps(
    steps: Steps, another: Another, calls: int, per_number: int | None
) -> None:
    number, callers = a_number(), [another() for _ in range(AT_ONCE)]
    for _ in range(calls):
        call_and_end(steps, number)
    for _ in callers:
        steps.queue(number)
    (claimed,) = (claim for claim in claim_all(callers, per_number=per_number) if claim["outcome"] == "claimed")
    end(steps, claimed)
    steps.make_all_due()
    assert outcomes(claim_all(callers, per_number=per_number)) == {"none": AT_ONCE}


def test_claim_without_caps_has_those_of_the_settings(steps: Steps) -> None:
    """Older code calls the function without them."""

    def claim(number: str) -> str:
        told = {"attempt": uuid.uuid4(), "lease_s": LEASE_S, "busy_s": 60.0, "calls_per_second": 1000.0}
        return str(end(steps, steps.call("claim_call_job", job_id=steps.queue(number), **told))["outcome"])

    assert [claim("+14155560100") for _ in range(4)] == ["claimed"] * 3 + ["none"]
    assert [claim(number) for number in numbers_of_one_prefix(21)] == ["claimed"] * 20 + ["none"]


# --- per prefix -------------------------------------------------------------------------------------------------------
def test_cap_of_a_prefix_counts_its_numbers_once(steps: Steps) -> None:
    numbers = numbers_of_one_prefix(3)
    for number in [*numbers[:2] * 3, numbers[2], numbers[0]]:
        assert call_and_end(steps, number, per_prefix=3)["outcome"] == "claimed"
    assert call_and_end(steps, "+14155550199", per_prefix=3)["reason_code"] == "calls_per_prefix_per_hour"
    assert call_and_end(steps, "+14155560100", per_prefix=3)["outcome"] == "claimed"  # of another prefix
    assert call_and_end(steps, "+14155550199", per_prefix=0)["outcome"] == "claimed"  # no cap


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
def test_key_pressed_once_lifts_the_weekly_limit(steps: Steps) -> None:
    _, attempt, sid = steps.dial(number=(number := a_number()))
    steps.press(attempt, sid, "q", "yes")
    steps.status(attempt, sid, "completed")
    assert outcomes([call_and_end(steps, number) for _ in range(12)]) == {"claimed": 12}


# --- per day ----------------------------------------------------------------------------------------------------------
def test_ceiling_of_a_day_pauses_calls_until_room(steps: Steps) -> None:
    for _ in range(2):
        call_and_end(steps, a_number(), per_day=3)
        steps.pass_time(HOUR_S)
    call_and_end(steps, a_number(), per_day=3)
    before = steps.job(job := steps.queue())
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
    claims = claim_all(callers, per_day=5)
    assert outcomes(claims) == {"claimed": 1, "wait": AT_ONCE - 1}
    (last,) = (claim for claim in claims if claim["outcome"] == "claimed")
    steps.accept(uuid.UUID(last["attempt"]["id"]), a_sid())
    # As many as there are jobs: a claim that finds each of them locked by another's answers "none".
    claims = claim_all(callers[1:], per_day=5)
    assert outcomes(claims) == {"paused": AT_ONCE - 1}
    assert sum(claim.get("just_now", False) for claim in claims) == 1


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
def test_call_not_dialed_gives_its_slot_back(steps: Steps) -> None:
    """A slot is 10 s: each claim but the first has the one that was given back before it."""
    night = {"code": "outside_calling_hours", "reason": "night there", "not_before": steps.now() + timedelta(hours=9)}
    job = steps.queue()
    claim = steps.claim(job, pace=0.1)
    assert steps.call("release_call_job", attempt=claim["attempt"]["id"], delay_s=0.0, slot_s=10.0, **night)
    assert (steps.fields(job, "due_at", "attempts"), steps.attempts(job)) == ((night["not_before"], 0), [])
    claim = steps.claim(steps.queue(), pace=0.1)
    premium = {"code": "premium_rate", "reason": "a premium number"}
    assert steps.call("refuse_call", attempt=claim["attempt"]["id"], slot_s=10.0, **premium)
    assert [steps.claim(steps.queue(), pace=0.1)["outcome"] for _ in range(2)] == ["claimed", "wait"]


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
