"""An RPC gateway: the sandbox's stand-in for PostgREST behind Supabase's API gateway.

It exists so that the product's real client, supabase-py, reaches our real SQL functions over real HTTP without Docker.
It does what the product needs of `/rest/v1` as PostgREST 14 to 16 do it, held to answers recorded from them
(`tests/integration/test_gateway_conformance.py`); asked for anything else it answers 501 and names it, never a guess.
Conversions and JSON are left to Postgres, so that numbers, times and nulls come out as Postgres prints them.

How a call goes: key -> role (`_authenticate`), name and argument names -> function (`Catalogue`), one transaction under
that role (`Connections`), its result or its SQLSTATE -> HTTP (`_status_of`).

Tables can be listed and inserted into, no more: enough for a user's own code to add a job, and to prove that nobody else
reads or writes ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, LiteralString, cast

import jwt
import psycopg
from aiohttp import web
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, PoolTimeout

SCHEMA = "public"
ANON = "anon"
MAX_ROWS = 1000  # Supabase's db-max-rows: longer sets are cut in silence
MAX_BODY = 32 * 1024 * 1024  # bytes; PostgREST itself takes 20 MB without complaint
CLOCK_SKEW_SECONDS = 30
POOL_WAIT_SECONDS = 10.0  # PostgREST's db-pool-acquisition-timeout
LONG_EXPIRY = 4102444800  # 2100-01-01, as Unix time

RESERVED = frozenset({"select", "order", "offset", "columns", "on_conflict", "and", "or", "not.and", "not.or"})
LOOKS_LIKE_A_FILTER = re.compile(r"(not\.)?[a-z]+(\([a-z]+\))?\.")

JSON = "application/json"
SINGLE = "application/vnd.pgrst.object+json"

Fault = Literal["503", "html", "lose_response"]


# ---------------------------------------------------------------- keys


def _mint(secret: str, claims: dict[str, Any]) -> str:
    return jwt.encode({"iss": "supabase", "iat": 1700000000, "exp": LONG_EXPIRY, **claims}, secret, algorithm="HS256")


def anon_key(secret: str) -> str:
    """The legacy anon key: a JWT of role `anon`."""
    return _mint(secret, {"role": ANON})


def service_key(secret: str) -> str:
    """The legacy service_role key: a JWT of role `service_role`."""
    return _mint(secret, {"role": "service_role"})


def user_key(secret: str, user_id: str, email: str) -> str:
    """A signed-in user's access token: a JWT of role `authenticated`."""
    return _mint(secret, {"role": "authenticated", "aud": "authenticated", "sub": user_id, "email": email})


def publishable_key(secret: str) -> str:
    """An `sb_publishable_...` key; no JWT, the gateway turns it into one of role `anon`."""
    return f"sb_publishable_{_opaque(secret, 'publishable')}"


def secret_key(secret: str) -> str:
    """An `sb_secret_...` key; no JWT, the gateway turns it into one of role `service_role`."""
    return f"sb_secret_{_opaque(secret, 'secret')}"


def _opaque(secret: str, kind: str) -> str:
    return hmac.new(secret.encode(), kind.encode(), hashlib.sha256).hexdigest()[:31]


# ---------------------------------------------------------------- errors


@dataclass
class ApiError(Exception):
    """An error that the caller is told: HTTP status, and the four keys that PostgREST's error bodies always have."""

    status: int
    code: str
    message: str
    details: str | None = None
    hint: str | None = None
    reason: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> web.Response:
        headers = {"Proxy-Status": f"PostgREST; error={self.code}", **self.headers}
        if self.status == 401:
            headers.setdefault("WWW-Authenticate", "Bearer")
        if self.status == 503:
            headers.setdefault("Retry-After", "0")
        body = {"code": self.code, "details": self.details, "hint": self.hint, "message": self.message}
        # PostgREST lets a newline through into the status line; aiohttp would refuse to answer at all.
        reason = re.sub(r"[\r\n]+", " ", self.reason) if self.reason else None
        return _json_response(json.dumps(body, ensure_ascii=False), self.status, headers, reason=reason)


