"""What a call learns: who may write it, when, what the job becomes, and that it goes when its person goes."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.database.conftest import Another, Queue, StepResult
from tests.database.sql_api import ASK_S, DELAYS_S, GIVE_UP_S, Call, Row, Steps, a_number, a_sid, in_background

MACHINES = ("machine_start", "machine_end_beep", "machine_end_silence", "machine_end_other", "fax")
PEOPLE = ("human", "unknown", None)


def picked_up(steps: Steps, number: str | None = None) -> Call:
    """A job whose call was answered."""
    call = steps.dial(number=number)
    steps.status(call.attempt, call.sid, "in-progress")
    return call


def opt_out(steps: Steps, attempt: uuid.UUID, sid: str) -> Row:
    return steps.press(attempt, sid, digits="9", opt_out=True)


def answers(steps: Steps, job: int) -> dict[str, str]:
    rows = steps.rows("select question, meaning from public.outbound_call_answers where job_id = %s", job)
    return {row["question"]: row["meaning"] for row in rows}


def summary(steps: Steps, job: int) -> tuple[str, Row | None]:
    """The job's status and qualification."""
    status, qualification = steps.fields(job, "status", "qualification")
    return status, qualification


def learned(given: dict[str, str] | None = None, *, opted_out: bool = False, answered_by: str | None = None) -> Row:
    """A qualification."""
    return {"answers": given or {}, "opted_out": opted_out, "answered_by": answered_by}


# --- answers ------------------------------------------------------------------------------------------------------------
def test_answer_is_kept_with_key_meaning_and_time(steps: Steps) -> None:
    """The last one wins, the words that were heard with it."""
    job, attempt, sid = picked_up(steps)
    answer = steps.press(attempt, sid, "size", "just me")
    assert (answer["then"], answer["job"]["id"]) == ("keep", job)
    for meaning, digits, heard in (("just me", "1", None), ("many", "2", "Many, please."), ("just me", "1", None)):
        steps.press(attempt, sid, "size", meaning, digits, heard=heard)
        (row,) = steps.rows("select * from public.outbound_call_answers")
        assert row.pop("answered_at") <= steps.now()
        told = {"meaning": meaning, "digits": digits, "heard": heard}
        assert row == {"job_id": job, "question": "size", "attempt_id": attempt, **told}
    steps.press(attempt, sid, "start", "now")
    assert answers(steps, job) == {"size": "just me", "start": "now"}


def test_silence_and_nonsense_write_nothing(steps: Steps) -> None:
    job, attempt, sid = picked_up(steps)
    before = steps.everything()
    assert [steps.press(attempt, sid, digits=digits)["then"] for digits in ("", "7")] == ["keep", "keep"]
    assert (answers(steps, job), steps.everything()) == ({}, before)


@pytest.mark.parametrize("state", ["started", "in_doubt", "absent"])
def test_answer_alone_tells_of_its_call(steps: Steps, state: str) -> None:
    job, attempt = steps.attempt_in(state)
    assert steps.press(attempt, a_sid(), "size", "one")["then"] == "keep"
    assert (steps.job(job)["status"], steps.attempt(attempt)["call_status"]) == ("calling", "in-progress")
    assert answers(steps, job) == {"size": "one"}


def test_answers_in_foreign_calls_are_not_kept(steps: Steps) -> None:
    _, attempt, _ = picked_up(steps)
    assert steps.press(uuid.uuid4(), a_sid(), "size", "one")["then"] == "unknown"
    assert steps.press(attempt, a_sid(), "size", "one")["then"] == "end"  # a second call of the job
    assert steps.rows("select * from public.outbound_call_answers") == []


@pytest.mark.parametrize("how", ["cancel_call_job", "opt_out"])
def test_person_who_must_not_be_called_hears_no_question(steps: Steps, how: str) -> None:
    job, attempt, sid = picked_up(steps, number := a_number())
    steps.press(attempt, sid, "size", "one")
    steps.call(how, **({"phone_number": number} if how == "opt_out" else {"job_id": job}))
    assert steps.press(attempt, sid, "start", "now")["then"] == "end"
    assert answers(steps, job) == {"size": "one"}


