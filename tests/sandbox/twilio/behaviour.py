"""What goes wrong on demand: the rules a test or an operator gives the Twilio stand-in, and `/_sandbox`, where they give them.

Rules stack. For each key the newest rule decides that matches the number and has times left; the keys it leaves out are
filled by older rules, the rest by the defaults of a polite world. A rule's `times` is spent by each create request for
which it decided a key. A call keeps for its life what it drew when it was asked for.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tests.sandbox.twilio.create_call_validation import Refusal

if TYPE_CHECKING:
    from tests.sandbox.twilio.server import Twilio

Create = Literal["ok", "accept_then_drop", "accept_then_500", "accept_late", "hang", "drop", "garbled"]
Refused = Annotated[str, Field(pattern=r"^error:(\d{3}|\d{5}|html502)$")]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Model = TypeVar("Model", bound=BaseModel)


PAGE = {
    name.removeprefix("state.html"): (f"text/{kind}", Path(__file__).parent / name)
    for name, kind in (("state.html", "html"), ("state.js", "javascript"), ("state.css", "css"))
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Speech(_Strict):
    """What a person says, and how sure the recognition is of it."""

    text: str
    confidence: Annotated[float, Field(ge=0, le=1)] = 0.9


Words = Annotated[Speech, BeforeValidator(lambda given: {"text": given} if isinstance(given, str) else given)]


class Conduct(_Strict):
    """How the stand-in treats one create request and the call it makes; the defaults are a polite world.

    create: `ok`; `accept_then_drop` takes the call and closes the connection; `accept_then_500` takes it and answers 500;
        `accept_late` takes it `late_s` after the client has gone; `garbled` takes it and answers what is not JSON; `hang`
        never answers, `drop` closes, neither takes it; `error:<code>` refuses with a Twilio code or an HTTP status;
        `error:html502` is a proxy's page.
    latency_ms: how long the answer to a create waits; the call is taken before.
    list_delay_s: lists do not show the call before; a fetch by its SID does.
    callbacks: `none` sends none; `twice` repeats each; `late` holds each back for `callback_delay_s`; `shuffled` holds all
        until the call is over and sends them in another order than they arose.
    outcome: what becomes of the ringing. `person`: somebody holds the phone, and acts through `/_sandbox/phones`; it rings
        until they do, or to the end of the ring time.
    detection_s: how long machine detection listens, at the speed of a human voice.
    words_per_second: how fast this call speaks; by default as fast as the stand-in was told, to a `person` as people speak.
    speech: the words spoken at each Gather in turn, as text or as {"text", "confidence"}; keys pressed there come first.
    to_agent: what is said to an agent after each of its utterances, or pressed where it is of digits; "" is silence.
    agent_fault: the agent's socket is `refused`, fails in its `handshake` (404) or in `tls`, or breaks with the agent's
        nth message (`break:n`).
    digits: what is pressed at each Gather in turn; "" and the end of the list are silence.
    hangup_after: so many Gathers and they hang up (0: at once). talk_s: the line stays up so long at least.
    """

    create: Create | Refused = "ok"
    latency_ms: Seconds = 0.0
    late_s: Seconds = 1.0
    list_delay_s: Seconds = 0.0
    callbacks: Literal["ok", "none", "twice", "shuffled", "late"] = "ok"
    callback_delay_s: Seconds = 2.0
    outcome: Literal["answered", "busy", "no-answer", "failed", "machine", "person"] = "answered"
    words_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    detection_s: Seconds | None = None
    digits: tuple[Annotated[str, Field(pattern=r"^[0-9*#A-D]*$")], ...] = ()
    speech: tuple[Words, ...] = ()
    to_agent: tuple[str, ...] = ()
    agent_fault: Annotated[str, Field(pattern=r"^(refused|handshake|tls|break:[1-9]\d*)$")] | None = None
    hangup_after: Annotated[int, Field(ge=0)] | None = None
    talk_s: Seconds = 0.0


class Rule(Conduct):
    """Some keys of `Conduct`, for one number (`to`) or all, for so many calls (`times`) or for good.

    second_leg: for the phones that a Dial rings only.
    """

    to: str | None = None
    second_leg: bool = False
    times: Annotated[int, Field(ge=1)] | None = None

    def says(self) -> dict[str, object]:
        return self.model_dump(include=self.model_fields_set & Conduct.model_fields.keys())


Do = Literal["answer", "let-ring", "decline", "busy", "voice-mail", "press", "say", "hang-up"]


class Act(_Strict):
    """Something that a person does with the phone that rings, or is in a call. keys: of `press`. words: of `say`."""

    do: Do
    keys: Annotated[str, Field(pattern=r"^[0-9*#]{0,32}$")] = ""
    words: Annotated[str, Field(max_length=500)] = ""


class Clock(_Strict):
    """How far the sandbox's time is ahead of the machine's."""

    offset_s: Annotated[float, Field(allow_inf_nan=False)]


class Rules:
    """The rules in force. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack: list[tuple[Rule, list[int | None]]] = []  # oldest first; the list holds the times left

    def add(self, rule: Rule) -> None:
        with self._lock:
            self._stack.append((rule, [rule.times]))

    def remove(self, rule: Rule) -> None:
        """This very rule; nothing happens when it is gone."""
        with self._lock:
            self._stack = [entry for entry in self._stack if entry[0] is not rule]

    def clear(self) -> None:
        with self._lock:
            self._stack.clear()

    def draw(self, to: str, *, second_leg: bool = False) -> Conduct:
        """What awaits a call to this number; spends `times`."""
        drawn: dict[str, object] = {}
        with self._lock:
            for rule, left in reversed(self._stack):
                news = {key: value for key, value in rule.says().items() if key not in drawn}
                if not news or not self._applies(rule, left, to) or rule.second_leg > second_leg:
                    continue
                drawn |= news
                if left[0] is not None:
                    left[0] -= 1
        return Conduct.model_validate(drawn)

    @staticmethod
    def _applies(rule: Rule, left: list[int | None], to: str | None) -> bool:
        return (rule.to is None or rule.to == to) and left[0] != 0


