"""The rights of every role on every function, table, view and sequence of ours, on projects of both kinds."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import psycopg
import pytest

from tests.conftest import Connection
from tests.database.projects import a_project
from tests.sandbox.postgres import Postgres

API = "service_role"
STRANGERS = ("public", "anon", "authenticated", "authenticator", "supabase_auth_admin")
INSERTABLE = {"user_id", "phone_number", "first_name", "signup_mode", "metadata", "due_at", "dedupe_key"}

# What the user's project has of its own, as people grant it: no migration of ours may touch any of it.
THEIRS = """
create schema private;
grant usage on schema private to authenticated;
create table public.profiles (id uuid);
grant select on public.profiles to anon;
create function private.is_admin() returns boolean language sql set search_path = '' as 'select true';
create function public.am_i_admin() returns boolean language sql security definer set search_path = ''
  as 'select private.is_admin()';
comment on function public.am_i_admin() is 'Calls private.is_admin for the dispatcher of roles';
grant execute on function private.is_admin(), public.am_i_admin() to authenticated;
create view public.waiting as select id from public.profiles;
grant select on public.waiting to authenticated;
"""
RIGHTS = """
select n.nspname || '.' || p.proname, p.proacl::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace
where p.proname in ('is_admin', 'am_i_admin')
union all select n.nspname || '.' || c.relname, c.relacl::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relname in ('profiles', 'waiting')
union all select 'schema private', nspacl::text from pg_namespace where nspname = 'private'
order by 1
"""

FUNCTIONS = """
select p.oid::regprocedure::text, n.nspname = 'public', p.prosecdef, pg_get_userbyid(p.proowner), p.proconfig::text
from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('public', 'private') order by 1
"""
RELATIONS = """
select c.oid::regclass::text, n.nspname = 'public', c.relkind::text, c.relrowsecurity, c.reloptions::text
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname in ('public', 'private') and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') order by 1
"""
TABLE_RIGHTS = ("select", "insert", "update", "delete", "truncate", "references", "trigger")
SEQUENCE_RIGHTS = ("usage", "select", "update")
COLUMN_RIGHTS = """
select a.attname || ' ' || p from pg_attribute a, unnest(array['select', 'insert', 'update', 'references']) p
where a.attrelid = %s::regclass and a.attnum > 0 and not a.attisdropped and has_column_privilege(%s, a.attrelid, a.attnum, p)
"""


@pytest.fixture(scope="module", params=[False, True], ids=["new default grants", "old default grants"])
def project(postgres: Postgres, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A database of its own, as each kind of project is made, with our migrations and nothing else."""
    with a_project(postgres, f"rights_{request.param}".lower(), old_default_grants=request.param) as project:
        project.migrate()
        project.eyes.execute("set search_path = ''")  # names come with their schema
        yield project.eyes


def column(project: Connection, query: str, *values: object) -> list[Any]:
    return [row[0] for row in project.execute(query.encode(), values)]


def test_only_the_service_may_execute_public_functions(project: Connection) -> None:
    functions = project.execute(FUNCTIONS).fetchall()
    assert len(functions) > 40
    wrong = []
    for name, in_api, definer, owner, config in functions:
        executes = "select has_function_privilege(%s, %s, 'execute')"
        may = {role for role in (API, *STRANGERS) if column(project, executes, role, name) == [True]}
        if may != ({API} if in_api else set()):
            wrong.append(f"{name} may be executed by {sorted(may)}")
        if in_api and not definer:
            wrong.append(f"{name} runs with its caller's rights")
        if owner != "postgres":
            wrong.append(f"{name} belongs to {owner}")
        if 'search_path=\\"\\"' not in (config or ""):
            wrong.append(f"{name} has no search_path of its own")
    assert wrong == []
    assert column(project, "select rolsuper from pg_roles where rolname = 'postgres'") == [False]


def test_private_schema_is_closed_to_every_role(project: Connection) -> None:
    query = "select %s || ' ' || p from unnest(array['usage', 'create']) p where has_schema_privilege(%s, 'private', p)"
    assert [may for role in (API, *STRANGERS) for may in column(project, query, role, role)] == []


