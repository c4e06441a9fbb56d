"""shared/supabase/snippets/remove.sql leaves a project as it was before the first push."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest

from tests.conftest import Connection
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database

REMOVE = (database.MIGRATIONS.parent / "snippets" / "remove.sql").read_bytes()

# Everything there is to see, but for what the sandbox's own bootstrap made and what belongs to extensions.
EVERYTHING = """
select 'schema ' || nspname from pg_namespace where nspname !~ '^pg_|supabase_migrations'
union all select 'extension ' || extname from pg_extension
union all select 'relation ' || oid::regclass || ' ' || coalesce(relacl::text, '')
  from pg_class where relnamespace::regnamespace::text !~ '^pg_|information_schema|supabase_migrations' and relkind <> 't'
union all select 'function ' || oid::regprocedure || ' ' || coalesce(proacl::text, '')
  from pg_proc where pronamespace::regnamespace::text !~ '^pg_|information_schema'
union all select 'type ' || oid::regtype from pg_type
  where typnamespace::regnamespace::text !~ '^pg_|information_schema|supabase_migrations'
union all select 'trigger ' || tgname || ' on ' || tgrelid::regclass from pg_trigger where not tgisinternal
union all select 'policy ' || polname from pg_policy
union all select 'default ' || coalesce(defaclacl::text, '') from pg_default_acl
union all select 'secret ' || name from vault.secrets
order by 1
"""


@pytest.fixture
def project(postgres: Postgres) -> Iterator[str]:
    """The name of a project like many: it had a schema `private` and some tables before us."""
    name = "project_to_leave"
    database.create_database(postgres, name)
    database.bootstrap(postgres, name)
    yield name
    database.drop_database(postgres, name)


@pytest.fixture
def eyes(postgres: Postgres, project: str) -> Iterator[Connection]:
    with psycopg.connect(postgres.url(database=project), autocommit=True) as connection:
        yield connection


@pytest.fixture
def owner(postgres: Postgres, project: str) -> Iterator[Connection]:
    """The SQL editor: role postgres, who is no superuser and does not own auth.users."""
    with psycopg.connect(postgres.url("postgres", project), autocommit=True) as connection:
        yield connection


def everything(eyes: Connection) -> list[str]:
    return [what for (what,) in eyes.execute(EVERYTHING.encode())]


def sign_up(postgres: Postgres, project: str) -> None:
    with psycopg.connect(postgres.url("supabase_auth_admin", project)) as auth:
        auth.execute(
            "insert into auth.users (id, phone) values (%s, %s)", (uuid4(), f"1415555{uuid4().int % 10000:04}")
        )


def jobs(eyes: Connection) -> int:
    row = eyes.execute("select count(*) from public.outbound_call_jobs").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("theirs", ["nothing", "a schema private with a function, and a use of btree_gist"])
def test_removal_takes_all_of_ours_and_nothing_else(
    postgres: Postgres, project: str, eyes: Connection, owner: Connection, theirs: str
) -> None:
    if theirs != "nothing":
        owner.execute(
            "create schema private; create function private.theirs() returns int language sql set search_path = '' as 'select 1';"
            "create extension btree_gist with schema extensions;"
            "create table public.bookings (room int, during tstzrange, exclude using gist (room with =, during with &&))"
        )
    before = everything(eyes)
    database.migrate(postgres, project)
    sign_up(postgres, project)
    owner.execute(
        "select vault.create_secret('https://x.example/', 'call_dispatcher_url');"
        "select vault.create_secret('whsec_x', 'call_dispatcher_secret')"
    )
    assert jobs(eyes) == 1
    assert everything(eyes) != before

    owner.execute(REMOVE)

    assert everything(eyes) == before
    sign_up(postgres, project)  # nobody queues a call any more, and nobody is in the way
    owner.execute(REMOVE)  # twice does no harm

    assert database.migrate(postgres, project) == sorted(file.name for file in database.MIGRATIONS.glob("*.sql"))
    sign_up(postgres, project)
    assert jobs(eyes) == 1


def test_removal_is_refused_while_others_need_us(
    postgres: Postgres, project: str, eyes: Connection, owner: Connection
) -> None:
    database.migrate(postgres, project)
    owner.execute("create view public.waiting as select count(*) as n from public.outbound_call_jobs")
    before = everything(eyes)
    with pytest.raises(psycopg.errors.DependentObjectsStillExist, match="outbound_call_jobs"):
        owner.execute(REMOVE)
    assert everything(eyes) == before
