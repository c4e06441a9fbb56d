"""shared/supabase/snippets/remove.sql leaves a project as it was before the first push."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest

from tests.database.projects import Project, a_project
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database

REMOVE = (database.MIGRATIONS.parent / "snippets" / "remove.sql").read_bytes()
SECRETS = """
select vault.create_secret('https://x.example/', 'call_dispatcher_url');
select vault.create_secret('whsec_x', 'call_dispatcher_secret')
"""
# Many projects had a schema `private` and some tables before us.
THEIRS = """
create schema private; create function private.theirs() returns int language sql set search_path = '' as 'select 1';
create extension btree_gist with schema extensions;
create table public.bookings (room int, during tstzrange, exclude using gist (room with =, during with &&))
"""
JOBS = "select count(*) from public.outbound_call_jobs"


@pytest.fixture
def project(postgres: Postgres) -> Iterator[Project]:
    with a_project(postgres, "project_to_leave") as project:
        yield project


def sign_up(project: Project) -> None:
    with project.connected("supabase_auth_admin") as auth:
        phone = f"1415555{uuid4().int % 10000:04}"
        auth.execute("insert into auth.users (id, phone) values (%s, %s)", (uuid4(), phone))


@pytest.mark.parametrize("theirs", ["", THEIRS], ids=["nothing of theirs", "a schema private, and a use of btree_gist"])
def test_removal_takes_all_of_ours_and_nothing_else(project: Project, theirs: str) -> None:
    project.run(theirs)
    before = project.everything()
    project.migrate()
    sign_up(project)
    project.run(SECRETS)
    assert project.column(JOBS) == [1]
    assert project.everything() != before

    project.run(REMOVE)

    assert project.everything() == before
    sign_up(project)  # nobody queues a call any more, and nobody is in the way
    project.run(REMOVE)  # twice does no harm

    assert project.migrate() == sorted(file.name for file in database.MIGRATIONS.glob("*.sql"))
    sign_up(project)
    assert project.column(JOBS) == [1]


def test_removal_is_refused_while_others_need_us(project: Project) -> None:
    project.migrate()
    project.run("create view public.waiting as select count(*) as n from public.outbound_call_jobs")
    before = project.everything()
    with pytest.raises(psycopg.errors.DependentObjectsStillExist, match="outbound_call_jobs"):
        project.run(REMOVE)
    assert project.everything() == before