def not_done(what: str) -> ApiError:
    """Real Supabase answers this and the stand-in does not: 501, and no guess."""
    return ApiError(501, "SANDBOX", f"the sandbox's gateway does not do {what}")


def unavailable() -> ApiError:
    """Postgres is down."""
    return ApiError(503, "PGRST000", "Database connection error. Retrying the connection.")


def _unauthorized(code: str, message: str, details: str | None = None) -> ApiError:
    header = f'Bearer error="invalid_token", error_description="{message}"'
    return ApiError(401, code, message, details, headers={"WWW-Authenticate": header})


# By SQLSTATE or the longest beginning of it; what is not listed, our own codes too, is 400.
# Source: PostgREST's Error.hs, measured on 14.17 and 16.2. (40001 and 40P01: 14 runs the call again and again.)
STATUS_OF_SQLSTATE = {
    "08": 503,
    "09": 500,
    "0L": 403,
    "0P": 403,
    "21": 500,
    "23503": 409,
    "23505": 409,
    "25": 500,
    "25006": 405,
    "28": 403,
    "2D": 500,
    "38": 500,
    "39": 500,
    "3B": 500,
    "40": 500,
    "42883": 404,
    "42P01": 404,
    "42P17": 500,
    "42501": 403,
    "53": 503,
    "53400": 500,
    "54": 500,
    "55": 500,
    "57": 500,
    "57P01": 503,
    "58": 500,
    "F0": 500,
    "HV": 500,
    "P0": 500,
    "P0001": 400,
    "XX": 500,
}


def _status_of(sqlstate: str) -> int:
    return next((STATUS_OF_SQLSTATE[sqlstate[:n]] for n in range(5, 1, -1) if sqlstate[:n] in STATUS_OF_SQLSTATE), 400)


def _database_error(error: psycopg.Error, role: str) -> ApiError:
    """What became of the statement, as PostgREST tells it."""
    sqlstate, said = error.sqlstate, error.diag
    if sqlstate == "57P01" or (sqlstate is None and isinstance(error, psycopg.OperationalError)):
        return ApiError(503, "PGRST001", "Database client error. Retrying the connection.", str(error))
    if sqlstate is None:
        return not_done(f"this request: {error}")
    message = said.message_primary or str(error)
    reason = None
    if sqlstate == "PGRST":
        return not_done("raise sqlstate 'PGRST'")
    if sqlstate.startswith("PT"):
        status = int(sqlstate[2:]) if sqlstate[2:].isdigit() else 500
        if status < 200 or status in (204, 304):
            return not_done(f"raise sqlstate '{sqlstate}'")
        reason = message
    elif sqlstate == "42501" and role == ANON:
        status = 401
    elif sqlstate == "22023" and message == f'role "{role}" does not exist':
        status = 401
    else:
        status = _status_of(sqlstate)
    return ApiError(status, sqlstate, message, said.message_detail, said.message_hint, reason)


# ---------------------------------------------------------------- database


