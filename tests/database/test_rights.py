"""Who may do what: every function, table and sequence of ours, on projects of both kinds. What is new fails until it is listed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import Connection
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database

ROLES = ("public", "anon", "authenticated", "service_role", "authenticator", "supabase_auth_admin")

# Functions that service_role may execute; everything else of ours is nobody's but its owner's.
RPC = {
    "enqueue_call_job",
    "claim_call_job",
    "set_call_number",
    "release_call_job",
    "accept_call",
    "refuse_call",
    "doubt_call",
    "put_off_call",
    "record_call_status",
    "record_call_answer",
    "claim_open_call",
    "settle_call",
    "heal_onboarding_calls",
    "cancel_call_job",
    "retry_call_job",
    "opt_out",
    "require_verified_phones",
    "prune_call_jobs",
    "pause_calls",
    "resume_calls",
    "call_job_stats",
    "call_stats_by_hour",
    "check_call_setup",
}
PRIVATE = {
    "clock",
    "complete_call_job",
    "keep_open_call_job",
    "lock_attempt",
    "cap_in_the_way",
    "give_back_slot",
    "why_canceled",
    "is_stopped",
    "forget_user",
    "on_auth_user_deleted",
    "call_rank",
    "retry_or_fail",
    "bind_call",
    "call_answer",
    "has_opted_out_by_key",
    "is_by_machine",
    "qualification",
    "summarize_call_job",
    "open_call",
    "hmac_sha256",
    "queue_onboarding_call",
    "readable",
    "on_auth_user_created",
    "on_outbound_call_job_created",
    "e164",
    "migration_versions",
    "vault_facts",
    "net_facts",
    "open_to",
}
TABLES = {
    "public.outbound_call_jobs",
    "public.outbound_call_attempts",
    "public.outbound_call_answers",
    "public.call_opt_outs",
    "private.missed_signups",
    "private.deleted_users",
    "private.call_settings",
    "private.deleted_calls",
}
VIEWS = {"public.outbound_call_overview", "public.call_stats", "public.call_stats_per_hour"}
READABLE = VIEWS | {
    "public.outbound_call_jobs",
    "public.outbound_call_attempts",
    "public.outbound_call_answers",
    "public.call_opt_outs",
}
INSERTABLE = {"user_id", "phone_number", "first_name", "signup_mode", "metadata", "due_at", "dedupe_key"}
PRIVILEGES = ("select", "insert", "update", "delete", "truncate", "references", "trigger")


@pytest.fixture(scope="module", params=[False, True], ids=["new default grants", "old default grants"])
def project(postgres: Postgres, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A database of its own, as each kind of project is made, with our migrations and nothing else."""
    name = f"rights_{request.param}".lower()
    database.create_database(postgres, name)
    database.bootstrap(postgres, name, old_default_grants=request.param)
    database.migrate(postgres, name)
    with psycopg.connect(postgres.url(database=name), autocommit=True) as connection:
        yield connection
    database.drop_database(postgres, name)


def column(project: Connection, query: str, *values: object) -> list[Any]:
    return [row[0] for row in project.execute(query.encode(), values)]


FUNCTIONS = """
select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace
where n.nspname in ('public', 'private') order by 1
"""
RELATIONS = """
select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname in ('public', 'private') and c.relkind = any (%s) order by 1
"""


@pytest.fixture
def qualified(project: Connection) -> None:
    """Names come with their schema."""
    project.execute("set search_path = ''")


def test_every_function_is_listed_here(project: Connection, qualified: None) -> None:
    names = [name.split("(")[0] for name in column(project, FUNCTIONS)]
    assert sorted(names) == sorted([f"public.{name}" for name in RPC] + [f"private.{name}" for name in PRIVATE])


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_execute_what_is_listed_and_nothing_else(project: Connection, qualified: None, role: str) -> None:
    allowed = [
        name.split("(")[0]
        for name in column(project, FUNCTIONS)
        if column(project, "select has_function_privilege(%s, %s, 'execute')", role, name) == [True]
    ]
    assert allowed == (sorted(f"public.{name}" for name in RPC) if role == "service_role" else [])


@pytest.mark.parametrize("role", ROLES)
def test_the_private_schema_is_closed(project: Connection, role: str) -> None:
    for privilege in ("usage", "create"):
        assert column(project, "select has_schema_privilege(%s, 'private', %s)", role, privilege) == [False]


def test_every_function_has_a_search_path_of_its_own(project: Connection, qualified: None) -> None:
    query = FUNCTIONS.replace("order by", "and not coalesce(p.proconfig @> array['search_path=\"\"'], false) order by")
    assert column(project, query) == []


