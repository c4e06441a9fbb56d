"""The gate that every claim to dial passes last: the pace, a pause, and the probe that goes first after a halt."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from tests.database.conftest import Another
from tests.database.sql_api import LEASE_S, Steps, a_number, a_sid, behind

HALT_S = 60.0


def halt(steps: Steps, attempt: uuid.UUID) -> None:
    assert steps.release(attempt, halt_s=HALT_S)


def pause_s(steps: Steps) -> float:
    """To ten seconds: a slow machine takes some."""
    left: float = (steps.settings()["paused_until"] - steps.now()).total_seconds()
    return round(left, -1)


# --- pace -------------------------------------------------------------------------------------------------------------
def test_denied_pace_says_how_long_to_wait(steps: Steps) -> None:
    first, second = steps.queue(), steps.queue()
    assert steps.claim(first, pace=0.1)["outcome"] == "claimed"
    before = steps.everything()
    answer = steps.claim(second, pace=0.1)
    assert answer["outcome"] == "wait"
    assert 8 < answer["wait_s"] <= 10
    assert steps.everything() == before
    steps.pass_time(answer["wait_s"])
    assert steps.claim(second, pace=0.1)["outcome"] == "claimed"


def test_pace_of_claims_holds_over_a_minute(steps: Steps) -> None:
    for _ in range(40):
        steps.queue()
    claimed, began = 0, steps.now()
    for _ in range(60):
        claimed += steps.claim(pace=0.5)["outcome"] == "claimed"
        steps.pass_time(1)
    # A slow machine takes longer than this minute, and may ask too late for a slot, never too early.
    assert 29 <= claimed <= 0.5 * (steps.now() - began).total_seconds() + 1


def test_quiet_hour_saves_up_no_burst(steps: Steps) -> None:
    for _ in range(5):
        steps.queue()
    steps.pass_time(3600)
    assert [steps.claim(pace=0.1)["outcome"] for _ in range(3)] == ["claimed", "wait", "wait"]


# --- which job --------------------------------------------------------------------------------------------------------
def test_job_that_waited_longest_is_called_first(steps: Steps) -> None:
    jobs = [steps.queue(due_at=steps.now().replace(year=year)) for year in (2023, 2021, 2022, 2099)]
    assert [steps.claim()["job"]["id"] for _ in range(3)] == [jobs[1], jobs[2], jobs[0]]
    assert steps.claim() == {"outcome": "none", "status": None, "due_at": None, "reason_code": None}


def test_job_that_cannot_be_dialed_says_its_status(steps: Steps) -> None:
    for state in ("started", "in_doubt", "accepted", "ended", "refused"):
        job, _ = steps.attempt_in(state)
        answer = steps.claim(job)
        assert (answer["outcome"], answer["status"]) == ("none", steps.job(job)["status"]), state


def test_number_in_use_puts_its_job_off(steps: Steps) -> None:
    steps.attempt_in("accepted", number := a_number())
    busy, free = steps.queue(number), steps.queue()
    assert steps.claim()["job"]["id"] == free
    assert steps.brief(busy) == ("queued", 0, "number_in_use")
    assert steps.job(busy)["due_at"] > steps.now()


def test_claim_hands_over_everything_a_call_needs(steps: Steps) -> None:
    attempt, user, number = uuid.uuid4(), uuid.uuid4(), a_number()
    job = steps.queue(number, user_id=user, first_name="Ada", signup_mode="demo")
    answer = steps.claim(job, attempt)
    assert answer["attempt"] == {"id": str(attempt), "number": 1}
    assert answer["job"] == {
        "id": job, "user_id": str(user), "phone_number": number, "phone_e164": number, "first_name": "Ada",
        "signup_mode": "demo", "metadata": {},
    }  # fmt: skip


def test_attempt_is_written_together_with_the_claim(steps: Steps) -> None:
    job, attempt = steps.attempt_in("started")
    row = steps.attempt(attempt)
    assert (row["job_id"], row["number"], row["phone_e164"]) == (job, 1, steps.job(job)["phone_e164"])
    assert (steps.job(job)["due_at"] - row["started_at"]).total_seconds() == LEASE_S


# --- pause ------------------------------------------------------------------------------------------------------------
def test_pause_stops_dialing_and_nothing_else(steps: Steps) -> None:
    job = steps.queue()
    steps.call("pause_calls", reason="the script is wrong")
    before = steps.everything()
    for answer in (steps.claim(), steps.claim(job)):
        assert answer == {"outcome": "paused", "until": "infinity", "reason": "the script is wrong"}
    assert steps.everything() == before


def test_pause_ends_at_its_time_or_by_resume(steps: Steps) -> None:
    def outcome(seconds: float = 0) -> str:
        steps.pass_time(seconds)
        return str(steps.claim(steps.queue())["outcome"])

    steps.call("pause_calls", reason="lunch", until=steps.now() + timedelta(minutes=30))
    assert [outcome(1790), outcome(10)] == ["paused", "claimed"]
    steps.call("pause_calls", reason="until further notice", until=None)
    assert outcome() == "paused"
    steps.call("resume_calls")
    assert outcome() == "claimed"


# --- halt -------------------------------------------------------------------------------------------------------------
def test_halt_pauses_all_calls_without_blame(steps: Steps) -> None:
    job, attempt = steps.attempt_in("started")
    halt(steps, attempt)
    assert steps.brief(job)[:2] == ("queued", 0)
    assert steps.claim()["outcome"] == "paused"
    assert pause_s(steps) == HALT_S


def test_requests_that_meet_one_fault_are_one_halt(steps: Steps) -> None:
    for attempt in [steps.start(steps.queue()) for _ in range(10)]:
        halt(steps, attempt)
    assert (steps.settings()["halts"], pause_s(steps)) == (1, HALT_S)


def test_pauses_of_halts_grow_to_an_hour(steps: Steps) -> None:
    job, pauses = steps.queue(), []
    for _ in range(9):
        halt(steps, steps.start(job))
        pauses.append(pause_s(steps))
        steps.pass_time(pauses[-1] + 1)
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


@pytest.fixture
def probed(steps: Steps) -> uuid.UUID:
    """After a halt's pause, the one job that goes first."""
    halt(steps, steps.start(steps.queue()))
    steps.pass_time(HALT_S + 1)
    claim = steps.claim()
    assert claim["outcome"] == "claimed"
    steps.queue()
    return uuid.UUID(claim["attempt"]["id"])


