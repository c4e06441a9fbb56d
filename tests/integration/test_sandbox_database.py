"""The sandbox's Supabase: its roles and rights are the platform's, its stand-ins behave, migrations run as there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
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

POST = """select net.http_post('http://127.0.0.1/x', '{"a": 1}', '{"q": "ä &"}', '{"X-Y": "z"}')"""
QUEUE = "select url, headers, body, timeout_milliseconds from net.http_request_queue"
_numbers = count(1)


class Project:
    """A database as Supabase makes a new one: bootstrapped, no migrations. `folder`: migrations of the test's own."""

    def __init__(self, server: Postgres, folder: Path, *, old_default_grants: bool = False) -> None:
        self.server, self.name, self.folder = server, f"project_{next(_numbers)}", folder
        database.create_database(server, self.name)
        bootstrap(server, self.name, old_default_grants=old_default_grants)

    def connect(self, user: str = "supabase_admin", role: str | None = None) -> Connection:
        connection = psycopg.connect(self.server.url(user, self.name), autocommit=True)
        if role:
            connection.execute(f"set role {role}".encode())
        return connection

    def ask(self, query: str, user: str = "supabase_admin") -> object:
        """The one value that the query gives."""
        with self.connect(user) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def migrate(self, upto: str | None = None, **files: str) -> list[str]:
        """Writes `files`, each named without its suffix and with a letter before the version; migrates."""
        for name, text in files.items():
            (self.folder / f"{name[1:]}.sql").write_text(text)
        return migrate(self.server, self.name, upto=upto, folder=self.folder)


MakeProject = Callable[..., Project]


@pytest.fixture
def new_project(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeProject]:
    made: list[Project] = []

    def new_project(*, old_default_grants: bool = False) -> Project:
        made.append(Project(postgres, tmp_path_factory.mktemp("sql"), old_default_grants=old_default_grants))
        return made[-1]

    yield new_project
    for project in made:
        database.drop_database(postgres, project.name)


@pytest.fixture
def project(new_project: MakeProject) -> Project:
    return new_project()


@pytest.mark.parametrize("bin_dir", installed_binaries(), ids=str)
def test_migrations_apply_on_every_postgres_of_this_machine(bin_dir: Path) -> None:
    with Postgres(bin_dir) as server:
        with psycopg.connect(server.url()) as connection:
            assert connection.info.server_version // 10000 == server.version >= 15
        bootstrap(server)
        assert migrate(server) == sorted(file.name for file in MIGRATIONS.glob("*.sql")) != []
        assert migrate(server) == []


def test_migrations_run_as_postgres_and_are_recorded(project: Project) -> None:
    with project.connect() as listener:
        listener.execute("listen pgrst")
        assert project.migrate(v1_who="create table who as select current_user::text as is_it") == ["1_who.sql"]
        assert [notify.payload for notify in listener.notifies(timeout=5, stop_after=1)] == ["reload schema"]
    assert project.ask("select is_it from who") == "postgres"
    assert project.ask("select (version, name) = ('1', 'who') from supabase_migrations.schema_migrations") is True
    with pytest.raises(MigrationError, match=r"2_superuser\.sql: permission denied"):
        project.migrate(v2_superuser="create role boss superuser")


def test_migration_that_fails_changes_nothing(project: Project) -> None:
    with pytest.raises(MigrationError, match=r"2_bad\.sql: division by zero"):
        project.migrate(v1_good="create table good ()", v2_bad="create table bad ();\n\nselect 1/0;")
    tables = "array[to_regclass('public.good') is not null, to_regclass('public.bad') is null]"
    assert project.ask(f"select {tables}") == [True, True]
    assert project.ask("select array_agg(version) from supabase_migrations.schema_migrations") == ["1"]
    assert project.migrate(v2_bad="create table bad ();") == ["2_bad.sql"]


