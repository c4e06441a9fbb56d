"""The sandbox's Supabase: its roles and rights are the platform's, its stand-ins behave, migrations run as there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors

from tests.conftest import Connect, Connection, SetClock
from tests.sandbox.postgres import Postgres, installed_binaries
from tests.sandbox.supabase import database
from tests.sandbox.supabase.database import MIGRATIONS, MigrationError, bootstrap, migrate

CLOCK = (
    "create schema private; create function private.clock() returns timestamptz language sql stable as 'select now()'"
)

Project = Callable[..., str]
Write = Callable[[str, str], Path]
_numbers = count(1)


@pytest.fixture
def project(postgres: Postgres) -> Iterator[Project]:
    """Makes databases as Supabase makes a new project: bootstrapped, no migrations."""
    made = []

    def project(*, old_default_grants: bool = False) -> str:
        name = f"project_{next(_numbers)}"
        database.create_database(postgres, name)
        made.append(name)
        bootstrap(postgres, name, old_default_grants=old_default_grants)
        return name

    yield project
    for name in made:
        database.drop_database(postgres, name)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a migration into a folder of the test's own; the folder."""

    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path

    return write


def ask(server: Postgres, name: str, query: str, user: str = "supabase_admin") -> object:
    """The one value that the query gives."""
    with psycopg.connect(server.url(user, name)) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("bin_dir", installed_binaries(), ids=str)
def test_migrations_apply_on_every_postgres_of_this_machine(bin_dir: Path) -> None:
    with Postgres(bin_dir) as server:
        with psycopg.connect(server.url()) as connection:
            assert connection.info.server_version // 10000 == server.version >= 15
        bootstrap(server)
        assert migrate(server) == sorted(file.name for file in MIGRATIONS.glob("*.sql")) != []
        assert migrate(server) == []


def test_migrations_run_as_postgres_without_superuser_rights(
    postgres: Postgres, project: Project, write: Write
) -> None:
    name = project()
    migrate(postgres, name, folder=write("1_who.sql", "create table who as select current_user::text as is_it"))
    assert ask(postgres, name, "select is_it from who") == "postgres"
    with pytest.raises(MigrationError, match=r"2_superuser\.sql"):
        migrate(postgres, name, folder=write("2_superuser.sql", "create role boss superuser"))


def test_migration_that_fails_changes_nothing(postgres: Postgres, project: Project, write: Write) -> None:
    name = project()
    write("1_good.sql", "create table good ()")
    folder = write("2_bad.sql", "create table bad ();\n\nselect 1/0;")

    with pytest.raises(MigrationError, match=r"2_bad\.sql: division by zero"):
        migrate(postgres, name, folder=folder)

    assert ask(postgres, name, "select to_regclass('public.good') is not null and to_regclass('public.bad') is null")
    assert ask(postgres, name, "select array_agg(version) from supabase_migrations.schema_migrations") == ["1"]
    assert migrate(postgres, name, folder=write("2_bad.sql", "create table bad ();")) == ["2_bad.sql"]


def test_files_that_cannot_be_applied_are_refused(postgres: Postgres, project: Project, tmp_path: Path) -> None:
    table: list[tuple[dict[str, str], str]] = [
        ({"1_bad.sql": "select 1;\n\nselekt 2;"}, r"1_bad\.sql, line 3: syntax error"),
        ({"1_a.sql": "select 1", "1_b.sql": "select 1"}, r"1_b\.sql"),  # two of one version
        ({"jobs.sql": "select 1"}, r"jobs\.sql"),  # the Supabase CLI would skip it
        ({"1_auth.sql": "create table auth.mine ()"}, "permission denied for schema auth"),
    ]
    for n, (files, says) in enumerate(table):
        (folder := tmp_path / str(n)).mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        with pytest.raises(MigrationError, match=says):
            migrate(postgres, project(), folder=folder)


def test_migrating_can_stop_at_a_version(postgres: Postgres, project: Project, write: Write) -> None:
    name = project()
    write("1_a.sql", "create table a ()")
    folder = write("2_b.sql", "create table b ()")
    assert migrate(postgres, name, upto="1", folder=folder) == ["1_a.sql"]
    assert migrate(postgres, name, upto="2_b.sql", folder=folder) == ["2_b.sql"]
    with pytest.raises(MigrationError, match="no migration 3"):
        migrate(postgres, name, upto="3", folder=folder)


def test_file_before_an_applied_one_is_refused(postgres: Postgres, project: Project, write: Write) -> None:
    name = project()
    migrate(postgres, name, folder=write("2_late.sql", "create table late ()"))
    with pytest.raises(MigrationError, match="not how"):
        migrate(postgres, name, folder=write("1_early.sql", "create table early ()"))
    assert ask(postgres, name, "select to_regclass('public.early') is null")


