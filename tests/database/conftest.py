"""A database a file, emptied for each test: a copy for each of them would cost more time than the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.conftest import Connect, Connection
from tests.database.sql_api import Steps, in_background
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database

# Tables, functions, constraints and triggers by name: what a test changes of them it has to change back.
SCHEMA = """
select (select count(*) from pg_namespace), (select string_agg(oid::regclass::text, ' ' order by oid) from pg_class),
       (select string_agg(oid::regprocedure::text || prosrc, ' ' order by oid) from pg_proc where oid > 16384),
       (select string_agg(conname, ' ' order by oid) from pg_constraint),
       (select string_agg(tgname, ' ' order by oid) from pg_trigger)
"""


@pytest.fixture(scope="module")
def module_database(postgres: Postgres, template_database: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of this file's database."""
    name = request.module.__name__.rpartition(".")[2]
    database.create_database(postgres, name, template_database)
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        # A deadlock shows at once, and before any lock_timeout of ours could hide it.
        connection.execute(sql.SQL("alter database {} set deadlock_timeout = '100ms'").format(sql.Identifier(name)))
    yield name
    database.drop_database(postgres, name)


@pytest.fixture(scope="module")
def idle(module_database: str) -> Iterator[list[Connection]]:
    """The superuser's sessions that no test uses now. A new session costs 30 ms: it reads catalogs, compiles functions."""
    sessions: list[Connection] = []
    yield sessions
    for session in sessions:
        session.close()


@pytest.fixture
def database_url(postgres: Postgres, module_database: str, idle: list[Connection]) -> Iterator[str]:
    """The superuser's URL of the file's database, emptied; the test has to leave its schema as it was."""
    url = postgres.url(database=module_database)
    with kept(url, idle) as connection:
        connection.execute(database.EMPTY.encode())
        before = connection.execute(SCHEMA).fetchall()
        yield url
        assert connection.execute(SCHEMA).fetchall() == before


@pytest.fixture
def connect(database_url: str, idle: list[Connection]) -> Iterator[Connect]:
    """Opens autocommit connections, as tests/conftest.py does; the superuser's sessions are kept for the next test."""
    with ExitStack() as opened:

        def connect(user: str | None = None) -> Connection:
            if user is None:
                return opened.enter_context(kept(database_url, idle))
            return opened.enter_context(psycopg.connect(make_conninfo(database_url, user=user), autocommit=True))

        yield connect


@contextmanager
def kept(url: str, idle: list[Connection]) -> Iterator[Connection]:
    """A session as a new one is."""
    session = idle.pop() if idle else psycopg.connect(url, autocommit=True, prepare_threshold=None)
    try:
        yield session
    finally:
        if not session.closed:
            session.rollback()
            session.autocommit = True
            session.execute("discard all")
            idle.append(session)


@pytest.fixture
def steps(connect: Connect, connection: Connection) -> Steps:
    return Steps(connect(), connection)


Another = Callable[[], Steps]


@pytest.fixture
def another(connect: Connect, connection: Connection) -> Another:
    """another(): the same steps, on a connection of their own."""
    return lambda: Steps(connect(), connection)


StepResult = Callable[[Steps], Any]
Queue = Callable[..., list[Any]]


@pytest.fixture
def one_after_the_other(connection: Connection, another: Another) -> Queue:
    """The first step holds its locks while the others, in this order, come and wait for them; then it commits."""

    def run(*crowd: StepResult) -> list[Any]:
        first, *rest = (another() for _ in crowd)
        first.service.autocommit = False
        answer = crowd[0](first)
        with in_background(connection) as start:
            waiting = [start(steps, partial(step, steps)) for steps, step in zip(rest, crowd[1:], strict=True)]
            first.service.commit()
            return [answer, *(future.result(20) for future in waiting)]

    return run