def control(twilio: Twilio) -> list[web.RouteDef]:
    """The routes of `/_sandbox`, and a page that shows the state. Every program on this machine may use them."""

    async def page(request: web.Request) -> web.Response:
        kind, file = PAGE[request.match_info["file"]]
        headers = {"Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'"}
        return web.Response(body=file.read_bytes(), content_type=kind, charset="utf-8", headers=headers)

    async def calls(_: web.Request) -> web.Response:
        return web.json_response([call.report() for call in twilio.calls])

    async def behave(request: web.Request) -> web.Response:
        twilio.rules.add(await _body(request, Rule))
        return web.json_response({"ok": True})

    async def be_polite(_: web.Request) -> web.Response:
        twilio.rules.clear()
        return web.json_response({"ok": True})

    async def phones(_: web.Request) -> web.Response:
        return web.json_response(twilio.phones())

    async def act(request: web.Request) -> web.Response:
        asked = await _body(request, Act)
        try:
            twilio.act(request.match_info["number"], asked)
        except Refusal as refusal:
            return web.json_response(refusal.body(), status=refusal.status)
        return web.json_response({"ok": True})

    async def set_clock(request: web.Request) -> web.Response:
        clock = await _body(request, Clock)
        await twilio.set_clock(clock.offset_s)
        return web.json_response({"offset_s": clock.offset_s})

    return [
        web.get("/{file:|state.js|state.css}", page), web.get("/_sandbox/calls", calls),
        web.put("/_sandbox/behaviour", behave), web.delete("/_sandbox/behaviour", be_polite),
        web.get("/_sandbox/phones", phones), web.post("/_sandbox/phones/{number}", act),
        web.put("/_sandbox/clock", set_clock),
    ]  # fmt: skip


async def _body(request: web.Request, model: type[Model]) -> Model:
    """The request's JSON as `model`; else 400 that names every wrong field."""
    try:
        return model.model_validate_json(await request.read(), strict=True)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors())
        answer = {"error": {"code": "invalid", "message": wrong}}
        raise web.HTTPBadRequest(text=json.dumps(answer), content_type="application/json") from None
