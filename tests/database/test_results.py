"""The outbox: which events an outcome writes and with what data, in which order they are told, and when they end."""

from __future__ import annotations

import json
import uuid
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.database.conftest import Another
from tests.database.sql_api import ASK_S, Row, Steps, a_number, all_at_once
from tests.unit.deployment import code_blocks, page

DAY_S = 86_400.0
LEASE_S = 60.0
MASKED = {"number": "masked", "metadata": ["plan", "crm", "novel", "none"]}


def switch(steps: Steps, policy: dict[str, Any]) -> None:
    steps.call("prune_call_jobs", retention_days=90, results=Jsonb(policy))


@pytest.fixture
def telling(steps: Steps) -> Steps:
    """The same steps, with results switched on."""
    switch(steps, MASKED)
    return steps


def events(steps: Steps) -> list[Row]:
    return steps.rows("select * from private.call_results order by seq")


def told(steps: Steps, *keys: str) -> list[tuple[Any, ...]]:
    """Of each event, in order, these columns or parts of its data."""
    return [tuple((event["data"] | event)[key] for key in keys) for event in events(steps)]


def types(steps: Steps) -> list[str]:
    return [event["type"] for event in events(steps)]


def claim(steps: Steps) -> Row:
    return steps.answer("claim_call_result", lease_s=LEASE_S)


def record(steps: Steps, claimed: Row, state: str, delay_s: float = 5.0, note: str = "HTTP 500") -> str | None:
    recorded: str | None = steps.call(
        "record_call_result", id=claimed["id"], **{"try": claimed["try"]}, state=state, note=note, delay_s=delay_s
    )
    return recorded


def answer(steps: Steps, attempt: uuid.UUID, meaning: str, **more: object) -> None:
    """The person answers the question about their team."""
    steps.press(attempt, steps.attempt(attempt)["call_sid"], "team", meaning, "2", **more)


def end(steps: Steps, how: str, **columns: Any) -> int:
    """A job that ends so. -> the job"""
    job = steps.queue(**columns)
    match how:
        case "canceled":
            steps.call("cancel_call_job", job_id=job)
        case "refused":
            steps.refuse(steps.start(job))
        case "outcome_unknown":
            steps.bring_to("accepted", job)
            steps.pass_time(2 * DAY_S)
            while steps.ask()["outcome"] != "none":
                steps.pass_time(ASK_S)
        case "unreadable":
            steps.change_job(job, phone_e164=None)
            number = steps.job(job)["phone_number"]
            assert steps.call("set_call_number", job_id=job, phone_number=number, phone_e164=None, code="x", reason="y")
        case "absent":
            steps.doubt(attempt := steps.start(job))
            assert steps.settle(attempt, delays_s=())["job_status"] == "failed"
        case _:
            steps.says(steps.start(job), how, delays_s=(), duration_s=7, answered_by="human")
    return job


def end_twice(steps: Steps) -> int:
    """A job that is canceled, dialed again by hand, and completed: two events."""
    job = end(steps, "canceled")
    steps.call("retry_call_job", job_id=job)
    steps.says(steps.start(job), "completed")
    return job


def masked(number: str) -> str:
    return f"{number[:2]}*******{number[-2:]}"


# --- what is written ------------------------------------------------------------------------------------------------------
def test_nothing_is_written_while_no_result_url_is_set(steps: Steps) -> None:
    end(steps, "completed")
    steps.call("opt_out", phone_number=a_number())
    switch(steps, MASKED)
    steps.call("prune_call_jobs", retention_days=90)  # a caller that knows nothing of results leaves them on
    end(steps, "busy")
    switch(steps, {})
    end(steps, "no-answer")
    assert types(steps) == ["call.failed"]


def test_each_way_to_end_writes_one_event(telling: Steps) -> None:
    ways = {
        "completed": "call.completed", "busy": "call.failed", "refused": "call.failed", "absent": "call.failed",
        "outcome_unknown": "call.failed", "unreadable": "call.failed", "canceled": "call.canceled",
    }  # fmt: skip
    assert [(end(telling, how), event) for how, event in ways.items()] == told(telling, "job_id", "type")