class Connections:
    """A pool that notices when Postgres is gone, says so at once, and is whole again as soon as Postgres is back."""

    def __init__(self, database_url: str, size: int) -> None:
        address = conninfo_to_dict(database_url)
        self._host, self._port = str(address.get("host", "127.0.0.1")), int(address.get("port", 5432))
        self._pool = AsyncConnectionPool(
            database_url,
            # Statements are not prepared: a plan must not outlive a change of the schema.
            kwargs={"autocommit": True, "prepare_threshold": None, "connect_timeout": 5},
            min_size=size,
            max_size=size,
            # No backing off: a connection that could not be made is tried again by the next request.
            reconnect_timeout=0.0,
            open=False,
        )

    async def open(self) -> None:
        await self._pool.open(wait=True)

    async def close(self) -> None:
        await self._pool.close()

    @asynccontextmanager
    async def transaction(self, begin: LiteralString = "begin") -> AsyncIterator[AsyncConnection]:
        """One transaction: committed at the end of the block, rolled back by an exception.

        ApiError PGRST000 when Postgres is down, PGRST003 when no connection came free in time.
        """
        connection = await self._begun(begin)
        try:
            yield connection
            await connection.execute("commit")
        except BaseException:
            with suppress(psycopg.OperationalError):  # it may be what broke
                await connection.rollback()
            raise
        finally:
            await self._pool.putconn(connection)

    async def _begun(self, begin: LiteralString) -> AsyncConnection:
        deadline = time.monotonic() + POOL_WAIT_SECONDS
        while time.monotonic() < deadline:
            try:
                connection = await self._pool.getconn(timeout=0.5)
            except PoolTimeout:
                if not await self._postgres_listens():
                    raise unavailable() from None
                continue
            try:
                await connection.execute(begin)
                return connection
            except psycopg.OperationalError:  # died while it lay idle: nothing was done on it, take another
                await self._pool.putconn(connection)
        raise ApiError(504, "PGRST003", "Timed out acquiring connection from connection pool.")

    async def _postgres_listens(self) -> bool:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(self._host, self._port), 2.0)
        except OSError:
            return False
        writer.close()
        return True


@dataclass(frozen=True)
class Argument:
    """An input argument. `type` is its qualified name, to be put in a statement; `shown` is what people call it."""

    name: str
    type: str
    shown: str
    required: bool


@dataclass(frozen=True)
class Function:
    """A function of the exposed schema, as far as calling it needs."""

    name: str
    arguments: tuple[Argument, ...]
    volatile: bool
    returns_set: bool
    shape: Literal["void", "scalar", "object", "record", "variadic"]
    settings: tuple[str, ...]  # `name=value`, from the function's SET clauses

    def takes(self, keys: frozenset[str]) -> bool:
        required = {argument.name for argument in self.arguments if argument.required}
        return required <= keys <= {argument.name for argument in self.arguments}


FUNCTIONS = """
select p.proname, p.provolatile = 'v', p.proretset,
       case when p.provariadic <> 0 then 'variadic'
            when p.prorettype = 'void'::regtype then 'void'
            when p.proargmodes && '{o,b,t}' or r.typtype = 'c' then 'object'
            when p.prorettype = 'record'::regtype or b.typtype = 'c' then 'record'
            else 'scalar' end,
       coalesce(p.proconfig, '{}'),
       array(select json_build_array(coalesce(p.proargnames[i.n], ''), format('%%I.%%I', s.nspname, t.typname),
                                     format_type(t.oid, null), i.ord <= p.pronargs - p.pronargdefaults)
             from (select a.n, row_number() over (order by a.n) as ord
                   from generate_series(1, coalesce(cardinality(p.proallargtypes), p.pronargs)) as a(n)
                   where coalesce(p.proargmodes[a.n], 'i') in ('i', 'b', 'v')) as i
             join pg_type t on t.oid = p.proargtypes[i.ord - 1]
             join pg_namespace s on s.oid = t.typnamespace
             order by i.ord)
from pg_proc p join pg_type r on r.oid = p.prorettype left join pg_type b on b.oid = r.typbasetype
where p.pronamespace = %s::regnamespace and p.prokind = 'f'
order by p.oid
"""

TABLES = """
select c.relname, array(select json_build_array(a.attname, format('%%I.%%I', s.nspname, t.typname))
                        from pg_attribute a join pg_type t on t.oid = a.atttypid
                        join pg_namespace s on s.oid = t.typnamespace
                        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum)
from pg_class c where c.relnamespace = %s::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
"""

ROLE_SETTINGS = """
select r.rolname, s.setconfig from pg_db_role_setting s join pg_roles r on r.oid = s.setrole
where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
order by s.setdatabase
"""

# Of a function's or role's settings PostgREST moves these to the transaction, so that they hold for the call itself.
HOISTED = ("statement_timeout",)