def test_impossible_answers_are_refused_by_name(steps: Steps) -> None:
    _, attempt, sid = picked_up(steps)
    for wrong, value in (("question", ""), ("meaning", "x" * 101), ("digits", "1; drop"), ("digits", "")):
        with pytest.raises(psycopg.errors.CheckViolation, match=wrong):
            steps.press(attempt, sid, **{"question": "size", "meaning": "one", "digits": "1", wrong: value})


# --- the summary ----------------------------------------------------------------------------------------------------------
def test_summary_is_written_at_the_end_and_completed_later(steps: Steps) -> None:
    """The last answer may come after the end of its call."""
    job, attempt, sid = picked_up(steps)
    steps.press(attempt, sid, "size", "one")
    assert summary(steps, job) == ("calling", None)
    steps.status(attempt, sid, "completed", answered_by="human")
    assert summary(steps, job) == ("completed", learned({"size": "one"}, answered_by="human"))
    assert steps.press(attempt, sid, "start", "now")["then"] == "keep"
    assert summary(steps, job) == ("completed", learned({"size": "one", "start": "now"}, answered_by="human"))


def test_silent_person_has_an_empty_summary(steps: Steps) -> None:
    assert summary(steps, steps.call_and_end("completed")) == ("completed", learned())
    assert summary(steps, steps.call_and_end("busy", delays_s=())) == ("failed", None)


def test_call_that_was_given_up_has_its_summary(steps: Steps) -> None:
    job, attempt, sid = picked_up(steps)
    steps.press(attempt, sid, "size", "one")
    for seconds in (GIVE_UP_S + 1, ASK_S + 1):
        steps.pass_time(seconds)
        steps.ask()
    assert steps.fields(job, "reason_code", "qualification") == ("outcome_unknown", learned({"size": "one"}))


def test_canceled_job_keeps_answers_until_it_is_retried(steps: Steps) -> None:
    job, attempt, sid = picked_up(steps)
    steps.press(attempt, sid, "size", "one")
    steps.call("cancel_call_job", job_id=job)
    steps.status(attempt, sid, "completed")
    assert summary(steps, job) == ("canceled", learned({"size": "one"}))
    steps.call("retry_call_job", job_id=job)
    assert summary(steps, job) == ("queued", None)
    _, second, sid = steps.dial(job)
    steps.press(second, sid, "start", "now")
    steps.status(second, sid, "completed")
    assert summary(steps, job) == ("completed", learned({"size": "one", "start": "now"}))


# --- opting out by a key ------------------------------------------------------------------------------------------------
def test_person_who_presses_the_key_is_never_called(steps: Steps) -> None:
    job, attempt, sid = picked_up(steps, number := a_number())
    waiting = steps.queue(number)
    once, twice = ({**opt_out(steps, attempt, sid), "now": None} for _ in range(2))
    assert (once["then"], once) == ("keep", twice)  # so that this call can say so
    assert steps.rows("select phone_e164, how from public.call_opt_outs") == [
        {"phone_e164": number, "how": "key press"}
    ]
    late = steps.queue(number)
    assert steps.claim(late)["outcome"] == "none"
    for dead in (waiting, late):
        assert steps.fields(dead, "status", "reason_code") == ("canceled", "opted_out")
        with pytest.raises(psycopg.errors.RaiseException, match="opted out"):
            steps.call("retry_call_job", job_id=dead)
    steps.status(attempt, sid, "completed")
    assert summary(steps, job) == ("completed", learned(opted_out=True))
    assert steps.job(job)["reason_code"] is None


def test_spoken_opt_out_counts_as_one_in_this_call(steps: Steps) -> None:
    """Whatever detection says."""
    job, attempt, sid = picked_up(steps)
    steps.status(attempt, sid, "in-progress", answered_by="machine_start")
    assert not steps.press(attempt, sid, digits=None, opt_out=True, heard="stop it")["by_machine"]
    steps.status(attempt, sid, "completed", machine_counts_as="missed")
    assert summary(steps, job) == ("completed", learned(opted_out=True, answered_by="machine_start"))


