"""An RPC gateway: the sandbox's stand-in for PostgREST behind Supabase's API gateway.

It exists so that the product's real client, supabase-py, reaches our real SQL functions over real HTTP without Docker.
It does what the product needs of `/rest/v1` as PostgREST 14 to 16 do it, held to answers recorded from them
(`tests/integration/test_gateway_conformance.py`); asked for anything else it answers 501 and names it, never a guess.
Conversions and JSON are left to Postgres, so that numbers, times and nulls come out as Postgres prints them.

How a call goes: key -> role (`authenticate`), name and argument names -> function (`Catalogue`), one transaction under
that role (`Connections`), its result or its SQLSTATE -> HTTP (`database_error`).

Functions can be called by POST. A table can be listed whole, and takes one row at a time: enough for a user's own code to
add a job, and to prove that nobody else reads or writes ours.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Literal

import psycopg
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from psycopg import AsyncConnection, sql

from tests.sandbox.events import Events
from tests.sandbox.supabase.errors import ANON, ApiError, database_error, json_response, not_done, unavailable
from tests.sandbox.supabase.gateway_database import HOISTED, SCHEMA, Catalogue, Connections, Function
from tests.sandbox.supabase.keys import (
    Caller,
    anon_key,
    authenticate,
    publishable_key,
    secret_key,
    service_key,
    user_key,
)
from tests.sandbox.supabase.requests import check_accept, check_profile, read_payload, read_preferences
from tests.sandbox.supabase.statements import call_statement, insert_statement, list_statement

__all__ = ["Fault", "Gateway", "anon_key", "publishable_key", "secret_key", "service_key", "user_key"]

MAX_BODY = 32 * 1024 * 1024  # bytes; PostgREST itself takes 20 MB without complaint

Fault = Literal["503", "html", "lose_response"]


def tell_steps(events: Events) -> Middleware:
    """Tells `events` of each SQL function that did something for one job or attempt; a claim that found nothing is left out."""

    @web.middleware
    async def tell(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.monotonic()
        response = await handler(request)
        name = request.path.removeprefix("/rest/v1/rpc/")
        if name != request.path and request.method == "POST" and isinstance(response, web.Response):
            asked, said = _json(await request.read()), _json(response.body)
            attempt, job = said.get("attempt"), said.get("job")
            found = {
                "attempt": attempt.get("id") if isinstance(attempt, dict) else attempt or asked.get("p_attempt"),
                "job": said.get("job_id") or (job.get("id") if isinstance(job, dict) else job) or asked.get("p_job_id"),
            }
            if any(found.values()) and said.get("outcome") != "none":
                ms = round((time.monotonic() - began) * 1000)
                told: dict[str, Any] = {
                    key: said[key] for key in ("outcome", "reason", "next", "wait_s") if key in said
                }
                told |= {key: asked[f"p_{key}"] for key in ("code", "call_status", "meaning") if asked.get(f"p_{key}")}
                events.tell("step", name=name, **found, answer=response.status, ms=ms, **told)
        return response

    return tell


def _json(body: object) -> dict[str, Any]:
    """An object's keys; of anything else none."""
    try:
        read = json.loads(body) if isinstance(body, bytes) else None
    except ValueError:
        read = None
    return read if isinstance(read, dict) else {}