def test_files_that_cannot_be_applied_are_refused(new_project: MakeProject) -> None:
    table: list[tuple[dict[str, str], str]] = [
        ({"v1_bad": "select 1;\n\nselekt 2;"}, r"1_bad\.sql, line 3: syntax error"),
        ({"v1_a": "select 1", "v1_b": "select 1"}, r"1_b\.sql"),  # two of one version
        ({"vjobs": "select 1"}, r"jobs\.sql"),  # the Supabase CLI would skip it
        ({"v1_auth": "create table auth.mine ()"}, "permission denied for schema auth"),
    ]
    for files, says in table:
        with pytest.raises(MigrationError, match=says):
            new_project().migrate(**files)


def test_migrating_stops_at_a_version_and_keeps_order(project: Project) -> None:
    files = {"v2_a": "create table a ()", "v3_b": "create table b ()"}
    assert project.migrate(upto="2", **files) == ["2_a.sql"]
    assert project.migrate(upto="3_b.sql") == ["3_b.sql"]
    with pytest.raises(MigrationError, match="no migration 4"):
        project.migrate(upto="4")
    with pytest.raises(MigrationError, match="not how"):
        project.migrate(v1_early="create table early ()")
    assert project.ask("select to_regclass('public.early') is null")


@pytest.mark.parametrize("old_default_grants", [True, False])
def test_new_tables_are_open_by_old_grants_only(new_project: MakeProject, old_default_grants: bool) -> None:
    project = new_project(old_default_grants=old_default_grants)
    project.migrate(v1_t="create table t (id int generated always as identity)")
    for role in ("anon", "authenticated", "service_role"):
        with project.connect("authenticator", role) as connection:
            if old_default_grants:
                connection.execute("insert into t default values")
            else:
                with pytest.raises(errors.InsufficientPrivilege, match="permission denied for table t"):
                    connection.execute("select id from t")
    assert project.ask("select count(*) from t") == (3 if old_default_grants else 0)


def test_authenticator_becomes_api_roles_under_row_security(project: Project) -> None:
    table = "create table t as select 1 as n; alter table t enable row level security; grant select on t to {}"
    project.migrate(v1_t=table.format("anon, authenticated, service_role"))
    with project.connect("authenticator") as connection:
        for closed in ("select id from auth.users", "set role postgres"):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(closed.encode())
        seen = {}
        for role in ("anon", "authenticated", "service_role"):
            connection.execute(f"set role {role}".encode())
            seen[role] = connection.execute("select n from t").fetchall()
    assert seen == {"anon": [], "authenticated": [], "service_role": [(1,)]}


def test_migration_may_hang_a_trigger_on_users(project: Project) -> None:
    trigger = """
        create table welcomed (id uuid references auth.users (id));
        create function welcome() returns trigger language plpgsql security definer set search_path = '' as
          'begin insert into public.welcomed values (new.id); return null; end';
        create trigger welcome after insert on auth.users for each row execute function welcome();
    """
    project.migrate(v1_trigger=trigger)
    user, insert = uuid4(), "insert into auth.users (id, email, is_sso_user) values (%s, 'a@example.com', %s)"
    with project.connect("supabase_auth_admin") as connection:
        connection.execute(insert, (user, False))
        connection.execute(insert, (uuid4(), True))
        with pytest.raises(errors.UniqueViolation):  # an email is taken once, except by SSO
            connection.execute(insert, (uuid4(), False))
    assert project.ask("select array_agg(id) @> array['{user}'::uuid] from welcomed".replace("{user}", str(user)))


def test_claims_of_a_request_can_be_read(project: Project) -> None:
    ask_all = "select auth.uid(), auth.role(), auth.email(), auth.jwt() ->> 'aal'"
    claims = '{"sub": "00000000-0000-0000-0000-00000000000a", "role": "authenticated", "email": "a@b.c", "aal": "aal1"}'
    with project.connect("authenticator", "authenticated") as connection:
        assert connection.execute(ask_all).fetchone() == (None, None, None, None)
        connection.execute("select set_config('request.jwt.claims', %s, false)", (claims,))
        assert connection.execute(ask_all).fetchone() == (UUID(int=10), "authenticated", "a@b.c", "aal1")