@dataclass
class Catalogue:
    """What may be called and what may be inserted into; read anew whenever something is not found."""

    functions: dict[str, list[Function]] = field(default_factory=dict)
    tables: dict[str, dict[str, str]] = field(default_factory=dict)  # table -> column -> type
    role_settings: dict[str, list[str]] = field(default_factory=dict)

    async def load(self, connections: Connections) -> None:
        async with connections.transaction("begin read only") as connection:
            functions: dict[str, list[Function]] = {}
            async for name, volatile, returns_set, shape, settings, arguments in await connection.execute(
                FUNCTIONS, [SCHEMA]
            ):
                taken = tuple(Argument(*argument) for argument in arguments)
                functions.setdefault(name, []).append(
                    Function(name, taken, volatile, returns_set, shape, tuple(settings))
                )
            tables = {name: dict(columns) async for name, columns in await connection.execute(TABLES, [SCHEMA])}
            roles: dict[str, list[str]] = {}
            async for role, role_settings in await connection.execute(ROLE_SETTINGS):
                roles.setdefault(role, []).extend(role_settings)
        self.functions, self.tables, self.role_settings = functions, tables, roles

    def find(self, name: str, keys: frozenset[str]) -> list[Function]:
        """Functions of that name that can be called with exactly these argument names."""
        return [function for function in self.functions.get(name, []) if function.takes(keys)]


# ---------------------------------------------------------------- requests


@dataclass(frozen=True)
class Caller:
    role: str
    claims: dict[str, Any]


@dataclass(frozen=True)
class Payload:
    """A JSON body as it came, and the keys of its object. `many`: it is an array of objects, and these are the first's."""

    text: str
    keys: frozenset[str]
    many: bool


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


async def _payload(request: web.Request, *, same_keys: bool = True) -> Payload:
    content_type = request.headers.get("Content-Type", JSON).split(";")[0].strip().lower()
    if content_type in ("application/x-www-form-urlencoded", "text/csv", "application/octet-stream", "text/plain"):
        raise not_done(f"bodies of type {content_type}")
    if content_type != JSON:
        raise ApiError(400, "PGRST102", f"Content-Type not acceptable: {content_type}")
    try:
        text = (await request.read()).decode()
        body = json.loads(text, parse_constant=_reject_constant, parse_int=str, parse_float=str) if text else None
    except (ValueError, RecursionError):
        raise ApiError(400, "PGRST102", "Empty or invalid json") from None
    if isinstance(body, dict):
        return Payload(text, frozenset(body), many=False)
    if not isinstance(body, list):
        return Payload("{}", frozenset(), many=False)
    if not all(isinstance(item, dict) for item in body):
        raise not_done("arrays of anything but objects")
    key_sets = {frozenset(item) for item in body}
    if same_keys and len(key_sets) > 1:
        raise ApiError(400, "PGRST102", "All object keys must match")
    return Payload(text, frozenset(body[0]) if body else frozenset(), many=True)


def _preferences(request: web.Request, *done: str) -> set[str]:
    """What the caller prefers; anything that begins with none of `done` is refused."""
    lines = request.headers.getall("Prefer", [])
    preferences = {part.strip() for line in lines for part in line.split(",") if part.strip()}
    for preference in preferences:
        if not preference.startswith(done):
            raise not_done(f"Prefer: {preference}")
    return preferences


def _check_profile(request: web.Request) -> dict[str, str]:
    """The schema asked for must be ours. Returns the header that the answer has when one was asked for."""
    header = "Accept-Profile" if request.method in ("GET", "HEAD") else "Content-Profile"
    asked = request.headers.get(header)
    if asked is None:
        return {}
    if asked != SCHEMA:
        raise ApiError(
            406, "PGRST106", f"Invalid schema: {asked}", hint=f"Only the following schemas are exposed: {SCHEMA}"
        )
    return {"Content-Profile": SCHEMA}


def _media_type(request: web.Request) -> str:
    """`JSON` or `SINGLE`, whichever the caller wants first."""
    wanted = [part.strip() for part in request.headers.get("Accept", "*/*").split(",")]
    known = {"*/*": JSON, JSON: JSON, SINGLE: SINGLE}
    for part in wanted:
        name, _, parameters = part.partition(";")
        if name.strip().lower() in known and not parameters:
            return known[name.strip().lower()]
        if parameters or "*" in name or name.startswith(("text/", "application/")):
            raise not_done(f"Accept: {part}")
    raise ApiError(406, "PGRST107", f"None of these media types are available: {', '.join(wanted)}")