class Gateway:
    """`/rest/v1` over one database.

    `database_url` logs in as `authenticator`, which must hold the roles that keys name. `requests` counts the calls of
    each function, failed ones too. To break things, from any thread: `fault` says how ("503": as if Postgres were down;
    "html": a proxy's 502 page; "lose_response": the call is done and committed, then the connection is closed without an
    answer), `fault_times` how often before it heals (None: until changed), `fault_on` for which functions (None: all).
    """

    def __init__(self, database_url: str, *, jwt_secret: str, pool_size: int = 10, prepares: bool = False) -> None:
        self.requests: Counter[str] = Counter()
        self.reset()
        self._secret = jwt_secret
        self._connections = Connections(database_url, pool_size, prepares)
        self._catalogue = Catalogue()

    def reset(self) -> None:
        """No fault, and no request counted."""
        self.requests.clear()
        self.fault: Fault | None = None
        self.fault_times: int | None = None
        self.fault_on: set[str] | None = None

    def app(self) -> web.Application:
        """An application that serves `/rest/v1`, and connects and disconnects the gateway. Postgres must be up."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/rest/v1/{path:.*}", self._answer)
        app.cleanup_ctx.append(self._connections.running)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        function = path.removeprefix("rpc/") if path.startswith("rpc/") else None
        if function is not None:
            self.requests[function] += 1
        fault = self._take_fault(function)
        if fault == "503":
            return unavailable().response()
        if fault == "html":
            page = "<html><head><title>502 Bad Gateway</title></head><body>Bad Gateway</body></html>"
            return web.Response(status=502, text=page, content_type="text/html")
        try:
            caller = authenticate(request, self._secret)
            name = path if function is None else function
            if not path:
                raise not_done("the description of the API")
            if not name or "/" in name:
                raise ApiError(404, "PGRST125", "Invalid path specified in request URL")
            serve = self._table if function is None else self._call
            response = await serve(request, caller, name)
        except ApiError as error:
            response = error.response()
        except psycopg.Error as error:  # Postgres went away while the schema was read
            response = database_error(error, ANON).response()
        if fault == "lose_response" and request.transport is not None:
            request.transport.close()
        return response

    def _take_fault(self, function: str | None) -> Fault | None:
        fault, times, names = self.fault, self.fault_times, self.fault_on
        if fault is None or times == 0 or (names is not None and function not in names):
            return None
        if times is not None:
            self.fault_times = times - 1
        return fault

    @asynccontextmanager
    async def _as_caller(
        self, request: web.Request, caller: Caller, *, read_only: bool, settings: Iterable[str] = ()
    ) -> AsyncIterator[AsyncConnection]:
        """A transaction under the caller's role, with the settings that SQL may read about the request."""
        local = {
            "search_path": f'"{SCHEMA}", "public", "extensions"',
            "role": caller.role,
            "request.jwt.claims": json.dumps(caller.claims),
            "request.method": request.method,
            "request.path": "/" + request.match_info["path"],
            "request.headers": json.dumps({name.lower(): value for name, value in request.headers.items()}),
            "request.cookies": json.dumps(dict(request.cookies)),
        }
        for setting in (*self._catalogue.role_settings.get(caller.role, []), *settings):
            name, _, value = setting.partition("=")
            if name in HOISTED:
                local[name] = value
        calls = sql.SQL(", ").join([sql.SQL("set_config(%s, %s, true)")] * len(local))
        values = [text for pair in local.items() for text in pair]
        try:
            async with self._connections.transaction("begin read only" if read_only else "begin") as connection:
                await connection.execute(sql.SQL("select {}").format(calls), values)
                yield connection
        except psycopg.Error as error:
            if error.sqlstate == "42883":  # perhaps a function that was there when we last looked
                await self._catalogue.load(self._connections)
            raise database_error(error, caller.role) from error

    async def _call(self, request: web.Request, caller: Caller, name: str) -> web.Response:
        if request.method in ("GET", "HEAD"):
            raise not_done(f"{request.method} on functions")
        if request.method != "POST":
            raise ApiError(405, "PGRST101", f"Cannot use the {request.method} method on RPC")
        profile = check_profile(request)
        read_preferences(request, "return=", "params=", "tx=")  # without effect on functions
        _refuse_parameters(request)
        text, keys = await read_payload(request)
        function = await self._resolve(name, keys)
        check_accept(request)
        read_only = not function.volatile
        async with self._as_caller(request, caller, read_only=read_only, settings=function.settings) as connection:
            row = await (await connection.execute(call_statement(function, keys), [text])).fetchone()
            assert row is not None  # an aggregate is always one row
            body, rows = row
        if function.shape == "void":
            return web.Response(status=204, headers=_content_range(rows))
        return json_response(body or "null", 200, _content_range(rows) | profile)

    async def _resolve(self, name: str, keys: frozenset[str]) -> Function:
        """The one function of that name that takes exactly these arguments; unknown ones are looked for once more."""
        found = self._catalogue.find(name, keys)
        if not found:
            await self._catalogue.load(self._connections)
            found = self._catalogue.find(name, keys)
        if len(found) > 1:
            raise not_done("overloaded functions")
        if found:
            (function,) = found
            if function.shape == "other" or (function.shape == "void" and function.returns_set):
                raise not_done("functions that return record or setof void, and variadic ones")
            if any(setting.startswith("default_transaction_isolation=") for setting in function.settings):
                raise not_done("functions that set default_transaction_isolation")
            return function
        if any(argument.name == "" for f in self._catalogue.functions.get(name, []) for argument in f.arguments):
            raise not_done("functions with unnamed arguments")
        named = ", ".join(sorted(keys))
        signature = f"{SCHEMA}.{name}({named})" if keys else f"{SCHEMA}.{name} without parameters"
        searched = f"with parameter{'s' if len(keys) > 1 else ''} {named}" if keys else "without parameters"
        message = f"Could not find the function {signature} in the schema cache"
        searched = f"Searched for the function {SCHEMA}.{name} {searched} or with a single unnamed json/jsonb parameter"
        details = f"{searched}, but no matches were found in the schema cache."
        raise ApiError(404, "PGRST202", message, details)

    async def _table(self, request: web.Request, caller: Caller, name: str) -> web.Response:
        if request.method not in ("GET", "POST"):
            raise not_done(f"{request.method} on tables")
        profile = check_profile(request)
        check_accept(request)
        if name not in self._catalogue.tables:
            await self._catalogue.load(self._connections)
        if name not in self._catalogue.tables:
            raise ApiError(404, "PGRST205", f"Could not find the table '{SCHEMA}.{name}' in the schema cache")
        if request.method == "POST":
            return await self._insert(request, caller, name)
        if request.query.get("select", "*") != "*" or "Range" in request.headers:
            raise not_done("a choice of columns or rows")
        _refuse_parameters(request, "select")
        read_preferences(request)
        async with self._as_caller(request, caller, read_only=True) as connection:
            row = await (await connection.execute(list_statement(name))).fetchone()
            assert row is not None  # an aggregate is always one row
        return json_response(row[0], 200, _content_range(row[1]) | profile)

    async def _insert(self, request: web.Request, caller: Caller, name: str) -> web.Response:
        columns = self._catalogue.tables[name]
        _refuse_parameters(request)
        preferences = read_preferences(request, "return=minimal", "return=representation")
        text, keys = await read_payload(request)
        if not keys:
            raise not_done("inserts without a column")
        if unknown := sorted(keys - columns.keys()):
            message = f"Could not find the '{unknown[0]}' column of '{name}' in the schema cache"
            raise ApiError(400, "PGRST204", message)
        representation = "return=representation" in preferences
        taken = {key: columns[key] for key in sorted(keys)}
        async with self._as_caller(request, caller, read_only=False) as connection:
            cursor = await connection.execute(insert_statement(name, taken, representation=representation), [text])
            row = await cursor.fetchone() if representation else None
        headers = {"Content-Range": "*/*", **check_profile(request)}
        if preferences:
            headers["Preference-Applied"] = ", ".join(sorted(preferences))
        return json_response(row[0], 201, headers) if row else web.Response(status=201, headers=headers)


def _content_range(rows: int) -> dict[str, str]:
    return {"Content-Range": f"0-{rows - 1}/*" if rows else "*/*"}


def _refuse_parameters(request: web.Request, *but: str) -> None:
    for name in request.query:
        if name not in but:
            raise not_done(f"the query parameter {name!r}")
