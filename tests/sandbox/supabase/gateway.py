"""An RPC gateway: the sandbox's stand-in for PostgREST behind Supabase's API gateway.

It exists so that the product's real client, supabase-py, reaches our real SQL functions over real HTTP without Docker.
It does what the product needs of `/rest/v1` as PostgREST 14 to 16 do it, held to answers recorded from them
(`tests/integration/test_gateway_conformance.py`); asked for anything else it answers 501 and names it, never a guess.
Conversions and JSON are left to Postgres, so that numbers, times and nulls come out as Postgres prints them.

How a call goes: key -> role (`authenticate`), name and argument names -> function (`Catalogue`), one transaction under
that role (`Connections`), its result or its SQLSTATE -> HTTP (`database_error`).

Tables can be listed and inserted into, no more: enough for a user's own code to add a job, and to prove that nobody else
reads or writes ours.
"""

from __future__ import annotations

import json
import re
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
from tests.sandbox.supabase.errors import (
    ANON,
    JSON,
    ApiError,
    database_error,
    json_response,
    not_done,
    unavailable,
)
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
from tests.sandbox.supabase.requests import (
    SINGLE,
    check_profile,
    read_limit,
    read_media_type,
    read_payload,
    read_preferences,
    refuse_other_parameters,
)
from tests.sandbox.supabase.statements import (
    call_statement,
    call_with_json,
    call_with_text,
    insert_statement,
    list_statement,
)

__all__ = ["Fault", "Gateway", "anon_key", "publishable_key", "secret_key", "service_key", "user_key"]

MAX_BODY = 32 * 1024 * 1024  # bytes; PostgREST itself takes 20 MB without complaint

RESERVED = frozenset({"select", "order", "offset", "columns", "on_conflict", "and", "or", "not.and", "not.or"})
LOOKS_LIKE_A_FILTER = re.compile(r"(not\.)?[a-z]+(\([a-z]+\))?\.")

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


