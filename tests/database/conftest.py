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

# Not truncated: with all their indexes that takes 30 ms. As a replica, because our own trigger keeps jobs that are open.
EMPTY = """
set session_replication_role = replica;
delete from public.outbound_call_answers; delete from public.outbound_call_attempts; delete from public.outbound_call_jobs;
alter sequence public.outbound_call_jobs_id_seq restart;
set session_replication_role = origin;
delete from private.missed_signups; delete from private.deleted_calls;
delete from private.deleted_users; delete from public.call_opt_outs;
delete from private.call_settings; insert into private.call_settings default values;
delete from auth.users; delete from vault.secrets; delete from net.http_request_queue;
update sandbox.clock set offset_by = '0';
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
def database_url(postgres: Postgres, module_database: str) -> str:
    url = postgres.url(database=module_database)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(EMPTY)
    return url


@pytest.fixture
def steps(connect: Connect, connection: Connection) -> Steps:
    return Steps(connect(), connection)


Another = Callable[[], Steps]


@pytest.fixture
def another(connect: Connect, connection: Connection) -> Another:
    """another(): the same steps, on a connection of their own."""
    return lambda: Steps(connect(), connection)
