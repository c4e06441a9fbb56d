"""Faults on demand, and the control paths where they are asked for."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import requests
from twilio.base.exceptions import TwilioRestException
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client

from tests.integration.twilio.conftest import HELLO, OURS, SID, THEIRS, TOKEN, Application, World, a_world


def give_up(world: World) -> None:
    """A client asks for a call, and hears nothing for a second."""
    client = Client(SID, TOKEN, http_client=TwilioHttpClient(timeout=1))
    client.api.base_url = world.url
    with pytest.raises(requests.exceptions.ReadTimeout):
        client.calls.create(to=THEIRS, from_=OURS, twiml=HELLO)


def test_lost_answers_may_hide_a_taken_call(world: World) -> None:
    """`create` -> the client's error, and how many calls were taken."""
    cases = {
        "accept_then_drop": (requests.exceptions.ConnectionError, 1), "drop": (requests.exceptions.ConnectionError, 0),
        "accept_then_500": (TwilioRestException, 1), "garbled": (json.JSONDecodeError, 1),
    }  # fmt: skip
    taken: dict[str, tuple[type[Exception], int]] = {}
    for create, (error, _) in cases.items():
        before = len(world.twilio.calls)
        world.twilio.behave(create=create)
        with pytest.raises(error) as caught:
            world.call()
        taken[create] = error, len(world.twilio.calls) - before
        if isinstance(caught.value, TwilioRestException):
            assert (caught.value.status, caught.value.code) == (500, 20500)
    assert (taken, world.twilio.requests["create"]) == (cases, 4)


def test_hanging_request_takes_no_call(world: World) -> None:
    world.twilio.behave(create="hang")
    give_up(world)
    world.twilio.behave(create="ok")
    world.call()
    assert len(world.twilio.calls) == 1


def test_call_is_taken_after_the_client_gave_up(world: World) -> None:
    world.twilio.behave(create="accept_late", late_s=4)
    give_up(world)
    assert world.twilio.calls == []
    world.until(lambda: len(world.twilio.calls) == 1)


def test_slow_answer_comes_after_the_call_was_taken(world: World) -> None:
    world.twilio.behave(latency_ms=4000)
    give_up(world)
    assert len(world.twilio.calls) == 1


REFUSALS = {
    "error:20003": (401, 20003), "error:20429": (429, 20429), "error:20500": (500, 20500), "error:20503": (503, 20503),
    "error:21215": (400, 21215), "error:10004": (400, 10004), "error:429": (429, 429), "error:html502": (502, 502),
}  # fmt: skip


def test_refusals_on_demand_bear_twilios_codes(world: World) -> None:
    said = {}
    for refused in REFUSALS:
        world.twilio.behave(create=refused)
        refusal = world.refusal()
        said[refused] = (refusal.status, refusal.code)
    assert (said, world.twilio.calls) == (REFUSALS, [])


def test_newest_rule_decides_and_older_ones_fill_in(world: World) -> None:
    world.control("PUT", "behaviour", {"outcome": "busy", "callbacks": "none"})
    world.control("PUT", "behaviour", {"outcome": "no-answer", "to": THEIRS, "times": 1})
    world.finish()
    world.finish()
    assert world.ours.told == []
    assert world.control("DELETE", "behaviour").ok
    world.finish()
    assert [call.status for call in world.twilio.calls] == ["no-answer", "busy", "completed"]


def test_call_keeps_the_rules_of_its_creation(slow_ring: World) -> None:
    slow_ring.twilio.behave(callbacks="none")
    call = slow_ring.call()
    slow_ring.twilio.rules.clear()
    call.update(status="canceled")
    slow_ring.twilio.wait_quiet()
    assert slow_ring.ours.told == []


def test_invalid_rule_is_refused_by_its_field(world: World) -> None:
    table: list[tuple[object, str]] = [
        ({"creat": "ok"}, "creat"), ({"create": "explode"}, "create"), ({"times": 0}, "times"),
        ({"latency_ms": "1"}, "latency_ms"), ({"digits": ["one"]}, "digits.0"), ([], "body"),
    ]  # fmt: skip
    for body, field in table:
        answer = world.control("PUT", "behaviour", body)
        assert (answer.status_code, field in answer.json()["error"]["message"]) == (400, True), body


def test_control_shows_every_taken_call_in_order(world: World) -> None:
    sids = [world.call(to=to).sid for to in (THEIRS, "+14155550124")]
    world.twilio.wait_quiet()
    calls = world.control("GET", "calls").json()
    assert [call["sid"] for call in calls] == sids
    assert [step["status"] for step in calls[0].pop("history")] == ["ringing", "in-progress", "completed"]
    assert datetime.fromisoformat(calls[0]["accepted_at"]).tzinfo == UTC
    assert calls[0] == calls[0] | {
        "to": THEIRS, "from": OURS, "status": "completed", "url": f"{world.ours.url}/say/hello", "answered_by": "human",
        "reached": True, "errors": [],
    }  # fmt: skip
    assert calls[0].keys() >= {"duration_s", "transcript"}


def test_clock_moves_the_dates_and_tells_its_listener(application: Application) -> None:
    offsets: list[float] = []

    async def on_clock(offset_s: float) -> None:
        offsets.append(offset_s)

    with a_world(application, on_clock=on_clock) as world:
        assert world.control("PUT", "clock", {"offset_s": 86_400}).ok
        created = world.call().date_created
        assert created is not None
        assert created - datetime.now(UTC) > timedelta(hours=23)
        assert offsets == [86_400]


def test_reset_forgets_everything_and_ends_calls_silently(slow_ring: World) -> None:
    slow_ring.twilio.behave(outcome="busy")
    slow_ring.call(status_callback_event=["completed"])
    slow_ring.twilio.reset()
    slow_ring.twilio.wait_quiet()
    assert (slow_ring.twilio.calls, slow_ring.twilio.requests.total(), slow_ring.ours.told) == ([], 0, [])