def test_service_reads_what_is_public_and_inserts_jobs(project: Connection) -> None:
    relations = project.execute(RELATIONS).fetchall()
    assert len(relations) > 10
    wrong = []
    for name, in_api, kind, guarded, options in relations:
        if kind == "r" and not guarded:
            wrong.append(f"{name} has no row level security")
        if kind == "v" and "security_invoker=true" not in (options or ""):
            wrong.append(f"{name} lends its owner's rights")
        if kind not in ("r", "v", "S"):
            wrong.append(f"row level security does not hold for {name}")
        function, rights = (
            ("has_sequence_privilege", SEQUENCE_RIGHTS) if kind == "S" else ("has_table_privilege", TABLE_RIGHTS)
        )
        for role in (API, *STRANGERS):
            reads = role == API and in_api and kind != "S"
            may = [r for r in rights if column(project, f"select {function}(%s, %s, %s)", role, name, r) == [True]]
            if may != (["select"] if reads else []):
                wrong.append(f"{role} may {may} {name}")
            inserts = INSERTABLE if role == API and name == "public.outbound_call_jobs" else set()
            columns = set(column(project, COLUMN_RIGHTS, name, role)) if kind != "S" else set()
            if {c for c in columns if not c.endswith(" select")} != {f"{c} insert" for c in inserts}:
                wrong.append(f"{role} may {sorted(columns)} of {name}")
            if not reads and any(c.endswith(" select") for c in columns):
                wrong.append(f"{role} may read columns of {name}")
    assert wrong == []
    assert column(project, "select polname from pg_policy") == []


def test_views_can_be_read_by_the_service_alone(project: Connection) -> None:
    views = [name for name, in_api, kind, *_ in project.execute(RELATIONS) if in_api and kind == "v"]
    assert len(views) > 1
    for view, role in itertools.product(views, (API, "anon", "authenticated")):
        with (
            nullcontext() if role == API else pytest.raises(psycopg.errors.InsufficientPrivilege),
            project.transaction(),
        ):
            project.execute(f"set local role {role}".encode())
            project.execute(f"select * from {view}".encode())


# --- the rule ---------------------------------------------------------------------------------------------------------
def test_objects_of_the_user_keep_their_rights(postgres: Postgres) -> None:
    with a_project(postgres, "rights_theirs") as project:
        project.run(THEIRS)
        project.migrate()
        kept = project.eyes.execute(RIGHTS).fetchall()
    with a_project(postgres, "rights_theirs") as project:
        project.migrate()
        project.run(THEIRS.replace("create schema private;", ""))
        assert project.eyes.execute(RIGHTS).fetchall() == kept
        project.run("select private.apply_rights()")
        assert project.eyes.execute(RIGHTS).fetchall() == kept


OPENED = {
    "grant execute on function public.pause_calls to anon":
        "has_function_privilege('anon', 'public.pause_calls(text, timestamptz)', 'execute')",
    "grant execute on function private.clock to service_role":
        "has_function_privilege('service_role', 'private.clock()', 'execute')",
    "grant update (status) on public.outbound_call_jobs to service_role":
        "has_column_privilege('service_role', 'public.outbound_call_jobs', 'status', 'update')",
    "grant usage on sequence public.outbound_call_jobs_id_seq to authenticated":
        "has_sequence_privilege('authenticated', 'public.outbound_call_jobs_id_seq', 'usage')",
    "alter table private.call_settings disable row level security":
        "not relrowsecurity from pg_class where oid = 'private.call_settings'::regclass",
}  # fmt: skip


def test_rule_closes_what_was_opened_by_hand(project: Connection) -> None:
    def found() -> list[Any]:
        return [answer for asked in OPENED.values() for answer in column(project, f"select {asked}")]

    with project.transaction(force_rollback=True):
        project.execute("set local search_path = ''; set local role postgres")
        for opened in OPENED:
            project.execute(opened.encode())
        assert found() == [True] * len(OPENED)
        project.execute("select private.apply_rights()")
        assert found() == [False] * len(OPENED)


# --- tried ------------------------------------------------------------------------------------------------------------
def insert(project: Connection, role: str, **columns: object) -> list[Any]:
    columns = {"user_id": uuid.uuid4(), "phone_number": "+14155550100", **columns}
    names, marks = ", ".join(columns), ", ".join(["%s"] * len(columns))
    query = f"insert into public.outbound_call_jobs ({names}) values ({marks}) returning status"
    with project.transaction():
        project.execute(f"set local role {role}".encode())
        return column(project, query, *columns.values())


def test_service_may_insert_a_job_plainly(project: Connection) -> None:
    assert insert(project, API) == ["queued"]
    everything = {"first_name": "Ada", "signup_mode": "demo", "metadata": "{}", "due_at": "2026-01-01"}
    assert insert(project, API, dedupe_key=str(uuid.uuid4()), **everything) == ["queued"]


def test_nobody_may_set_a_jobs_state_and_no_stranger_queue(project: Connection) -> None:
    state = {
        "status": "completed", "attempts": 7, "phone_e164": "+14155550101", "cancel_requested": True,
        "created_at": "2020-01-01", "finished_at": "2020-01-01", "dedupe_window": "empty", "reason_code": "x",
    }  # fmt: skip
    refused: list[tuple[str, dict[str, object]]] = [(API, {name: value}) for name, value in state.items()]
    for role, columns in [*refused, ("anon", {}), ("authenticated", {})]:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            insert(project, role, **columns)
