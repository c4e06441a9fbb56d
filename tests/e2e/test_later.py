"""A person asks in the call to be called later: they hear the time, and the next call comes then."""

from __future__ import annotations

from datetime import timedelta

from tests.e2e.conftest import World
from tests.e2e.test_conversation import SCRIPTS, answers, ring, transcript, words

CALLBACK = SCRIPTS.for_mode("callback")
GOOD_TIME, TOPIC = CALLBACK.questions


def test_person_may_ask_twice_and_is_then_not_asked(quiet: World) -> None:
    number = quiet.number()
    job, _ = ring(quiet, "callback", number=number, digits=["2"])
    waits = quiet.until_status(job, "queued")
    assert (waits["reason_code"], waits["attempts"]) == ("asked_for_later", 0)
    (wish,) = quiet.rows("select due_at - private.clock() as after from public.outbound_call_jobs where id = %s", job)
    assert timedelta(hours=1, minutes=55) < wish["after"] < timedelta(hours=2, minutes=6)
    opening, said = words(CALLBACK.greeting, CALLBACK.opt_out.say), transcript(quiet, number)
    assert said[:4] == [*opening, *words(GOOD_TIME.say), "[2]"]
    assert said[4].startswith("Of course. We will call you again to")  # today or tomorrow
    assert "did" not in quiet.dial(job)
    for digits in (["3"], ["1"]):
        quiet.behave(to=number, digits=digits)
        quiet.rows("update public.outbound_call_jobs set due_at = private.clock() where id = %s returning id", job)
        assert quiet.dial(job)["did"] == "called"
        quiet.until_status(job, "queued", "completed")
    assert "We will call you again tomorrow at 10:00 AM" in transcript(quiet, number)[9]
    assert transcript(quiet, number)[10:] == [*opening, *words(TOPIC.say), "[1]", CALLBACK.goodbye]
    assert answers(quiet, job) == {"good_time": "tomorrow", "topic": "start"}
    assert (quiet.job(job)["status"], quiet.job(job)["attempts"]) == ("completed", 1)
