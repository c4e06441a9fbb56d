"""The database: does it answer, is it whole and closed, and do its webhooks leave, signed with our secret?"""

import base64
import hashlib
import hmac
import itertools
import secrets
import time
from collections.abc import Iterator
from typing import Final

import httpx

from shared.database import connect
from shared.doctor.connection import KEY, PROJECT, PUSH, explain_silence
from shared.doctor.findings import Clocks, Finding, note_clock, ok, skipped, warning, wrong
from shared.doctor.url import check_vault_url
from shared.jobs import RPCS, Jobs, JobsUnavailable
from shared.settings import Settings
from shared.setup_facts import SetupFacts

QUEUE_LOOK_SECONDS: Final = 2.5
"""Between two looks at pg_net's queue. Its worker takes a batch each second."""
LATE_SECONDS: Final = 300
SLOW_SECONDS: Final = 3.0
CHECKS: Final = (
    *("functions", "rights", "guards", "pg_net", "webhook answers", "Vault's secret"),
    *("calls", "waiting calls", "Vault's URL"),
)
"""The checks that need the facts, in their order."""
PAUSES: Final = {
    "hand": ("by hand", "see to the reason; then: select resume_calls();"),
    "halt": ("by a halt: Twilio refused a call for a reason of ours", "mend it; then: select resume_calls();"),
    "calls_per_day": ("by CALLS_PER_DAY", "wait; or raise CALLS_PER_DAY everywhere, then: select resume_calls();"),
    "restore": ("by a restore or a copy", "follow shared/docs/restore.md; then: select confirm_restore();"),
}
"""By paused_by: the cause and the advice."""
GUARDS: Final = {
    "outbound_call_attempts_one_open_per_number",
    "outbound_call_attempts_one_open_per_job",
    "one_job_per_key_and_hour",
}
"""Indexes that forbid a second call to one person. Nothing else looks at them in a live database."""
_SWEEP: Final = "look at the sweep (Cloud Scheduler's job; the log of the worker or cron job)"


def check_database(settings: Settings, clocks: Clocks) -> Iterator[Finding]:
    responses: list[httpx.Response] = []

    def note(response: httpx.Response) -> None:
        responses.append(response)
        note_clock(clocks, "Supabase", response.headers.get("date"))

    began, nonce = time.monotonic(), secrets.token_hex(16)
    try:
        client = connect(settings)
        client.session.event_hooks["response"].append(note)
        jobs = Jobs(client)
        facts = jobs.check_setup(nonce)
    except Exception as error:  # noqa: BLE001 - supabase-py refuses some keys with an exception of its own
        if isinstance(error, JobsUnavailable):
            found = explain_silence(settings, error, responses[-1] if responses else None)
        else:
            found = [wrong("database", f"supabase-py refuses the key or the URL ({type(error).__name__})", KEY)]
        yield from found
        told = {finding.check for finding in found}
        yield from (skipped(check, "the database gave no facts") for check in CHECKS if check not in told)
        return
    clocks["Postgres"] = facts.now.timestamp() - time.time()
    yield _answers(facts, time.monotonic() - began)
    yield _functions(facts)
    yield _rights(facts)
    yield _guards(facts)
    if settings.dispatch_secrets:
        yield _pg_net(facts, jobs)
        yield _webhook_answers(facts)
        yield _secret(settings, facts, nonce)
    else:
        yield from (skipped(check, "no DISPATCH_SECRET, no webhooks: jobs wait for the sweep") for check in CHECKS[3:6])
    yield _calls(facts)
    yield _waiting(facts)
    yield check_vault_url(settings, facts)


def _answers(facts: SetupFacts, took_s: float) -> Finding:
    if facts.read_only:
        disk = "Supabase dashboard: Database, Disk: a full disk makes a project read-only; make room, or a bigger disk"
        return wrong("database", "answers, but is read-only: nothing can be queued or claimed", disk)
    if took_s > SLOW_SECONDS:
        return warning("database", f"answers, and took {took_s:.1f} s", f"a claim waits as long. {PROJECT}")
    return ok("database", f"answers in {1000 * took_s:.0f} ms, Postgres {facts.postgres}")


def _functions(facts: SetupFacts) -> Finding:
    if missing := [name for name in RPCS if name not in facts.functions]:
        advice = f"{PUSH}; if that finds nothing to do, one was dropped by hand: then select private.apply_rights();"
        return wrong("functions", f"missing, or closed to the service: {', '.join(missing)}", advice)
    return ok("functions", f"all {len(RPCS)} that this code calls are there")


def _rights(facts: SetupFacts) -> Finding:
    """Every browser has the anon key. With it nobody may queue a call or read a person's calls."""
    if not facts.open:
        return ok("rights", "only the service key may call our functions and read our tables")
    found = "; ".join(f"{each.name} ({', '.join(each.roles)})" for each in facts.open)
    advice = " ".join(f"revoke all on {each.name} from public, anon, authenticated;" for each in facts.open)
    if any(each.ours or role.startswith("anon") for each in facts.open for role in each.roles):
        return wrong("rights", f"open to others: {found}", advice)
    # Perhaps the view shows each user their own rows. Only its author knows.
    return warning("rights", f"a view of yours shows our tables to signed-in users: {found}", advice)