def _limit(request: web.Request) -> int | None:
    values = request.query.getall("limit", [])
    if not values:
        return None
    if len(values) > 1 or not re.fullmatch("[1-9][0-9]{0,8}", values[0]):
        raise not_done(f"limit={','.join(values)}")
    return int(values[0])


def _refuse_other_parameters(request: web.Request, *done: str) -> None:
    for name in request.query:
        if name not in done:
            raise not_done(f"the query parameter {name!r}")


def _content_range(rows: int, total: int | None) -> str:
    return f"{f'0-{rows - 1}' if rows else '*'}/{'*' if total is None else total}"


def _json_response(
    body: str, status: int, headers: Mapping[str, str], *, reason: str | None = None, media_type: str = JSON
) -> web.Response:
    headers = {"Content-Type": f"{media_type}; charset=utf-8", **headers}
    return web.Response(body=body.encode(), status=status, headers=headers, reason=reason)


class Gateway:
    """`/rest/v1` over one database.

    `database_url` logs in as `authenticator`, which must hold the roles that keys name. `requests` counts the calls of
    each function, failed ones too. To break things, from any thread: `fault` says how ("503": as if Postgres were down;
    "html": a proxy's 502 page; "lose_response": the call is done and committed, then the connection is closed without an
    answer), `fault_times` how often before it heals (None: until changed), `fault_on` for which functions (None: all).
    """

    def __init__(self, database_url: str, *, jwt_secret: str, pool_size: int = 10) -> None:
        self.requests: Counter[str] = Counter()
        self.fault: Fault | None = None
        self.fault_times: int | None = None
        self.fault_on: set[str] | None = None
        self._secret = jwt_secret
        self._connections = Connections(database_url, pool_size)
        self._catalogue = Catalogue()

    async def start(self) -> None:
        """Connect and read the schema. Postgres must be up."""
        await self._connections.open()
        await self._catalogue.load(self._connections)

    async def close(self) -> None:
        await self._connections.close()

    async def reload(self) -> None:
        """Read the schema again: what `notify pgrst` does to PostgREST. New functions are found without it."""
        await self._catalogue.load(self._connections)

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

    # ------------------------------------------------------------ the way through

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
            caller = self._authenticate(request)
            if not path or "/" in (function if function is not None else path) or function == "":
                raise ApiError(404, "PGRST125", "Invalid path specified in request URL")
            if function is not None:
                response = await self._call(request, caller, function)
            else:
                response = await self._table(request, caller, path)
        except ApiError as error:
            response = error.response()
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

    def _authenticate(self, request: web.Request) -> Caller:
        """Supabase's gateway puts the key in place, then PostgREST reads the token. No token is the anon role."""
        header = request.headers.get("Authorization")
        if header is None or header.startswith("Bearer sb_"):
            api_key = request.headers.get("apikey")
            known = {
                secret_key(self._secret): f"Bearer {service_key(self._secret)}",
                publishable_key(self._secret): f"Bearer {anon_key(self._secret)}",
            }
            # Any other key goes on as it is: a lone JWT without "Bearer" means nothing to PostgREST.
            header = known.get(api_key, api_key) if api_key is not None else header
        scheme, _, token = (header or "").partition(" ")
        if scheme.lower() != "bearer":
            return Caller(ANON, {"role": ANON})
        claims = self._claims(token.strip())
        role = claims.setdefault("role", ANON)
        return Caller(str(role), claims)

    def _claims(self, token: str) -> dict[str, Any]:
        if not token:
            raise _unauthorized("PGRST301", "Empty JWT is sent in Authorization header")
        if (parts := token.count(".") + 1) != 3:
            raise _unauthorized("PGRST301", f"Expected 3 parts in JWT; got {parts}")
        try:
            # An audience or a subject is nothing that PostgREST checks unless told to.
            return jwt.decode(
                token,
                self._secret,
                algorithms=["HS256"],
                leeway=CLOCK_SKEW_SECONDS,
                options={"verify_aud": False, "verify_sub": False, "verify_jti": False},
            )
        except jwt.ExpiredSignatureError:
            raise _unauthorized("PGRST303", "JWT expired") from None
        except jwt.ImmatureSignatureError as error:
            message = "JWT issued at future" if "iat" in str(error) else "JWT not yet valid"
            raise _unauthorized("PGRST303", message) from None
        except jwt.PyJWTError:
            raise _unauthorized(
                "PGRST301", "No suitable key or wrong key type", "None of the keys was able to decode the JWT"
            ) from None

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
            raise _database_error(error, caller.role) from error

    # ------------------------------------------------------------ functions

    async def _call(self, request: web.Request, caller: Caller, name: str) -> web.Response:
        if request.method not in ("POST", "GET", "HEAD"):
            raise ApiError(405, "PGRST101", f"Cannot use the {request.method} method on RPC")
        posted = request.method == "POST"
        profile = _check_profile(request)
        preferences = _preferences(request, "count=exact", "return=", "params=", "tx=")
        limit = _limit(request)
        if posted:
            _refuse_other_parameters(request, "limit")
            payload = await _payload(request)
            function = await self._resolve(name, payload.keys, posted)
            call = _call_with_json(function, payload)
        else:
            query = self._query_arguments(request, name)
            function = await self._resolve(name, frozenset(query), posted)
            call = _call_with_text(function, query)
        media_type = _media_type(request)
        if limit is not None and not function.returns_set:
            raise not_done("limit on a function that returns no set")
        counted = "count=exact" in preferences
        if counted and not function.returns_set:
            raise not_done("count=exact on a function that returns no set")

        single = function.returns_set and media_type == SINGLE
        statement = _statement(function, call, as_array=function.returns_set and not single, limit=limit)
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
        return _json_response(body or "null", status, {**headers, **profile}, media_type=media_type)

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

    # ------------------------------------------------------------ tables

    async def _table(self, request: web.Request, caller: Caller, name: str) -> web.Response:
        if request.method not in ("GET", "POST"):
            raise not_done(f"{request.method} on tables")
        profile = _check_profile(request)
        if _media_type(request) != JSON:
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
        _refuse_other_parameters(request, "select", "limit")
        _preferences(request)
        if "Range" in request.headers:
            raise not_done("the header Range")
        limit = _limit(request)
        select = request.query.get("select", "*")
        if not re.fullmatch(r"\*|[A-Za-z_]\w*(,[A-Za-z_]\w*)*", select):
            raise not_done(f"select={select}")
        wanted = (
            sql.SQL("*")
            if select == "*"
            else sql.SQL(", ").join(
                sql.SQL("{}.{}").format(table, sql.Identifier(column)) for column in select.split(",")
            )
        )
        statement = sql.SQL(
            "select coalesce(json_agg(row_to_json(r)), '[]')::text, count(*) from (select {} from {} limit {}) as r"
        ).format(wanted, table, sql.Literal(MAX_ROWS if limit is None else min(limit, MAX_ROWS)))
        async with self._as_caller(request, caller, read_only=True) as connection:
            row = await (await connection.execute(statement)).fetchone()
            assert row is not None  # an aggregate is always one row
        return _json_response(row[0], 200, {"Content-Range": _content_range(row[1], None), **profile})

    async def _insert(
        self,
        request: web.Request,
        caller: Caller,
        table: sql.Identifier,
        columns: dict[str, str],
        profile: dict[str, str],
    ) -> web.Response:
        _refuse_other_parameters(request, "columns")
        preferences = _preferences(request, "return=minimal", "return=representation")
        listed = request.query.get("columns")
        payload = await _payload(request, same_keys=listed is None)
        keys = sorted(payload.keys) if listed is None else [part.strip('"') for part in listed.split(",")]
        for key in keys:
            if key not in columns:
                message = f"Could not find the '{key}' column of '{request.match_info['path']}' in the schema cache"
                raise ApiError(400, "PGRST204", message)
        if not keys:
            raise not_done("inserts without a column")
        statement = sql.SQL("insert into {} ({}) select {} from json_to_recordset({}) as a({})").format(
            table,
            sql.SQL(", ").join(map(sql.Identifier, keys)),
            sql.SQL(", ").join(sql.Identifier("a", key) for key in keys),
            sql.SQL("%s::json" if payload.many else "json_build_array(%s::json)"),
            sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(key), _type(columns[key])) for key in keys),
        )
        # Asking for the rows back needs the right to read them; a plain insert does not.
        representation = "return=representation" in preferences
        if representation:
            statement = sql.SQL(
                "with i as ({} returning *) select coalesce(json_agg(row_to_json(i)), '[]')::text from i"
            ).format(statement)
        async with self._as_caller(request, caller, read_only=False) as connection:
            cursor = await connection.execute(statement, [payload.text])
            row = await cursor.fetchone() if representation else None
        applied = {"Preference-Applied": preference for preference in preferences}
        headers = {"Content-Range": "*/*", **applied, **profile}
        return _json_response(row[0], 201, headers) if row else web.Response(status=201, headers=headers)


