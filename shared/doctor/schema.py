"""What stands in the database: the migrations, functions and guards that this code needs, closed to everybody else."""

from collections.abc import Iterator
from typing import Final

from shared.doctor.findings import Finding, ok, warning, wrong
from shared.jobs import RPCS
from shared.setup_facts import SetupFacts

MIGRATIONS: Final = {
    "20261201000100": "tables",
    "20261201000150": "numbers",
    "20261201000200": "signup",
    "20261201000300": "claim",
    "20261201000400": "outcomes",
    "20261201000500": "follow_up",
    "20261201000600": "answers",
    "20261201000700": "by_hand",
    "20261201000800": "statistics",
    "20261201000900": "privacy",
    "20261201001000": "doctor",
}
"""What shared/supabase/migrations holds, for the image does not hold it. A test compares; add each new one here."""

_USERS, _JOBS = "auth.users", "outbound_call_jobs"
TRIGGERS: Final = {
    "on_auth_user_created_onboarding": _USERS,
    "on_auth_user_phone_changed_onboarding": _USERS,
    "on_auth_user_deleted_onboarding": _USERS,
    "on_auth_user_marked_deleted_onboarding": _USERS,
    "complete_call_job": _JOBS,
    "set_dedupe_window": _JOBS,
    "keep_open_call_job": _JOBS,
    "summarize_call_job": _JOBS,
    "on_outbound_call_job_created": _JOBS,
}
GUARDS: Final = {
    "outbound_call_attempts_one_open_per_number",
    "outbound_call_attempts_one_open_per_job",
    "one_job_per_key_and_hour",
}
FAST: Final = {
    *("outbound_call_jobs_to_dial", "outbound_call_jobs_open", "outbound_call_attempts_per_number"),
    *("outbound_call_attempts_per_prefix", "outbound_call_attempts_per_day"),
}
TABLES: Final = {
    *(
        "public.outbound_call_jobs",
        "public.outbound_call_attempts",
        "public.outbound_call_answers",
        "public.call_opt_outs",
    ),
    *("private.missed_signups", "private.deleted_calls", "private.deleted_users", "private.call_settings"),
}

PUSH: Final = "supabase link --workdir shared, then: supabase db push --remote --workdir shared"


def check_schema(facts: SetupFacts) -> Iterator[Finding]:
    yield _migrations(facts)
    yield _functions(facts)
    yield _rights(facts)
    yield _row_level_security(facts)
    yield _triggers(facts)
    yield _guards(facts)


def _migrations(facts: SetupFacts) -> Finding:
    check = "migrations"
    if facts.migrations is None:
        return warning(
            check,
            "no history of migrations can be read: were they pasted by hand?",
            "supabase migration repair --remote --workdir shared --status applied <version> for each that was; then:"
            " supabase db push --remote --workdir shared",
        )
    missing = [version for version in MIGRATIONS if version not in facts.migrations]
    if missing:
        gap = missing[0] < max(facts.migrations, default="")
        return wrong(
            check,
            f"{len(missing)} of {len(MIGRATIONS)} are missing: {', '.join(MIGRATIONS[version] for version in missing)}",
            PUSH + (" --include-all (there are later ones already)" if gap else ""),
        )
    newer = [version for version in facts.migrations if version > max(MIGRATIONS)]
    return ok(check, f"all {len(MIGRATIONS)} are there" + (f", and {len(newer)} newer" if newer else ""))


def _functions(facts: SetupFacts) -> Finding:
    check = "functions"
    missing, ambiguous, forbidden = [], [], []
    for name in RPCS:
        fitting = [function for function in facts.functions if function.name == name]
        if not fitting:
            missing.append(name)
        elif len(fitting) > 1:
            ambiguous.append(name)
        elif not fitting[0].service:
            forbidden.append(fitting[0].signature)
    if missing := missing + facts.dangling:
        return wrong(
            check,
            f"missing: {', '.join(missing)}",
            f"{PUSH}; if that finds nothing to do, somebody dropped them: run their `create function` again, revoke and"
            " grant included, from shared/supabase/migrations",
        )
    if ambiguous:
        return wrong(
            check,
            f"there more than once, so that no call of them is clear: {', '.join(ambiguous)}",
            "drop the one that no migration of ours makes: select oid::regprocedure from pg_proc where proname = '...';",
        )
    if forbidden:
        return wrong(
            check,
            f"the service may not call {', '.join(forbidden)}",
            " ".join(f"grant execute on function {signature} to service_role;" for signature in forbidden),
        )
    return ok(check, f"all {len(RPCS)} that this code calls are there")