def _guards(facts: SetupFacts) -> Finding:
    if missing := sorted(GUARDS - set(facts.guards)):
        found = f"missing or invalid: {', '.join(missing)}: without them one person may be called twice"
        create = "create them again, as tables.sql in shared/supabase/migrations does"
        pause = f"select pause_calls('a guard is missing'); {create}; then select resume_calls();"
        return wrong("guards", found, pause)
    return ok("guards", "the indexes that forbid a second call are there")


def _pg_net(facts: SetupFacts, jobs: Jobs) -> Finding:
    net = facts.net
    if net.error or not net.installed:
        found = f"cannot be read: {net.error}" if net.error else "is not installed: jobs wait for the sweep"
        return wrong("pg_net", found, "Supabase: Database, Extensions, enable pg_net; or: create extension pg_net;")
    if net.waiting and _is_stuck(net.oldest_waiting, jobs):
        found = f"its worker is stuck: {net.waiting} requests wait, and none left in {QUEUE_LOOK_SECONDS:g} s"
        return wrong("pg_net", found, "select net.worker_restart(); or: Project Settings, Restart project")
    return ok("pg_net", "installed, and its queue is " + ("moving" if net.waiting else "empty"))


def _is_stuck(oldest: int | None, jobs: Jobs) -> bool:
    time.sleep(QUEUE_LOOK_SECONDS)
    try:
        return jobs.check_setup(secrets.token_hex(16)).net.oldest_waiting == oldest
    except JobsUnavailable:
        return False


def _webhook_answers(facts: SetupFacts) -> Finding:
    """Failures before the last success are over: the newest come first."""
    check, answers = "webhook answers", facts.net.answers
    if facts.net.error or not facts.net.installed:
        return skipped(check, "pg_net cannot be used")
    failed = list(itertools.takewhile(lambda answer: answer.status is None or answer.status >= 300, answers))
    if not failed:
        return ok(check, "the newest succeeded" if answers else "none within the hour")
    kinds = ", ".join(sorted({f"HTTP {each.status}" if each.status else each.error or "no answer" for each in failed}))
    found = f"the last {len(failed)} within the hour failed ({kinds}), {failed[0].age_s:.0f} s ago"
    other = "if Vault and the signed webhook are ok, they are older, or another webhook's of this project"
    return warning(check, found, f"{other}: table net._http_response;")


def _secret(settings: Settings, facts: SetupFacts, nonce: str) -> Finding:
    check, vault = "Vault's secret", facts.vault
    if vault.error:
        return wrong(check, f"cannot be read: {vault.error}", "Supabase: Database, Extensions, enable supabase_vault")
    if vault.form == "missing":
        return wrong(check, "is missing", "select vault.create_secret('<DISPATCH_SECRET>', 'call_dispatcher_secret');")
    keys = [base64.b64decode(secret.removeprefix("whsec_")) for secret in settings.dispatch_secrets]
    proofs = [hmac.new(key, f"doctor:{nonce}".encode(), hashlib.sha256).hexdigest() for key in keys]
    if vault.form == "ok" and vault.hmac in proofs:
        return ok(check, "is DISPATCH_SECRET" if vault.hmac == proofs[0] else "is the second of two in DISPATCH_SECRET")
    malformed = {
        "no prefix": "does not begin with whsec_: every webhook gets a wrong signature",
        "not base64": "is not whsec_ and base64: no webhook is sent",
    }
    found = malformed.get(vault.form, "is not DISPATCH_SECRET: every webhook is refused with 401")
    row = "(select id from vault.secrets where name = 'call_dispatcher_secret')"
    return wrong(check, found, f"select vault.update_secret({row}, '<DISPATCH_SECRET>');")


def _calls(facts: SetupFacts) -> Finding:
    calls = facts.calls
    if calls is None:
        row = "insert into private.call_settings default values;"
        return wrong("calls", "private.call_settings has lost its row: no claim succeeds", row)
    if calls.paused_until is None:
        trusted = "only confirmed phones" if calls.verified_phones_only else "every typed phone"
        return ok("calls", f"not paused; {trusted} of a sign-up is called (require_verified_phones)")
    until = "until somebody resumes them" if calls.paused_until == "infinity" else f"until {calls.paused_until}"
    by, mend = PAUSES[calls.paused_by or "hand"]
    return wrong("calls", f"nobody is called: paused {until}, {by}: {calls.pause_reason}", mend)


def _waiting(facts: SetupFacts) -> Finding:
    check, due = "waiting calls", facts.oldest_due_s or 0.0
    if due > LATE_SECONDS and not (facts.calls and facts.calls.paused_until):
        more = "a long queue needs more CALLS_PER_SECOND or a higher CALL_DISPATCHER_LIMIT"
        found = f"the oldest has been due for {due / 60:.0f} minutes: no sweep lately?"
        return warning(check, found, f"{_SWEEP}; {more}")
    if facts.missed_signups:
        found = f"{facts.missed_signups} sign-ups without a job yet: a sweep queues them"
        return warning(check, found, f"private.missed_signups says why; {_SWEEP}")
    return ok(check, f"the oldest has been due for {due:.0f} s" if due else "none is due")