# ---------------------------------------------------------------- statements


@dataclass(frozen=True)
class Call:
    """The FROM item that calls a function, what has to stand before it, and the values of its placeholders."""

    source: sql.Composable
    function: sql.Composable
    values: list[str]


def _type(qualified: str) -> sql.SQL:
    return sql.SQL(cast(LiteralString, qualified))  # from the catalogue, quoted there


def _function_call(function: Function, arguments: Iterable[sql.Composable]) -> sql.Composable:
    return sql.SQL("{}({})").format(sql.Identifier(SCHEMA, function.name), sql.SQL(", ").join(arguments))


def _call_with_json(function: Function, payload: Payload) -> Call:
    """Arguments out of a JSON object, by json_to_record, as PostgREST does: of an array, the first one."""
    taken = [argument for argument in function.arguments if argument.name in payload.keys]
    if not taken:
        return Call(sql.SQL(""), _function_call(function, []), [])
    source = sql.SQL("json_to_record({}) as a({}), lateral ").format(
        sql.SQL("%s::json -> 0" if payload.many else "%s::json"),
        sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(a.name), _type(a.type)) for a in taken),
    )
    passed = (sql.SQL("{} := {}").format(sql.Identifier(a.name), sql.Identifier("a", a.name)) for a in taken)
    return Call(source, _function_call(function, passed), [payload.text])