def test_agent_reports_answers_and_opt_out_of_its_call(steps: Steps) -> None:
    """Answers without digits are the agent's. They are told with each later answer of this call, and stand in the summary."""
    job, attempt, sid = picked_up(steps, number := a_number())
    waiting = steps.queue(number)
    assert steps.press(attempt, sid, "size", "many", "2")["agent_answers"] == {}
    steps.press(attempt, sid, "start", "next week", None, heard="Next week, I think.")
    told = steps.press(attempt, sid, "agent", "done", None)
    assert (told["agent_answers"], told["opted_out"]) == ({"start": "next week", "agent": "done"}, False)
    stopped = steps.call("opt_out", phone_number=number, how="agent", attempt=attempt)
    assert (stopped["canceled"], steps.job(waiting)["status"]) == (1, "canceled")
    silence = steps.press(attempt, sid, digits="")
    assert (silence["then"], silence["opted_out"]) == ("keep", True)
    assert steps.press(attempt, sid, "start", "now")["agent_answers"] == {"agent": "done"}
    steps.status(attempt, sid, "completed")
    given = {"size": "many", "start": "now", "agent": "done"}
    assert summary(steps, job) == ("completed", learned(given, opted_out=True))
    other, again, sid = picked_up(steps)
    assert steps.press(again, sid)["agent_answers"] == {}
    steps.press(again, sid, "late", "x", None)
    steps.status(again, sid, "completed")
    assert steps.press(again, sid, "end", "y", None)["agent_answers"] == {"late": "x", "end": "y"}
    assert summary(steps, other) == ("completed", learned({"late": "x", "end": "y"}))


def test_agent_answers_of_an_earlier_call_are_not_told(steps: Steps) -> None:
    job, attempt, sid = picked_up(steps)
    told = steps.press(attempt, sid, "when", "later", None, later_at=steps.now())
    assert told["agent_answers"] == {"when": "later"}
    steps.status(attempt, sid, "completed")
    _, again, sid = steps.dial(job)
    assert steps.press(again, sid, digits="")["agent_answers"] == {}


def test_opt_out_before_a_failure_is_not_redialed(steps: Steps) -> None:
    job, attempt, sid = picked_up(steps)
    opt_out(steps, attempt, sid)
    steps.status(attempt, sid, "failed")
    steps.make_due(job)
    assert (steps.claim(job)["outcome"], steps.job(job)["status"]) == ("none", "canceled")


@pytest.mark.parametrize("known", [False, True])
def test_duplicate_call_may_still_opt_out(steps: Steps, known: bool) -> None:
    job, attempt, first = picked_up(steps, number := a_number())
    second = a_sid()
    if known:
        steps.accept(attempt, second)
    assert opt_out(steps, attempt, second)["then"] == "end"
    assert steps.rows("select phone_e164 from public.call_opt_outs") == [{"phone_e164": number}]
    assert steps.status(attempt, first, "ringing")["then"] == "end"
    assert steps.job(job)["cancel_requested"]


def test_opt_out_may_be_first_news_of_its_call(steps: Steps) -> None:
    job, attempt = steps.attempt_in("started")
    sid = a_sid()
    assert opt_out(steps, attempt, sid)["then"] == "keep"
    steps.status(attempt, sid, "completed")
    assert summary(steps, job) == ("completed", learned(opted_out=True))


def by_hand(number: str) -> StepResult:
    return lambda mine: mine.call("opt_out", phone_number=number)


def as_owner(query: str, *values: object) -> StepResult:
    """As the superuser, and not as service_role."""
    return lambda mine: mine.service.execute("reset role").connection.execute(query.encode(), values)


def test_key_waits_for_an_opt_out_by_hand(steps: Steps, another: Another) -> None:
    """By hand it has written the number's row, and goes for the job of this call; the key must not hold that meanwhile."""
    job, attempt, sid = picked_up(steps, number := a_number())
    hand, by_key = another(), another()
    with in_background(steps._eyes) as start:
        with hand.service.transaction():
            as_owner("insert into public.call_opt_outs values (%s, now(), 'by hand')", number)(hand)
            key = start(by_key, lambda: opt_out(by_key, attempt, sid))
            by_hand(number)(hand)
        assert key.result(10)["then"] == "end"
    assert steps.job(job)["cancel_requested"]