def test_no_event_is_written_when_its_outcome_is_rolled_back(telling: Steps) -> None:
    job = telling.queue()
    with telling.service.transaction(force_rollback=True):
        telling.call("cancel_call_job", job_id=job)
    telling.attempt_in("ended")  # a busy line, and two attempts left
    telling.queue(status="completed", finished_at=telling.now(), due_at=None)  # carried over from elsewhere
    assert events(telling) == []


def test_event_holds_the_data_that_may_leave(telling: Steps) -> None:
    number, user = a_number(), uuid.uuid4()
    job = telling.queue(
        number, user_id=user, signup_mode="demo", first_name="Ada",
        metadata=Jsonb({"plan": "pro", "crm": {"id": 7}, "secret": "s", "novel": "x" * 4000}),
    )  # fmt: skip
    answer(telling, attempt := telling.bring_to("accepted", job), "large", heard="we are many")
    telling.says(attempt, "completed", duration_s=7, answered_by="human")
    body = json.loads(claim(telling)["body"])
    finished_at = telling.job(job)["finished_at"]
    assert list(body) == ["type", "timestamp", "data"]
    (sample,) = code_blocks(page("results.md"), "json")
    assert set(body["data"]) == set(json.loads(sample)["data"])
    assert body["timestamp"] == finished_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert body["data"].pop("finished_at")[:19] == finished_at.strftime("%Y-%m-%dT%H:%M:%S")
    assert body["data"] == {
        "job_id": job, "user_id": str(user), "signup_mode": "demo", "phone_number": masked(number),
        "metadata": {"plan": "pro", "crm": {"id": 7}, "novel": None}, "reason_code": None, "reason": None, "attempts": 1,
        "answered_by": "human", "duration_s": 7, "answers": {"team": "large"},
        "qualification": {"answers": {"team": "large"}, "opted_out": False, "answered_by": "human"},
    }  # fmt: skip
    switch(telling, {"number": "full", "metadata": []})
    assert events(telling)[0]["data"]["metadata"] != {}  # as it was then
    other = a_number()
    end(telling, "busy", number=other, metadata=Jsonb({"plan": "pro"}))
    assert told(telling, "phone_number", "metadata", "answers")[-1] == (other, {}, {})


def test_body_is_the_same_letter_by_letter_each_time(telling: Steps) -> None:
    end(telling, "completed", metadata=Jsonb({"plan": 1e300, "crm": "é"}))
    first = claim(telling)
    telling.pass_time(LEASE_S)
    telling.service.execute("set timezone = 'Asia/Tokyo'")
    second = claim(telling)
    assert (first["id"], first["body"], first["try"]) == (second["id"], second["body"], second["try"] - 1)


def test_job_that_ends_again_gets_a_new_id(telling: Steps) -> None:
    end_twice(telling)
    assert types(telling) == ["call.canceled", "call.completed"]
    assert len(set(told(telling, "id"))) == 2


def test_late_answer_joins_the_waiting_event_or_writes_another(telling: Steps) -> None:
    attempt = telling.start(telling.queue())
    telling.says(attempt, "completed")
    answer(telling, attempt, "small")
    assert told(telling, "answers") == [({"team": "small"},)]
    first = claim(telling)
    for _ in range(2):  # Twilio repeats its requests
        answer(telling, attempt, "large")
    assert told(telling, "answers") == [({"team": "small"},), ({"team": "large"},)]
    assert json.loads(first["body"])["data"]["answers"] == {"team": "small"}


def test_opt_out_writes_one_event_for_every_spelling(telling: Steps) -> None:
    mexican, users = "+525512345678", [uuid.uuid4(), uuid.uuid4()]
    jobs = [telling.queue(mexican, user_id=user) for user in users]
    telling.change_job(jobs[1], phone_e164="+5215512345678")
    for _ in range(2):  # again: nothing new
        telling.call("opt_out", phone_number=mexican)
    assert sorted(types(telling)) == ["call.canceled", "call.canceled", "number.opted_out"]
    (event,) = [event for event in events(telling) if event["type"] == "number.opted_out"]
    assert (event["job_id"], event["user_id"], event["data"]["reason"]) == (jobs[1], users[1], "by hand")
    assert sorted(event["data"]["user_ids"]) == sorted(map(str, users))