def _content_range(rows: int, total: int | None) -> str:
    return f"{f'0-{rows - 1}' if rows else '*'}/{'*' if total is None else total}"


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

    async def start(self) -> None:
        """Connect and read the schema. Postgres must be up."""
        await self._connections.open()
        await self._catalogue.load(self._connections)

    async def close(self) -> None:
        await self._connections.close()

    def routes(self, app: web.Application) -> None:
        """Serve `/rest/v1` from `app`, which then starts and closes the gateway too."""
        app.router.add_route("*", "/rest/v1/{path:.*}", self._answer)

        async def running(_: web.Application) -> AsyncIterator[None]:
            await self.start()
            yield
            await self.close()

        app.cleanup_ctx.append(running)

    def app(self) -> web.Application:
        """An application that serves this gateway alone."""
        app = web.Application(client_max_size=MAX_BODY)
        self.routes(app)
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
        if request.method not in ("POST", "GET", "HEAD"):
            raise ApiError(405, "PGRST101", f"Cannot use the {request.method} method on RPC")
        posted = request.method == "POST"
        profile = check_profile(request)
        preferences = read_preferences(request, "count=exact", "return=", "params=", "tx=")
        limit = read_limit(request)
        if posted:
            refuse_other_parameters(request, "limit")
            payload = await read_payload(request)
            function = await self._resolve(name, payload.keys, posted)
            call = call_with_json(function, payload)
        else:
            query = self._query_arguments(request, name)
            function = await self._resolve(name, frozenset(query), posted)
            call = call_with_text(function, query)
        media_type = read_media_type(request)
        if limit is not None and not function.returns_set:
            raise not_done("limit on a function that returns no set")
        counted = "count=exact" in preferences
        if counted and not function.returns_set:
            raise not_done("count=exact on a function that returns no set")

        single = function.returns_set and media_type == SINGLE
        statement = call_statement(function, call, as_array=function.returns_set and not single, limit=limit)
        read_only = not (posted and function.volatile)
        async with self._as_caller(request, caller, read_only=read_only, settings=function.settings) as connection:
            cursor = await connection.execute(statement, call.values)
            row = await cursor.fetchone()
            assert row is not None  # an aggregate is always one row
            body, count, total = row
            if single and count != 1:
                details = f"The result contains {count} rows"
                raise ApiError(406, "PGRST116", "Cannot coerce the result to a single JSON object", details)

        headers = {"Content-Range": _content_range(count, total if counted else None)}
        if function.shape == "void":
            return web.Response(status=204, headers=headers)
        if counted:
            headers["Preference-Applied"] = "count=exact"
        status = 206 if counted and count < total else 200
        return json_response(body or "null", status, {**headers, **profile}, media_type=media_type)

    async def _resolve(self, name: str, keys: frozenset[str], posted: bool) -> Function:
        """The one function of that name that takes exactly these arguments; unknown ones are looked for once more."""
        found = self._catalogue.find(name, keys)
        if not found:
            await self._catalogue.load(self._connections)
            found = self._catalogue.find(name, keys)
        if len(found) > 1:
            shown = (f"{SCHEMA}.{name}({', '.join(f'{a.name} => {a.shown}' for a in f.arguments)})" for f in found)
            raise ApiError(
                300,
                "PGRST203",
                f"Could not choose the best candidate function between: {', '.join(shown)}",
                hint="Try renaming the parameters or the function itself in the database so function overloading "
                "can be resolved",
            )
        if found:
            (function,) = found
            unusual = {"record": "functions that return record", "variadic": "variadic functions"}
            if function.shape in unusual:
                raise not_done(unusual[function.shape])
            if function.shape == "void" and function.returns_set:
                raise not_done("functions that return setof void")
            if any(setting.startswith("default_transaction_isolation=") for setting in function.settings):
                raise not_done("functions that set default_transaction_isolation")
            return function
        if any(argument.name == "" for f in self._catalogue.functions.get(name, []) for argument in f.arguments):
            raise not_done("functions with unnamed arguments")
        named = sorted(keys)
        signature = f"{SCHEMA}.{name}({', '.join(named)})" if named else f"{SCHEMA}.{name} without parameters"
        searched = (
            f"with parameter{'s' if len(named) > 1 else ''} {', '.join(named)}" if named else "without parameters"
        )
        alternative = " or with a single unnamed json/jsonb parameter" if posted else ""
        raise ApiError(
            404,
            "PGRST202",
            f"Could not find the function {signature} in the schema cache",
            f"Searched for the function {SCHEMA}.{name} {searched}{alternative}, but no matches were found in the "
            "schema cache.",
        )

    def _query_arguments(self, request: web.Request, name: str) -> dict[str, str]:
        if "Range" in request.headers:
            raise not_done("the header Range")
        query = {key: value for key, value in request.query.items() if key != "limit"}
        arguments = {argument.name for f in self._catalogue.functions.get(name, []) for argument in f.arguments}
        for key, value in query.items():
            if len(request.query.getall(key)) > 1:
                raise not_done(f"the repeated query parameter {key!r}")
            if key not in arguments and (key in RESERVED or LOOKS_LIKE_A_FILTER.match(value)):
                raise not_done(f"the query parameter {key!r}")
        return query

    async def _table(self, request: web.Request, caller: Caller, name: str) -> web.Response:
        if request.method not in ("GET", "POST"):
            raise not_done(f"{request.method} on tables")
        profile = check_profile(request)
        if read_media_type(request) != JSON:
            raise not_done(f"Accept: {SINGLE} on tables")
        if name not in self._catalogue.tables:
            await self._catalogue.load(self._connections)
        columns = self._catalogue.tables.get(name)
        if columns is None:
            raise ApiError(404, "PGRST205", f"Could not find the table '{SCHEMA}.{name}' in the schema cache")
        table = sql.Identifier(SCHEMA, name)
        if request.method == "GET":
            return await self._list(request, caller, table, profile)
        return await self._insert(request, caller, table, columns, profile)

    async def _list(
        self, request: web.Request, caller: Caller, table: sql.Identifier, profile: dict[str, str]
    ) -> web.Response:
        refuse_other_parameters(request, "select", "limit")
        read_preferences(request)
        if "Range" in request.headers:
            raise not_done("the header Range")
        limit = read_limit(request)
        select = request.query.get("select", "*")
        if not re.fullmatch(r"\*|[A-Za-z_]\w*(,[A-Za-z_]\w*)*", select):
            raise not_done(f"select={select}")
        statement = list_statement(table, None if select == "*" else select.split(","), limit)
        async with self._as_caller(request, caller, read_only=True) as connection:
            row = await (await connection.execute(statement)).fetchone()
            assert row is not None  # an aggregate is always one row
        return json_response(row[0], 200, {"Content-Range": _content_range(row[1], None), **profile})

    async def _insert(
        self,
        request: web.Request,
        caller: Caller,
        table: sql.Identifier,
        columns: dict[str, str],
        profile: dict[str, str],
    ) -> web.Response:
        refuse_other_parameters(request, "columns")
        preferences = read_preferences(request, "return=minimal", "return=representation")
        listed = request.query.get("columns")
        payload = await read_payload(request, same_keys=listed is None)
        keys = sorted(payload.keys) if listed is None else [part.strip('"') for part in listed.split(",")]
        for key in keys:
            if key not in columns:
                message = f"Could not find the '{key}' column of '{request.match_info['path']}' in the schema cache"
                raise ApiError(400, "PGRST204", message)
        if not keys:
            raise not_done("inserts without a column")
        representation = "return=representation" in preferences
        taken = {key: columns[key] for key in keys}
        statement = insert_statement(table, taken, many=payload.many, representation=representation)
        async with self._as_caller(request, caller, read_only=False) as connection:
            cursor = await connection.execute(statement, [payload.text])
            row = await cursor.fetchone() if representation else None
        headers = {"Content-Range": "*/*", **profile}
        if preferences:
            headers["Preference-Applied"] = ", ".join(sorted(preferences))
        return json_response(row[0], 201, headers) if row else web.Response(status=201, headers=headers)
