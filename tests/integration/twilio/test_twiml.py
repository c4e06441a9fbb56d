"""TwiML is executed as Twilio documents it, whoever answers the phone."""

from __future__ import annotations

import pytest
from twilio.base.exceptions import TwilioRestException
from twilio.rest.api.v2010.account.call import CallInstance

from tests.integration.twilio.conftest import World
from tests.sandbox.twilio.call_simulator import APOLOGY

HOLD = "<Response><Say>Please hold</Say><Pause length='600'/><Say>too late</Say></Response>"


def on_hold(world: World) -> CallInstance:
    """A call whose person hears the first words of HOLD."""
    world.ours.says["hello"] = HOLD
    call = world.call()
    world.until(lambda: world.heard() == ["Please hold"])
    return call


def test_answered_call_goes_on_with_a_sent_document(world: World) -> None:
    world.ours.says["after"] = "<Response><Say>Thanks</Say></Response>"
    attributes = f"action='{world.ours.url}/say/after' actionOnEmptyResult='true' timeout='1'"
    gather = f"<Gather {attributes}><Say>Still?</Say></Gather>"
    told = on_hold(world).update(twiml=f"<Response><Say>Instead</Say>{gather}</Response>")
    assert told.status == "in-progress"
    world.twilio.wait_quiet()
    assert world.heard() == ["Please hold", "Instead", "Still?", "Thanks"]
    assert world.ours.callbacks() == ["initiated", "ringing", "in-progress", "completed"]


def test_call_is_interrupted_more_than_once(world: World) -> None:
    call = on_hold(world)
    call.update(twiml=HOLD.replace("hold", "wait"))
    world.until(lambda: world.heard()[-1] == "Please wait")
    call.update(twiml="<Response><Hangup/></Response>")
    world.twilio.wait_quiet()
    assert world.heard() == ["Please hold", "Please wait"]


def test_only_an_answered_call_can_be_interrupted(slow_ring: World) -> None:
    call = slow_ring.call()
    for end in (False, True):
        if end:
            call.update(status="completed")
        with pytest.raises(TwilioRestException) as caught:
            call.update(twiml="<Response/>")
        assert caught.value.code == 21220


def test_invalid_update_never_interrupts_a_call(world: World) -> None:
    call = on_hold(world)
    cases: list[tuple[dict[str, str], int]] = [
        ({"twiml": f"<Response><Say>{'x' * 4000}</Say></Response>"}, 32018), ({"twiml": "<Response>"}, 20422),
        ({"twiml": "<Say>x</Say>"}, 20422), ({"twiml": "<Response/>", "status": "completed"}, 20422),
        ({"url": "http://127.0.0.1:1/"}, 20422),
    ]  # fmt: skip
    for change, code in cases:
        with pytest.raises(TwilioRestException) as caught:
            call.update(**change)
        assert (change, caught.value.code) == (change, code)
    assert world.twilio.calls[0].status == "in-progress"


def test_documents_are_spoken_pressed_and_followed(world: World) -> None:
    """Document, keys -> what the call is heard to say. The further documents stand in `says`."""
    world.ours.says |= {
        "chosen": lambda asked: f"<Response><Say>You pressed {asked.fields['Digits']}</Say></Response>",
        "next": "<Response><Say>too late</Say></Response>",
    }
    cases: list[tuple[str, dict[str, object], list[str]]] = [
        ("<Say>Good <break/> day</Say><Pause/><Say loop='2'>Bye</Say><Hangup/>", {}, ["Good day", "Bye", "Bye"]),
        ("<Play>https://a.example/b.mp3</Play>", {}, ["https://a.example/b.mp3"]),
        ("<Gather numDigits='1' action='chosen'><Say>Press</Say></Gather><Say>unreachable</Say>", {"digits": ["12"]},
         ["Press", "[12]", "You pressed 1"]),
        ("<Gather numDigits='1'/><Say>Nobody</Say>", {"digits": ["1", "2"]}, ["[1]", "[2]", "Nobody"]),
        ("<Gather numDigits='1' action='next'/>", {"digits": ["1"], "hangup_after": 1}, ["[1]"]),
        ("<Say tone='warm'>Hello</Say>", {}, ["Hello"]),
    ]  # fmt: skip
    found, codes = [], []
    for document, conduct, _ in cases:
        world.twilio.reset()
        world.ours.says["hello"] = f"<Response>{document}</Response>"
        world.twilio.behave(**conduct)
        world.finish()
        found.append((document, conduct, world.heard()))
        codes += world.codes()
        assert world.twilio.calls[0].reached is any(not words.startswith("[") for words in world.heard())
    assert (found, codes) == (cases, [12200])  # the unknown attribute is noted and ignored
    assert world.ours.asked[0].fields["CallStatus"] == "in-progress"


def test_inline_twiml_is_executed_without_a_url(world: World) -> None:
    inline = "<Response><Say>Inline</Say></Response>"
    world.finish(url=None, twiml=inline)
    assert world.heard() == ["Inline"]
    world.finish(twiml=inline)
    assert world.heard() == ["Hello there"]


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
        told = (attributes, pressed, actions, "Still there?" in world.heard())
        assert told == (attributes, pressed, [] if sent is None else [sent], sent is None)


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
        assert (call.status, world.heard(), call.reached) == ("completed", [APOLOGY], False)
        seen += [(say, code) for code in world.codes()]
    assert seen == table


def test_unusable_answer_of_the_application_is_an_apology(world: World) -> None:
    for how, value, code in (("content_type", "application/json", 12300), ("voice_status", 503, 11200)):
        setattr(world.ours, how, value)
        world.finish()
        assert (how, world.heard(), world.codes()) == (how, [APOLOGY], [code])
        world.ours.content_type = "text/xml"


def test_machine_is_detected_before_the_first_request(world: World) -> None:
    world.twilio.behave(outcome="machine", digits=["1"])
    for mode, by in (("Enable", "machine_start"), ("DetectMessageEnd", "machine_end_beep"), (None, None)):
        call = world.finish(machine_detection=mode)
        told = [request.fields.get("AnsweredBy") for request in (world.ours.asked[-1], world.ours.told[-1])]
        assert (mode, told, call.fetch().answered_by) == (mode, [by, by], by)
        assert (world.twilio.calls[-1].picked_up_by, world.twilio.calls[-1].reached) == ("machine", False)


def test_asynchronous_detection_has_its_own_callback(world: World) -> None:
    world.twilio.behave(talk_s=0.2)
    callback = f"{world.ours.url}/say/amd"
    world.finish(machine_detection="Enable", async_amd="true", async_amd_status_callback=callback, status_callback=None)
    by_path = {asked.url.rsplit("/", 1)[1]: asked.fields.get("AnsweredBy") for asked in world.ours.asked}
    assert by_path == {"hello": None, "amd": "human"}
