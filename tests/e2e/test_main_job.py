"""From a sign-up to a call that was heard, with webhooks and sweeps on, and Twilio over TLS."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from supabase import create_client

from tests.e2e.conftest import World


def test_a_sign_up_makes_a_phone_ring_with_the_words_for_its_mode(world: World) -> None:
    assert world.sandbox.ready.twilio_url.startswith("https://")
    number = world.number()
    client = create_client(world.sandbox.ready.supabase_url, world.sandbox.ready.supabase_anon_key)
    client.auth.sign_up(
        {
            "phone": number,
            "password": "correct horse",
            "options": {"data": {"first_name": "Ada", "signup_mode": "demo"}},
        }
    )
    job = world.rows("select id from public.outbound_call_jobs where phone_e164 = %s", number)[0]
    done = world.until_status(job["id"], "completed", "failed")
    assert done["status"] == "completed"
    (call,) = world.calls(number)
    said = " ".join(line["text"] for line in call["transcript"])
    assert said.startswith("Hi Ada, thanks for asking for a demo.")
    (attempt,) = world.attempts(job["id"])
    assert (attempt["state"], attempt["call_sid"], attempt["call_status"]) == ("ended", call["sid"], "completed")


def test_a_plain_insert_is_called_as_well(world: World) -> None:
    number = world.number()
    job_id = world.insert_job(number)
    assert world.until_status(job_id, "completed", "failed")["status"] == "completed"
    assert len(world.calls(number)) == 1


def test_a_number_typed_without_its_country_is_called(world: World) -> None:
    number = world.number()
    job_id = world.insert_job(f"({number[2:5]}) {number[5:8]}-{number[8:]}")
    assert world.until_status(job_id, "completed", "failed")["status"] == "completed"
    assert len(world.calls(number)) == 1


def test_a_malformed_number_ends_with_a_reason_a_person_understands(world: World) -> None:
    done = world.until_status(world.insert_job("call me maybe"), "completed", "failed")
    assert (done["status"], done["reason_code"]) == ("failed", "number_invalid")
    assert done["reason"] == "the phone number has letters or signs that are no part of a number"


@pytest.mark.parametrize("outcome", ["busy", "no-answer", "failed"])
def test_a_person_who_was_not_reached_is_called_again(world: World, outcome: str) -> None:
    number = world.number()
    world.behave(to=number, outcome=outcome, times=1)
    job_id = world.insert_job(number)
    assert world.until_status(job_id, "completed", "failed")["attempts"] == 2
    assert [call["status"] for call in world.calls(number)] == [outcome, "completed"]


def test_a_person_who_is_never_reached_is_called_three_times(world: World) -> None:
    number = world.number()
    world.behave(to=number, outcome="busy")
    done = world.until_status(world.insert_job(number), "completed", "failed")
    assert (done["status"], done["reason_code"], done["attempts"]) == ("failed", "busy", 3)
    assert len(world.calls(number)) == 3


def test_fifty_identical_webhooks_make_one_call(quiet: World) -> None:
    number = quiet.number()
    job_id = quiet.insert_job(number)
    body = {
        "type": "INSERT", "table": "outbound_call_jobs", "schema": "public", "record": {"id": job_id},
        "old_record": None,
    }  # fmt: skip
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: quiet.webhook(body), range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert [answer.json().get("did") for answer in answers].count("called") == 1
    quiet.until_status(job_id, "completed")
    assert len(quiet.calls(number)) == 1


def test_a_placed_call_costs_two_rpcs_and_one_request_to_twilio(quiet: World) -> None:
    number = quiet.number()
    quiet.behave(to=number, callbacks="none", talk_s=30)
    job_id = quiet.insert_job(number)
    rpcs, requests = quiet.sandbox.gateway.requests, quiet.sandbox.twilio.requests
    rpcs.clear()
    requests.clear()
    answer = quiet.webhook(
        {"type": "INSERT", "table": "outbound_call_jobs", "schema": "public", "record": {"id": job_id}}
    )
    assert answer.json() == {"did": "called", "job": job_id}
    placing = {
        name: count for name, count in rpcs.items() if name != "record_call_status"
    }  # one for /voice, by now or soon
    assert placing == {"claim_call_job": 1, "accept_call": 1}
    assert dict(requests) == {"create": 1}


def test_twenty_enqueues_at_once_make_one_job(world: World) -> None:
    user, number = uuid.uuid4(), world.number()
    ready = world.sandbox.ready

    def enqueue(_: int) -> bool:
        client = create_client(ready.supabase_url, ready.supabase_service_key)
        answer = client.rpc("enqueue_call_job", {"p_user_id": str(user), "p_phone_number": number}).execute().data
        return bool(answer["created"])  # type: ignore[call-overload,index]

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(enqueue, range(20))) == 1
    assert len(world.rows("select from public.outbound_call_jobs where user_id = %s", user)) == 1


@pytest.mark.parametrize(("minutes", "jobs"), [(59, 1), (61, 2)])
def test_the_hour_counts_from_the_end_of_the_job(quiet: World, minutes: int, jobs: int) -> None:
    user = uuid.uuid4()
    (queued,) = quiet.rows("select enqueue_call_job(%s, %s) ->> 'job_id' as id", user, quiet.number())
    quiet.rows("select cancel_call_job(%s)", int(queued["id"]))
    quiet.set_clock(minutes * 60)
    quiet.rows("select enqueue_call_job(%s, %s)", user, quiet.number())
    assert len(quiet.rows("select from public.outbound_call_jobs where user_id = %s", user)) == jobs


def test_two_hundred_jobs_at_once_are_each_called_once(world: World) -> None:
    world.behave(hangup_after=1)  # nobody stays for the whole conversation
    numbers = {world.number() for _ in range(200)}
    with world.database.cursor() as cursor:
        cursor.executemany(
            "insert into public.outbound_call_jobs (user_id, phone_number) values (gen_random_uuid(), %s)",
            [(number,) for number in numbers],
        )
    query = "select count(*) as n from public.outbound_call_jobs where phone_e164 = any(%s) and status = 'completed'"
    world.until(lambda: world.rows(query, list(numbers))[0]["n"] == 200, 60)
    calls = [call["to"] for call in world.all_calls()]
    assert sorted(to for to in calls if to in numbers) == sorted(numbers)


@pytest.mark.parametrize(
    "create",
    [
        "accept_then_drop", "accept_then_500", "garbled", "accept_late", "hang", "drop", "error:503", "error:html502",
        "error:429",
    ],
)  # fmt: skip
def test_whatever_twilio_does_to_one_request_the_person_is_called_once(world: World, create: str) -> None:
    number = world.number()
    world.behave(to=number, create=create, times=1)
    job_id = world.insert_job(number)
    assert world.until_status(job_id, "completed", "failed", timeout_s=40)["status"] == "completed"
    assert len([call for call in world.calls(number) if call["reached"]]) == 1


def test_a_number_that_twilio_refuses_is_not_tried_again(world: World) -> None:
    number = world.number()
    world.behave(to=number, create="error:21211")
    done = world.until_status(world.insert_job(number), "completed", "failed")
    assert (done["status"], done["reason_code"], done["attempts"]) == ("failed", "twilio_21211", 1)


def test_lost_callbacks_are_asked_for(world: World) -> None:
    number = world.number()
    world.behave(to=number, callbacks="none")
    job_id = world.insert_job(number)
    assert world.until_status(job_id, "completed", "failed")["status"] == "completed"


@pytest.mark.parametrize("callbacks", ["twice", "shuffled"])
def test_callbacks_may_come_in_any_order_and_number(world: World, callbacks: str) -> None:
    number = world.number()
    world.behave(to=number, callbacks=callbacks)
    job_id = world.insert_job(number)
    assert world.until_status(job_id, "completed", "failed")["status"] == "completed"
    (attempt,) = world.attempts(job_id)
    assert attempt["state"] == "ended"
