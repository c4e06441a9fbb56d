"""Status callbacks: their order, numbers, signatures and repetitions."""

from __future__ import annotations

from twilio.request_validator import RequestValidator

from tests.integration.twilio.conftest import OURS, THEIRS, TOKEN, World

TWILIO = RequestValidator(TOKEN)
IN_ORDER = ["initiated", "ringing", "in-progress", "completed"]


def test_callbacks_come_in_order_and_numbered(world: World) -> None:
    call = world.finish()
    assert (world.ours.callbacks(), world.ours.callbacks("SequenceNumber")) == (IN_ORDER, ["0", "1", "2", "3"])
    last = world.ours.told[-1].fields
    assert last == last | {
        "CallSid": call.sid, "To": THEIRS, "Called": THEIRS, "From": OURS, "Caller": OURS, "Direction": "outbound-api",
        "CallbackSource": "call-progress-events", "Duration": "1", "SipResponseCode": "200",
    }  # fmt: skip
    assert int(last["CallDuration"]) >= 1


def test_without_subscription_only_the_end_is_reported(world: World) -> None:
    world.finish(status_callback_event=None)
    assert (world.ours.callbacks(), world.ours.callbacks("SequenceNumber")) == (["completed"], ["0"])


def test_every_request_is_signed_without_its_fragment(world: World) -> None:
    callback = f"{world.ours.url}/status?attempt=a%20b&empty="
    world.finish(status_callback=f"{callback}#rc=2", url=f"{world.ours.url}/say/hello?attempt=1")
    received = world.ours.told + world.ours.asked
    assert (len(received), {told.url for told in world.ours.told}) == (5, {callback})
    for one in received:
        assert TWILIO.validate(one.url, one.fields, one.headers["X-Twilio-Signature"])
        assert one.fields["ToCity"] == ""  # blank fields are signed as well


def test_callback_by_get_signs_its_fields(world: World) -> None:
    world.finish(status_callback_method="GET", status_callback_event=["completed"])
    (told,) = world.ours.told
    assert (told.method, told.fields["CallStatus"]) == ("GET", "completed")
    assert TWILIO.validate(told.url, {}, told.headers["X-Twilio-Signature"])


def test_overrides_decide_whether_a_callback_is_repeated(world: World) -> None:
    """Fragment, answers -> how often the callback comes, and the codes in the debugger. Each repetition bears one token."""
    cases: dict[tuple[str, tuple[int, ...]], tuple[int, list[object]]] = {
        ("", (500,)): (1, [11200]),
        ("#rc=5&rp=4xx,5xx", (500, 503)): (3, []),
        ("#rc=5&rp=all", (404, 500)): (3, []),
        ("#rc=1&rp=all", (500, 500)): (2, [11200]),
        ("#rc=9&rp=all", (500, 500)): (2, [11200]),
        ("#rc=5&rp=4xx", (500,)): (1, [11200]),
    }
    found = {}
    for fragment, answers in cases:
        world.ours.told.clear()
        world.ours.status_codes = list(answers)
        world.finish(status_callback=f"{world.ours.url}/status{fragment}", status_callback_event=["completed"])
        assert len({told.headers["I-Twilio-Idempotency-Token"] for told in world.ours.told}) == 1
        found[fragment, answers] = (len(world.ours.callbacks()), world.codes())
    assert found == cases


def test_unanswered_calls_end_with_their_own_status(world: World) -> None:
    ends = [("busy", "486", "0"), ("no-answer", "487", "0"), ("failed", "404", "0")]
    for outcome, *_ in ends:
        world.twilio.behave(outcome=outcome)
        world.finish(status_callback_event=["completed"])
    names = ("CallStatus", "SipResponseCode", "CallDuration")
    assert list(zip(*map(world.ours.callbacks, names), strict=True)) == ends
    assert ([call.status for call in world.twilio.calls], world.ours.asked) == ([end[0] for end in ends], [])


def test_ringing_beyond_timeout_is_no_answer(slow_ring: World) -> None:
    slow_ring.finish(timeout=1)
    assert (slow_ring.ours.callbacks(), slow_ring.ours.asked) == (["initiated", "ringing", "no-answer"], [])


def test_callbacks_are_lost_repeated_and_shuffled_on_demand(world: World) -> None:
    numbers, tokens = {}, {}
    for how in ("none", "twice", "shuffled"):
        world.ours.told.clear()
        world.twilio.behave(callbacks=how)
        world.finish()
        numbers[how] = world.ours.callbacks("SequenceNumber")
        tokens[how] = len({told.headers["I-Twilio-Idempotency-Token"] for told in world.ours.told})
        assert world.twilio.calls[-1].status == "completed"
    once, shuffled = ["0", "1", "2", "3"], numbers["shuffled"]
    assert {how: sorted(each) for how, each in numbers.items()} == {
        "none": [], "twice": sorted(once * 2), "shuffled": once
    }  # fmt: skip
    assert (tokens, shuffled != once) == ({"none": 0, "twice": 4, "shuffled": 4}, True)


def test_callbacks_late_come_after_the_call(world: World) -> None:
    world.twilio.behave(callbacks="late", callback_delay_s=1.5)
    world.call()
    world.until(lambda: world.twilio.calls[0].status == "completed")
    assert world.ours.told == []
    world.twilio.wait_quiet()
    assert world.ours.callbacks() == IN_ORDER
