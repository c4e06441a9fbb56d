"""A database a file, emptied for each test: a copy for each of them would cost more time than the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql

from tests.conftest import Connect, Connection
from tests.database.sql_api import Steps
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


@pytest.fixture
def database_url(postgres: Postgres, module_database: str) -> Iterator[str]:
    """The superuser's URL of the file's database, emptied; the test has to leave its schema as it was."""
    url = postgres.url(database=module_database)
    with psycopg.connect(url, autocommit=True) as connection:
        database.empty(url)
        before = connection.execute(SCHEMA).fetchall()
        yield url
        assert connection.execute(SCHEMA).fetchall() == before


@pytest.fixture
def steps(connect: Connect, connection: Connection) -> Steps:
    return Steps(connect(), connection)


Another = Callable[[], Steps]


@pytest.fixture
def another(connect: Connect, connection: Connection) -> Another:
    """another(): the same steps, on a connection of their own."""
    return lambda: Steps(connect(), connection)
