"""A second leg as Twilio documents it: www.twilio.com/docs/voice/twiml/dial and .../number."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.integration.twilio.conftest import OURS, THEIRS, World
from tests.sandbox.twilio.behaviour import Act

COLLEAGUE = "+15005550111"
SCREEN = "<Response><Gather numDigits='1' finishOnKey='' timeout='6'><Say>A lead</Say></Gather><Hangup/></Response>"


def dial(world: World, screen: str = SCREEN, **attributes: str) -> None:
    url = world.ours.url
    named = {"action": f"{url}/say/after", "timeout": "10", "callerId": OURS} | attributes
    written = " ".join(f'{name}="{value}"' for name, value in named.items())
    number = f"<Number url='{url}/say/screen'>{COLLEAGUE}</Number>"
    world.ours.says["hello"] = f"<Response><Say>Wait</Say><Dial {written}>{number}</Dial></Response>"
    world.ours.says["screen"] = lambda asked: "<Response/>" if asked.fields.get("Digits") else screen
    world.ours.says["after"] = "<Response><Say>After</Say></Response>"


OUTCOMES: dict[str, tuple[dict[str, Any], str, str]] = {
    "accepted": ({"digits": ["1"]}, "completed", "true"),
    "hash accepted": ({"digits": ["#"]}, "completed", "true"),
    "time limit": ({"digits": ["1"], "talk_s": 2_000}, "completed", "true"),
    "no key": ({}, "completed", "false"),
    "machine": ({"outcome": "machine", "digits": ["1"]}, "completed", "false"),
    "hangs up at once": ({"hangup_after": 0}, "completed", "false"),
    "hangs up after the key": ({"digits": ["1"], "hangup_after": 1}, "completed", "false"),
    "busy": ({"outcome": "busy"}, "busy", "false"),
    "no answer": ({"outcome": "no-answer"}, "no-answer", "false"),
    "failed": ({"outcome": "failed"}, "failed", "false"),
}


def test_every_end_of_a_second_leg_is_told_to_action(world: World) -> None:
    found = {}
    for name, (conduct, _, _) in OUTCOMES.items():
        dial(world, timeLimit="1500")
        world.twilio.behave(to=COLLEAGUE, times=1, **conduct)
        world.finish()
        (after,) = [each for each in world.ours.asked if each.url.endswith("/after")]
        first, leg = world.twilio.calls
        assert after.fields["CallSid"] == first.sid
        assert after.fields["DialCallSid"] == leg.sid
        assert ("DialCallDuration" in after.fields) == (leg.picked_up_by is not None)
        for screen in [each for each in world.ours.asked if "/screen" in each.url]:
            assert (screen.fields["CallSid"], screen.fields["ParentCallSid"]) == (leg.sid, first.sid)
            assert (screen.fields["From"], screen.fields["To"]) == (OURS, COLLEAGUE)
            assert screen.fields["Direction"] == "outbound-dial"
        assert [line["text"] for line in first.transcript] == ["Wait", "After"]
        assert first.errors == leg.errors == []
        found[name] = (conduct, after.fields["DialCallStatus"], after.fields["DialBridged"])
        world.twilio.reset()
        world.ours.asked.clear()
    assert found == OUTCOMES


def test_second_leg_ends_with_its_parent_or_by_request(world: World) -> None:
    """The person hangs up, the leg is canceled or completed through the API -> the leg's status, and whether action is asked."""
    found = {}
    for name, picks_up in (("person", False), ("person", True), ("cancel", False), ("complete", True)):
        dial(world)
        world.twilio.behave(to=COLLEAGUE, outcome="person", words_per_second=500)
        call = world.call()
        world.until(lambda: len(world.twilio.calls) == 2 and world.twilio.calls[1].status == "ringing")
        leg = world.twilio.calls[1]
        if picks_up:
            world.control("POST", f"phones/{COLLEAGUE}", {"do": "answer"})
            world.until(partial(getattr, leg, "transcript"))
        if name == "person":
            world.client.calls(call.sid or "").update(status="completed")
        else:
            world.client.calls(leg.sid).update(status={"cancel": "canceled", "complete": "completed"}[name])
        world.twilio.wait_quiet()
        asked = [each.fields["DialCallStatus"] for each in world.ours.asked if each.url.endswith("/after")]
        found[name, picks_up] = (leg.status, asked)
        world.twilio.reset()
        world.ours.asked.clear()
    assert found == {
        ("person", False): ("canceled", ["canceled"]),
        ("person", True): ("completed", ["completed"]),
        ("cancel", False): ("canceled", ["canceled"]),
        ("complete", True): ("completed", ["completed"]),
    }


def test_second_leg_is_listed_by_its_parent(world: World) -> None:
    dial(world)
    call = world.finish()
    (leg,) = world.client.calls.list(parent_call_sid=call.sid or "")
    assert (leg.to, leg.direction, leg.parent_call_sid) == (COLLEAGUE, "outbound-dial", call.sid)
    assert [each.sid for each in world.client.calls.list(to=THEIRS)] == [call.sid]


@pytest.mark.parametrize(
    "screen", ["<Response><Dial>x</Dial></Response>", "<Response><Pause/></Response>", "<Response>"]
)
def test_invalid_whisper_ends_the_second_leg(world: World, screen: str) -> None:
    dial(world, screen)
    world.finish()
    first, leg = world.twilio.calls
    assert leg.errors
    assert not leg.bridged
    assert [line["text"] for line in first.transcript] == ["Wait", "After"]


def test_person_at_the_second_phone_presses_and_talks(world: World) -> None:
    dial(world)
    world.twilio.behave(to=COLLEAGUE, outcome="person", words_per_second=500)
    world.call()
    world.until(lambda: len(world.twilio.calls) == 2 and world.twilio.calls[1].status == "ringing")
    first, leg = world.twilio.calls
    assert [phone["to"] for phone in world.twilio.phones()] == [COLLEAGUE]
    for act in (Act(do="answer"), Act(do="press", keys="5")):
        world.control("POST", f"phones/{COLLEAGUE}", act.model_dump())
        world.until(lambda: leg.transcript)
    world.until(lambda: leg.bridged)
    world.control("POST", f"phones/{COLLEAGUE}", {"do": "hang-up"})
    world.twilio.wait_quiet()
    assert [line["text"] for line in first.transcript] == ["Wait", "After"]
