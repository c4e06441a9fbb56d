"""A second leg as Twilio documents it: www.twilio.com/docs/voice/twiml/dial and .../number."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.integration.twilio.conftest import OURS, THEIRS, World

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
        assert world.heard(first) == ["Wait", "After"]
        assert first.errors == leg.errors == []
        found[name] = (conduct, after.fields["DialCallStatus"], after.fields["DialBridged"])
        world.twilio.reset()
        world.ours.asked.clear()
    assert found == OUTCOMES


def test_second_leg_ends_with_its_parent_or_by_request(world: World) -> None:
    """Who ends it, and whether the colleague picked up -> the leg's status, and what `action` is told."""
    cases = {
        ("person", False): ("canceled", ["canceled"]), ("person", True): ("completed", ["completed"]),
        ("canceled", False): ("canceled", ["canceled"]), ("completed", True): ("completed", ["completed"]),
    }  # fmt: skip
    found = {}
    for by, picks_up in cases:
        dial(world)
        world.twilio.behave(to=COLLEAGUE, outcome="person", words_per_second=500)
        call = world.call()
        world.until(lambda: len(world.twilio.calls) == 2 and world.twilio.calls[1].status == "ringing")
        leg = world.twilio.calls[1]
        if picks_up:
            world.answer(COLLEAGUE)
            world.until(partial(getattr, leg, "transcript"))
        ended, status = (call.sid or "", "completed") if by == "person" else (leg.sid, by)
        world.client.calls(ended).update(status=status)
        world.twilio.wait_quiet()
        asked = [each.fields["DialCallStatus"] for each in world.ours.asked if each.url.endswith("/after")]
        found[by, picks_up] = (leg.status, asked)
        world.twilio.reset()
        world.ours.asked.clear()
    assert found == cases


def test_second_leg_is_listed_by_its_parent(world: World) -> None:
    dial(world)
    call = world.finish()
    (leg,) = world.client.calls.list(parent_call_sid=call.sid or "")
    assert (leg.to, leg.direction, leg.parent_call_sid) == (COLLEAGUE, "outbound-dial", call.sid)
    assert [each.sid for each in world.client.calls.list(to=THEIRS)] == [call.sid]


def test_invalid_whisper_ends_the_second_leg(world: World) -> None:
    for screen in ("<Response><Dial>x</Dial></Response>", "<Response><Pause/></Response>", "<Response>"):
        dial(world, screen)
        world.finish()
        first, leg = world.twilio.calls
        assert (screen, bool(leg.errors), leg.bridged) == (screen, True, False)
        assert world.heard(first) == ["Wait", "After"]
        world.twilio.reset()


def test_person_at_the_second_phone_presses_and_talks(world: World) -> None:
    dial(world)
    world.twilio.behave(to=COLLEAGUE, outcome="person", words_per_second=500)
    world.call()
    world.until(lambda: len(world.twilio.calls) == 2)
    world.answer(COLLEAGUE)
    first, leg = world.twilio.calls
    assert [phone["to"] for phone in world.twilio.phones()] == [COLLEAGUE]
    world.until(lambda: leg.transcript)
    world.act("press", COLLEAGUE, keys="5")
    world.until(lambda: leg.bridged)
    world.act("hang-up", COLLEAGUE)
    world.twilio.wait_quiet()
    assert world.heard(first) == ["Wait", "After"]