def test_request_is_queued_at_commit_and_wakes_the_worker(project: Project) -> None:
    with project.connect() as listener, project.connect("authenticator", "anon") as connection:
        listener.execute("listen pg_net")
        connection.execute("begin")
        connection.execute(POST.encode())  # any role may: the real one takes no care either
        assert listener.execute(QUEUE).fetchall() == []
        connection.execute("commit")
        assert len(list(listener.notifies(timeout=5, stop_after=1))) == 1
        connection.execute("begin")
        connection.execute(POST.encode())
        connection.execute("rollback")
        headers = {"X-Y": "z", "Content-Type": "application/json"}
        request = ("http://127.0.0.1/x?q=%C3%A4%20%26", headers, b'{"a": 1}', 5000)
        assert listener.execute(QUEUE).fetchall() == [request]
        with pytest.raises(errors.RaiseException, match="application/json"):
            connection.execute(POST.replace("X-Y", "content-type").encode())


def test_crash_of_the_database_loses_its_requests() -> None:
    with Postgres() as server:
        bootstrap(server)
        with psycopg.connect(server.url()) as connection:
            connection.execute(POST.encode())
        server.kill()
        server.restart()
        with psycopg.connect(server.url()) as connection:
            assert connection.execute(QUEUE).fetchall() == []


def test_secrets_of_vault_are_for_the_service_alone(project: Project) -> None:
    with project.connect("authenticator", "service_role") as connection:
        connection.execute("select vault.create_secret('first', 'word')")
        connection.execute("select vault.update_secret(id, 'second') from vault.secrets where name = 'word'")
        read = connection.execute("select name, decrypted_secret from vault.decrypted_secrets")
        assert read.fetchall() == [("word", "second")]
        connection.execute("set role anon")
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("select decrypted_secret from vault.decrypted_secrets")


def test_clock_of_the_sandbox_can_be_set(connection: Connection, set_clock: SetClock) -> None:
    ahead = []
    for offset_s in (3600, -86400, 0.5):
        set_clock(offset_s)
        ahead += connection.execute("select private.clock() - now()").fetchall()
    assert ahead == [(timedelta(seconds=offset_s),) for offset_s in (3600, -86400, 0.5)]


def test_sandbox_clock_keeps_the_rights_of_the_real(project: Project) -> None:
    clock = "private.clock() returns timestamptz language sql stable as 'select now()'"
    closed = f"create schema private; create function {clock}; revoke execute on function private.clock() from public"
    project.migrate(v1_clock=closed)

    rights = "select array[proowner::regrole::text, proacl::text] from pg_proc where proname = 'clock'"
    before = project.ask(rights)
    database.install_clock(project.server, project.name)
    assert project.ask(rights) == before == ["postgres", "{postgres=X/postgres}"]
    assert project.ask("select private.clock() = now()", user="postgres")


@pytest.mark.parametrize("turn", ["first", "second"])
def test_each_test_has_a_database_of_its_own(connection: Connection, connect: Connect, turn: str) -> None:
    assert connection.execute("select count(*) from auth.users").fetchone() == (0,)
    connection.execute("insert into auth.users (id) values (gen_random_uuid())")
    owner = "select datdba::regrole::text, current_user, (select count(*) from auth.users) from pg_database"
    here = connect("supabase_auth_admin").execute(f"{owner} where datname = current_database()".encode())
    assert here.fetchone() == ("postgres", "supabase_auth_admin", 1)


def test_only_existing_databases_can_be_copied(postgres: Postgres) -> None:
    with pytest.raises(ValueError, match="no database nowhere"):
        database.create_database(postgres, "copy", "nowhere")