def _call_with_text(function: Function, query: dict[str, str]) -> Call:
    """Arguments out of the query string, each through its type's text input."""
    taken = [argument for argument in function.arguments if argument.name in query]
    passed = (sql.SQL("{} := %s::{}").format(sql.Identifier(a.name), _type(a.type)) for a in taken)
    return Call(sql.SQL(""), _function_call(function, passed), [query[a.name] for a in taken])


def _statement(function: Function, call: Call, *, as_array: bool, limit: int | None) -> sql.Composed:
    """Answers one row: the JSON, how many rows are in it, and how many there were before any limit."""
    if function.shape == "void":
        return sql.SQL("select null, count(*), count(*) from {}{} as f").format(call.source, call.function)
    # A scalar becomes a column of a name of ours; a row keeps its columns' names, even if it has but one.
    alias, item = ("f", "row_to_json(r)") if function.shape == "object" else ("f(value)", "to_json(r.value)")
    return sql.SQL(
        "with called as materialized (select f.* from {}{} as {}), r as (select * from called limit {}) "
        "select {}, count(*), (select count(*) from called) from r"
    ).format(
        call.source,
        call.function,
        sql.SQL(alias),
        sql.Literal(MAX_ROWS if limit is None else min(limit, MAX_ROWS)),
        sql.SQL("coalesce(json_agg({0}), '[]')::text" if as_array else "min({0}::text)").format(sql.SQL(item)),
    )
