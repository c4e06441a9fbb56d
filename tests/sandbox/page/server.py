"""The telephone page: static files, a stream of events, and what the person on the page does. For development, on loopback.

Every request must name this host, and come from this page or from no page at all (DNS rebinding, other sites). All under
/api and /auth needs the token that stands in the page's address: in the header X-Sandbox-Token, or in ?token=.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import psycopg
from aiohttp import web
from psycopg.rows import scalar_row

from tests.sandbox.page import author
from tests.sandbox.page.breaks import ACTIONS, SWITCHES, Breaks, Wrong
from tests.sandbox.page.watch import TRIGGERS, Watch

if TYPE_CHECKING:
    from tests.sandbox.sandbox import Sandbox

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STATIC = Path(__file__).with_name("static")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PING_S = 15.0
COLLEAGUES = {"outcome": "person", "second_leg": True}
"""The person on the page answers the phones that a transfer rings, too."""


class Page:
    """Served once, by `app()`. `origin` is set when the port is known. Without `write` no script on disk is changed."""

    def __init__(self, sandbox: Sandbox, *, write: bool = False) -> None:
        self.origin = ""
        self.token = secrets.token_urlsafe(24)
        self._sandbox, self._write = sandbox, write
        self._session: aiohttp.ClientSession | None = None
        self._watch: Watch
        self._breaks: Breaks
        self._closing: asyncio.Event

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.add_routes([
            web.get("/api/events", self._events), web.get("/api/story/{job:[0-9]{1,18}}", self._story),
            web.post("/api/switch", self._switch), web.post("/api/act", self._act), web.post("/api/phone", self._phone),
            web.get("/api/scripts", self._scripts), web.post("/api/scripts/check", self._check),
            web.put("/api/scripts", self._save), web.post("/auth/v1/signup", self._sign_up),
            web.delete("/auth/v1/admin/users/{id}", self._delete_user), web.get("/{file:[a-z.]*}", self._static),
        ])  # fmt: skip
        app.cleanup_ctx.append(self._running)
        app.on_shutdown.append(self._close)
        return app

    def reset(self) -> None:
        """The tables are empty again, the phones lie on the table, and nothing is broken."""
        self._watch.forget()
        self._breaks.people.clear()
        self._breaks.on.clear()
        self._sandbox.twilio.behave(**COLLEAGUES)

    async def _running(self, _: web.Application) -> AsyncIterator[None]:
        sandbox = self._sandbox
        self._closing = asyncio.Event()
        self._session = aiohttp.ClientSession(trust_env=False)
        await asyncio.to_thread(_install_triggers, sandbox.postgres.url())
        self._watch = Watch(sandbox.postgres.url(), sandbox.events, sandbox.twilio)
        self._breaks = Breaks(sandbox, self._watch, self._http)
        sandbox.twilio.behave(**COLLEAGUES)
        watching = asyncio.ensure_future(self._watch.run())
        await self._watch.ready.wait()
        yield
        await self._breaks.stop()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await self._session.close()

    async def _close(self, _: web.Application) -> None:
        self._closing.set()

    def _http(self) -> aiohttp.ClientSession:
        assert self._session is not None
        return self._session

    # -- who may ask --------------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = self._refusal(request)
        try:
            response = _error(403, refusal) if refusal else await handler(request)
        except web.HTTPException as error:
            response = _error(error.status, error.reason)
        except Wrong as error:
            response = _error(409, str(error))
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    def _refusal(self, request: web.Request) -> str | None:
        port = urlsplit(self.origin).port
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        if request.headers.getall("Host", []) not in [[host] for host in hosts]:
            return "this page answers under its own address only"
        origin = request.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in hosts}:
            return "another site may not ask this page"
        if request.path.startswith(("/api/", "/auth/")):
            given = request.headers.get("X-Sandbox-Token") or request.query.get("token", "")
            if not hmac.compare_digest(given.encode(errors="surrogateescape"), self.token.encode()):
                return "the token is missing or wrong: open the address that the sandbox printed"
        return None

    async def _static(self, request: web.Request) -> web.StreamResponse:
        file = STATIC / (request.match_info["file"] or "index.html")
        if file.suffix not in TYPES or not file.is_file():
            raise web.HTTPNotFound
        return web.Response(body=file.read_bytes(), content_type=TYPES[file.suffix], charset="utf-8")

    # -- what happens -------------------------------------------------------------------------------------------------

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """First `hello`, the state of everything; then the kept events, and each one as it happens."""
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        closing = asyncio.ensure_future(self._closing.wait())
        event: asyncio.Future[dict[str, Any]] | None = None
        last = request.headers.get("Last-Event-ID", "")
        try:
            with self._sandbox.events.listen(int(last) if last.isdigit() else 0) as queue:
                await response.write(_line("hello", {**self._hello(), "kept": queue.qsize()}))
                while not self._closing.is_set():
                    event = asyncio.ensure_future(queue.get())
                    await asyncio.wait({event, closing}, timeout=PING_S, return_when="FIRST_COMPLETED")
                    if event.done():
                        told = event.result()
                        await response.write(_line("event", told, told["id"]))
                    else:
                        event.cancel()
                        await response.write(b": still here\n\n")
        except ConnectionError:
            pass  # the page was closed
        finally:
            for task in (closing, event):
                if task is not None:
                    task.cancel()
        return response

    def _hello(self) -> dict[str, Any]:
        switches, actions = SWITCHES.items(), ACTIONS.items()
        return {
            "jobs": list(self._watch.jobs.values()),
            "attempts": [{"id": row["id"], "job_id": row["job_id"]} for row in self._watch.attempts.values()],
            "counts": self._watch.counts, "phones": list(self._breaks.people),
            "calls": [call.report() for call in self._sandbox.twilio.calls if call.in_hand],
            "caller": self._sandbox.ready.twilio_phone_number, "anon_key": self._sandbox.ready.supabase_anon_key,
            "modes": [file["name"] for file in author.files() if "." not in file["name"]],
            "switches": [
                {"name": name, "label": each.label, "help": each.help, "on": name in self._breaks.on}
                for name, each in switches
            ],
            "actions": [{"name": name, "label": label, "help": help_} for name, (label, help_) in actions],
            "worst": self._breaks.worst, "write": self._write,
        }  # fmt: skip

    async def _story(self, request: web.Request) -> web.Response:
        """The sentences of explain_call_job."""

        def told() -> list[str]:
            with psycopg.connect(self._sandbox.postgres.url(), row_factory=scalar_row) as connection:
                query = "select public.explain_call_job(%s)"
                return connection.execute(query, [int(request.match_info["job"])]).fetchall()

        return web.json_response(await asyncio.to_thread(told))

    # -- what people do -----------------------------------------------------------------------------------------------

    async def _sign_up(self, request: web.Request) -> web.Response:
        """As supabase-js asks its project; handed on to the sandbox's Auth. X-Words-Per-Second: how fast the call speaks."""
        body = await _json(request)
        if phone := str(body.get("phone") or "").replace(" ", "").removeprefix("+"):
            pace = request.headers.get("X-Words-Per-Second", "")
            self._breaks.hold(f"+{phone}", float(pace) if pace.replace(".", "", 1).isdigit() and float(pace) else None)
        status, said = await self._breaks.sign_up(body)
        return web.json_response(said, status=status)

    async def _delete_user(self, request: web.Request) -> web.Response:
        ready, user = self._sandbox.ready, request.match_info["id"]
        url, key = f"{ready.supabase_url}/auth/v1/admin/users/{user}", ready.supabase_service_key
        async with self._http().delete(url, headers={"apikey": key, "Authorization": f"Bearer {key}"}) as answer:
            said = await answer.json()
        self._sandbox.events.tell("user-deleted", user=user, answer=answer.status)
        return web.json_response(said, status=answer.status)

    async def _phone(self, request: web.Request) -> web.Response:
        body = await _json(request)
        number = str(body.pop("number", ""))
        url = f"{self._sandbox.ready.twilio_url}/_sandbox/phones/{number}"
        async with self._http().post(url, json=body) as answer:
            return web.json_response(await answer.json(), status=answer.status)

    async def _switch(self, request: web.Request) -> web.Response:
        body = await _json(request)
        await self._breaks.switch(str(body.get("name")), body.get("on") is True, str(body.get("number") or ""))
        return web.json_response({"ok": True})

    async def _act(self, request: web.Request) -> web.Response:
        body = await _json(request)
        await self._breaks.act(str(body.get("name")), str(body.get("number") or ""))
        return web.json_response({"ok": True})

    # -- scripts ------------------------------------------------------------------------------------------------------

    async def _scripts(self, _: web.Request) -> web.Response:
        return web.json_response(author.files())

    async def _check(self, request: web.Request) -> web.Response:
        """{name, text, keys, first_name, metadata} -> {problems} and, without problems, the turns that these keys lead to."""
        body = await _json(request)
        script, problems = await asyncio.to_thread(author.check, str(body.get("name")), str(body.get("text")))
        keys = [str(key) for key in body.get("keys") or []]
        metadata = body.get("metadata") if isinstance(body.get("metadata"), dict) else {}
        walked = author.walk(script, keys, str(body.get("first_name") or ""), metadata or {}) if script else {}
        return web.json_response({"problems": problems, **walked})

    async def _save(self, request: web.Request) -> web.Response:
        if not self._write:
            raise Wrong("nothing on disk is changed: start the sandbox with --write for that")
        body = await _json(request)
        name, text = str(body.get("name")), str(body.get("text"))
        script, problems = await asyncio.to_thread(author.check, name, text)
        if script is None:
            raise Wrong(f"it is not saved, because it has {len(problems)} problems")
        author.write(name, text)
        if self._sandbox.function:
            self._sandbox.function.restart({})
        return web.json_response({"ok": True})


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(reason="the body must be a JSON object")
    return body


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)


def _line(name: str, data: dict[str, Any], number: int | None = None) -> bytes:
    head = f"id: {number}\n" if number is not None else ""
    return f"event: {name}\n{head}data: {json.dumps(data, default=str)}\n\n".encode()


def _install_triggers(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(TRIGGERS.read_bytes())
