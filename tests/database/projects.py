"""Databases like whole Supabase projects, for the tests of migrations and of what leaves with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.conftest import Connection
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database

EVERYTHING = """
with ours as (select oid as namespace from pg_namespace where nspname !~ '^pg_|^information_schema$|^supabase_migrations$')
select 'schema ' || nspname || coalesce(nspacl::text, '') from pg_namespace join ours on oid = namespace
union all select 'extension ' || extname || ' ' || extversion from pg_extension
union all select concat('relation ', c.oid::regclass, ' ', relkind, relacl, relrowsecurity, pg_get_userbyid(relowner))
  from pg_class c join ours on relnamespace = namespace where relkind <> 't'
union all select concat('column ', attrelid::regclass, ' ', attname, ' ', format_type(atttypid, atttypmod), attnotnull)
  from pg_attribute join pg_class c on c.oid = attrelid join ours on relnamespace = namespace where attnum > 0
union all select concat('function ', p.oid::regprocedure, ' ', proacl, prosrc)
  from pg_proc p join ours on pronamespace = namespace
union all select 'type ' || t.oid::regtype from pg_type t join ours on typnamespace = namespace
union all select concat('constraint ', conname, ' on ', conrelid::regclass, ' ', pg_get_constraintdef(oid))
  from pg_constraint join ours on connamespace = namespace
union all select 'trigger ' || pg_get_triggerdef(oid) from pg_trigger where not tgisinternal
union all select 'policy ' || polname from pg_policy
union all select 'default ' || coalesce(defaclacl::text, '') from pg_default_acl
union all select 'secret ' || name from vault.secrets
order by 1
"""


@dataclass(frozen=True)
class Project:
    """A project's database. `eyes` are the superuser's."""

    server: Postgres
    name: str
    eyes: Connection

    def migrate(self, **more: Any) -> list[str]:
        """As database.migrate. -> the files that were applied"""
        return database.migrate(self.server, self.name, **more)

    @contextmanager
    def connected(self, user: str = "postgres") -> Iterator[Connection]:
        """As the SQL editor is: role postgres, which is no superuser and does not own auth.users. Or as another."""
        with psycopg.connect(self.server.url(user, self.name), autocommit=True) as connection:
            yield connection

    def run(self, script: str | bytes) -> None:
        """In the SQL editor."""
        with self.connected() as editor:
            editor.execute(script if isinstance(script, bytes) else script.encode())

    def column(self, query: str, *values: object) -> list[Any]:
        """The first column of each row, as the superuser sees it."""
        return [row[0] for row in self.eyes.execute(query.encode(), values)]

    def everything(self) -> list[str]:
        """Each object there is, with its rights: to say that a script changed none."""
        return self.column(EVERYTHING)


@contextmanager
def a_project(server: Postgres, name: str, *, old_default_grants: bool = False) -> Iterator[Project]:
    """A project without a migration of ours."""
    database.create_database(server, name)
    try:
        database.bootstrap(server, name, old_default_grants=old_default_grants)
        with psycopg.connect(server.url(database=name), autocommit=True) as eyes:
            yield Project(server, name, eyes)
    finally:
        database.drop_database(server, name)
