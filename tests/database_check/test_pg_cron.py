"""shared/supabase/snippets/sweep_by_pg_cron.sql, with the real pg_cron: what it schedules asks the function for a sweep."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import Connection
from tests.database_check.conftest import ROOT, debian_binaries
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database

SNIPPETS = ROOT / "shared" / "supabase" / "snippets"
SECRET = "whsec_bm90IGEgc2VjcmV0LCBidXQgbG9uZyBlbm91Z2g="


def _connect(server: Postgres, user: str = "postgres") -> Connection:
    return psycopg.connect(server.url(user), autocommit=True)


@pytest.fixture(scope="module")
def cron_server(extensions: None) -> Iterator[Postgres]:
    """A server that was started with pg_cron, and our migrations in its database `postgres`, where pg_cron lives."""
    with Postgres(debian_binaries()) as server:
        database.bootstrap(server)
        database.migrate(server)
        with _connect(server, "supabase_admin") as admin:
            admin.execute("alter system set shared_preload_libraries = 'pg_cron'")
            # By itself it may not log in here, so it runs nothing: the test does, and at once.
        server.restart()
        with _connect(server, "supabase_admin") as admin:
            admin.execute("create extension pg_cron")
            admin.execute("grant usage on schema cron to postgres")
            admin.execute("grant all on all tables in schema cron to postgres")
        yield server


@pytest.fixture
def owner(cron_server: Postgres) -> Iterator[Connection]:
    with _connect(cron_server) as connection:
        yield connection


def run(owner: Connection, snippet: str) -> None:
    owner.execute((SNIPPETS / snippet).read_bytes())


def test_cron_job_asks_for_a_sweep_with_vaults_secret(owner: Connection) -> None:
    owner.execute("select vault.create_secret('https://calls.example/', 'call_dispatcher_url')")
    # Two, while they are rotated: the function takes both, we send the first.
    owner.execute(f"select vault.create_secret('{SECRET} whsec_b2xk', 'call_dispatcher_secret')".encode())
    run(owner, "sweep_by_pg_cron.sql")
    run(owner, "sweep_by_pg_cron.sql")  # replaces the first

    ((schedule, command, active),) = owner.execute("select schedule, command, active from cron.job").fetchall()
    assert (schedule, active) == ("* * * * *", True)
    owner.execute(command.encode())

    query = "select method, url, headers, convert_from(body, 'UTF8')::jsonb, timeout_milliseconds from net.http_request_queue"
    ((method, url, headers, body, timeout_ms),) = owner.execute(query).fetchall()
    assert (method, url, body) == ("POST", "https://calls.example/sweep", {})
    assert headers == {"Content-Type": "application/json", "Authorization": f"Bearer {SECRET}"}
    assert timeout_ms <= 5000


def test_removing_everything_stops_the_job(owner: Connection) -> None:
    run(owner, "sweep_by_pg_cron.sql")
    run(owner, "remove.sql")
    assert owner.execute("select jobname from cron.job").fetchall() == []
    assert owner.execute("select to_regclass('public.outbound_call_jobs')").fetchone() == (None,)
