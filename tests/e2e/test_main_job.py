"""From a sign-up to a call that was heard, with webhooks and sweeps on, and Twilio over TLS."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from supabase import create_client

from tests.e2e.conftest import World


def test_sign_up_hears_the_words_of_its_mode(world: World) -> None:
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


def test_typed_numbers_are_called_or_refused_with_reason(world: World) -> None:
    plain, local = world.number(), world.number()
    typed = [plain, f"({local[2:5]}) {local[5:8]}-{local[8:]}", "call me maybe"]
    done = [world.until_status(job, "completed", "failed") for job in [world.insert_job(text) for text in typed]]
    unreadable = "the phone number has letters or signs that are no part of a number"
    assert [(job["status"], job["reason_code"], job["reason"]) for job in done] == [
        *[("completed", None, None)] * 2, ("failed", "number_invalid", unreadable),
    ]  # fmt: skip
    assert sorted(call["to"] for call in world.all_calls()) == sorted([plain, local])


TROUBLES: dict[str, tuple[dict[str, object], tuple[str, str | None], list[str] | None]] = {
    # by trouble: what Twilio does to this number; the job's status and reason; the calls that rang, if it is certain
    **{word: ({"outcome": word, "times": 1}, ("completed", None), [word, "completed"])
       for word in ("busy", "no-answer", "failed")},
    "always busy": ({"outcome": "busy"}, ("failed", "busy"), ["busy"] * 3),
    "refused": ({"create": "error:21211"}, ("failed", "twilio_21211"), []),
    **{f"callbacks {word}": ({"callbacks": word}, ("completed", None), ["completed"])
       for word in ("none", "twice", "shuffled")},
    **{create: ({"create": create, "times": 1}, ("completed", None), None)
       for create in ("accept_then_drop", "accept_then_500", "garbled", "accept_late", "hang", "drop", "error:503",
                      "error:html502", "error:429")},
}  # fmt: skip


def test_each_trouble_at_twilio_ends_as_designed(world: World) -> None:
    """All at once, each for a number of its own. Nobody is reached twice."""
    numbers, odd = {trouble: world.number() for trouble in TROUBLES}, {}
    for trouble, number in numbers.items():
        world.behave(to=number, **TROUBLES[trouble][0])
    jobs = {trouble: world.insert_job(number) for trouble, number in numbers.items()}
    for trouble, (_, ends, rang) in TROUBLES.items():
        job, calls = world.until_status(jobs[trouble], "completed", "failed"), world.calls(numbers[trouble])
        (*before, last) = world.attempts(jobs[trouble])
        said = (job["status"], job["reason_code"])
        right = said == ends and sum(call["reached"] for call in calls) == (said[0] == "completed")
        right = right and last["state"] == ("refused" if rang == [] else "ended")
        if not right or (
            rang is not None and ([call["status"] for call in calls], len(before) + 1) != (rang, job["attempts"])
        ):
            odd[trouble] = (said, calls, last["state"])
    assert odd == {}


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


def test_placed_call_costs_two_rpcs_and_one_request(quiet: World) -> None:
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
def test_hour_counts_from_the_end_of_the_job(quiet: World, minutes: int, jobs: int) -> None:
    user = uuid.uuid4()
    (queued,) = quiet.rows("select enqueue_call_job(%s, %s) ->> 'job_id' as id", user, quiet.number())
    quiet.rows("select cancel_call_job(%s)", int(queued["id"]))
    quiet.set_clock(minutes * 60)
    quiet.rows("select enqueue_call_job(%s, %s)", user, quiet.number())
    assert len(quiet.rows("select from public.outbound_call_jobs where user_id = %s", user)) == jobs


def test_many_jobs_at_once_are_each_called_once(world: World) -> None:
    world.behave(hangup_after=1)  # nobody stays for the whole conversation
    numbers = {world.number() for _ in range(80)}
    with world.database.cursor() as cursor:
        cursor.executemany(
            "insert into public.outbound_call_jobs (user_id, phone_number) values (gen_random_uuid(), %s)",
            [(number,) for number in numbers],
        )
    query = "select count(*) as n from public.outbound_call_jobs where phone_e164 = any(%s) and status = 'completed'"
    world.until(lambda: world.rows(query, list(numbers))[0]["n"] == len(numbers), 60)
    assert sorted(call["to"] for call in world.all_calls()) == sorted(numbers)