def test_every_function_belongs_to_postgres_who_is_no_superuser(project: Connection, qualified: None) -> None:
    query = FUNCTIONS.replace("order by", "and pg_get_userbyid(p.proowner) <> 'postgres' order by")
    assert column(project, query) == []
    assert column(project, "select rolsuper from pg_roles where rolname = 'postgres'") == [False]


def test_every_function_of_the_api_runs_with_its_owners_rights(project: Connection, qualified: None) -> None:
    query = FUNCTIONS.replace("order by", "and n.nspname = 'public' and not p.prosecdef order by")
    assert column(project, query) == []


def test_every_table_is_listed_here_and_nothing_else_is_there(project: Connection, qualified: None) -> None:
    assert set(column(project, RELATIONS, ["r", "p", "m", "f"])) == TABLES
    assert set(column(project, RELATIONS, ["v"])) == VIEWS
    assert column(project, RELATIONS, ["S"]) == ["public.outbound_call_jobs_id_seq"]


def test_every_table_has_row_level_security_and_no_policy(project: Connection) -> None:
    assert (
        column(
            project,
            "select relname from pg_class where oid = any (%s::regclass[]) and not relrowsecurity",
            list(TABLES),
        )
        == []
    )
    assert column(project, "select polname from pg_policy") == []


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("table", sorted(TABLES | VIEWS))
def test_each_role_may_do_with_each_table_what_is_listed_and_nothing_else(
    project: Connection, role: str, table: str
) -> None:
    whole = [
        p for p in PRIVILEGES if column(project, "select has_table_privilege(%s, %s, %s)", role, table, p) == [True]
    ]
    assert whole == (["select"] if role == "service_role" and table in READABLE else [])


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("table", sorted(TABLES | VIEWS))
def test_each_role_may_write_the_columns_that_are_listed_and_no_other(
    project: Connection, role: str, table: str
) -> None:
    query = """
    select attname from pg_attribute
    where attrelid = %s::regclass and attnum > 0 and not attisdropped and has_column_privilege(%s, attrelid, attnum, %s)
    """
    may_insert = INSERTABLE if role == "service_role" and table == "public.outbound_call_jobs" else set()
    assert set(column(project, query, table, role, "insert")) == may_insert
    for privilege in ("update", "references"):
        assert column(project, query, table, role, privilege) == []


def test_a_view_lends_nobody_its_owners_rights(project: Connection) -> None:
    query = """
    select relname from pg_class
    where oid = any (%s::regclass[]) and not coalesce(reloptions @> array['security_invoker=true'], false)
    """
    assert column(project, query, list(VIEWS)) == []


def test_the_service_may_look_at_each_view_and_who_has_only_signed_in_may_not(project: Connection) -> None:
    for view in sorted(VIEWS):
        with project.transaction():
            project.execute("set local role service_role")
            column(project, f"select * from {view}")
        for role in ("anon", "authenticated"):
            project.execute(f"set role {role}".encode())
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                project.execute(f"select * from {view}".encode())
            project.execute("reset role")


@pytest.mark.parametrize("role", ROLES)
def test_nobody_moves_the_ids(project: Connection, role: str) -> None:
    for privilege in ("usage", "select", "update"):
        query = "select has_sequence_privilege(%s, 'public.outbound_call_jobs_id_seq', %s)"
        assert column(project, query, role, privilege) == [False]


# --- tried ------------------------------------------------------------------------------------------------------------


def insert(project: Connection, role: str, **columns: object) -> list[Any]:
    columns = {"user_id": uuid.uuid4(), "phone_number": "+14155550100", **columns}
    names, marks = ", ".join(columns), ", ".join(["%s"] * len(columns))
    with project.transaction():
        project.execute(f"set local role {role}".encode())
        return column(
            project,
            f"insert into public.outbound_call_jobs ({names}) values ({marks}) returning status",
            *columns.values(),
        )


def test_the_service_may_insert_a_job_plainly(project: Connection) -> None:
    assert insert(project, "service_role") == ["queued"]
    everything = {
        "first_name": "Ada",
        "signup_mode": "demo",
        "metadata": "{}",
        "due_at": "2026-01-01",
        "dedupe_key": str(uuid.uuid4()),
    }
    assert insert(project, "service_role", **everything) == ["queued"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", "completed"),
        ("attempts", 7),
        ("phone_e164", "+14155550101"),
        ("cancel_requested", True),
        ("created_at", "2020-01-01"),
        ("finished_at", "2020-01-01"),
        ("dedupe_window", "empty"),
        ("reason_code", "x"),
    ],
)
def test_the_service_may_not_say_how_a_job_stands(project: Connection, name: str, value: object) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        insert(project, "service_role", **{name: value})


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_who_has_only_signed_in_may_not_have_anybody_called(project: Connection, role: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        insert(project, role)
