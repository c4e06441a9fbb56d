"""TwiML is executed as Twilio documents it, whoever answers the phone."""

from __future__ import annotations

import pytest
from twilio.base.exceptions import TwilioRestException

from tests.integration.twilio.conftest import World
from tests.sandbox.twilio.call_simulator import APOLOGY

HOLD = "<Response><Say>Please hold</Say><Pause length='600'/><Say>too late</Say></Response>"


def test_answered_call_goes_on_with_a_sent_document(world: World) -> None:
    world.ours.says["hello"] = HOLD
    world.ours.says["after"] = "<Response><Say>Thanks</Say></Response>"
    call = world.client.calls(world.call().sid or "")
    world.until(lambda: heard(world) == ["Please hold"])
    gather = (
        f"<Gather action='{world.ours.url}/say/after' actionOnEmptyResult='true' timeout='1'><Say>Still?</Say></Gather>"
    )
    told = call.update(twiml=f"<Response><Say>Instead</Say>{gather}</Response>")
    assert told.status == "in-progress"
    world.twilio.wait_quiet()
    assert heard(world) == ["Please hold", "Instead", "Still?", "Thanks"]
    assert world.ours.statuses() == ["initiated", "ringing", "in-progress", "completed"]


def test_call_is_interrupted_more_than_once(world: World) -> None:
    world.ours.says["hello"] = HOLD
    call = world.client.calls(world.call().sid or "")
    world.until(lambda: heard(world) == ["Please hold"])
    call.update(twiml=HOLD.replace("hold", "wait"))
    world.until(lambda: heard(world)[-1] == "Please wait")
    call.update(twiml="<Response><Hangup/></Response>")
    world.twilio.wait_quiet()
    assert heard(world) == ["Please hold", "Please wait"]


def test_only_an_answered_call_can_be_interrupted(slow_ring: World) -> None:
    call = slow_ring.client.calls(slow_ring.call().sid or "")
    for end in (False, True):
        if end:
            call.update(status="completed")
        with pytest.raises(TwilioRestException) as caught:
            call.update(twiml="<Response/>")
        assert caught.value.code == 21220


@pytest.mark.parametrize(
    ("twiml", "code"),
    [(f"<Response><Say>{'x' * 4000}</Say></Response>", 32018), ("<Response>", 20422), ("<Say>x</Say>", 20422)],
)
def test_invalid_document_never_interrupts_a_call(world: World, twiml: str, code: int) -> None:
    world.ours.says["hello"] = HOLD
    call = world.client.calls(world.call().sid or "")
    world.until(lambda: heard(world) == ["Please hold"])
    with pytest.raises(TwilioRestException) as caught:
        call.update(twiml=twiml)
    assert caught.value.code == code
    with pytest.raises(TwilioRestException):
        call.update(twiml="<Response/>", status="completed")
    assert world.twilio.calls[0].status == "in-progress"


def heard(world: World) -> list[str]:
    return [entry.get("text") or f"[{entry['digits']}]" for entry in world.twilio.calls[-1].transcript]


def test_person_hears_the_words_of_the_document(world: World) -> None:
    world.ours.says["hello"] = (
        "<Response><Say>Good <break/> day</Say><Pause/><Say loop='2'>Bye</Say><Hangup/></Response>"
    )
    world.finish()
    assert heard(world) == ["Good day", "Bye", "Bye"]
    assert world.ours.asked[0].fields["CallStatus"] == "in-progress"
    assert world.twilio.calls[0].reached
    assert world.twilio.calls[0].errors == []


def test_inline_twiml_is_executed_without_a_url(world: World) -> None:
    world.finish(url=None, twiml="<Response><Say>Inline</Say></Response>")
    assert heard(world) == ["Inline"]
    world.finish(twiml="<Response><Say>Inline</Say></Response>")
    assert heard(world) == ["Hello there"]


def test_digits_are_gathered_and_sent_to_the_action(world: World) -> None:
    world.ours.says["hello"] = (
        "<Response><Gather numDigits='1' action='chosen?step=1' method='GET'><Say>Press one</Say></Gather>"
        "<Say>unreachable</Say></Response>"
    )
    world.ours.says["chosen"] = lambda asked: f"<Response><Say>You pressed {asked.fields['Digits']}</Say></Response>"
    world.twilio.behave(digits=["12"])
    world.finish()
    assert heard(world) == ["Press one", "[12]", "You pressed 1"]
    assert (world.ours.asked[1].method, world.ours.asked[1].fields["step"]) == ("GET", "1")


def test_gather_ends_as_its_attributes_say(world: World) -> None:
    """attributes, keys pressed -> Digits sent to the action; None: it goes on with the next verb."""
    table: list[tuple[str, str, str | None]] = [
        ("", "12#3", "12"), ("finishOnKey='*'", "1#*", "1#"), ("finishOnKey=''", "1#", "1#"), ("timeout='2'", "7", "7"),
        ("actionOnEmptyResult='true'", "", ""), ("", "", None), ("", "#", None),
    ]  # fmt: skip
    for attributes, pressed, sent in table:
        world.twilio.reset()
        world.ours.asked.clear()
        gather = f"<Gather {attributes} action='/say/after'/>"
        world.ours.says["hello"] = f"<Response>{gather}<Say>Still there?</Say></Response>"
        world.twilio.behave(digits=[pressed])
        world.finish()
        actions = [asked.fields["Digits"] for asked in world.ours.asked[1:]]
        told = (attributes, pressed, actions, "Still there?" in heard(world))
        assert told == (attributes, pressed, [] if sent is None else [sent], sent is None)


