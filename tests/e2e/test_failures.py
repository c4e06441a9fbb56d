"""What goes wrong on the way of a call: at Twilio, at the database, with the account or with a backup."""

from __future__ import annotations

import base64
from typing import get_args

import pytest
from aiohttp import web

from shared.dispatcher import wire
from shared.models import finished
from shared.settings import load_settings
from tests.e2e.conftest import EVENT, World, open_world
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.serve import Server
from tests.sandbox.supabase.gateway import Fault


def test_halt_pauses_everything_and_spends_nothing(quiet: World) -> None:
    first = quiet.number()
    quiet.behave(to=first, create="error:20003", times=1)
    jobs = [quiet.insert_job(first), quiet.insert_job(quiet.number())]
    assert [quiet.dial(job)["did"] for job in jobs] == ["halted", "paused"]
    assert [quiet.job(job)["attempts"] for job in jobs] == [0, 0]
    assert "CRITICAL" in [line["severity"] for line in quiet.log_lines()]
    quiet.rows("select resume_calls()")
    assert [quiet.dial(job)["did"] for job in jobs] == ["called", "called"]


def test_database_that_is_down_is_503_and_costs_nothing(quiet: World) -> None:
    job = quiet.insert_job(quiet.number())
    for fault in set(get_args(Fault)) - {"lose_response"}:
        with quiet.fault(fault):
            answer = quiet.webhook({**EVENT, "record": {"id": job}})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable"), fault
        assert quiet.job(job)["status"] == "queued"
    assert quiet.dial(job)["did"] == "called"


@pytest.mark.parametrize("lost", ["claim_call_job", "accept_call"])
def test_answer_lost_after_the_commit_calls_nobody_twice(world: World, lost: str) -> None:
    number = world.number()
    with world.fault("lose_response", lost, times=1):
        job = world.insert_job(number)
        world.until(lambda: world.attempts(job))
        world.set_clock(30)  # the lease is over
        world.until_status(job, "completed", timeout_s=60)
    assert len([call for call in world.calls(number) if call["reached"]]) == 1


def test_doubt_is_settled_with_the_number_that_called(quiet: World) -> None:
    number = quiet.number()
    quiet.behave(to=number, create="accept_then_drop", callbacks="none", outcome="busy", times=1)
    job = quiet.insert_job(number)
    assert quiet.dial(job)["did"] == "in_doubt"
    quiet.rows("update public.outbound_call_jobs set due_at = private.clock() where id = %s returning id", job)
    _, sweeper = wire(load_settings(environ={**quiet.sandbox.settings, "TWILIO_PHONE_NUMBER": "+15005550009"}))
    assert finished(sweeper.claim_to_follow_up()).detail == "found"
    assert quiet.attempts(job)[0]["call_sid"] == quiet.calls(number)[0]["sid"]


def test_person_hears_an_apology_while_the_database_is_down(quiet: World) -> None:
    number = quiet.number()
    with quiet.fault("503", "record_call_status"):
        quiet.dial(quiet.insert_job(number))
        said = quiet.until(lambda: [line["text"] for call in quiet.calls(number) for line in call["transcript"]][2:])
    assert "We are sorry" in said[0], said


def test_restored_database_calls_nobody_again(world: World) -> None:
    """A backup from before the call, restored elsewhere: Twilio is asked first."""
    called, other = world.number(), world.number()
    world.until_status(old := world.insert_job(called), "completed")
    with world.database.transaction():
        world.database.execute("set local session_replication_role = replica")
        world.database.execute("delete from public.outbound_call_attempts")
        world.database.execute(
            "update public.outbound_call_jobs set status = 'queued', attempts = 0, due_at = now(), finished_at = null,"
            " qualification = null, database_id = 'another', dedupe_window = tstzrange(created_at, null)"
        )
    world.until(lambda: world.rows("select from private.call_settings where paused_by = 'restore'"))
    new = world.insert_job(other)
    assert world.calls(other) == []
    world.rows("select public.confirm_restore()")
    assert {world.until_status(job, "completed", "failed")["status"] for job in (old, new)} == {"completed"}
    assert (len(world.calls(called)), len(world.calls(other))) == (1, 1)


def test_calls_of_silent_voice_service_end_by_asking() -> None:
    """API_BASE_URL is somebody else's: no callback and no /voice comes here, and both secrets of a rotation are taken."""
    asked: list[tuple[str, dict[str, str]]] = []

    async def silent(request: web.Request) -> web.Response:
        asked.append((request.path, {**request.query}))
        return web.Response(text="<Response><Say>Hello from elsewhere</Say></Response>", content_type="text/xml")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", silent)
    secrets = ["whsec_" + base64.b64encode(letter * 32).decode() for letter in (b"a", b"b")]
    with Server(app) as elsewhere:
        environ = {"API_BASE_URL": elsewhere.url, "DISPATCH_SECRET": " ".join(secrets), "CALL_ASK_SECONDS": "1"}
        environ |= {"API_BASE_URL_IS_THIS_FUNCTION": "false", "VOICE_PATH": "/", "STATUS_PATH": "/twilio/status"}
        with Sandbox(environ=environ) as sandbox, open_world(sandbox) as world:
            number = world.number()
            job = world.insert_job(number)
            world.until_status(job, "completed")
            (call,) = world.calls(number)
            assert call["transcript"][0]["text"] == "Hello from elsewhere"
            carried = {"attempt": str(world.attempts(job)[0]["id"]), "job_id": str(job)}
            assert {path for path, _ in asked} == {"/", "/twilio/status"}
            assert all(query == carried for _, query in asked)
            for secret in secrets:
                world.dial(2**40, secret)
