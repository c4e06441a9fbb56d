"""Status callbacks: their order, numbers, signatures and repetitions."""

from __future__ import annotations

from twilio.request_validator import RequestValidator

from tests.integration.twilio.conftest import OURS, THEIRS, TOKEN, World


def test_callbacks_come_in_order_and_numbered(world: World) -> None:
    call = world.finish()
    assert world.ours.statuses() == ["initiated", "ringing", "in-progress", "completed"]
    assert [told.fields["SequenceNumber"] for told in world.ours.told] == ["0", "1", "2", "3"]
    last = world.ours.told[-1].fields
    assert last["CallSid"] == call.sid
    assert {name: last[name] for name in ("To", "Called", "From", "Caller", "Direction", "CallbackSource")} == {
        "To": THEIRS, "Called": THEIRS, "From": OURS, "Caller": OURS, "Direction": "outbound-api",
        "CallbackSource": "call-progress-events",
    }  # fmt: skip
    assert (int(last["CallDuration"]) >= 1, last["Duration"], last["SipResponseCode"]) == (True, "1", "200")


def test_without_subscription_only_the_end_is_reported(world: World) -> None:
    world.finish(status_callback_event=None)
    assert [(told.fields["CallStatus"], told.fields["SequenceNumber"]) for told in world.ours.told] == [
        ("completed", "0")
    ]


def test_every_request_is_signed_without_its_fragment(world: World) -> None:
    callback = f"{world.ours.url}/status?attempt=a%20b&empty="
    world.finish(status_callback=f"{callback}#rc=2", url=f"{world.ours.url}/say/hello?attempt=1")
    validator = RequestValidator(TOKEN)
    received = world.ours.told + world.ours.asked
    assert len(received) == 5
    assert {told.url for told in world.ours.told} == {callback}
    for one in received:
        assert validator.validate(one.url, one.fields, one.headers["X-Twilio-Signature"])
        assert one.fields["ToCity"] == ""  # blank fields are signed as well


def test_callback_by_get_signs_its_fields(world: World) -> None:
    world.finish(status_callback_method="GET", status_callback_event=["completed"])
    (told,) = world.ours.told
    assert (told.method, told.fields["CallStatus"]) == ("GET", "completed")
    assert RequestValidator(TOKEN).validate(told.url, {}, told.headers["X-Twilio-Signature"])


def test_callback_answered_with_an_error_is_not_repeated(world: World) -> None:
    world.ours.status_codes = [500]
    world.finish(status_callback_event=["completed"])
    assert world.ours.statuses() == ["completed"]
    assert [error["code"] for error in world.twilio.calls[0].errors] == [11200]


def test_connection_overrides_repeat_callbacks_with_one_token(world: World) -> None:
    world.ours.status_codes = [500, 503]
    world.finish(status_callback=f"{world.ours.url}/status#rc=5&rp=4xx,5xx", status_callback_event=["completed"])
    assert world.ours.statuses() == ["completed"] * 3
    assert len({told.headers["I-Twilio-Idempotency-Token"] for told in world.ours.told}) == 1


def test_unanswered_calls_end_with_their_own_status(world: World) -> None:
    for outcome, sip in (("busy", 486), ("no-answer", 487), ("failed", 404)):
        world.twilio.behave(outcome=outcome)
        world.finish(status_callback_event=["completed"])
        told = world.ours.told[-1].fields
        assert (told["CallStatus"], told["SipResponseCode"], told["CallDuration"]) == (outcome, str(sip), "0")
        assert (world.twilio.calls[-1].status, world.ours.asked) == (outcome, [])
    assert len(world.ours.told) == 3


def test_ringing_beyond_timeout_is_no_answer(slow_ring: World) -> None:
    slow_ring.finish(timeout=1)
    assert slow_ring.ours.statuses() == ["initiated", "ringing", "no-answer"]
    assert slow_ring.ours.asked == []


def test_callbacks_can_be_left_out(world: World) -> None:
    world.twilio.behave(callbacks="none")
    world.finish()
    assert world.ours.told == []
    assert world.twilio.calls[0].status == "completed"


def test_callbacks_twice_are_the_same_request_twice(world: World) -> None:
    world.twilio.behave(callbacks="twice")
    world.finish(status_callback_event=["ringing", "completed"])
    assert world.ours.statuses() == ["ringing", "ringing", "completed", "completed"]
    assert world.ours.told[0].fields == world.ours.told[1].fields
    assert len({told.headers["I-Twilio-Idempotency-Token"] for told in world.ours.told}) == 2


def test_callbacks_shuffled_keep_their_sequence_numbers(world: World) -> None:
    world.twilio.behave(callbacks="shuffled")
    world.finish()
    numbers = [told.fields["SequenceNumber"] for told in world.ours.told]
    assert sorted(numbers) == ["0", "1", "2", "3"]
    assert numbers != sorted(numbers)


def test_callbacks_late_come_after_the_call(world: World) -> None:
    world.twilio.behave(callbacks="late", callback_delay_s=1.5)
    world.call()
    world.until(lambda: world.twilio.calls[0].status == "completed")
    assert world.ours.told == []
    world.twilio.wait_quiet()
    assert world.ours.statuses() == ["initiated", "ringing", "in-progress", "completed"]
