"""The real `supabase db push`, `db advisors` and `db lint` find what they should: our migrations, and nothing wrong in them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.database_check.conftest import MakeProject, Project
from tests.sandbox.supabase import database

BLOCKED = """set local lock_timeout = '300ms';
create table public.before_the_lock ();
alter table public.outbound_call_jobs add column later text;
"""


def history(project: Project) -> list[str]:
    with project.connect() as connection:
        rows = connection.execute("select version from supabase_migrations.schema_migrations order by 1").fetchall()
    return [str(version) for (version,) in rows]


def test_second_push_finds_no_migration_to_apply(supabase_cli: Path, new_project: MakeProject) -> None:
    project = new_project()
    files = sorted(file.name for file in project.migrations.glob("*.sql"))

    first = project.push()
    assert first.returncode == 0, first.stderr
    assert "config.toml" not in first.stderr  # where it says what is wrong in it, or unknown to it
    assert [line.split()[-1].removesuffix("...") for line in first.stderr.splitlines() if "Applying" in line] == files
    assert history(project) == [file.split("_")[0] for file in files]

    second = project.push()
    assert second.returncode == 0, second.stderr
    assert "up to date" in second.stdout + second.stderr
    assert "Applying" not in second.stderr


def test_the_cli_and_the_sandbox_have_the_same_history(pushed: Project) -> None:
    assert database.migrate(pushed.server, pushed.database) == []
    listed = pushed.supabase("migration", "list", "--output-format", "json")
    rows = json.loads(listed.stdout)["migrations"]
    assert [(row["local"], row["remote"]) for row in rows] == [(version, version) for version in history(pushed)]


def test_everything_can_be_removed_and_pushed_again(supabase_cli: Path, new_project: MakeProject) -> None:
    project = new_project()
    migrations = database.migrate(project.server, project.database)
    said = project.supabase("db", "query", "--yes", "--file", "supabase/snippets/remove.sql")
    assert said.returncode == 0, said.stderr
    assert history(project) == []
    assert project.push().returncode == 0
    assert len(history(project)) == len(migrations)


def test_advisors_find_nothing_in_our_schema(pushed: Project) -> None:
    said = pushed.supabase("db", "advisors", "--fail-on", "warn")
    assert said.returncode == 0, said.stdout + said.stderr


def test_the_advisors_would_find_an_open_table(supabase_cli: Path, new_project: MakeProject) -> None:
    project = new_project()
    with project.connect("postgres") as connection:
        connection.execute("create table public.phone_numbers (phone text)")
        connection.execute("grant select on public.phone_numbers to anon")
    said = project.supabase("db", "advisors", "--fail-on", "warn")
    assert said.returncode != 0
    assert "rls_disabled_in_public" in said.stdout


def test_plpgsql_check_finds_nothing_in_our_functions(extensions: None, pushed: Project) -> None:
    said = pushed.supabase("db", "lint", "--fail-on", "warning")
    assert said.returncode == 0, said.stdout + said.stderr
    for schema in ("public", "private"):
        assert f"Linting schema: {schema}" in said.stderr


def test_plpgsql_check_finds_a_missing_column(extensions: None, supabase_cli: Path, new_project: MakeProject) -> None:
    project = new_project()
    with project.connect("postgres") as connection:
        connection.execute(
            "create function public.broken() returns text language plpgsql as 'begin return (select nosuch from auth.users); end'"
        )
    said = project.supabase("db", "lint", "--fail-on", "warning")
    assert said.returncode != 0
    assert "nosuch" in said.stdout


def test_push_that_waits_for_a_lock_changes_nothing(supabase_cli: Path, new_project: MakeProject) -> None:
    """`set local lock_timeout` at the head of a migration holds with the CLI, which opens the transaction, too."""
    project = new_project()
    project.migrations.joinpath("20991231000000_blocked.sql").write_text(BLOCKED)
    database.migrate(project.server, project.database)
    before = history(project)
    with project.connect() as other, other.transaction():
        other.execute("lock table public.outbound_call_jobs in row exclusive mode")  # as any write does
        said = project.push()
        assert (said.returncode != 0, "lock timeout" in said.stderr, history(project)) == (True, True, before)
        assert other.execute("select to_regclass('public.before_the_lock')").fetchone() == (None,)
    assert project.push().returncode == 0
    assert history(project) == [*before, "20991231000000"]