def test_migration_is_recorded_and_told_to_the_gateway(postgres: Postgres, project: Project, write: Write) -> None:
    name = project()
    with psycopg.connect(postgres.url(database=name), autocommit=True) as listener:
        listener.execute("listen pgrst")
        migrate(postgres, name, folder=write("20261201000100_tables.sql", "select 1"))
        assert [notify.payload for notify in listener.notifies(timeout=5, stop_after=1)] == ["reload schema"]
    with psycopg.connect(postgres.url("postgres", name)) as connection:
        rows = connection.execute("select version, name, statements from supabase_migrations.schema_migrations")
        assert rows.fetchall() == [("20261201000100", "tables", ["select 1"])]


@pytest.mark.parametrize("old_default_grants", [True, False])
def test_new_tables_are_open_by_old_grants_only(
    postgres: Postgres, project: Project, write: Write, old_default_grants: bool
) -> None:
    name = project(old_default_grants=old_default_grants)
    migrate(postgres, name, folder=write("1_t.sql", "create table t (id int generated always as identity)"))
    with psycopg.connect(postgres.url("authenticator", name), autocommit=True) as connection:
        for n, role in enumerate(("anon", "authenticated", "service_role"), 1):
            connection.execute(f"set role {role}".encode())
            if old_default_grants:
                connection.execute("insert into t default values")
                assert connection.execute("select max(id) from t").fetchone() == (n,)
            else:
                with pytest.raises(errors.InsufficientPrivilege, match="permission denied for table t"):
                    connection.execute("select id from t")


def test_authenticator_may_become_three_roles_only(postgres: Postgres, project: Project) -> None:
    with psycopg.connect(postgres.url("authenticator", project()), autocommit=True) as connection:
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("select id from auth.users")
        for role in ("anon", "authenticated", "service_role"):
            connection.execute(f"set role {role}".encode())
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("set role postgres")


def test_row_level_security_spares_the_service(postgres: Postgres, project: Project, write: Write) -> None:
    name = project()
    table = "create table t as select 1 as n; alter table t enable row level security; grant select on t to {}"
    migrate(postgres, name, folder=write("1_t.sql", table.format("anon, service_role")))
    with psycopg.connect(postgres.url("authenticator", name)) as connection:
        connection.execute("set role anon")
        assert connection.execute("select n from t").fetchall() == []
        connection.execute("set role service_role")
        assert connection.execute("select n from t").fetchall() == [(1,)]


def test_migration_may_hang_a_trigger_on_users(postgres: Postgres, project: Project, write: Write) -> None:
    name, user = project(), uuid4()
    trigger = """
        create table welcomed (id uuid references auth.users (id));
        create function welcome() returns trigger language plpgsql security definer set search_path = '' as
          'begin insert into public.welcomed values (new.id); return null; end';
        create trigger welcome after insert on auth.users for each row execute function welcome();
    """
    migrate(postgres, name, folder=write("1_trigger.sql", trigger))
    with psycopg.connect(postgres.url("supabase_auth_admin", name)) as connection:
        connection.execute("insert into auth.users (id, email) values (%s, 'a@example.com')", (user,))
    assert ask(postgres, name, "select id from welcomed") == user


def test_email_is_taken_once_except_by_sso(postgres: Postgres, project: Project) -> None:
    insert = "insert into auth.users (id, email, is_sso_user) values (gen_random_uuid(), 'a@example.com', %s)"
    with psycopg.connect(postgres.url("supabase_auth_admin", project()), autocommit=True) as connection:
        connection.execute(insert, (False,))
        connection.execute(insert, (True,))
        with pytest.raises(errors.UniqueViolation):
            connection.execute(insert, (False,))


def test_claims_of_a_request_can_be_read(postgres: Postgres, project: Project) -> None:
    ask_all = "select auth.uid(), auth.role(), auth.email(), auth.jwt() ->> 'aal'"
    claims = '{"sub": "00000000-0000-0000-0000-00000000000a", "role": "authenticated", "email": "a@b.c", "aal": "aal1"}'
    with psycopg.connect(postgres.url("authenticator", project())) as connection:
        connection.execute("set role authenticated")
        assert connection.execute(ask_all).fetchone() == (None, None, None, None)
        connection.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
        assert connection.execute(ask_all).fetchone() == (UUID(int=10), "authenticated", "a@b.c", "aal1")


