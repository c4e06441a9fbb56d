"""Calls are created, listed, fetched and ended as Twilio documents it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from twilio.base.exceptions import TwilioRestException

from tests.integration.twilio.conftest import HELLO, OURS, THEIRS, Application, World, a_world, described
from tests.sandbox.twilio.create_call_validation import PARAMETERS, description
from tests.sandbox.twilio.server import UPDATES


def test_new_call_shows_every_field_twilio_describes(world: World) -> None:
    schema: Any = described("api.v2010.account.call")
    call = world.raw("POST", "Calls.json", data={"To": THEIRS, "From": OURS, "Url": f"{world.ours.url}/say/hello"})
    described_fields = schema.schema["components"]["schemas"]["api.v2010.account.call"]["properties"]
    assert (call.status_code, call.json().keys()) == (201, described_fields.keys())
    schema.validate(call.json())
    world.twilio.wait_quiet()
    schema.validate(world.raw("GET", f"Calls/{call.json()['sid']}.json").json())


def test_known_parameters_are_those_twilio_describes() -> None:
    paths: Any = described("api.v2010.account.call").schema["paths"]  # type: ignore[index]

    def parameters(path: str) -> set[str]:
        form = paths[f"/2010-04-01/Accounts/{{AccountSid}}/{path}"]["post"]["requestBody"]["content"]
        return {*form["application/x-www-form-urlencoded"]["schema"]["properties"]}

    assert (parameters("Calls.json"), UPDATES - parameters("Calls/{Sid}.json")) == (PARAMETERS, set())


def test_new_call_is_queued_and_not_started(slow_queue: World) -> None:
    slow_queue.call()
    second = slow_queue.call(to="+14155550124")
    assert (second.status, second.start_time, second.direction) == ("queued", None, "outbound-api")
    assert 9_000 < int(second.queue_time or 0) <= 10_000


def test_wrong_credentials_and_unknown_resources_are_refused(world: World) -> None:
    answers = [
        world.raw("GET", "Calls.json", token="wrong"),
        world.raw("POST", f"/2010-04-01/Accounts/AC{'1' * 32}/Calls.json", data={"To": THEIRS}),
        world.raw("GET", f"Calls/CA{'0' * 32}.json"),
    ]
    refusals = [(answer.status_code, answer.json()["code"]) for answer in answers]
    assert refusals == [(401, 20003), (404, 20404), (404, 20404)]


REFUSALS: list[tuple[dict[str, Any], int]] = [
    ({"to": ""}, 21201), ({"from_": ""}, 21213), ({"url": None}, 21205), ({"url": "say/hello"}, 21205),
    ({"to": "4155550123"}, 21211), ({"to": OURS}, 21211), ({"from_": "+14155550199"}, 21210), ({"from_": "415"}, 21212),
    ({"from_": "+15005550001"}, 21212), ({"from_": "+15005550006", "to": "+15005550001"}, 21217),
    ({"from_": "+15005550006", "to": "+15005550002"}, 21214), ({"from_": "+15005550006", "to": "+15005550003"}, 21215),
    ({"from_": "+15005550006", "to": "+15005550004"}, 21216), ({"method": "PUT"}, 21209), ({"timeout": 601}, 21208),
    ({"timeout": "soon"}, 21208), ({"send_digits": "call me"}, 21206), ({"machine_detection": "Perhaps"}, 21234),
    ({"status_callback": "http://un_der.example/"}, 21609),
    ({"status_callback_event": ["answered", "in-progress"]}, 21626),
    ({"byoc": "BY1"}, 20422), ({"url": None, "twiml": "<Response/>" + " " * 4000}, 32018),
    ({"fallback_url": "http://127.0.0.1:1/"}, 20422),
]  # fmt: skip


def test_wrong_parameters_are_refused_with_twilios_codes(world: World) -> None:
    known = [case for case in REFUSALS if case[0].keys() != {"byoc"} or description()]  # its pattern stands there alone
    refusals = [(parameters, world.refusal(**parameters)) for parameters, _ in known]
    assert [(parameters, refusal.code) for parameters, refusal in refusals] == known
    assert ({refusal.status for _, refusal in refusals}, world.twilio.calls) == ({400}, [])


def test_twilios_test_number_may_call(world: World) -> None:
    assert world.call(from_="+15005550006").status == "queued"


def test_unknown_parameters_are_only_warned_of(world: World) -> None:
    form = {"To": THEIRS, "From": OURS, "Twiml": HELLO, "ValidityPeriod": "60"}
    assert world.raw("POST", "Calls.json", data=form).status_code == 201
    assert len(world.raw("GET", "Calls.json?to=%2B14155550199").json()["calls"]) == 1
    unknown = [{"code": 20001, "message": f"Unknown parameters: {name}"} for name in ("ValidityPeriod", "to")]
    assert world.twilio.warnings == unknown


def test_queue_of_a_day_takes_no_more_calls(application: Application) -> None:
    with a_world(application, calls_per_second=1 / 50_000) as world:
        world.call()
        world.call()
        assert world.refusal().code == 22005


def test_list_by_start_time_hides_queued_calls(slow_queue: World) -> None:
    first, second = slow_queue.call(), slow_queue.call()
    slow_queue.until(lambda: slow_queue.twilio.calls[0].started_at)
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    filters: list[tuple[dict[str, Any], list[str | None]]] = [
        ({"start_time_after": an_hour_ago}, [first.sid]),
        ({"to": THEIRS, "from_": OURS}, [second.sid, first.sid]),
        ({"status": "queued"}, [second.sid]),
    ]
    assert [(by, [call.sid for call in slow_queue.client.calls.list(**by)]) for by, _ in filters] == filters


def test_list_is_filtered_by_numbers_and_dates(world: World) -> None:
    world.call()
    other = world.finish(to="+14155550124")
    calls = world.client.calls
    assert [call.sid for call in calls.list(to="+14155550124")] == [other.sid]
    assert calls.list(from_="+15005550006") == []
    today, tomorrow = datetime.now(UTC).date(), datetime.now(UTC).date() + timedelta(days=1)
    assert len(world.raw("GET", f"Calls.json?StartTime={today}").json()["calls"]) == 2
    assert world.raw("GET", f"Calls.json?StartTime>={tomorrow}").json()["calls"] == []


def test_new_calls_do_not_shift_a_lists_pages(world: World) -> None:
    first = [world.call(status_callback=None).sid for _ in range(5)]
    page = world.client.calls.page(page_size=2)
    seen = [call.sid for call in page]
    world.call(status_callback=None)
    while (page := page.next_page()) is not None:
        seen += [call.sid for call in page]
    assert seen == first[::-1]


def test_new_call_may_be_missing_from_lists_only(world: World) -> None:
    world.twilio.behave(list_delay_s=0.8, times=1)
    call = world.call()
    assert world.client.calls.list(to=THEIRS) == []
    assert world.client.calls(call.sid or "").fetch().sid == call.sid
    world.until(lambda: [c.sid for c in world.client.calls.list(to=THEIRS)] == [call.sid])


def test_queued_call_is_canceled_and_never_dialed(slow_queue: World) -> None:
    slow_queue.call()
    call = slow_queue.call(to="+14155550124")
    ended = call.update(status="canceled")
    assert (ended.status, ended.start_time) == ("canceled", None)
    slow_queue.twilio.wait_quiet()
    assert [t.fields["CallStatus"] for t in slow_queue.ours.told if t.fields["CallSid"] == call.sid] == ["canceled"]


def test_answered_call_is_completed_and_not_canceled(world: World) -> None:
    world.twilio.behave(talk_s=60)
    call = world.call()
    world.until(lambda: world.twilio.calls[0].status == "in-progress")
    with pytest.raises(TwilioRestException) as caught:
        call.update(status="canceled")
    assert (caught.value.status, caught.value.code) == (400, 21220)
    assert call.update(status="completed").status == "completed"
    with pytest.raises(TwilioRestException, match="not in the expected state"):
        call.update(status="completed")
    world.twilio.wait_quiet()
    assert world.ours.callbacks().count("completed") == 1


def test_completing_a_ringing_call_cancels_it(slow_ring: World) -> None:
    call = slow_ring.call()
    slow_ring.until(lambda: slow_ring.twilio.calls[0].status == "ringing")
    assert call.update(status="completed").status == "canceled"
    slow_ring.twilio.wait_quiet()
    assert slow_ring.ours.callbacks() == ["initiated", "ringing", "canceled"]


def test_time_limit_ends_a_call(world: World) -> None:
    world.twilio.behave(talk_s=60)
    world.finish(time_limit=1)
    call = world.twilio.calls[0]
    assert (call.status, call.duration_s in (1, 2)) == ("completed", True)


def test_queue_is_drained_at_its_pace(application: Application) -> None:
    with a_world(application, calls_per_second=20) as world:
        for _ in range(6):
            world.finish(status_callback=None)
        first, *_, last = [call.started_at for call in world.twilio.calls]
        assert first is not None
        assert last is not None
        assert last - first >= timedelta(seconds=0.2)
