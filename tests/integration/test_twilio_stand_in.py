"""The Twilio stand-in behaves as Twilio is documented to, and misbehaves as it is told to.

twilio-python drives it; a small application of ours answers its webhooks and remembers them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import pytest
import requests
from aiohttp import web
from requests.auth import HTTPBasicAuth
from twilio.base.exceptions import TwilioRestException
from twilio.http.http_client import TwilioHttpClient
from twilio.request_validator import RequestValidator
from twilio.rest import Client
from twilio.rest.api.v2010.account.call import CallInstance

from tests.sandbox.serve import Server
from tests.sandbox.twilio.call_simulator import APOLOGY
from tests.sandbox.twilio.create_call_validation import PARAMETERS, description
from tests.sandbox.twilio.server import UPDATES, Twilio

SID = "AC" + "0" * 32
TOKEN = "sandbox-token"
OURS = "+14155550100"
THEIRS = "+14155550123"
EVERY = ["initiated", "ringing", "answered", "completed"]
HELLO = "<Response><Say>Hello there</Say></Response>"


@dataclass
class Received:
    """One request to our application. fields: of the form, or of the query where it came by GET."""

    method: str
    url: str
    fields: dict[str, str]
    headers: Mapping[str, str]


@dataclass
class Application:
    """Ours: `/say/<name>` answers with `says[name]`, `/status` with `status`; all is remembered."""

    url: str = ""
    says: dict[str, str | Callable[[Received], str]] = field(default_factory=dict)
    content_type: str = "text/xml"
    voice_status: int = 200
    status_codes: list[int] = field(default_factory=list)
    asked: list[Received] = field(default_factory=list)
    told: list[Received] = field(default_factory=list)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/say/{name}", self._say)
        app.router.add_route("*", "/status", self._status)
        return app

    async def _say(self, request: web.Request) -> web.Response:
        received = await self._received(request)
        self.asked.append(received)
        say = self.says.get(request.match_info["name"], HELLO)
        text = say if isinstance(say, str) else say(received)
        return web.Response(text=text, content_type=self.content_type, status=self.voice_status)

    async def _status(self, request: web.Request) -> web.Response:
        self.told.append(await self._received(request))
        return web.Response(status=self.status_codes.pop(0) if self.status_codes else 204)

    async def _received(self, request: web.Request) -> Received:
        form = await request.post()
        fields = {name: str(value) for name, value in (form or request.query).items()}
        return Received(request.method, f"{self.url}{request.raw_path}", fields, request.headers)

    def statuses(self) -> list[str]:
        return [told.fields["CallStatus"] for told in self.told]


@pytest.fixture
def application() -> Iterator[Application]:
    ours = Application()
    with Server(ours.app) as server:
        ours.url = server.url
        yield ours


@dataclass
class World:
    """The stand-in, a client for it and our application."""

    twilio: Twilio
    url: str
    client: Client
    ours: Application

    def call(self, **more: Any) -> CallInstance:
        order = {
            "to": THEIRS,
            "from_": OURS,
            "url": f"{self.ours.url}/say/hello",
            "status_callback": f"{self.ours.url}/status",
            "status_callback_event": EVERY,
        }
        return self.client.calls.create(**{k: v for k, v in (order | more).items() if v is not None})

    def refusal(self, **more: Any) -> TwilioRestException:
        with pytest.raises(TwilioRestException) as caught:
            self.call(**more)
        return caught.value

    def control(self, method: str, path: str, body: object = None) -> requests.Response:
        return requests.request(method, f"{self.url}/_sandbox/{path}", json=body, timeout=5)

    def raw(self, method: str, path: str, token: str = TOKEN, **more: Any) -> requests.Response:
        url = path if path.startswith("/") else f"/2010-04-01/Accounts/{SID}/{path}"
        return requests.request(method, self.url + url, auth=HTTPBasicAuth(SID, token), timeout=5, **more)

    def until(self, condition: Callable[[], object]) -> None:
        """Waits for what the stand-in is about to do."""
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "it never came to be"
            threading.Event().wait(0.005)


@contextmanager
def a_world(ours: Application, **how: Any) -> Iterator[World]:
    twilio = Twilio(account_sid=SID, auth_token=TOKEN, phone_number=OURS, **({"ring_s": 0.01} | how))
    with Server(twilio.app) as server:
        client = Client(SID, TOKEN, http_client=TwilioHttpClient(timeout=5))
        client.api.base_url = server.url
        yield World(twilio, server.url, client, ours)


@pytest.fixture
def world(application: Application) -> Iterator[World]:
    with a_world(application) as world:
        yield world


@pytest.fixture
def slow_ring(application: Application) -> Iterator[World]:
    """Phones ring for a minute here: time to look at a call that nobody has answered."""
    with a_world(application, ring_s=60) as world:
        yield world


@pytest.fixture
def slow_queue(application: Application) -> Iterator[World]:
    """One call in ten seconds: the second waits."""
    with a_world(application, calls_per_second=0.1) as world:
        yield world


# -- creating -------------------------------------------------------------------------------------------------------------


def described(name: str) -> jsonschema.Draft202012Validator:
    page = description()
    if page is None:
        pytest.skip("Twilio's description of its API does not lie beside this repository")

    def nullable(node: Any) -> Any:
        if isinstance(node, dict):
            node = {key: nullable(value) for key, value in node.items()}
            if node.pop("nullable", False) and "type" in node:
                node["type"] = [node["type"], "null"]
            return node
        return [nullable(item) for item in node] if isinstance(node, list) else node

    return jsonschema.Draft202012Validator(nullable(page) | {"$ref": f"#/components/schemas/{name}"})


def test_a_new_call_is_shown_with_every_field_that_twilio_describes(world: World) -> None:
    schema = described("api.v2010.account.call")
    call = world.raw("POST", "Calls.json", data={"To": THEIRS, "From": OURS, "Url": f"{world.ours.url}/say/hello"})
    assert call.status_code == 201
    schema.validate(call.json())
    assert set(call.json()) == set(
        (description() or {})["components"]["schemas"]["api.v2010.account.call"]["properties"]
    )
    world.twilio.wait_quiet()
    schema.validate(world.raw("GET", f"Calls/{call.json()['sid']}.json").json())


def test_the_parameters_known_here_are_those_that_twilio_describes() -> None:
    described("api.v2010.account.call")
    create = (description() or {})["paths"]["/2010-04-01/Accounts/{AccountSid}/Calls.json"]["post"]
    schema = create["requestBody"]["content"]["application/x-www-form-urlencoded"]["schema"]
    assert set(schema["properties"]) == PARAMETERS


def test_a_new_call_is_queued_and_not_yet_started(slow_queue: World) -> None:
    slow_queue.call()
    second = slow_queue.call(to="+14155550124")
    assert (second.status, second.start_time, second.direction) == ("queued", None, "outbound-api")
    assert 9_000 < int(second.queue_time or 0) <= 10_000


def test_a_wrong_token_is_401(world: World) -> None:
    answer = world.raw("GET", "Calls.json", token="wrong")
    assert (answer.status_code, answer.json()["code"]) == (401, 20003)


def test_another_account_is_404(world: World) -> None:
    answer = world.raw("POST", f"/2010-04-01/Accounts/AC{'1' * 32}/Calls.json", data={"To": THEIRS})
    assert (answer.status_code, answer.json()["code"]) == (404, 20404)


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"to": ""}, 21201),
        ({"from_": ""}, 21213),
        ({"url": None}, 21205),
        ({"url": "say/hello"}, 21205),
        ({"to": "4155550123"}, 21211),
        ({"to": OURS}, 21211),
        ({"from_": "+14155550199"}, 21210),
        ({"from_": "415"}, 21212),
        ({"from_": "+15005550001"}, 21212),
        ({"from_": "+15005550006", "to": "+15005550001"}, 21217),
        ({"from_": "+15005550006", "to": "+15005550002"}, 21214),
        ({"from_": "+15005550006", "to": "+15005550003"}, 21215),
        ({"from_": "+15005550006", "to": "+15005550004"}, 21216),
        ({"method": "PUT"}, 21209),
        ({"timeout": 601}, 21208),
        ({"timeout": "soon"}, 21208),
        ({"send_digits": "call me"}, 21206),
        ({"machine_detection": "Perhaps"}, 21234),
        ({"status_callback": "http://un_der.example/"}, 21609),
        ({"status_callback_event": ["answered", "in-progress"]}, 21626),
        ({"url": None, "twiml": "<Response/>" + " " * 4000}, 32018),
        ({"byoc": "BY1"}, 20422),
    ],
)
def test_a_create_that_twilio_would_refuse_is_refused_with_its_code(
    world: World, parameters: dict[str, Any], code: int
) -> None:
    if "byoc" in parameters:
        described("api.v2010.account.call")  # only the description knows its pattern
    refusal = world.refusal(**parameters)
    assert (refusal.status, refusal.code) == (400, code)
    assert world.twilio.calls == []


def test_twilios_test_number_may_call(world: World) -> None:
    assert world.call(from_="+15005550006").status == "queued"


def test_an_unknown_parameter_is_only_warned_of(world: World) -> None:
    answer = world.raw("POST", "Calls.json", data={"To": THEIRS, "From": OURS, "Twiml": HELLO, "ValidityPeriod": "60"})
    assert answer.status_code == 201
    assert world.twilio.warnings == [{"code": 20001, "message": "Unknown parameters: ValidityPeriod"}]


def test_a_queue_of_more_than_a_day_takes_no_more_calls(application: Application) -> None:
    with a_world(application, calls_per_second=1 / 50_000) as world:
        world.call()
        world.call()
        assert world.refusal().code == 22005


# -- status callbacks -----------------------------------------------------------------------------------------------------


def test_callbacks_tell_the_life_of_a_call_in_order_and_numbered(world: World) -> None:
    call = world.call()
    world.twilio.wait_quiet()
    assert world.ours.statuses() == ["initiated", "ringing", "in-progress", "completed"]
    assert [told.fields["SequenceNumber"] for told in world.ours.told] == ["0", "1", "2", "3"]
    last = world.ours.told[-1].fields
    assert last["CallSid"] == call.sid
    assert {name: last[name] for name in ("To", "Called", "From", "Caller", "Direction", "CallbackSource")} == {
        "To": THEIRS,
        "Called": THEIRS,
        "From": OURS,
        "Caller": OURS,
        "Direction": "outbound-api",
        "CallbackSource": "call-progress-events",
    }
    assert (int(last["CallDuration"]) >= 1, last["Duration"], last["SipResponseCode"]) == (True, "1", "200")


def test_without_a_subscription_only_the_end_is_told(world: World) -> None:
    world.call(status_callback_event=None)
    world.twilio.wait_quiet()
    assert [(told.fields["CallStatus"], told.fields["SequenceNumber"]) for told in world.ours.told] == [
        ("completed", "0")
    ]


def test_every_request_to_us_is_signed_over_the_url_without_its_fragment(world: World) -> None:
    callback = f"{world.ours.url}/status?attempt=a%20b&empty="
    world.call(status_callback=f"{callback}#rc=2", url=f"{world.ours.url}/say/hello?attempt=1")
    world.twilio.wait_quiet()
    validator = RequestValidator(TOKEN)
    received = world.ours.told + world.ours.asked
    assert len(received) == 5
    assert {told.url for told in world.ours.told} == {callback}
    for one in received:
        assert validator.validate(one.url, one.fields, one.headers["X-Twilio-Signature"])
        assert one.fields["ToCity"] == ""  # blank fields are signed as well


def test_a_callback_by_get_carries_its_fields_in_the_signed_url(world: World) -> None:
    world.call(status_callback_method="GET", status_callback_event=["completed"])
    world.twilio.wait_quiet()
    (told,) = world.ours.told
    assert (told.method, told.fields["CallStatus"]) == ("GET", "completed")
    assert RequestValidator(TOKEN).validate(told.url, {}, told.headers["X-Twilio-Signature"])


def test_a_callback_we_answer_with_an_error_is_not_repeated(world: World) -> None:
    world.ours.status_codes = [500]
    world.call(status_callback_event=["completed"])
    world.twilio.wait_quiet()
    assert world.ours.statuses() == ["completed"]
    assert [error["code"] for error in world.twilio.calls[0].errors] == [11200]


def test_connection_overrides_make_twilio_repeat_a_callback_with_the_same_token(world: World) -> None:
    world.ours.status_codes = [500, 503]
    world.call(status_callback=f"{world.ours.url}/status#rc=5&rp=4xx,5xx", status_callback_event=["completed"])
    world.twilio.wait_quiet()
    assert world.ours.statuses() == ["completed"] * 3
    assert len({told.headers["I-Twilio-Idempotency-Token"] for told in world.ours.told}) == 1


@pytest.mark.parametrize(("outcome", "sip"), [("busy", "486"), ("no-answer", "487"), ("failed", "404")])
def test_a_call_that_nobody_takes_is_told_as_completed_with_its_own_status(
    world: World, outcome: str, sip: str
) -> None:
    world.twilio.behave(outcome=outcome)
    world.call(status_callback_event=["completed"])
    world.twilio.wait_quiet()
    (told,) = world.ours.told
    assert (told.fields["CallStatus"], told.fields["SipResponseCode"]) == (outcome, sip)
    assert told.fields["CallDuration"] == "0"
    assert (world.twilio.calls[0].status, world.ours.asked) == (outcome, [])


def test_a_phone_that_rings_longer_than_timeout_is_not_answered(slow_ring: World) -> None:
    slow_ring.call(timeout=1)
    slow_ring.twilio.wait_quiet()
    assert slow_ring.ours.statuses() == ["initiated", "ringing", "no-answer"]
    assert slow_ring.ours.asked == []


def test_the_sip_code_can_be_chosen(world: World) -> None:
    world.twilio.behave(outcome="failed", sip_code=480)
    world.call(status_callback_event=["completed"])
    world.twilio.wait_quiet()
    assert world.ours.told[0].fields["SipResponseCode"] == "480"


def test_callbacks_none(world: World) -> None:
    world.twilio.behave(callbacks="none")
    world.call()
    world.twilio.wait_quiet()
    assert world.ours.told == []
    assert world.twilio.calls[0].status == "completed"


def test_callbacks_twice_are_the_same_request_twice(world: World) -> None:
    world.twilio.behave(callbacks="twice")
    world.call(status_callback_event=["ringing", "completed"])
    world.twilio.wait_quiet()
    assert world.ours.statuses() == ["ringing", "ringing", "completed", "completed"]
    assert world.ours.told[0].fields == world.ours.told[1].fields
    assert len({told.headers["I-Twilio-Idempotency-Token"] for told in world.ours.told}) == 2


def test_callbacks_shuffled_keep_their_numbers_but_not_their_order(world: World) -> None:
    world.twilio.behave(callbacks="shuffled")
    world.call()
    world.twilio.wait_quiet()
    numbers = [told.fields["SequenceNumber"] for told in world.ours.told]
    assert sorted(numbers) == ["0", "1", "2", "3"]
    assert numbers != sorted(numbers)


def test_callbacks_late_come_when_the_call_is_long_over(world: World) -> None:
    world.twilio.behave(callbacks="late", callback_delay_s=1.5)
    world.call()
    world.until(lambda: world.twilio.calls[0].status == "completed")
    assert world.ours.told == []
    world.twilio.wait_quiet()
    assert world.ours.statuses() == ["initiated", "ringing", "in-progress", "completed"]


# -- listing and fetching -------------------------------------------------------------------------------------------------


def test_a_list_filtered_by_start_time_hides_a_queued_call(slow_queue: World) -> None:
    first, second = slow_queue.call(), slow_queue.call()
    slow_queue.until(lambda: slow_queue.twilio.calls[0].started_at)
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    assert [call.sid for call in slow_queue.client.calls.list(start_time_after=an_hour_ago)] == [first.sid]
    assert [call.sid for call in slow_queue.client.calls.list(to=THEIRS, from_=OURS)] == [second.sid, first.sid]
    assert [call.sid for call in slow_queue.client.calls.list(status="queued")] == [second.sid]


def test_a_list_is_filtered_by_numbers_and_dates(world: World) -> None:
    world.call()
    other = world.call(to="+14155550124")
    world.twilio.wait_quiet()
    calls = world.client.calls
    assert [call.sid for call in calls.list(to="+14155550124")] == [other.sid]
    assert calls.list(from_="+15005550006") == []
    today, tomorrow = datetime.now(UTC).date(), datetime.now(UTC).date() + timedelta(days=1)
    assert len(world.raw("GET", f"Calls.json?StartTime={today}").json()["calls"]) == 2
    assert world.raw("GET", f"Calls.json?StartTime>={tomorrow}").json()["calls"] == []


def test_filter_names_are_exact_and_a_wrong_one_filters_nothing(world: World) -> None:
    world.call()
    assert len(world.raw("GET", "Calls.json?to=%2B14155550199").json()["calls"]) == 1
    assert world.twilio.warnings == [{"code": 20001, "message": "Unknown parameters: to"}]


def test_a_long_list_comes_in_pages_that_new_calls_do_not_shift(world: World) -> None:
    first = [world.call(status_callback=None).sid for _ in range(5)]
    page = world.client.calls.page(page_size=2)
    seen = [call.sid for call in page]
    world.call(status_callback=None)
    while (page := page.next_page()) is not None:
        seen += [call.sid for call in page]
    assert seen == first[::-1]


def test_a_new_call_may_be_missing_from_lists_but_not_from_a_fetch(world: World) -> None:
    world.twilio.behave(list_delay_s=0.8, times=1)
    call = world.call()
    assert world.client.calls.list(to=THEIRS) == []
    assert world.client.calls(call.sid or "").fetch().sid == call.sid
    world.until(lambda: [c.sid for c in world.client.calls.list(to=THEIRS)] == [call.sid])


def test_lists_and_fetches_can_fail(world: World) -> None:
    call = world.call()
    world.twilio.behave(list="error", to=THEIRS)
    assert world.raw("GET", "Calls.json", params={"To": THEIRS}).status_code == 503
    assert world.raw("GET", f"Calls/{call.sid}.json").status_code == 503
    assert world.raw("GET", "Calls.json").status_code == 200


def test_an_unknown_sid_is_404(world: World) -> None:
    answer = world.raw("GET", f"Calls/CA{'0' * 32}.json")
    assert (answer.status_code, answer.json()["code"]) == (404, 20404)


def test_the_events_of_a_call_prove_which_webhooks_it_was_made_with(world: World) -> None:
    call = world.call(url=f"{world.ours.url}/say/hello?attempt=42")
    world.twilio.wait_quiet()
    urls = [str((event.request or {})["url"]) for event in world.client.calls(call.sid or "").events.list()]
    assert f"{world.ours.url}/say/hello?attempt=42" in urls
    assert len(urls) == 6  # the create, four callbacks and the voice request


def test_the_account_and_its_number_can_be_asked_after(world: World) -> None:
    assert world.client.api.accounts(SID).fetch().status == "active"
    assert [n.phone_number for n in world.client.incoming_phone_numbers.list(phone_number=OURS)] == [OURS]
    assert world.client.incoming_phone_numbers.list(phone_number="+14155550199") == []
    world.twilio.account.caller_ids = ["+14155550150"]
    (verified,) = world.client.outgoing_caller_ids.list(phone_number="+14155550150")
    assert verified.phone_number == "+14155550150"


def test_the_countries_that_may_be_called_can_be_asked_after(world: World) -> None:
    world.client.voice.base_url = world.client.api.base_url
    allowed = {
        c.iso_code: c.low_risk_numbers_enabled for c in world.client.voice.v1.dialing_permissions.countries.list()
    }
    assert allowed == {"US": True, "CA": True, "GB": True, "DE": False}


# -- ending a call --------------------------------------------------------------------------------------------------------


def test_a_queued_call_can_be_canceled_and_is_never_dialed(slow_queue: World) -> None:
    slow_queue.call()
    call = slow_queue.call(to="+14155550124", status_callback_event=EVERY)
    ended = slow_queue.client.calls(call.sid or "").update(status="canceled")
    assert (ended.status, ended.start_time) == ("canceled", None)
    slow_queue.twilio.wait_quiet()
    assert [t.fields["CallStatus"] for t in slow_queue.ours.told if t.fields["CallSid"] == call.sid] == ["canceled"]


def test_an_answered_call_cannot_be_canceled_but_completed(world: World) -> None:
    world.twilio.behave(talk_s=60)
    call = world.client.calls(world.call().sid or "")
    world.until(lambda: world.twilio.calls[0].status == "in-progress")
    with pytest.raises(TwilioRestException) as caught:
        call.update(status="canceled")
    assert (caught.value.status, caught.value.code) == (400, 21220)
    assert call.update(status="completed").status == "completed"
    with pytest.raises(TwilioRestException) as caught:
        call.update(status="completed")
    assert caught.value.code == 21220
    world.twilio.wait_quiet()
    assert world.ours.statuses().count("completed") == 1


def test_completing_a_ringing_call_cancels_it(slow_ring: World) -> None:
    call = slow_ring.call()
    slow_ring.until(lambda: slow_ring.twilio.calls[0].status == "ringing")
    assert slow_ring.client.calls(call.sid or "").update(status="completed").status == "canceled"
    slow_ring.twilio.wait_quiet()
    assert slow_ring.ours.statuses() == ["initiated", "ringing", "canceled"]


def test_time_limit_ends_a_call(world: World) -> None:
    world.twilio.behave(talk_s=60)
    world.call(time_limit=1)
    world.twilio.wait_quiet()
    call = world.twilio.calls[0]
    assert call.status == "completed"
    assert call.duration_s in (1, 2)


# -- a call that is told something else ---------------------------------------------------------------------------------

HOLD = "<Response><Say>Please hold</Say><Pause length='600'/><Say>too late</Say></Response>"


def test_an_answered_call_goes_on_with_the_document_it_is_given(world: World) -> None:
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


def test_a_call_may_be_told_something_else_more_than_once(world: World) -> None:
    world.ours.says["hello"] = HOLD
    call = world.client.calls(world.call().sid or "")
    world.until(lambda: heard(world) == ["Please hold"])
    call.update(twiml=HOLD.replace("hold", "wait"))
    world.until(lambda: heard(world)[-1] == "Please wait")
    call.update(twiml="<Response><Hangup/></Response>")
    world.twilio.wait_quiet()
    assert heard(world) == ["Please hold", "Please wait"]


def test_a_call_that_nobody_has_answered_or_that_is_over_is_told_nothing(slow_ring: World) -> None:
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
def test_a_document_that_cannot_be_executed_interrupts_nothing(world: World, twiml: str, code: int) -> None:
    world.ours.says["hello"] = HOLD
    call = world.client.calls(world.call().sid or "")
    world.until(lambda: heard(world) == ["Please hold"])
    with pytest.raises(TwilioRestException) as caught:
        call.update(twiml=twiml)
    assert caught.value.code == code
    with pytest.raises(TwilioRestException):
        call.update(twiml="<Response/>", status="completed")
    assert world.twilio.calls[0].status == "in-progress"


def test_what_can_be_updated_here_is_what_twilio_describes() -> None:
    schema = described("api.v2010.account.call")
    page: Any = schema.schema
    update = page["paths"]["/2010-04-01/Accounts/{AccountSid}/Calls/{Sid}.json"]["post"]["requestBody"]["content"]
    properties = update["application/x-www-form-urlencoded"]["schema"]["properties"]
    assert properties.keys() >= UPDATES


# -- what is said and pressed ---------------------------------------------------------------------------------------------


def heard(world: World) -> list[str]:
    return [entry.get("text") or f"[{entry['digits']}]" for entry in world.twilio.calls[-1].transcript]


def test_the_person_hears_what_the_application_says(world: World) -> None:
    world.ours.says["hello"] = (
        "<Response><Say>Good <break/> day</Say><Pause/><Say loop='2'>Bye</Say><Hangup/></Response>"
    )
    world.call()
    world.twilio.wait_quiet()
    assert heard(world) == ["Good day", "Bye", "Bye"]
    assert world.ours.asked[0].fields["CallStatus"] == "in-progress"
    assert world.twilio.calls[0].reached
    assert world.twilio.calls[0].errors == []


def test_inline_twiml_is_executed_unless_there_is_a_url(world: World) -> None:
    world.call(url=None, twiml="<Response><Say>Inline</Say></Response>")
    world.twilio.wait_quiet()
    assert heard(world) == ["Inline"]
    world.call(twiml="<Response><Say>Inline</Say></Response>")
    world.twilio.wait_quiet()
    assert heard(world) == ["Hello there"]


def test_digits_are_gathered_and_sent_to_the_action(world: World) -> None:
    world.ours.says["hello"] = (
        "<Response><Gather numDigits='1' action='chosen?step=1' method='GET'><Say>Press one</Say></Gather>"
        "<Say>unreachable</Say></Response>"
    )
    world.ours.says["chosen"] = lambda asked: f"<Response><Say>You pressed {asked.fields['Digits']}</Say></Response>"
    world.twilio.behave(digits=["12"])
    world.call()
    world.twilio.wait_quiet()
    assert heard(world) == ["Press one", "[12]", "You pressed 1"]
    assert (world.ours.asked[1].method, world.ours.asked[1].fields["step"]) == ("GET", "1")


@pytest.mark.parametrize(
    ("attributes", "pressed", "sent"),
    [
        ("", "12#3", "12"),
        ("finishOnKey='*'", "1#*", "1#"),
        ("finishOnKey=''", "1#", "1#"),
        ("timeout='2'", "7", "7"),
        ("actionOnEmptyResult='true'", "", ""),
        ("", "", None),
        ("", "#", None),
    ],
)
def test_a_gather_ends_as_its_attributes_say(world: World, attributes: str, pressed: str, sent: str | None) -> None:
    world.ours.says["hello"] = f"<Response><Gather {attributes} action='/say/after'/><Say>Still there?</Say></Response>"
    world.twilio.behave(digits=[pressed])
    world.call()
    world.twilio.wait_quiet()
    actions = [asked.fields["Digits"] for asked in world.ours.asked[1:]]
    assert actions == ([] if sent is None else [sent])
    assert ("Still there?" in heard(world)) is (sent is None)


def test_each_gather_gets_the_next_digits_and_silence_when_they_are_used_up(world: World) -> None:
    world.ours.says["hello"] = "<Response><Gather numDigits='1'/><Say>Nobody</Say></Response>"
    world.twilio.behave(digits=["1", "2"])
    world.call()
    world.twilio.wait_quiet()
    assert heard(world) == ["[1]", "[2]", "Nobody"]


def test_the_person_may_hang_up_after_some_gathers(world: World) -> None:
    world.ours.says["hello"] = "<Response><Gather numDigits='1' action='next'/></Response>"
    world.ours.says["next"] = "<Response><Say>too late</Say></Response>"
    world.twilio.behave(digits=["1"], hangup_after=1)
    world.call()
    world.twilio.wait_quiet()
    assert heard(world) == ["[1]"]
    assert not world.twilio.calls[0].reached


def test_a_redirect_is_followed_and_a_loop_ends_with_the_persons_patience(world: World) -> None:
    world.ours.says["hello"] = "<Response><Redirect method='GET'>again</Redirect><Say>unreachable</Say></Response>"
    world.ours.says["again"] = "<Response><Redirect>again</Redirect></Response>"
    world.call()
    world.twilio.wait_quiet()
    assert [asked.method for asked in world.ours.asked[:3]] == ["POST", "GET", "POST"]
    assert len(world.ours.asked) < 200
    assert world.twilio.calls[0].status == "completed"


@pytest.mark.parametrize(
    ("say", "code"),
    [
        ("not xml", 12100),
        ("", 12100),
        ("<Answer/>", 12102),
        ("<Response><Dial>+14155550124</Dial></Response>", 12200),
        ("<Response><Say><Say>no</Say></Say></Response>", 12200),
        ("<Response><Say/></Response>", 13520),
        ("<Response><Gather><Hangup/></Gather></Response>", 13320),
        ("<Response><Gather numDigits='0'/></Response>", 13314),
        ("<Response><Redirect method='PUT'>x</Redirect></Response>", 13710),
        ("<Response><Pause length='long'/></Response>", 13910),
        ("<Response>" + " " * 65_536 + "</Response>", 11750),
    ],
)
def test_twiml_that_cannot_be_executed_is_an_application_error(world: World, say: str, code: int) -> None:
    world.ours.says["hello"] = say
    world.call()
    world.twilio.wait_quiet()
    call = world.twilio.calls[0]
    assert [error["code"] for error in call.errors] == [code]
    assert (call.status, heard(world), call.reached) == ("completed", [APOLOGY], False)


def test_an_attribute_unknown_to_twilio_is_noted_and_ignored(world: World) -> None:
    world.ours.says["hello"] = "<Response><Say tone='warm'>Hello</Say></Response>"
    world.call()
    world.twilio.wait_quiet()
    assert [error["code"] for error in world.twilio.calls[0].errors] == [12200]
    assert heard(world) == ["Hello"]


def test_an_answer_of_another_content_type_is_an_application_error(world: World) -> None:
    world.ours.content_type = "application/json"
    world.call()
    world.twilio.wait_quiet()
    assert [error["code"] for error in world.twilio.calls[0].errors] == [12300]


def test_a_failing_url_falls_back_to_the_fallback_url(world: World) -> None:
    world.ours.says["spare"] = "<Response><Say>Spare</Say></Response>"
    world.call(url="http://127.0.0.1:1/", fallback_url=f"{world.ours.url}/say/spare")
    world.twilio.wait_quiet()
    assert heard(world) == ["Spare"]
    assert world.ours.asked[0].fields["ErrorCode"] == "11205"


def test_a_failing_url_without_a_fallback_ends_the_call_with_an_apology(world: World) -> None:
    world.ours.voice_status = 503
    world.call()
    world.twilio.wait_quiet()
    assert heard(world) == [APOLOGY]
    assert [error["code"] for error in world.twilio.calls[0].errors] == [11200]


# -- machines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "by"), [("Enable", "machine_start"), ("DetectMessageEnd", "machine_end_beep")])
def test_a_machine_is_detected_before_the_application_is_asked(world: World, mode: str, by: str) -> None:
    world.twilio.behave(outcome="machine", digits=["1"])
    call = world.call(machine_detection=mode)
    world.twilio.wait_quiet()
    assert world.ours.asked[0].fields["AnsweredBy"] == by
    assert world.ours.told[-1].fields["AnsweredBy"] == by
    assert world.client.calls(call.sid or "").fetch().answered_by == by
    assert (world.twilio.calls[0].answered_by, world.twilio.calls[0].reached) == ("machine", False)


def test_without_detection_nobody_knows_who_answered(world: World) -> None:
    world.twilio.behave(outcome="machine")
    call = world.call()
    world.twilio.wait_quiet()
    assert "AnsweredBy" not in world.ours.asked[0].fields
    assert world.client.calls(call.sid or "").fetch().answered_by is None
    assert not world.twilio.calls[0].reached


def test_asynchronous_detection_is_told_by_a_callback_of_its_own(world: World) -> None:
    world.twilio.behave(talk_s=0.2)
    world.call(
        machine_detection="Enable",
        async_amd="true",
        async_amd_status_callback=f"{world.ours.url}/say/amd",
        status_callback=None,
    )
    world.twilio.wait_quiet()
    by_path = {asked.url.rsplit("/", 1)[1]: asked.fields for asked in world.ours.asked}
    assert "AnsweredBy" not in by_path["hello"]
    assert by_path["amd"]["AnsweredBy"] == "human"


# -- what goes wrong on demand --------------------------------------------------------------------------------------------


def impatient(world: World) -> Client:
    client = Client(SID, TOKEN, http_client=TwilioHttpClient(timeout=0.3))
    client.api.base_url = world.url
    return client


def ask(client: Client) -> CallInstance:
    return client.calls.create(to=THEIRS, from_=OURS, twiml=HELLO)


@pytest.mark.parametrize(("create", "taken"), [("accept_then_drop", 1), ("drop", 0)])
def test_a_connection_closed_without_an_answer_tells_nothing(world: World, create: str, taken: int) -> None:
    world.twilio.behave(create=create)
    with pytest.raises(requests.exceptions.ConnectionError):
        ask(world.client)
    assert len(world.twilio.calls) == taken
    assert world.twilio.requests["create"] == 1


def test_a_500_may_hide_a_call_that_was_taken(world: World) -> None:
    world.twilio.behave(create="accept_then_500")
    refusal = world.refusal()
    assert (refusal.status, refusal.code, len(world.twilio.calls)) == (500, 20500, 1)


def test_an_unreadable_201_hides_a_call_that_was_taken(world: World) -> None:
    world.twilio.behave(create="garbled")
    with pytest.raises(json.JSONDecodeError):
        ask(world.client)
    assert len(world.twilio.calls) == 1


def test_a_hanging_create_takes_no_call(world: World) -> None:
    world.twilio.behave(create="hang")
    with pytest.raises(requests.exceptions.ReadTimeout):
        ask(impatient(world))
    world.twilio.behave(create="ok")
    ask(world.client)
    assert len(world.twilio.calls) == 1


def test_a_call_may_be_taken_after_the_client_has_given_up(world: World) -> None:
    world.twilio.behave(create="accept_late", late_s=0.5)
    with pytest.raises(requests.exceptions.ReadTimeout):
        ask(impatient(world))
    assert world.twilio.calls == []
    world.until(lambda: len(world.twilio.calls) == 1)


def test_a_slow_answer_comes_after_the_call_was_taken(world: World) -> None:
    world.twilio.behave(latency_ms=1000)
    with pytest.raises(requests.exceptions.ReadTimeout):
        ask(impatient(world))
    assert len(world.twilio.calls) == 1


@pytest.mark.parametrize(
    ("refused", "status", "code"),
    [
        ("error:20003", 401, 20003),
        ("error:20429", 429, 20429),
        ("error:20500", 500, 20500),
        ("error:20503", 503, 20503),
        ("error:21215", 400, 21215),
        ("error:10004", 400, 10004),
        ("error:429", 429, 429),
        ("error:html502", 502, 502),
    ],
)
def test_twilio_can_be_made_to_refuse(world: World, refused: str, status: int, code: int) -> None:
    world.twilio.behave(create=refused)
    refusal = world.refusal()
    assert (refusal.status, refusal.code, world.twilio.calls) == (status, code, [])


def test_the_newest_rule_decides_and_older_ones_fill_what_it_leaves_out(world: World) -> None:
    world.control("PUT", "behaviour", {"outcome": "busy", "callbacks": "none"})
    world.control("PUT", "behaviour", {"outcome": "no-answer", "to": THEIRS, "times": 1})
    for _ in range(2):
        world.call()
    world.twilio.wait_quiet()
    assert [call.status for call in world.twilio.calls] == ["no-answer", "busy"]
    assert world.ours.told == []
    assert world.control("DELETE", "behaviour").ok
    world.call()
    world.twilio.wait_quiet()
    assert world.twilio.calls[-1].status == "completed"


def test_a_call_keeps_what_it_drew_when_it_was_asked_for(slow_ring: World) -> None:
    slow_ring.twilio.behave(callbacks="none")
    call = slow_ring.call()
    slow_ring.twilio.rules.clear()
    slow_ring.client.calls(call.sid or "").update(status="canceled")
    slow_ring.twilio.wait_quiet()
    assert slow_ring.ours.told == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"creat": "ok"}, "creat"),
        ({"create": "explode"}, "create"),
        ({"times": 0}, "times"),
        ({"latency_ms": "1"}, "latency_ms"),
        ({"digits": ["one"]}, "digits.0"),
        ([], "body"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_by_name(world: World, body: object, field: str) -> None:
    answer = world.control("PUT", "behaviour", body)
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]


def test_control_shows_every_call_that_was_taken_in_order(world: World) -> None:
    sids = [world.call(to=to).sid for to in (THEIRS, "+14155550124")]
    world.twilio.wait_quiet()
    calls = world.control("GET", "calls").json()
    assert [call["sid"] for call in calls] == sids
    assert [step["status"] for step in calls[0].pop("history")] == ["ringing", "in-progress", "completed"]
    assert calls[0] | {"accepted_at": "", "transcript": [], "duration_s": 1} == {
        "sid": sids[0],
        "to": THEIRS,
        "from": OURS,
        "status": "completed",
        "accepted_at": "",
        "url": f"{world.ours.url}/say/hello",
        "answered_by": "human",
        "duration_s": 1,
        "reached": True,
        "transcript": [],
        "errors": [],
    }
    assert datetime.fromisoformat(calls[0]["accepted_at"]).tzinfo == UTC


def test_the_clock_moves_the_stand_ins_dates_and_whoever_listens(application: Application) -> None:
    offsets: list[float] = []

    async def on_clock(offset_s: float) -> None:
        offsets.append(offset_s)

    with a_world(application, on_clock=on_clock) as world:
        assert world.control("PUT", "clock", {"offset_s": 86_400}).ok
        created = world.call().date_created
        assert created is not None
        assert created - datetime.now(UTC) > timedelta(hours=23)
        assert offsets == [86_400]


def test_reset_forgets_everything_and_ends_calls_without_a_word(slow_ring: World) -> None:
    slow_ring.twilio.behave(outcome="busy")
    slow_ring.call(status_callback_event=["completed"])
    slow_ring.twilio.reset()
    slow_ring.twilio.wait_quiet()
    assert (slow_ring.twilio.calls, slow_ring.twilio.requests.total(), slow_ring.ours.told) == ([], 0, [])


# -- many -----------------------------------------------------------------------------------------------------------------


def test_the_queue_is_drained_at_its_pace(application: Application) -> None:
    with a_world(application, calls_per_second=20) as world:
        for _ in range(6):
            world.call(status_callback=None)
        world.twilio.wait_quiet()
        started = [call.started_at for call in world.twilio.calls]
        assert None not in started
        assert max(s for s in started if s) - min(s for s in started if s) >= timedelta(seconds=0.2)


def test_hundreds_of_calls_live_at_once(application: Application) -> None:
    with a_world(application, calls_per_second=2000, ring_s=0.5) as world:
        with ThreadPoolExecutor(8) as pool:
            sids = {call.sid for call in pool.map(lambda _: world.call(), range(200))}
        world.twilio.wait_quiet(30)
        assert len(sids) == 200
        assert {call.status for call in world.twilio.calls} == {"completed"}
        assert len(application.told) == 800
        assert [call.errors for call in world.twilio.calls] == [[]] * 200
