"""The gateway's way to Postgres: a pool that survives the server, and what the schema offers to callers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, LiteralString

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from tests.sandbox.supabase.errors import ApiError, unavailable

SCHEMA = "public"
# While Postgres is down each request would log its attempt to connect; the caller is told, by a 503.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)

POOL_WAIT_SECONDS = 10.0  # PostgREST's db-pool-acquisition-timeout


class Connections:
    """A pool that notices when Postgres is gone, says so at once, and is whole again as soon as Postgres is back."""

    def __init__(self, database_url: str, size: int, prepares: bool = False) -> None:
        self._url, self._size = database_url, size
        # PostgREST prepares by default (db-prepared-statements). In tests a plan must not outlive a change of the schema.
        self._prepare_threshold = 0 if prepares else None
        self._lent = 0
        self._pool: AsyncConnectionPool

    async def running(self, _: object) -> AsyncIterator[None]:
        """Connected as long as the application that this belongs to. psycopg_pool.PoolTimeout when Postgres is not there."""
        options = {"autocommit": True, "prepare_threshold": self._prepare_threshold, "connect_timeout": 5}
        self._pool = AsyncConnectionPool(
            self._url, kwargs=options, min_size=self._size, max_size=self._size, open=False,
            reconnect_timeout=0.0,  # no backing off: the next request tries again to connect
        )  # fmt: skip
        await self._pool.open(wait=True)
        yield
        await self._pool.close()

    @asynccontextmanager
    async def transaction(self, begin: LiteralString = "begin") -> AsyncIterator[AsyncConnection]:
        """One transaction: committed at the end of the block, rolled back by an exception.

        ApiError PGRST000 when Postgres is down, PGRST003 when no connection came free in time.
        """
        connection = await self._begun(begin)
        self._lent += 1
        try:
            yield connection
            await connection.execute("commit")
        except BaseException:
            with suppress(psycopg.OperationalError):  # it may be what broke
                await connection.rollback()
            raise
        finally:
            self._lent -= 1
            await self._pool.putconn(connection)

    async def _begun(self, begin: LiteralString) -> AsyncConnection:
        deadline = time.monotonic() + POOL_WAIT_SECONDS
        while time.monotonic() < deadline:
            try:
                connection = await self._pool.getconn(timeout=0.5)
            except PoolTimeout:
                # With all of them lent this is a queue and no outage.
                if self._lent < self._size and not await self._postgres_listens():
                    raise unavailable() from None
                continue
            try:
                await connection.execute(begin)
                return connection
            except psycopg.OperationalError:  # died while it lay idle: nothing was done on it, take another
                await self._pool.putconn(connection)
        raise ApiError(504, "PGRST003", "Timed out acquiring connection from connection pool.")

    async def _postgres_listens(self) -> bool:
        address = conninfo_to_dict(self._url)
        host, port = str(address.get("host") or "127.0.0.1"), int(address.get("port") or 5432)
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 2.0)
        except OSError:
            return False
        writer.close()
        return True


@dataclass(frozen=True)
class Argument:
    """An input argument. `type` is its qualified name, to be put in a statement."""

    name: str
    type: str
    required: bool


@dataclass(frozen=True)
class Function:
    """A function of the exposed schema, as far as calling it needs."""

    name: str
    arguments: tuple[Argument, ...]
    volatile: bool
    returns_set: bool
    shape: Literal["void", "scalar", "object", "other"]
    settings: tuple[str, ...]  # `name=value`, from the function's SET clauses

    def takes(self, keys: frozenset[str]) -> bool:
        return {a.name for a in self.arguments if a.required} <= keys <= {a.name for a in self.arguments}


FUNCTIONS = """
select p.proname, p.provolatile = 'v', p.proretset,
       case when p.provariadic <> 0 then 'other'
            when p.prorettype = 'void'::regtype then 'void'
            when p.proargmodes && '{o,b,t}' or r.typtype = 'c' then 'object'
            when p.prorettype = 'record'::regtype or b.typtype = 'c' then 'other'
            else 'scalar' end,
       coalesce(p.proconfig, '{}'),
       array(select json_build_array(coalesce(p.proargnames[i.n], ''), format('%%I.%%I', s.nspname, t.typname),
                                     i.ord <= p.pronargs - p.pronargdefaults)
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
    """The functions and tables of the schema, and settings of roles; read anew whenever something is not found."""

    functions: dict[str, list[Function]] = field(default_factory=dict)
    tables: dict[str, dict[str, str]] = field(default_factory=dict)  # table -> column -> type
    role_settings: dict[str, list[str]] = field(default_factory=dict)

    async def load(self, connections: Connections) -> None:
        async with connections.transaction("begin read only") as connection:
            functions: dict[str, list[Function]] = {}
            rows = await connection.execute(FUNCTIONS, [SCHEMA])
            async for name, volatile, is_set, shape, settings, arguments in rows:
                taken = tuple(Argument(*argument) for argument in arguments)
                function = Function(name, taken, volatile, is_set, shape, tuple(settings))
                functions.setdefault(name, []).append(function)
            tables = {name: dict(columns) async for name, columns in await connection.execute(TABLES, [SCHEMA])}
            roles: dict[str, list[str]] = {}
            async for role, role_settings in await connection.execute(ROLE_SETTINGS):
                roles.setdefault(role, []).extend(role_settings)
        self.functions, self.tables, self.role_settings = functions, tables, roles

    def find(self, name: str, keys: frozenset[str]) -> list[Function]:
        """Functions of that name that can be called with exactly these argument names."""
        return [function for function in self.functions.get(name, []) if function.takes(keys)]
