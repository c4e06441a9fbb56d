"""The Twilio stand-in, driven by twilio-python, and a small application that answers its webhooks and remembers them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import pytest
import requests
from aiohttp import web
from requests.auth import HTTPBasicAuth
from twilio.base.exceptions import TwilioRestException
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client
from twilio.rest.api.v2010.account.call import CallInstance

from tests.sandbox.serve import Server
from tests.sandbox.twilio.call_simulator import Call
from tests.sandbox.twilio.create_call_validation import description
from tests.sandbox.twilio.server import Twilio

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

    def callbacks(self, name: str = "CallStatus") -> list[str]:
        """This field of each status callback."""
        return [told.fields[name] for told in self.told]


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
            "to": THEIRS, "from_": OURS, "url": f"{self.ours.url}/say/hello",
            "status_callback": f"{self.ours.url}/status", "status_callback_event": EVERY,
        }  # fmt: skip
        return self.client.calls.create(**{k: v for k, v in (order | more).items() if v is not None})

    def finish(self, **more: Any) -> CallInstance:
        """A call, seen through to its last callback."""
        call = self.call(**more)
        self.twilio.wait_quiet()
        return call

    def refusal(self, **more: Any) -> TwilioRestException:
        with pytest.raises(TwilioRestException) as caught:
            self.call(**more)
        return caught.value

    def control(self, method: str, path: str, body: object = None) -> requests.Response:
        return requests.request(method, f"{self.url}/_sandbox/{path}", json=body, timeout=5)

    def act(self, do: str, to: str = THEIRS, **more: str) -> requests.Response:
        """The person with this phone does so."""
        return self.control("POST", f"phones/{to}", {"do": do, **more})

    def answer(self, to: str = THEIRS) -> None:
        """The person picks up, as soon as the phone rings."""
        self.until(lambda: self.twilio.calls[-1].to == to and self.twilio.calls[-1].status == "ringing")
        assert self.act("answer", to).ok

    def heard(self, call: Call | None = None) -> list[str]:
        """The transcript of a call, by default of the last one: words, and [keys]."""
        lines = (call or self.twilio.calls[-1]).transcript
        return [line.get("text") or line.get("said") or f"[{line['digits']}]" for line in lines]

    def codes(self) -> list[object]:
        """Of what the last call's debugger holds."""
        return [error["code"] for error in self.twilio.calls[-1].errors]

    def raw(self, method: str, path: str, token: str = TOKEN, **more: Any) -> requests.Response:
        url = path if path.startswith("/") else f"/2010-04-01/Accounts/{SID}/{path}"
        return requests.request(method, self.url + url, auth=HTTPBasicAuth(SID, token), timeout=5, **more)

    def told(self, kind: str) -> list[dict[str, Any]]:
        """What happened at the last call, of this kind."""
        of = self.twilio.calls[-1].sid
        return [event for event in self.twilio.events.kept() if (event["kind"], event.get("sid")) == (kind, of)]

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
    """Phones ring for a minute: time to look at a call that nobody has answered."""
    with a_world(application, ring_s=60) as world:
        yield world


@pytest.fixture
def slow_queue(application: Application) -> Iterator[World]:
    """One call in ten seconds: the second waits."""
    with a_world(application, calls_per_second=0.1) as world:
        yield world


def described(name: str) -> jsonschema.Draft202012Validator:
    """Of Twilio's description; skips where it does not lie beside this repository."""
    if (page := description()) is None:
        pytest.skip("Twilio's description of its API does not lie beside this repository")

    def nullable(node: Any) -> Any:
        if isinstance(node, dict):
            node = {key: nullable(value) for key, value in node.items()}
            if node.pop("nullable", False) and "type" in node:
                node["type"] = [node["type"], "null"]
            return node
        return [nullable(item) for item in node] if isinstance(node, list) else node

    return jsonschema.Draft202012Validator(nullable(page) | {"$ref": f"#/components/schemas/{name}"})