def test_opt_out_by_hand_waits_for_the_key(steps: Steps, one_after_the_other: Queue) -> None:
    job, attempt, sid = picked_up(steps, number := a_number())
    waiting = steps.queue(number)
    key, hand = one_after_the_other(lambda mine: opt_out(mine, attempt, sid), by_hand(number))
    assert (key["then"], hand["ending"]) == ("keep", 1)
    assert [steps.job(each)["status"] for each in (job, waiting)] == ["calling", "canceled"]


def test_repeated_opt_outs_never_deadlock(steps: Steps, one_after_the_other: Queue) -> None:
    """The number's row is there already, so it holds nobody back; only the order of the jobs does."""
    job, attempt, sid = picked_up(steps, number := a_number())
    steps.call("opt_out", phone_number=number)
    later = steps.queue(number)  # signed up since
    lock = as_owner("select from public.outbound_call_jobs where id = %s for update", job)
    _, hand, key = one_after_the_other(lock, by_hand(number), lambda mine: opt_out(mine, attempt, sid))
    assert (hand["ending"], key["then"], steps.job(later)["status"]) == (1, "end", "canceled")


def test_claim_beside_the_key_dials_nobody(steps: Steps, another: Another) -> None:
    _, attempt, sid = picked_up(steps, number := a_number())
    waiting, by_key = steps.queue(number), another()
    with by_key.service.transaction():
        opt_out(by_key, attempt, sid)
        assert steps.claim(waiting)["outcome"] == "none"  # held by the key: passed over
    assert (steps.claim(waiting)["outcome"], steps.job(waiting)["status"]) == ("none", "canceled")


# --- machines -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("by", MACHINES)
def test_machine_is_news_once_and_answers_nothing(steps: Steps, by: str) -> None:
    job, attempt, sid = picked_up(steps)
    assert not steps.press(attempt, sid, digits="")["by_machine"]
    told = steps.status(attempt, sid, "in-progress", answered_by=by)
    assert (told["then"], told["moved"], told["machine_now"], told["by_machine"]) == ("keep", False, True, True)
    assert not steps.status(attempt, sid, "in-progress", answered_by=by)["machine_now"]
    assert steps.press(attempt, sid, "size", "one")["by_machine"]
    assert answers(steps, job) == {}
    assert steps.attempt(attempt)["answered_by"] == by
    steps.status(attempt, sid, "completed", answered_by=by)  # it counts as reached
    assert summary(steps, job) == ("completed", learned(answered_by=by))


def test_person_does_not_count_as_a_machine(steps: Steps) -> None:
    for by in PEOPLE:
        job, attempt, sid = picked_up(steps)
        assert not steps.status(attempt, sid, "in-progress", answered_by=by)["machine_now"]
        steps.press(attempt, sid, "size", "one")
        steps.status(attempt, sid, "completed", answered_by=by, machine_counts_as="missed")
        assert (steps.job(job)["status"], answers(steps, job)) == ("completed", {"size": "one"}), by


@pytest.mark.parametrize("by", MACHINES)
def test_machine_that_counts_as_missed_is_redialed(steps: Steps, by: str) -> None:
    job, pauses = steps.queue(), []
    for _ in range(3):
        attempt, sid = steps.start(job), a_sid()
        steps.status(attempt, sid, "in-progress")
        steps.status(attempt, sid, "in-progress", answered_by=by)
        steps.status(attempt, sid, "completed", machine_counts_as="missed")
        if steps.job(job)["status"] == "queued":
            pauses.append(round((steps.job(job)["due_at"] - steps.now()).total_seconds()))
            assert steps.job(job)["qualification"] is None
            steps.make_due(job)
    assert pauses == list(DELAYS_S)
    assert summary(steps, job) == ("failed", learned(answered_by=by))
    assert steps.job(job)["reason_code"] == "machine"


def test_person_who_presses_keys_is_no_machine(steps: Steps) -> None:
    """Whatever detection says."""
    job, attempt, sid = picked_up(steps)
    steps.press(attempt, sid, "size", "one")
    told = steps.status(attempt, sid, "in-progress", answered_by="machine_start")
    assert (told["machine_now"], told["by_machine"]) == (False, False)
    steps.press(attempt, sid, "start", "now")
    steps.status(attempt, sid, "completed", machine_counts_as="missed")
    assert (steps.job(job)["status"], answers(steps, job)) == ("completed", {"size": "one", "start": "now"})


