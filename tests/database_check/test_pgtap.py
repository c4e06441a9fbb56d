"""shared/supabase/tests, run by pg_prove as `supabase test db` runs them in its container."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.database_check.conftest import ROOT, TIMEOUT_S, MakeProject, Project
from tests.sandbox.supabase import database

FILES = sorted((ROOT / "shared" / "supabase" / "tests").glob("*.sql"))


def prove(pg_prove: str, project: Project, file: Path, user: str = "postgres") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [pg_prove, "--verbose", "--dbname", project.server.url(user, project.database), str(file)],
        env={"PATH": os.defpath, "HOME": str(project.folder)}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def migrated(extensions: None, new_project: MakeProject) -> Project:
    project = new_project()
    database.migrate(project.server, project.database)
    return project


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_database_is_as_the_pgtap_tests_say(pg_prove: str, migrated: Project, file: Path) -> None:
    said = prove(pg_prove, migrated, file)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "Result: PASS" in said.stdout


BREAKS = {
    "a function that anybody may execute": ("rights", "grant execute on function public.call_job_stats() to anon"),
    "a function without a search_path": ("rights", "alter function private.in_words(text) reset search_path"),
    "a function with its caller's rights": ("rights", "alter function public.pause_calls(text, timestamptz) security invoker"),
    "an overloaded function": (
        "rights",
        "create function public.resume_calls(int) returns void language sql security definer set search_path = '' as '';"
        "revoke all on function public.resume_calls(int) from public, anon, authenticated;"
        "grant execute on function public.resume_calls(int) to service_role",
    ),
    "a private function for the service": ("rights", "grant execute on function private.clock() to service_role"),
    "a table without row level security": ("rights", "alter table private.call_settings disable row level security"),
    "a policy": ("rights", "create policy open on public.call_opt_outs for select to authenticated using (true)"),
    "a column that anybody may read": ("rights", "grant select (status) on public.outbound_call_jobs to authenticated"),
    "a column that the service may set": ("rights", "grant insert (status) on public.outbound_call_jobs to service_role"),
    "a table that the service may change": ("rights", "grant delete on public.call_opt_outs to service_role"),
    "a view with its owner's rights": ("rights", "create view public.peek as select id from public.outbound_call_jobs"),
    "an open schema": ("rights", "grant usage on schema private to authenticated"),
    "a sequence that the service may move": ("rights", "grant usage on sequence public.outbound_call_jobs_id_seq to service_role"),
    "a trigger less": ("structure", "drop trigger on_auth_user_created_onboarding on auth.users"),
    "a trigger that is off": ("structure", "alter table public.outbound_call_jobs disable trigger complete_call_job"),
    "a sign-up that waits": ("structure", "alter function private.on_auth_user_changed() reset lock_timeout"),
    "a constraint less": ("structure", "alter table public.outbound_call_jobs drop constraint one_job_per_key_and_hour"),
    "a fence less": ("structure", "drop index public.outbound_call_attempts_one_open_per_number"),
    "a claim in another order": (
        "structure",
        "drop index public.outbound_call_jobs_to_dial;"
        "create index outbound_call_jobs_to_dial on public.outbound_call_jobs (id, due_at) where status = 'queued'",
    ),
    "a key to auth.users": (
        "structure",
        "alter table public.outbound_call_jobs add foreign key (user_id) references auth.users (id) on delete cascade",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BREAKS)
def test_the_pgtap_tests_would_notice(pg_prove: str, migrated: Project, tmp_path: Path, what: str) -> None:
    stem, change = BREAKS[what]
    file = next(file for file in FILES if file.stem == stem)
    broken = tmp_path / file.name
    path = 'set local search_path = "$user", public, extensions'  # as postgres has it
    broken.write_text(f"begin;\n{path};\n{change};\n{file.read_text()}")  # which ends with rollback
    said = prove(pg_prove, migrated, broken, "supabase_admin")
    assert said.returncode != 0
    assert "not ok" in said.stdout, said.stdout + said.stderr
