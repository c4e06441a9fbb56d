"""Makes a bare Postgres look like a Supabase project, and brings the product's migrations into it.

The migrations run as Supabase runs them: as the non-superuser `postgres`, each file in one transaction with its row in
`supabase_migrations.schema_migrations`, so that `supabase db push` finds nothing left to do.
"""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.rows import scalar_row

from tests.sandbox.postgres import Postgres

MIGRATIONS = Path(__file__).parents[3] / "shared" / "supabase" / "migrations"
BOOTSTRAP = Path(__file__).with_name("bootstrap.sql")
CLOCK = Path(__file__).with_name("clock.sql")

_HISTORY = """
create schema if not exists supabase_migrations;
create table if not exists supabase_migrations.schema_migrations (version text primary key, statements text[], name text);
"""


# Deleted, not truncated: to truncate all tables with their indexes takes 30 ms. As a replica: a trigger keeps open jobs.
EMPTY = """
set session_replication_role = replica;
do $$
declare
  v_table regclass;
begin
  for v_table in
    select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind = 'r' and n.nspname in ('public', 'private', 'auth', 'net', 'vault')
      and c.oid is distinct from to_regclass('private.calling_codes')  -- what the migration wrote
  loop
    execute 'delete from ' || v_table;
  end loop;
end
$$;
reset session_replication_role;
insert into private.call_settings default values;
select setval('private.lost_signups', 1, false), setval('private.last_sweep', 1, false);
update sandbox.clock set offset_by = '0';
"""


class MigrationError(Exception):
    """A migration could not be applied; the message names the file, the line and the reason. That file changed nothing."""


def bootstrap(server: Postgres, database: str = "postgres", *, old_default_grants: bool = False) -> None:
    """Give an empty database what every Supabase project has. Once per database; the roles are shared by all of them.

    `old_default_grants`: new tables and functions in `public` are open to the API's roles, as in projects until 2026.
    """
    with psycopg.connect(server.url(database=database)) as connection:
        configure = (
            "select set_config('sandbox.password', %s, true), set_config('sandbox.old_default_grants', %s, true)"
        )
        connection.execute(configure, (server.password, str(old_default_grants)))
        connection.execute(BOOTSTRAP.read_bytes())


def migrate(
    server: Postgres, database: str = "postgres", *, upto: str | None = None, folder: Path = MIGRATIONS
) -> list[str]:
    """Apply the files of `folder` that the database does not have yet, in order; the names of those applied.

    `upto` is the version (or whole file name) of the last one wanted. Raises MigrationError, as the Supabase CLI does,
    for a file it would skip because of its name and for a history that is not the beginning of the folder's.
    """
    files: dict[str, Path] = {}
    for file in sorted(folder.glob("*.sql")):
        if files.setdefault(_version(file), file) != file:
            raise MigrationError(f"{file.name}: another file has the same version")
    versions = list(files)
    if upto is not None and upto.split("_")[0] not in files:
        raise MigrationError(f"{folder} has no migration {upto}")
    end = len(versions) if upto is None else versions.index(upto.split("_")[0]) + 1
    with psycopg.connect(server.url("postgres", database), autocommit=True, row_factory=scalar_row) as connection:
        connection.execute(_HISTORY.encode())
        history = connection.execute("select version from supabase_migrations.schema_migrations order by 1").fetchall()
        if history != versions[: len(history)]:
            raise MigrationError(f"the database has had {history}, which is not how {folder} begins: {versions}")
        pending = versions[len(history) : end]
        for version in pending:
            _apply(connection, version, files[version])
        connection.execute("notify pgrst, 'reload schema'")
    return [files[version].name for version in pending]


def install_clock(server: Postgres, database: str = "postgres") -> None:
    """Replace `private.clock()` by one that `set_clock` moves. After the migrations, which create it."""
    with psycopg.connect(server.url(database=database)) as connection:
        connection.execute(CLOCK.read_bytes())


def set_clock(url: str, offset_s: float) -> None:
    """Let the database's clock be ahead (or, below zero, behind) by so many seconds, from the next transaction on."""
    with psycopg.connect(url) as connection:
        connection.execute("update sandbox.clock set offset_by = make_interval(secs => %s) where only_row", (offset_s,))


def lift_rule_of_keys(server: Postgres, database: str = "postgres") -> None:
    """Let a number be called any number of times without a key pressed: a sandbox calls the same few again and again."""
    with psycopg.connect(server.url(database=database)) as connection:
        connection.execute("alter table private.call_settings alter column calls_without_key set default 1000000")
        connection.execute("update private.call_settings set calls_without_key = default")


def empty(url: str) -> None:
    """Delete every row, and set settings and clock, to what `migrate` and `install_clock` left. Sequences go on."""
    with psycopg.connect(url) as connection:
        connection.execute(EMPTY.encode())


def drain_webhooks(url: str) -> None:
    """Wait until pg_net's worker has delivered the batch that it holds, and drop the rest of the queue."""
    with psycopg.connect(url) as connection:
        connection.execute("lock table net.http_request_queue in access exclusive mode")
        connection.execute("delete from net.http_request_queue")


def create_database(server: Postgres, name: str, template: str = "template1") -> None:
    """A copy of `template`, with its owner. Nobody may be connected to the template meanwhile."""
    with psycopg.connect(server.url(), autocommit=True, row_factory=scalar_row) as connection:
        query = "select datdba::regrole::text from pg_database where datname = %s"
        owner = connection.execute(query, (template,)).fetchone()
        if owner is None:
            raise ValueError(f"there is no database {template} to copy")
        create = sql.SQL("create database {} template {} owner {}")
        connection.execute(create.format(*map(sql.Identifier, (name, template, owner))))


def drop_database(server: Postgres, name: str) -> None:
    """Remove a database, and end whatever is still connected to it."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def _version(file: Path) -> str:
    named = re.fullmatch(r"(\d+)_.+\.sql", file.name)
    if named is None:
        raise MigrationError(f"{file.name}: the Supabase CLI skips files that are not named <digits>_<name>.sql")
    return named[1]


def _apply(connection: psycopg.Connection[object], version: str, file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    try:
        with connection.transaction():
            connection.execute(text.encode())
            # The CLI splits the file into statements for this column; it compares versions only.
            record = "insert into supabase_migrations.schema_migrations (version, statements, name) values (%s, %s, %s)"
            connection.execute(record, (version, [text], file.stem.removeprefix(f"{version}_")))
    except psycopg.Error as error:
        at = error.diag.statement_position
        line = f", line {text.count(chr(10), 0, int(at)) + 1}" if at else ""
        raise MigrationError(f"{file.name}{line}: {error}") from error
