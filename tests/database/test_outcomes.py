"""What an outcome may change: the tables of states of the design, function by function, and the rules about late truth."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from shared.models import Redial
from tests.database.sql_api import ASK_S, DELAYS_S, GIVE_UP_S, OPEN, Row, Steps, a_number, a_sid

STATES = ("started", "in_doubt", "accepted", "ended", "refused", "absent", "duplicate", "released")
UNDECIDED = ("started", "in_doubt")
FINAL_WORDS = ("completed", "busy", "no-answer", "failed", "canceled")


def due_in_s(steps: Steps, job: int) -> float:
    seconds: float = (steps.job(job)["due_at"] - steps.now()).total_seconds()
    return seconds


# --- the table of states ----------------------------------------------------------------------------------------------
Step = Callable[[Steps, uuid.UUID], Row | bool]


def listed(steps: Steps, attempt: uuid.UUID) -> Row:
    return steps.settle(attempt, (a_sid(), "ringing"))


def accept(steps: Steps, attempt: uuid.UUID) -> Row:
    return steps.accept(attempt, a_sid())


def hears(word: str) -> Step:
    return lambda steps, attempt: steps.says(attempt, word)


STEPS: dict[str, Step] = {
    "refuse": Steps.refuse, "release": lambda steps, attempt: steps.release(attempt, halt_s=60), "doubt": Steps.doubt,
    "accept": accept, "listed": listed, "not listed": Steps.settle,
    **{word: hears(word) for word in ("ringing", *FINAL_WORDS)},
}  # fmt: skip
CALLING, TOO_MANY, CANCELED = "accepted: calling 1 None", "duplicate: failed 1 number_invalid", "canceled 1 canceled"
BINDS = ("started", "in_doubt", "accepted", "absent")
"""States in which a call's word is about the job's one call."""


def final(job: str) -> dict[str, str]:
    return dict.fromkeys(BINDS, f"ended: {job}") | dict.fromkeys(("refused", "duplicate"), TOO_MANY)


# step -> the attempt's state before -> its state and its job's status, attempts and reason; `end` if the call is not wanted.
# Nothing else changes anything.
MOVES: dict[str, dict[str, str]] = {
    "refuse": dict.fromkeys(UNDECIDED, "refused: failed 1 number_invalid"),
    "release": dict.fromkeys(UNDECIDED, ": queued 0 hours"),
    "doubt": {"started": "in_doubt: in_doubt 1 read_timeout"},
    "accept": dict.fromkeys(("started", "in_doubt", "absent"), CALLING) | {
        "accepted": "accepted duplicate: calling 1 None end", "ended": "ended duplicate: queued 1 busy end",
        "refused": f"{TOO_MANY} end", "duplicate": f"duplicate {TOO_MANY} end",
    },
    "listed": {"in_doubt": CALLING},
    "not listed": {"in_doubt": "absent: queued 1 absent"},
    "ringing": dict.fromkeys(BINDS, CALLING) | dict.fromkeys(("refused", "duplicate"), f"{TOO_MANY} end"),
    "completed": final("completed 1 None"),
    **{word: final(f"queued 1 {word}") for word in ("busy", "no-answer", "failed")},
    "canceled": final("canceled 1 call_canceled"),
}  # fmt: skip
MOVES_CANCELED: dict[str, dict[str, str]] = {
    "refuse": dict.fromkeys(UNDECIDED, f"refused: {CANCELED}"),
    "release": dict.fromkeys(UNDECIDED, ": canceled 0 canceled"),
    "doubt": MOVES["doubt"],
    "accept": dict.fromkeys(UNDECIDED, f"{CALLING} end") | {
        "accepted": "accepted duplicate: calling 1 None end", "absent": f"duplicate: {CANCELED} end",
    },
    "listed": {"in_doubt": f"{CALLING} end"},
    "not listed": {"in_doubt": f"absent: {CANCELED}"},
    "ringing": dict.fromkeys((*UNDECIDED, "accepted"), f"{CALLING} end") | {"absent": f"duplicate: {CANCELED} end"},
    **{word: dict.fromkeys((*UNDECIDED, "accepted"), f"ended: {CANCELED}") | {"absent": f"duplicate: {CANCELED}"}
       for word in FINAL_WORDS},
}  # fmt: skip


@pytest.mark.parametrize("canceled", [False, True])
def test_each_step_moves_what_the_table_says(steps: Steps, canceled: bool) -> None:
    found: dict[str, dict[str, str]] = {}
    for name, state in itertools.product(STEPS, BINDS if canceled else STATES):
        job, attempt = steps.attempt_in(state)
        if canceled:
            steps.call("cancel_call_job", job_id=job)
        before = steps.everything()
        answer = STEPS[name](steps, attempt)
        if steps.everything() != before:
            steps.call("resume_calls")  # a release was a halt
            became = " ".join(row["state"] for row in steps.attempts(job))
            end = " end" if isinstance(answer, dict) and answer.get("then") == "end" else ""
            found.setdefault(name, {})[state] = f"{became}: {' '.join(map(str, steps.brief(job)))}{end}"
    assert found == (MOVES_CANCELED if canceled else MOVES)


def test_released_job_waits_for_its_delay(steps: Steps) -> None:
    for state in UNDECIDED:
        job, attempt = steps.attempt_in(state)
        assert steps.release(attempt, delay_s=300)
        assert 290 < due_in_s(steps, job) <= 300


# --- accept: a SID is truth -------------------------------------------------------------------------------------------
def test_sid_makes_it_the_jobs_call_once(steps: Steps) -> None:
    job, attempt = steps.attempt_in("absent")
    answer = steps.accept(attempt, sid := a_sid())
    assert (answer["then"], answer["state"], answer["call_status"]) == ("keep", "accepted", "queued")
    assert (answer["job"]["id"], answer["job"]["status"], steps.attempt(attempt)["call_sid"]) == (job, "calling", sid)
    assert ASK_S - 10 < due_in_s(steps, job) <= ASK_S
    before = steps.everything()
    assert steps.accept(attempt, sid) == answer
    assert steps.everything() == before


@pytest.mark.parametrize("state", ["accepted", "ended"])
def test_second_sid_is_a_duplicate_of_the_call(steps: Steps, state: str) -> None:
    job, attempt = steps.attempt_in(state)
    first, before = steps.attempt(attempt), steps.job(job)
    answer = steps.accept(attempt, second := a_sid())
    assert (answer["then"], answer["state"]) == ("end", "duplicate")
    assert steps.attempt(attempt) == first
    words = ("initiated", "ringing", "ringing", "in-progress", "completed")
    assert [steps.status(attempt, second, word)["then"] for word in words] == ["end"] * 4 + ["keep"]
    assert steps.job(job) == before
    (duplicate,) = [row for row in steps.attempts(job) if row["state"] == "duplicate"]
    assert (duplicate["call_sid"], duplicate["end_due_at"], duplicate["closed_at"] is None) == (second, None, False)


def test_sid_of_nobodys_attempt_is_unknown_without_an_error(steps: Steps) -> None:
    nothing = {"state": None, "call_status": None, "job": None}
    for attempt in (uuid.uuid4(), steps.attempt_in("released")[1]):
        assert steps.accept(attempt, a_sid()) == {"then": "unknown", **nothing}
        assert steps.status(attempt, a_sid(), "ringing") == {"then": "unknown", "moved": False, **nothing}


# --- late truth -------------------------------------------------------------------------------------------------------
def test_late_truth_revives_jobs_that_wait_or_failed(steps: Steps) -> None:
    for delays_s, gives_up, status, code in (
        (DELAYS_S, False, "queued", "absent"), ((), False, "failed", "absent"), (DELAYS_S, True, "failed", "gave_up"),
    ):  # fmt: skip
        job, attempt = steps.attempt_in("in_doubt")
        steps.settle(attempt, delays_s=delays_s, gives_up=gives_up)
        assert steps.brief(job) == (status, 1, code)
        assert steps.accept(attempt, a_sid())["then"] == "keep"
        assert steps.brief(job) == ("calling", 1, None)
        assert (steps.job(job)["finished_at"], steps.attempt(attempt)["closed_at"]) == (None, None)


def test_late_truth_about_a_redialed_number_is_a_duplicate(steps: Steps) -> None:
    job, first = steps.attempt_in("absent")
    steps.make_due(job)
    waiting, late = steps.attempt_in("absent", number := a_number())
    # The same job is dialed again; another job has the number.
    for old, new in ((first, steps.start(job)), (late, steps.attempt_in("started", number)[1])):
        assert steps.accept(old, a_sid())["then"] == "end"
        assert [steps.attempt(attempt)["state"] for attempt in (old, new)] == ["duplicate", "started"]
        assert steps.accept(new, a_sid())["then"] == "keep"
    assert steps.job(waiting)["status"] == "queued"


def test_number_of_a_live_duplicate_is_not_dialed(steps: Steps) -> None:
    _, first = steps.attempt_in("duplicate", number := a_number())
    job = steps.queue(number)
    assert steps.claim(job)["outcome"] == "none"
    assert steps.job(job)["reason_code"] == "number_in_use"
    steps.says(first, "completed")
    steps.make_due(job)
    assert steps.claim(job)["outcome"] == "claimed"


def test_sid_found_for_another_attempt_speaks_for_that_one(steps: Steps) -> None:
    _, late = steps.attempt_in("absent", number := a_number())
    job, open_attempt = steps.attempt_in("in_doubt", number)
    assert steps.settle(open_attempt, (sid := a_sid(), "ringing"))["outcome"] == "found"
    assert steps.status(late, sid, "completed")["job"]["id"] == job
    assert (steps.job(job)["status"], steps.attempt(late)["state"]) == ("completed", "absent")


# --- the words of a call ----------------------------------------------------------------------------------------------
def test_words_in_any_order_end_a_call_alike(steps: Steps) -> None:
    for order in itertools.permutations(["initiated", "ringing", "in-progress", "completed"]):
        job, attempt = steps.attempt_in("accepted")
        for word in order:
            steps.says(attempt, word)
        row = steps.attempt(attempt)
        assert (row["state"], row["call_status"], row["closed_at"] is None) == ("ended", "completed", False), order
        assert steps.brief(job)[:2] == ("completed", 1), order


def test_first_final_word_of_a_call_wins(steps: Steps) -> None:
    for first, second in itertools.permutations(FINAL_WORDS, 2):
        _, attempt = steps.attempt_in("started")
        steps.says(attempt, first)
        before = steps.everything()
        assert (steps.says(attempt, second)["moved"], steps.everything()) == (False, before), (first, second)


def test_words_that_are_no_news_change_nothing(steps: Steps) -> None:
    _, attempt = steps.attempt_in("accepted")
    assert steps.says(attempt, "ringing")["moved"]
    before = steps.everything()
    for word in ("ringing", "teleported"):  # Twilio has no such word
        answer = steps.says(attempt, word)
        assert (answer["then"], answer["moved"], steps.everything()) == ("keep", False, before)


def test_facts_of_a_call_are_kept_with_its_attempt(steps: Steps) -> None:
    _, attempt = steps.attempt_in("started")
    steps.says(attempt, "in-progress", answered_by="human")
    steps.says(attempt, "completed", duration_s=61, sip_code=200)
    row = steps.attempt(attempt)
    assert (row["answered_by"], row["duration_s"], row["sip_code"]) == ("human", 61, 200)


@pytest.mark.parametrize("word", ["busy", "no-answer", "failed"])
def test_unreached_person_is_dialed_thrice_with_growing_pauses(steps: Steps, word: str) -> None:
    job, pauses = steps.queue(), []
    for _ in range(2):
        steps.says(steps.start(job), word)
        pauses.append(round(due_in_s(steps, job), -1))  # to ten seconds: a slow machine takes some
        steps.make_due(job)
    steps.says(steps.start(job), word, sip_code=486)
    assert (pauses, steps.brief(job)) == (list(DELAYS_S), ("failed", 3, word))
    assert steps.job(job)["reason"].endswith("(SIP 486)")


def test_absent_attempts_count_so_crash_loops_end(steps: Steps) -> None:
    job = steps.queue()
    for expected in ("queued", "queued", "failed"):
        steps.make_due(job)
        steps.doubt(attempt := steps.start(job))
        assert steps.settle(attempt)["job_status"] == expected
    assert [row["number"] for row in steps.attempts(job)] == [1, 2, 3]


def test_released_attempts_never_count_however_many(steps: Steps) -> None:
    job = steps.queue()
    for _ in range(5):
        assert steps.release(steps.start(job))
    steps.says(steps.start(job), "busy")
    assert steps.brief(job)[:2] == ("queued", 1)


# --- an end that never became known -----------------------------------------------------------------------------------
def given_up(steps: Steps, count: int, cancel: bool = False) -> list[tuple[int, uuid.UUID]]:
    """Calls whose end never became known, and the sweep that closes them."""
    calls = [steps.attempt_in("accepted") for _ in range(count)]
    for job, _ in calls if cancel else []:
        steps.call("cancel_call_job", job_id=job)
    steps.pass_time(GIVE_UP_S + 1)
    assert [steps.ask()["outcome"] for _ in calls] == ["ask"] * count  # once more: nobody may have swept for days
    steps.pass_time(ASK_S + 1)
    assert steps.ask() == {"outcome": "none"}
    return calls


def test_call_given_up_is_closed_whatever_comes_later(steps: Steps) -> None:
    words = ("initiated", "ringing", "in-progress", *FINAL_WORDS)
    for (job, attempt), word in zip(given_up(steps, len(words)), words, strict=True):
        row, before = steps.attempt(attempt), steps.job(job)
        assert steps.brief(job) == ("failed", 1, "outcome_unknown")
        assert (row["state"], row["error_code"]) == ("ended", "outcome_unknown")
        assert steps.says(attempt, word)["then"] in ("keep", "end")
        assert (steps.job(job), steps.attempt(attempt)["state"]) == (before, "ended")
    ((canceled, _),) = given_up(steps, 1, cancel=True)
    assert steps.job(canceled)["status"] == "canceled"


def test_call_is_not_given_up_too_early(steps: Steps) -> None:
    job, _ = steps.attempt_in("accepted")
    steps.pass_time(GIVE_UP_S - 60)
    assert (steps.ask()["outcome"], steps.job(job)["status"]) == ("ask", "calling")


# --- what cancel means for an attempt under way -----------------------------------------------------------------------
def test_canceled_call_is_looked_after_at_once(steps: Steps) -> None:
    for state in OPEN:
        job, attempt = steps.attempt_in(state)
        steps.call("cancel_call_job", job_id=job)
        assert steps.accept(attempt, steps.attempt(attempt)["call_sid"] or a_sid())["then"] == "end"
        assert steps.says(attempt, "ringing")["then"] == "end"
        assert steps.job(job)["due_at"] <= steps.now()


# --- a redial ---------------------------------------------------------------------------------------------------------
def test_claim_tells_the_miss_before_a_redial(steps: Steps) -> None:
    """How the last call ended -> the claim names that call, and when the redial was due."""

    def redial(ends: str | None, reason: str | None = None, **more: Any) -> str:
        job = steps.queue()
        missed = steps.start(job)
        began = steps.attempt(missed)["started_at"]
        if ends is None:
            steps.release(missed)
        else:
            steps.says(missed, ends, **more)
            steps.pass_time(300.0)
        due = steps.now()
        steps.change_job(job, status="queued", due_at=due, finished_at=None, reason_code=reason)
        told = steps.claim(job)["redial"]
        if told is None:
            return "none"
        same = Redial.model_validate(told) == Redial(missed_at=began, due_at=due)
        return "missed" if same else str(told)

    cases: dict[str, tuple[str, str]] = {
        "no answer": ("missed", redial("no-answer")),
        "busy": ("missed", redial("busy")),
        "a machine": ("missed", redial("completed", answered_by="machine_start", machine_counts_as="missed")),
        "a person": ("none", redial("completed")),
        "never rang": ("none", redial(None)),
        "by hand": ("none", redial("no-answer", "retried")),
        "later, please": ("none", redial("no-answer", "asked_for_later")),
        "put off by its hours": ("missed", redial("no-answer", "outside_calling_hours")),
    }
    assert {case: got for case, (wanted, got) in cases.items() if got != wanted} == {}
    job, _ = steps.attempt_in("ended")
    steps.change_job(job, due_at="-infinity")
    told = steps.claim(job)["redial"]
    assert told["due_at"] == told["missed_at"]