def test_opt_out_of_a_number_without_a_job_is_told(telling: Steps) -> None:
    telling.call("opt_out", phone_number=(number := a_number()))
    assert json.loads(claim(telling)["body"])["data"] == {
        "job_id": None, "user_id": None, "signup_mode": None, "phone_number": masked(number),
        "metadata": {}, "reason_code": "opted_out", "reason": "by hand", "user_ids": [],
    }  # fmt: skip


# --- who tells it, and in which order -------------------------------------------------------------------------------------
def test_event_is_held_by_one_sender_until_its_lease_ends(telling: Steps, another: Another) -> None:
    jobs = {end(telling, "completed") for _ in range(5)}
    claims = all_at_once(claim, [another() for _ in range(8)])
    assert sorted(c["job_id"] for c in claims if c["outcome"] == "claimed") == sorted(jobs)
    for seconds in (0, LEASE_S - 20):
        telling.pass_time(seconds)
        assert claim(telling) == {"outcome": "none"}
    telling.pass_time(20)
    assert claim(telling)["try"] == 2


@pytest.mark.parametrize("frees", ["told", "gone", "gave_up"])
def test_later_event_of_a_job_waits_for_the_earlier(telling: Steps, frees: str) -> None:
    job, other = end_twice(telling), end(telling, "busy")
    first = claim(telling)
    assert (first["type"], first["job_id"]) == ("call.canceled", job)
    assert record(telling, claimed := claim(telling), "told") == "told"
    assert claimed["job_id"] == other  # another job does not wait
    assert claim(telling) == {"outcome": "none"}  # while the first is held
    assert record(telling, first, "due", 300.0) == "due"
    assert claim(telling) == {"outcome": "none"}  # and while it is due later
    telling.pass_time(3 * DAY_S if frees == "gave_up" else 300)
    first = claim(telling)
    assert first["type"] == "call.canceled"
    assert record(telling, first, "due" if frees == "gave_up" else frees) == frees
    assert claim(telling)["type"] == "call.completed"


def test_opt_outs_of_one_number_are_told_in_order(telling: Steps) -> None:
    number = a_number()
    for _ in range(2):
        telling.call("opt_out", phone_number=number)
        telling.rows("delete from public.call_opt_outs")
    first = claim(telling)
    assert claim(telling) == {"outcome": "none"}
    record(telling, first, "told")
    assert claim(telling)["id"] != first["id"]


def test_late_sender_counts_only_when_it_is_certain(telling: Steps) -> None:
    end(telling, "completed")
    late = claim(telling)
    telling.pass_time(LEASE_S)
    holder = claim(telling)
    assert record(telling, late, "due", 9999.0) is None
    assert record(telling, holder, "due") == "due"
    assert record(telling, late, "told", note="HTTP 200") == "told"
    assert told(telling, "state", "note") == [("told", "HTTP 200")]
    assert record(telling, holder, "due") is None
    with pytest.raises(psycopg.errors.RaiseException, match="p_state"):
        record(telling, holder, "gave_up")


def test_event_is_given_up_after_three_days_of_failing(telling: Steps) -> None:
    end(telling, "completed")
    end(telling, "busy")
    telling.pass_time(4 * DAY_S)  # nobody swept; each is tried all the same
    claimed = claim(telling)
    assert record(telling, claimed, "due") == "gave_up"
    assert record(telling, claimed, "told") == "told"  # the receiver has it after all
    end(telling, "canceled")
    record(telling, claim(telling), "due")
    assert record(telling, claim(telling), "due", DAY_S) == "due"
    telling.pass_time(2.5 * DAY_S)
    assert record(telling, claim(telling), "due", DAY_S) == "due"
    telling.pass_time(DAY_S / 2)  # the last try is at three days, not a day later
    assert record(telling, claim(telling), "due", DAY_S) == "gave_up"
    stats = telling.call("call_job_stats")
    assert (stats["results_due"], stats["results_gave_up"]) == (0, 2)