def test_machine_detected_after_the_end_changes_no_job(steps: Steps) -> None:
    job, attempt, sid = picked_up(steps)
    with pytest.raises(psycopg.errors.RaiseException, match="p_machine_counts_as must be reached or missed"):
        steps.status(attempt, sid, "completed", machine_counts_as="maybe")
    steps.status(attempt, sid, "completed", machine_counts_as="missed")
    before = steps.job(job)
    told = steps.status(attempt, sid, "in-progress", answered_by="machine_start", machine_counts_as="missed")
    assert not told["machine_now"]
    assert steps.job(job) == before | {"qualification": learned(answered_by="machine_start")}


# --- forgetting -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("talking", [False, True])
def test_deleted_person_leaves_no_answers_and_no_summary(steps: Steps, talking: bool) -> None:
    job, attempt, sid = picked_up(steps)
    steps.press(attempt, sid, "size", "one")
    if not talking:
        steps.status(attempt, sid, "completed")
    steps.rows("select private.forget_user(user_id) from public.outbound_call_jobs where id = %s", job)
    over = ("canceled" if talking else "completed", None)
    assert (answers(steps, job), summary(steps, job)) == ({}, ("calling", None) if talking else over)
    if talking:
        assert steps.press(attempt, sid, "start", "now")["then"] == "end"
        steps.status(attempt, sid, "completed")
    steps.press(attempt, sid, "start", "now")
    assert (answers(steps, job), summary(steps, job)) == ({}, over)


def test_answer_being_written_goes_with_its_person(steps: Steps, one_after_the_other: Queue) -> None:
    job, attempt, sid = picked_up(steps)
    forget = as_owner("select private.forget_user(%s)", *steps.fields(job, "user_id"))
    one_after_the_other(lambda mine: mine.press(attempt, sid, "size", "one"), forget)
    assert answers(steps, job) == {}


def test_retention_takes_answers_with_their_job(steps: Steps) -> None:
    _, attempt, sid = picked_up(steps)
    steps.press(attempt, sid, "size", "one")
    steps.status(attempt, sid, "completed")
    steps.pass_time(91 * 86_400)
    assert steps.call("prune_call_jobs", retention_days=90)["deleted"] == 1
    assert steps.rows("select * from public.outbound_call_answers") == []


# --- the view -----------------------------------------------------------------------------------------------------------
def test_overview_shows_jobs_with_last_attempt_and_answers(steps: Steps) -> None:
    def overview(job: int) -> Row:
        (row,) = steps.rows("select * from public.outbound_call_overview where id = %s", job)
        return row

    number = a_number()
    job = steps.queue(number, metadata=Jsonb({}), first_name="Ada", signup_mode="demo")
    steps.call_and_end("busy", job)
    steps.make_due(job)
    _, attempt, sid = steps.dial(job)
    steps.accept(attempt, a_sid())  # one too many: it does not stand for the job
    steps.press(attempt, sid, "size", "one")
    steps.press(attempt, sid, "start", "now")
    steps.status(attempt, sid, "completed", duration_s=31, answered_by="human")
    row = overview(job)
    shown = {
        "first_name": "Ada", "signup_mode": "demo", "status": "completed", "outcome": "completed", "attempts": 2,
        "answers": {"size": "one", "start": "now"}, "last_attempt": 2, "call_sid": sid, "duration_s": 31,
        "answered_by": "human", "phone": f"{number[:2]}*******{number[-2:]}", "opted_out": False,
    }  # fmt: skip
    assert {key: row[key] for key in shown} == shown
    assert number not in str(row)
    row = overview(steps.queue())
    assert (row["status"], row["outcome"], row["answers"], row["last_attempt"]) == ("queued", None, None, None)


def test_overview_is_for_reading_by_the_service_only(steps: Steps) -> None:
    steps.queue()
    assert len(steps.service.execute("select * from public.outbound_call_overview").fetchall()) == 1
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        steps.service.execute("delete from public.outbound_call_answers")