def test_each_gather_gets_the_next_digits(world: World) -> None:
    world.ours.says["hello"] = "<Response><Gather numDigits='1'/><Say>Nobody</Say></Response>"
    world.twilio.behave(digits=["1", "2"])
    world.finish()
    assert heard(world) == ["[1]", "[2]", "Nobody"]


def test_person_may_hang_up_after_some_gathers(world: World) -> None:
    world.ours.says["hello"] = "<Response><Gather numDigits='1' action='next'/></Response>"
    world.ours.says["next"] = "<Response><Say>too late</Say></Response>"
    world.twilio.behave(digits=["1"], hangup_after=1)
    world.finish()
    assert heard(world) == ["[1]"]
    assert not world.twilio.calls[0].reached


def test_redirects_are_followed_and_loops_end(world: World) -> None:
    world.ours.says["hello"] = "<Response><Redirect method='GET'>again</Redirect><Say>unreachable</Say></Response>"
    world.ours.says["again"] = "<Response><Redirect>again</Redirect></Response>"
    world.finish()
    assert [asked.method for asked in world.ours.asked[:3]] == ["POST", "GET", "POST"]
    assert len(world.ours.asked) < 200
    assert world.twilio.calls[0].status == "completed"


def test_invalid_twiml_is_an_application_error(world: World) -> None:
    table = [
        ("not xml", 12100), ("", 12100), ("<Answer/>", 12102),
        ("<Response><Dial>+14155550124</Dial></Response>", 12200),
        ("<Response><Say><Say>no</Say></Say></Response>", 12200), ("<Response><Say/></Response>", 13520),
        ("<Response><Gather><Hangup/></Gather></Response>", 13320),
        ("<Response><Gather numDigits='0'/></Response>", 13314),
        ("<Response><Redirect method='PUT'>x</Redirect></Response>", 13710),
        ("<Response><Pause length='long'/></Response>", 13910), ("<Response>" + " " * 65_536 + "</Response>", 11750),
    ]  # fmt: skip
    seen = []
    for say, _ in table:
        world.ours.says["hello"] = say
        world.finish()
        call = world.twilio.calls[-1]
        assert (call.status, heard(world), call.reached) == ("completed", [APOLOGY], False)
        seen += [(say, error["code"]) for error in call.errors]
    assert seen == table


def test_unknown_attribute_is_noted_and_ignored(world: World) -> None:
    world.ours.says["hello"] = "<Response><Say tone='warm'>Hello</Say></Response>"
    world.finish()
    assert [error["code"] for error in world.twilio.calls[0].errors] == [12200]
    assert heard(world) == ["Hello"]


def test_other_content_type_is_an_application_error(world: World) -> None:
    world.ours.content_type = "application/json"
    world.finish()
    assert [error["code"] for error in world.twilio.calls[0].errors] == [12300]


def test_failing_url_without_fallback_is_an_apology(world: World) -> None:
    world.ours.voice_status = 503
    world.finish()
    assert heard(world) == [APOLOGY]
    assert [error["code"] for error in world.twilio.calls[0].errors] == [11200]


@pytest.mark.parametrize(("mode", "by"), [("Enable", "machine_start"), ("DetectMessageEnd", "machine_end_beep")])
def test_machine_is_detected_before_the_first_request(world: World, mode: str, by: str) -> None:
    world.twilio.behave(outcome="machine", digits=["1"])
    call = world.finish(machine_detection=mode)
    assert world.ours.asked[0].fields["AnsweredBy"] == by
    assert world.ours.told[-1].fields["AnsweredBy"] == by
    assert world.client.calls(call.sid or "").fetch().answered_by == by
    assert (world.twilio.calls[0].picked_up_by, world.twilio.calls[0].reached) == ("machine", False)


def test_without_detection_nobody_knows_who_answered(world: World) -> None:
    world.twilio.behave(outcome="machine")
    call = world.finish()
    assert "AnsweredBy" not in world.ours.asked[0].fields
    assert world.client.calls(call.sid or "").fetch().answered_by is None
    assert not world.twilio.calls[0].reached


def test_asynchronous_detection_has_its_own_callback(world: World) -> None:
    world.twilio.behave(talk_s=0.2)
    world.finish(
        machine_detection="Enable",
        async_amd="true",
        async_amd_status_callback=f"{world.ours.url}/say/amd",
        status_callback=None,
    )
    by_path = {asked.url.rsplit("/", 1)[1]: asked.fields for asked in world.ours.asked}
    assert "AnsweredBy" not in by_path["hello"]
    assert by_path["amd"]["AnsweredBy"] == "human"