def _rights(facts: SetupFacts) -> Finding:
    """Whoever has the anon key, which every browser has, or an account, must not have anybody called."""
    open_functions = [function for function in facts.functions if function.open_to]
    open_tables = [table for table in facts.tables if table.open_to]
    weak = [function for function in facts.functions if function.name in RPCS and not function.definer]
    found = [f"{function.name} ({', '.join(function.open_to)})" for function in open_functions]
    found += [f"{table.name} ({', '.join(table.open_to)})" for table in open_tables]
    advice = [f"revoke all on function {f.signature} from public, anon, authenticated;" for f in open_functions]
    advice += [f"revoke all on {table.name} from public, anon, authenticated;" for table in open_tables]
    if facts.private_open_to:
        found.append(f"schema private ({', '.join(facts.private_open_to)})")
        advice.append("revoke all on schema private from public, anon, authenticated, service_role;")
    if found:
        return wrong("rights", f"open to others: {'; '.join(found)}", " ".join(advice))
    if weak:
        return wrong(
            "rights",
            f"not `security definer`, so the service's calls of it fail: {', '.join(f.name for f in weak)}",
            " ".join(f"alter function {f.signature} security definer;" for f in weak),
        )
    return ok("rights", "only the service key may call, and nobody else can read or queue anything")


def _row_level_security(facts: SetupFacts) -> Finding:
    check = "row level security"
    there = {table.name for table in facts.tables}
    if missing := sorted(TABLES - there):
        return wrong(
            check,
            f"tables are missing: {', '.join(missing)}",
            f"{PUSH}; restore a backup if they were dropped by hand",
        )
    if off := [table.name for table in facts.tables if not table.rls]:
        return wrong(
            check,
            f"off for {', '.join(off)}",
            " ".join(f"alter table {name} enable row level security;" for name in off),
        )
    return ok(check, f"on for all {len(there)} tables")


def _triggers(facts: SetupFacts) -> Finding:
    check, enabled = "triggers", {(t.name, t.table.removeprefix("public.")): t.enabled for t in facts.triggers}
    missing = [f"{name} on {table}" for name, table in TRIGGERS.items() if (name, table) not in enabled]
    disabled = {name: table for name, table in TRIGGERS.items() if enabled.get((name, table)) is False}
    if missing:
        return wrong(
            check,
            f"missing, or not ours: {', '.join(missing)}",
            f"{PUSH}; if that finds nothing to do, somebody dropped them: run their `create trigger` again",
        )
    if disabled:
        return wrong(
            check,
            f"disabled: {', '.join(disabled)}",
            " ".join(f"alter table {table} enable trigger {name};" for name, table in disabled.items()),
        )
    return ok(check, f"all {len(TRIGGERS)} are there and enabled")


def _guards(facts: SetupFacts) -> Finding:
    check = "guards"
    if missing := sorted(GUARDS - set(facts.indexes)):
        return wrong(
            check,
            f"missing or invalid: {', '.join(missing)}: without them one person may be called twice",
            "select pause_calls('a guard is missing'); then create them again, as tables.sql in shared/supabase/migrations"
            " does; then select resume_calls();",
        )
    if missing := sorted(FAST - set(facts.indexes)):
        return warning(
            check,
            f"missing or invalid: {', '.join(missing)}: without them claims get slower with each job",
            "create them again, as tables.sql in shared/supabase/migrations does, `concurrently`",
        )
    return ok(check, "the indexes that forbid a second call, and those that claims read, are there")