def test_probe_that_twilio_took_opens_the_gate(steps: Steps, probed: uuid.UUID) -> None:
    assert steps.attempt(probed)["state"] == "started"
    assert steps.claim()["outcome"] == "paused"
    steps.accept(probed, a_sid())
    assert steps.settings()["halts"] == 0
    assert steps.claim()["outcome"] == "claimed"


@pytest.mark.parametrize("outcome", ["refuse", "release"])
def test_next_job_probes_when_the_first_proved_nothing(steps: Steps, probed: uuid.UUID, outcome: str) -> None:
    assert getattr(steps, outcome)(probed)
    steps.queue()
    assert [steps.claim()["outcome"] for _ in range(2)] == ["claimed", "paused"]


@pytest.mark.parametrize("state", ["started", "in_doubt"])
def test_probe_holds_others_for_its_lease_only(steps: Steps, probed: uuid.UUID, state: str) -> None:
    if state == "in_doubt":
        steps.doubt(probed)
    assert steps.claim()["outcome"] == "paused"
    steps.pass_time(LEASE_S + 1)
    assert steps.claim()["outcome"] == "claimed"


def test_one_of_two_claims_at_once_is_the_probe(steps: Steps, another: Another) -> None:
    """Both see the gate open before either has committed."""
    halt(steps, steps.start(steps.queue()))
    steps.pass_time(HALT_S + 1)
    jobs, second = [steps.queue(), steps.queue()], another()
    answers = behind(steps, lambda: steps.claim(jobs[0]), second, lambda: second.claim(jobs[1]))
    assert [answer["outcome"] for answer in answers] == ["claimed", "paused"]


def test_outcome_before_the_halt_opens_no_gate(steps: Steps) -> None:
    earlier, broken = (steps.start(steps.queue()) for _ in range(2))
    halt(steps, broken)
    steps.pass_time(HALT_S + 1)
    assert steps.claim()["outcome"] == "claimed"
    steps.queue()
    assert steps.release(earlier)
    assert steps.claim()["outcome"] == "paused"


def test_pause_by_hand_outlasts_halts_and_calls(steps: Steps) -> None:
    first, second = (steps.start(steps.queue()) for _ in range(2))
    steps.call("pause_calls", reason="the script is wrong")
    halt(steps, first)
    steps.accept(second, a_sid())
    assert steps.claim(steps.queue()) == {"outcome": "paused", "until": "infinity", "reason": "the script is wrong"}