# --- by hand, and what is old ---------------------------------------------------------------------------------------------
def test_retelling_a_job_sends_its_events_again_in_order(telling: Steps) -> None:
    job = end_twice(telling)
    ids = [str(event["id"]) for event in events(telling)]
    for state in ("told", "gone"):
        record(telling, claim(telling), state)
    assert telling.call("retell", job_id=job) == f"the next sweep tells 2 event(s) of call job {job}"
    assert telling.call("retell", job_id=job) == f"the events of call job {job} are due already"
    again = []
    while (claimed := claim(telling))["outcome"] == "claimed":
        again.append(claimed["id"])
        record(telling, claimed, "told")
    assert again == ids


def test_retelling_writes_the_event_of_a_job_that_ended_before(steps: Steps) -> None:
    job, waiting = end(steps, "completed"), steps.queue()
    with pytest.raises(psycopg.errors.RaiseException, match="RESULT_URL"):
        steps.call("retell", job_id=job)
    switch(steps, MASKED)
    assert steps.call("retell", job_id=job) == f"the next sweep tells 1 event(s) of call job {job}"
    assert types(steps) == ["call.completed"]
    steps.rows("delete from private.call_results")
    steps.call("opt_out", phone_number=steps.job(job)["phone_number"], how="wrote from +1 (415) 555-0100")
    assert claim(steps)["type"] == "number.opted_out"
    assert steps.call("retell", job_id=job) == f"the next sweep tells 1 event(s) of call job {job}"
    assert told(steps, "type", "reason") == [("number.opted_out", "wrote from *******"), ("call.completed", None)]
    for wrong, said in (
        (waiting, "is queued: it has not ended yet"),
        (0, "there is no call job 0"),
        (None, "p_job_id"),
    ):
        with pytest.raises(psycopg.errors.RaiseException, match=said):
            steps.call("retell", job_id=wrong)


def test_events_go_with_their_job_but_not_while_due(telling: Steps) -> None:
    _, due = end(telling, "completed"), end(telling, "busy")
    record(telling, claim(telling), "told")
    telling.pass_time(2 * DAY_S)
    telling.call("prune_call_jobs", retention_days=1)
    assert telling.rows("select 1 from public.outbound_call_jobs") == []
    assert told(telling, "job_id") == [(due,)]
    telling.pass_time(2 * DAY_S)
    telling.call("prune_call_jobs", retention_days=1, results=Jsonb(MASKED))
    assert told(telling, "state") == [("due",)]
    switch(telling, {})  # nobody will send it
    assert told(telling, "note") == [("RESULT_URL is not set",)]
    telling.call("prune_call_jobs", retention_days=1)
    assert events(telling) == []


def test_events_of_a_deleted_user_hold_no_personal_data(telling: Steps) -> None:
    switch(telling, {"number": "full", "metadata": ["plan"]})
    user = telling.sign_up(number := a_number(), {"plan": "pro"})
    answer(telling, attempt := telling.bring_to("accepted", telling.job_of(user)["id"]), "large", opt_out=True)
    telling.says(attempt, "completed")
    telling.rows("delete from public.call_opt_outs")
    again = telling.queue(number, user_id=user, dedupe_key="2", metadata=Jsonb({"plan": "pro"}))
    open_attempt, personal = telling.bring_to("accepted", again), (number, "'large'", "'pro'")
    assert [word for word in personal if word not in str(events(telling))] == []
    telling.rows("delete from auth.users where id = %s", user)
    telling.says(open_attempt, "completed")
    assert types(telling) == ["number.opted_out", "call.completed", "call.canceled"]
    assert [word for word in personal if word in str(events(telling))] == []
    assert set(told(telling, "user_id")) == {(user,)}