def test_request_is_queued_at_commit_and_wakes_the_worker(postgres: Postgres, project: Project) -> None:
    name = project()
    post = """select net.http_post('http://127.0.0.1/x', '{"a": 1}', '{"q": "ä &"}', '{"X-Y": "z"}')"""
    with (
        psycopg.connect(postgres.url(database=name), autocommit=True) as listener,
        psycopg.connect(postgres.url("authenticator", name)) as connection,
    ):
        listener.execute("listen pg_net")
        connection.execute("set role anon")  # any role may: the real one takes no care either
        row = connection.execute(post.encode()).fetchone()
        assert row is not None
        assert listener.execute("select count(*) from net.http_request_queue").fetchone() == (0,)

        connection.commit()

        assert len(list(listener.notifies(timeout=5, stop_after=1))) == 1
        headers = {"X-Y": "z", "Content-Type": "application/json"}
        assert listener.execute("select * from net.http_request_queue").fetchall() == [
            (row[0], "POST", "http://127.0.0.1/x?q=%C3%A4%20%26", headers, b'{"a": 1}', 5000)
        ]


def test_request_that_is_rolled_back_is_never_sent(postgres: Postgres, project: Project) -> None:
    name = project()
    with psycopg.connect(postgres.url(database=name)) as connection:
        connection.execute("select net.http_post('http://127.0.0.1/x')")
        connection.rollback()
    assert ask(postgres, name, "select count(*) from net.http_request_queue") == 0


def test_request_that_is_not_json_is_refused(postgres: Postgres, project: Project) -> None:
    with pytest.raises(errors.RaiseException, match="application/json"):
        ask(postgres, project(), """select net.http_post('http://127.0.0.1/x', headers => '{"content-type": "a/b"}')""")


def test_crash_of_the_database_loses_its_requests() -> None:
    with Postgres() as server:
        bootstrap(server)
        ask(server, "postgres", "select net.http_post('http://127.0.0.1/x')")
        server.kill()
        server.restart()
        assert ask(server, "postgres", "select count(*) from net.http_request_queue") == 0


def test_secrets_of_vault_are_for_the_service_alone(postgres: Postgres, project: Project) -> None:
    with psycopg.connect(postgres.url("authenticator", project())) as connection:
        connection.execute("set role service_role")
        connection.execute("select vault.create_secret('first', 'word')")
        connection.execute("select vault.update_secret(id, 'second') from vault.secrets where name = 'word'")
        read = connection.execute("select name, decrypted_secret from vault.decrypted_secrets")
        assert read.fetchall() == [("word", "second")]
        connection.execute("set role anon")
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("select decrypted_secret from vault.decrypted_secrets")


def clock(connection: Connection) -> datetime:
    row = connection.execute("select private.clock()").fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def test_clock_of_the_sandbox_can_be_set(connection: Connection, set_clock: SetClock) -> None:
    for offset_s in (3600, -86400, 0.5):
        set_clock(offset_s)
        with connection.transaction():
            now = connection.execute("select now()").fetchone()
            assert now == (clock(connection) - timedelta(seconds=offset_s),)


def test_sandbox_clock_keeps_the_rights_of_the_real(postgres: Postgres, project: Project, write: Write) -> None:
    name = project()
    migrate(
        postgres, name, folder=write("1_clock.sql", f"{CLOCK}; revoke execute on function private.clock() from public")
    )
    rights = (
        "select array[proowner::regrole::text, proacl::text] from pg_proc where oid = 'private.clock()'::regprocedure"
    )
    before = ask(postgres, name, rights)
    database.install_clock(postgres, name)
    assert ask(postgres, name, rights) == before == ["postgres", "{postgres=X/postgres}"]
    assert ask(postgres, name, "select private.clock() = now()", user="postgres")


@pytest.mark.parametrize("turn", ["first", "second"])
def test_each_test_has_a_database_of_its_own(connection: Connection, turn: str) -> None:
    assert connection.execute("select count(*) from auth.users").fetchone() == (0,)
    connection.execute("insert into auth.users (id) values (gen_random_uuid())")


def test_database_of_a_test_has_owner_and_any_role(connection: Connection, connect: Connect) -> None:
    other = connect("supabase_auth_admin")
    assert other.info.dbname == connection.info.dbname
    owner = "select datdba::regrole::text from pg_database where datname = current_database()"
    assert connection.execute(owner).fetchone() == ("postgres",)
    assert other.execute("select current_user").fetchone() == ("supabase_auth_admin",)


def test_only_existing_databases_can_be_copied(postgres: Postgres) -> None:
    with pytest.raises(ValueError, match="no database nowhere"):
        database.create_database(postgres, "copy", "nowhere")
