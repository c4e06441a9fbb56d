"""From a sign-up to a call that was heard, with webhooks and sweeps on, and Twilio over TLS."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from supabase import create_client

from tests.e2e.conftest import World


def test_sign_up_hears_the_words_of_its_mode(world: World) -> None:
    assert world.sandbox.ready.twilio_url.startswith("https://")
    number = world.number()
    client = create_client(world.sandbox.ready.supabase_url, world.sandbox.ready.supabase_anon_key)
    data = {"first_name": "Ada", "signup_mode": "demo"}
    client.auth.sign_up({"phone": number, "password": "correct horse", "options": {"data": data}})
    (job,) = world.rows("select id from public.outbound_call_jobs where phone_e164 = %s", number)
    assert world.until_status(job["id"], "completed", "failed")["status"] == "completed"
    (call,), (attempt,) = world.calls(number), world.attempts(job["id"])
    assert call["transcript"][0]["text"].startswith("Hi Ada, thanks for asking for a demo.")
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
        attempts, statuses = world.attempts(jobs[trouble]), [call["status"] for call in calls]
        found = (job["status"], job["reason_code"], attempts[-1]["state"], sum(call["reached"] for call in calls))
        wanted = (*ends, "refused" if rang == [] else "ended", int(ends[0] == "completed"))
        if found != wanted or (rang is not None and (statuses, len(attempts)) != (rang, job["attempts"])):
            odd[trouble] = (found, calls)
    assert odd == {}


def test_fifty_identical_webhooks_make_one_call(quiet: World) -> None:
    number = quiet.number()
    job = quiet.insert_job(number)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(quiet.dial, [job] * 50))
    assert [answer.get("did") for answer in answers].count("called") == 1
    quiet.until_status(job, "completed")
    assert len(quiet.calls(number)) == 1


def test_placed_call_costs_two_rpcs_and_one_request(quiet: World) -> None:
    number = quiet.number()
    quiet.behave(to=number, callbacks="none", talk_s=30)
    job = quiet.insert_job(number)
    rpcs, requests = quiet.sandbox.gateway.requests, quiet.sandbox.twilio.requests
    rpcs.clear()
    requests.clear()
    assert quiet.dial(job) == {"did": "called", "job": job}
    costs = {name: count for name, count in rpcs.items() if name != "record_call_status"}  # for /voice, by now or soon
    assert (costs, dict(requests)) == ({"claim_call_job": 1, "accept_call": 1}, {"create": 1})
