"""A Twilio for one machine: the Calls API as twilio-python speaks it, held to Twilio's own description, stateful.

Beside it stands `/_sandbox` (behaviour.py), where tests order what goes wrong. Calls live in call_simulator.py; what a create
request may say is in create_call_validation.py, what the account has in account.py, requests to the application in
webhooks.py, TwiML in twiml.py. State is in memory and survives nothing. It answers loopback only, and dials nobody.

Not done, and refused rather than pretended: SIP and client addresses, Applications, FallbackUrl, recordings, Events.json,
redirecting a live call to another URL, deleting calls, TwiML verbs other than Say, Play, Pause, Gather, Connect, Dial of one
Number, Redirect and Hangup.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, get_args
from urllib.parse import urlencode

from aiohttp import web

from tests.sandbox.events import Events
from tests.sandbox.twilio.account import Account
from tests.sandbox.twilio.behaviour import PAGE, Act, Conduct, Rule, Rules, control
from tests.sandbox.twilio.call_simulator import API, LIVE, Call, Exchange, Status, attempt_of
from tests.sandbox.twilio.create_call_validation import PARAMETERS, Order, Refusal, read, read_twiml
from tests.sandbox.twilio.webhooks import Webhooks

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

UPDATES = {"Status", "Twiml"}  # of a live call; Twilio describes more
TIME_FILTERS = {f"{name}{sign}" for name in ("StartTime", "EndTime") for sign in ("", "<", ">")}
LIST_FILTERS = {"To", "From", "ParentCallSid", "Status", "PageSize", "Page", "PageToken"} | TIME_FILTERS
BAD_GATEWAY = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
CLIENT_GONE_S = 6.0
DISCONNECT_POLL_S = 0.01  # aiohttp tells a handler of a vanished client only through request.transport


class Twilio:
    """The stand-in. `app()` is served once; the other public names may be used from any thread.

    calls_per_second: how fast the queue is drained. ring_s: how long a phone rings before it is picked up, refused or given
    up. words_per_second: how fast a Say is spoken. on_clock: awaited with the offset when somebody sets the clock. now: the
    machine's time, in UTC.
    """

    def __init__(
        self,
        *,
        account_sid: str,
        auth_token: str,
        phone_number: str,
        calls_per_second: float = 100.0,
        ring_s: float = 0.05,
        words_per_second: float = 2000.0,
        on_clock: Callable[[float], Awaitable[None]] | None = None,
        now: Callable[[], datetime] | None = None,
        events: Events | None = None,
    ) -> None:
        self.events = events or Events()
        self.account_sid = account_sid
        self.phone_number = phone_number
        self.rules = Rules()
        self.requests: Counter[str] = Counter()
        self.warnings: list[dict[str, object]] = []
        self.account = Account(account_sid, auth_token, phone_number, self.now)
        self._credentials = base64.b64encode(f"{account_sid}:{auth_token}".encode()).decode()
        self._machine_now = now or (lambda: datetime.now(UTC))
        self._offset = timedelta(0)
        self._on_clock = on_clock
        self._webhooks = Webhooks(account_sid, auth_token)
        self._exchange = Exchange(
            self._webhooks, calls_per_second=calls_per_second, ring_s=ring_s, words_per_second=words_per_second,
            now=self.now, events=self.events, draw=self.rules.draw,
        )  # fmt: skip
        self._under_way = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = asyncio.Event()

    # -- for tests in the same process --------------------------------------------------------------------------------

    @property
    def calls(self) -> list[Call]:
        """Every call that was taken, in order of acceptance."""
        return list(self._exchange.calls.values())

    def behave(self, **rule: object) -> None:
        """Adds a rule, spelled as for `PUT /_sandbox/behaviour`. Raises pydantic.ValidationError."""
        self.rules.add(Rule.model_validate(rule))

    def phones(self) -> list[dict[str, object]]:
        """The live calls to phones that a person holds."""
        return [call.report() for call in self.calls if call.in_hand and call.status in LIVE]

    def act(self, number: str, act: Act) -> None:
        """A person does this with the phone of this number. In the event loop's own thread. Raises Refusal 20404 or 21220."""
        for call in reversed(self.calls):
            if call.to == number and call.status in LIVE:
                return self._exchange.act(call, act)
        raise Refusal(20404, f"no call to {number}")

    def reset(self) -> None:
        """As freshly started. Calls under way end without a word, but for requests already sent, which are awaited."""
        self.rules.clear()
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._exchange.drop_all(), self._loop).result()
        self.account.polite()
        self.requests.clear()
        self.warnings.clear()
        self._offset = timedelta(0)

    def wait_quiet(self, timeout: float = 10.0) -> None:
        """Returns when no call is alive and no callback under way. Raises TimeoutError. Not for the event loop's own thread."""
        assert self._loop is not None, "the stand-in is not being served"
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(self._exchange.quiet(), timeout), self._loop).result()

    def now(self) -> datetime:
        """The time in the sandbox."""
        return self._machine_now() + self._offset

    async def set_clock(self, offset_s: float) -> None:
        self._offset = timedelta(seconds=offset_s)
        if self._on_clock is not None:
            await self._on_clock(offset_s)

    # -- the application ----------------------------------------------------------------------------------------------

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        account = f"/{API}/Accounts/{{account}}"
        app.add_routes([
            web.post(f"{account}/Calls.json", self._create, name="create"),
            web.get(f"{account}/Calls.json", self._list, name="list"),
            web.get(f"{account}/Calls/{{sid}}.json", self._fetch, name="fetch"),
            web.post(f"{account}/Calls/{{sid}}.json", self._update, name="update"),
            *self.account.routes(), *control(self),
        ])  # fmt: skip
        app.cleanup_ctx.append(self._open)
        app.on_shutdown.append(self._release)
        return app

    async def _open(self, _: web.Application) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        await self._webhooks.open()
        yield
        self._loop = None
        await self._exchange.drop_all()
        await self._webhooks.close()

    async def _release(self, _: web.Application) -> None:
        self._closing.set()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Loopback, credentials, and every refusal in Twilio's words."""
        if not ipaddress.ip_address(request.remote or "0.0.0.0").is_loopback:
            return web.Response(status=403, text="the stand-in answers loopback only\n")
        if request.path.startswith("/_sandbox") or request.path.removeprefix("/") in PAGE:
            return await handler(request) if _is_ours(request) else web.Response(status=403, text="not from there\n")
        self._under_way += 1
        began, code = time.monotonic(), None
        try:
            self._authenticate(request)
            self.requests[request.match_info.route.name or "other"] += 1
            response = await handler(request)
        except Refusal as refusal:
            response, code = _refused(refusal), refusal.code
        except web.HTTPNotFound:
            response = _refused(Refusal(20404, request.path))
        except web.HTTPMethodNotAllowed:
            response = _refused(Refusal(20004, request.method))
        finally:
            concurrent = self._under_way
            self._under_way -= 1
        self._tell_request(request, response, began, code)
        response.headers["Date"] = format_datetime(self.now(), usegmt=True)
        response.headers["Twilio-Request-Id"] = "RQ" + uuid.uuid4().hex
        response.headers["Twilio-Concurrent-Requests"] = str(concurrent)
        return response

    def _tell_request(self, request: web.Request, response: web.StreamResponse, began: float, code: int | None) -> None:
        """answer: None where the client got none. The form of a POST was read by its handler, or is of no interest."""
        form: Mapping[str, Any] = request._post or {}
        sid = request.match_info.get("sid")
        call = self._exchange.calls.get(sid or "")
        gone = request.transport is None or request.transport.is_closing()
        url = form.get("Url")
        self.events.tell(
            "request", method=request.method,
            path=request.path.split("/Accounts/")[-1].partition("/")[2] or request.path,
            to=call.to if call else form.get("To") or request.query.get("To"),
            attempt=attempt_of(call.url if call else url if isinstance(url, str) else None), sid=sid,
            answer=None if gone else response.status, ms=round((time.monotonic() - began) * 1000), code=code,
        )  # fmt: skip

    def _authenticate(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Basic {self._credentials}".encode()):
            raise Refusal(20003)
        account = request.match_info.get("account")
        if account is not None and account != self.account_sid:
            raise Refusal(20404, request.path)

    # -- calls --------------------------------------------------------------------------------------------------------

    async def _create(self, request: web.Request) -> web.StreamResponse:
        form = await _form(request)
        conduct = self.rules.draw(form.get("To", [""])[-1])
        match conduct.create:
            case "hang":
                await self._client_gone(request)
                return _closed(request)
            case "drop":
                return _closed(request)
            case "error:html502":
                return web.Response(status=502, text=BAD_GATEWAY, content_type="text/html")
            case refused if refused.startswith("error:"):
                await asyncio.sleep(conduct.latency_ms / 1000)
                raise Refusal(int(refused.removeprefix("error:")))
        order = read(form, self.phone_number, self.warnings)
        if conduct.create == "accept_late":
            await self._client_gone(request)
            self._exchange.spawn(self._take_late(order, conduct))
            return _closed(request)
        call = self._exchange.take(self.account_sid, order, conduct)
        body = call.resource()
        await asyncio.sleep(conduct.latency_ms / 1000)
        match conduct.create:
            case "accept_then_drop":
                return _closed(request)
            case "accept_then_500":
                raise Refusal(20500)
            case "garbled":
                return web.Response(status=201, text='{"sid": "CA', content_type="application/json")
        return web.json_response(body, status=201)

    async def _take_late(self, order: Order, conduct: Conduct) -> None:
        await asyncio.sleep(conduct.late_s)
        self._exchange.take(self.account_sid, order, conduct)

    async def _client_gone(self, request: web.Request) -> None:
        """Returns when the client has closed the connection, is silent for too long, or the stand-in is being stopped.

        A frozen client never closes; Twilio would not hold its request for ever, either.
        """
        until = time.monotonic() + CLIENT_GONE_S
        while (
            time.monotonic() < until
            and not self._closing.is_set()
            and (at := request.transport) is not None
            and not at.is_closing()
        ):
            await asyncio.sleep(DISCONNECT_POLL_S)

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        for name in sorted(set(query) - LIST_FILTERS):
            self.warnings.append({"code": 20001, "message": f"Unknown parameters: {name}"})
        if "Status" in query and query["Status"] not in get_args(Status):
            raise Refusal(20422, f"Status={query['Status']}")
        now = time.monotonic()
        listed = (call for call in reversed(self.calls) if now >= call.accepted + call.conduct.list_delay_s)
        return web.json_response(_page(request, [call for call in listed if _matches(call, query)]))

    def _call(self, request: web.Request) -> Call:
        if call := self._exchange.calls.get(request.match_info["sid"]):
            return call
        raise Refusal(20404, request.path)

    async def _fetch(self, request: web.Request) -> web.Response:
        return web.json_response(self._call(request).resource())

    async def _update(self, request: web.Request) -> web.Response:
        call = self._call(request)
        form = await _form(request)
        if unknown := sorted(form.keys() - UPDATES):
            known = PARAMETERS & set(unknown)
            raise Refusal(20422, f"the stand-in updates Status or Twiml only, not {', '.join(known or unknown)}")
        match form.get("Status", [""])[-1], form.get("Twiml", [""])[-1]:
            case ("canceled" | "completed") as wish, "":
                self._exchange.end(call, wish)
            case "", document if document:
                self._exchange.divert(call, read_twiml(document))
            case other, _:
                raise Refusal(20422, f"Status={other}; either a Status or a Twiml")
        return web.json_response(call.resource())


def _is_ours(request: web.Request) -> bool:
    """Whether it names this machine, and comes from a page of ours or from no page: not by DNS rebinding, not from a site."""
    if request.url.host not in ("127.0.0.1", "localhost", "::1"):
        return False
    return request.headers.get("Origin") in (None, str(request.url.origin()))


def _refused(refusal: Refusal) -> web.Response:
    headers = {"WWW-Authenticate": 'Basic realm="Twilio API"'} if refusal.status == 401 else None
    return web.json_response(refusal.body(), status=refusal.status, headers=headers)


def _closed(request: web.Request) -> web.Response:
    """Closes the connection; the answer that aiohttp insists on goes nowhere."""
    if request.transport is not None:
        request.transport.close()
    return web.Response(status=500)


async def _form(request: web.Request) -> dict[str, list[str]]:
    form = await request.post()
    return {name: [str(value) for value in form.getall(name)] for name in form}


def _matches(call: Call, query: Mapping[str, str]) -> bool:
    """Whether a list with these filters shows the call. One without a start or end is in no range of starts or ends."""
    parent = call.parent.sid if call.parent else None
    plain = {"ParentCallSid": parent, "To": call.to, "From": call.from_, "Status": call.status}
    if any(query.get(name) not in (None, "", value) for name, value in plain.items()):
        return False
    for name in TIME_FILTERS & query.keys():
        at = call.started_at if name.startswith("StartTime") else call.ended_at
        if at is None or not _in_range(at, name[-1], *_moment(query[name])):
            return False
    return True


def _in_range(at: datetime, sign: str, wanted: datetime, whole_day: bool) -> bool:
    """`<` and `>` include the moment, or the day, that is named: on the wire they are `StartTime<=` and `StartTime>=`."""
    end = wanted + (timedelta(days=1) if whole_day else timedelta(seconds=1))
    match sign:
        case "<":
            return at < end
        case ">":
            return at >= wanted
        case _:
            return wanted <= at < end


def _moment(text: str) -> tuple[datetime, bool]:
    """`2026-11-24` or `2026-11-24T08:00:00Z`, and whether it names a whole day. Raises Refusal."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise Refusal(20422, f"{text} is no date") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)), len(text) == len("2026-11-24")


def _page(request: web.Request, found: list[Call]) -> dict[str, object]:
    """One page of a list. A token names the last call of the page before: calls that come in meanwhile shift nothing."""
    size, page = _natural(request, "PageSize", 50), _natural(request, "Page", 0)
    if not 1 <= size <= 1000:
        raise Refusal(20007, f"PageSize={size}")
    token = request.query.get("PageToken", "")
    tokens = [f"PA{call.sid}" for call in found]
    first = tokens.index(token) + 1 if token in tokens else page * size
    shown = found[first : first + size]

    def uri(number: int, token: str = "") -> str:
        kept = {k: v for k, v in request.query.items() if k not in ("Page", "PageSize", "PageToken")}
        paging = {"PageSize": size, "Page": number} | ({"PageToken": token} if token else {})
        return f"{request.path}?{urlencode({**kept, **paging})}"

    more = first + size < len(found)
    return {
        "calls": [call.resource() for call in shown], "page": page, "page_size": size, "start": page * size,
        "end": page * size + max(0, len(shown) - 1), "uri": uri(page, token), "first_page_uri": uri(0),
        "next_page_uri": uri(page + 1, tokens[first + size - 1]) if more else None,
        "previous_page_uri": uri(page - 1) if page else None,
    }  # fmt: skip


def _natural(request: web.Request, name: str, default: int) -> int:
    given = request.query.get(name, str(default))
    if not (given.isascii() and given.isdigit()):
        raise Refusal(20422, f"{name}={given}")
    return int(given)
