"""A database as Supabase hands it out, our migrations on top, and a clock that can be set."""

from __future__ import annotations

from pathlib import Path

import psycopg
from psycopg import sql

from tests.sandbox.postgres import Postgres

HERE = Path(__file__).parent
MIGRATIONS = HERE.parents[1] / "shared" / "supabase" / "migrations"

# `postgres` is no superuser on Supabase either: what it may not do, a migration may not do.
ROLES = {
    "postgres": "nosuperuser createdb createrole login replication bypassrls",
    "anon": "nologin",
    "authenticated": "nologin",
    "service_role": "nologin bypassrls",
    "authenticator": "login noinherit",
    "supabase_auth_admin": "login noinherit createrole",
}
ROLE_SETTINGS = """
grant anon, authenticated, service_role to authenticator;
grant anon, authenticated, service_role to postgres;
grant supabase_auth_admin to postgres;
alter role postgres set search_path to "$user", public, extensions;
alter role anon set statement_timeout to '3s';
alter role authenticated set statement_timeout to '8s';
alter role authenticator set statement_timeout to '8s';
alter role authenticator set lock_timeout to '8s';
alter role supabase_auth_admin set search_path to 'auth';
"""

OLD_DEFAULT_GRANTS = """
alter default privileges for role postgres in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges for role postgres in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges for role postgres in schema public grant all on functions to anon, authenticated, service_role;
"""


class MigrationFailed(Exception):
    """A migration could not be applied; nothing of it was. The message names the file."""


def bootstrap(server: Postgres, database: str = "postgres", *, old_default_grants: bool = False) -> None:
    """Roles, schemas and stand-ins. `old_default_grants`: as projects were made before 2026-05-30."""
    with psycopg.connect(server.url(database=database), autocommit=True) as connection:
        existing = {row[0] for row in connection.execute("select rolname from pg_roles")}
        for role, attributes in ROLES.items():
            if role not in existing:
                statement = sql.SQL("create role {} {} password {}").format(
                    sql.Identifier(role), sql.SQL(attributes), server.password
                )
                connection.execute(statement)
        if not existing >= ROLES.keys():
            connection.execute(ROLE_SETTINGS)
        script = (HERE / "bootstrap.sql").read_text().replace(":database", f'"{database}"')
        connection.execute(script.encode())
        if old_default_grants:
            connection.execute(OLD_DEFAULT_GRANTS)


def migrate(
    server: Postgres, database: str = "postgres", *, upto: str | None = None, folder: Path = MIGRATIONS
) -> list[str]:
    """Apply what is not applied yet, as role postgres, each file in a transaction of its own. -> the versions applied.

    Recorded as the Supabase CLI records it, so that `supabase db push` finds nothing left to do. `upto`: the last version.
    """
    applied = []
    with psycopg.connect(server.url("postgres", database), autocommit=True) as connection:
        connection.execute("create schema if not exists supabase_migrations")
        connection.execute(
            "create table if not exists supabase_migrations.schema_migrations"
            " (version text primary key, statements text[], name text)"
        )
        known = {row[0] for row in connection.execute("select version from supabase_migrations.schema_migrations")}
        for file in sorted(folder.glob("*.sql")):
            version, _, name = file.stem.partition("_")
            if version in known or (upto is not None and version > upto):
                continue
            text = file.read_text()
            try:
                with connection.transaction():
                    connection.execute(text.encode())
                    connection.execute(
                        "insert into supabase_migrations.schema_migrations values (%s, %s, %s)", (version, [text], name)
                    )
            except psycopg.Error as error:
                hint = f" ({error.diag.message_hint})" if error.diag.message_hint else ""
                raise MigrationFailed(f"{file.name}: {error}{hint}") from error
            applied.append(version)
        connection.execute("notify pgrst, 'reload schema'")
    return applied


def install_clock(server: Postgres, database: str = "postgres") -> None:
    with psycopg.connect(server.url(database=database), autocommit=True) as connection:
        connection.execute((HERE / "clock.sql").read_bytes())


def set_clock(url: str, offset_s: float) -> None:
    """From the next transaction on, private.clock() is so many seconds ahead."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("update sandbox.clock set offset_by = make_interval(secs => %s)", (offset_s,))


def create_database(server: Postgres, name: str, template: str = "template1") -> None:
    """A copy of `template`, to which nobody may be connected meanwhile."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template))
        )


def drop_database(server: Postgres, name: str) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
