"""The database: does it answer, is it whole and closed, and do its webhooks leave, signed with our secret?"""

import base64
import contextlib
import hashlib
import hmac
import itertools
import secrets
import time
from collections.abc import Iterator
from typing import Final

import httpx

from shared.database import connect
from shared.doctor.connection import PUSH, explain_silence
from shared.doctor.findings import Clocks, Finding, note_clock, ok, skipped, warning, wrong
from shared.doctor.url import check_vault_url
from shared.jobs import RPCS, Jobs, JobsUnavailable
from shared.settings import Settings
from shared.setup_facts import SetupFacts

QUEUE_LOOK_SECONDS: Final = 2.5
"""Between two looks at pg_net's queue. Its worker takes a batch each second."""
LATE_SECONDS: Final = 300
WEBHOOK_CHECKS: Final = ("pg_net", "webhook answers", "Vault's secret")
CHECKS: Final = ("functions", "rights", "guards", *WEBHOOK_CHECKS, "calls", "waiting calls", "Vault's URL")
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
    began, nonce = time.monotonic(), secrets.token_hex(16)
    try:
        client = connect(settings)
        client.session.event_hooks["response"] += [
            responses.append,
            lambda response: note_clock(clocks, "Supabase", response.headers.get("date")),
        ]
        jobs = Jobs(client)
        facts = jobs.check_setup(nonce)
    except JobsUnavailable as error:
        yield explain_silence(error, responses[-1] if responses else None)
        yield from (skipped(check, "the database gave no facts") for check in CHECKS)
        return
    clocks["Postgres"] = facts.now.timestamp() - time.time()
    if facts.read_only:
        disk = "Supabase dashboard: Database, Disk: a full disk makes a project read-only; make room, or a bigger disk"
        yield wrong("database", "answers, but is read-only: nothing can be queued or claimed", disk)
    else:
        yield ok("database", f"answers in {1000 * (time.monotonic() - began):.0f} ms, Postgres {facts.postgres}")
    yield from _schema(facts)
    if settings.dispatch_secrets:
        yield _pg_net(facts, jobs)
        yield _webhook_answers(facts)
        yield _secret(settings, facts, nonce)
    else:
        why = "no DISPATCH_SECRET, no webhooks: jobs wait for the sweep"
        yield from (skipped(check, why) for check in WEBHOOK_CHECKS)
    yield _calls(facts)
    yield _waiting(facts)
    yield check_vault_url(settings, facts, clocks)


def _schema(facts: SetupFacts) -> Iterator[Finding]:
    if missing := [name for name in RPCS if name not in facts.functions]:
        advice = f"{PUSH}; if that finds nothing to do, one was dropped by hand: then select private.apply_rights();"
        yield wrong("functions", f"missing, or closed to the service: {', '.join(missing)}", advice)
    else:
        yield ok("functions", f"all {len(RPCS)} that this code calls are there")
    if facts.open:
        # Every browser has the anon key. With it nobody may queue a call or read a person's calls.
        advice = " ".join(f"revoke all on {name} from public, anon, authenticated;" for name in facts.open)
        yield wrong("rights", f"open to browsers: {', '.join(facts.open)}", advice)
    else:
        yield ok("rights", "only the service key may call our functions and read our tables")
    if gone := sorted(GUARDS - set(facts.guards)):
        create = "create them again, as tables.sql in shared/supabase/migrations does"
        pause = f"select pause_calls('a guard is missing'); {create}; then select resume_calls();"
        yield wrong("guards", f"missing or invalid: {', '.join(gone)}: one person may be called twice", pause)
    else:
        yield ok("guards", "the indexes that forbid a second call are there")


def _pg_net(facts: SetupFacts, jobs: Jobs) -> Finding:
    net = facts.net
    if net.error:
        enable = "Supabase: Database, Extensions, enable pg_net; or: create extension pg_net;"
        return wrong("pg_net", f"cannot be used, so jobs wait for the sweep: {net.error}", enable)
    if net.waiting:
        time.sleep(QUEUE_LOOK_SECONDS)
        with contextlib.suppress(JobsUnavailable):
            if jobs.check_setup(secrets.token_hex(16)).net.oldest_waiting == net.oldest_waiting:
                found = f"its worker is stuck: {net.waiting} requests wait, and none left in {QUEUE_LOOK_SECONDS:g} s"
                return wrong("pg_net", found, "select net.worker_restart(); or: Project Settings, Restart project")
    return ok("pg_net", "installed, and its queue is " + ("moving" if net.waiting else "empty"))


def _webhook_answers(facts: SetupFacts) -> Finding:
    """Failures before the last success are over: the newest come first."""
    check, answers = "webhook answers", facts.net.answers
    if facts.net.error:
        return skipped(check, "pg_net cannot be used")
    failed = list(itertools.takewhile(lambda answer: answer.status is None or answer.status >= 300, answers))
    if not failed:
        return ok(check, "the newest succeeded" if answers else "none within the hour")
    kinds = ", ".join(sorted({f"HTTP {each.status}" if each.status else each.error or "no answer" for each in failed}))
    found = f"the last {len(failed)} within the hour failed ({kinds}), {failed[0].age_s:.0f} s ago"
    other = "if Vault's lines are ok, they are older, or another webhook's of this project: table net._http_response;"
    return warning(check, found, other)


def _secret(settings: Settings, facts: SetupFacts, nonce: str) -> Finding:
    check, vault = "Vault's secret", facts.vault
    row = "(select id from vault.secrets where name = 'call_dispatcher_secret')"
    update = f"select vault.update_secret({row}, '<DISPATCH_SECRET>');"
    if vault.error:
        advice = f"Supabase: Database, Extensions, enable supabase_vault; if it is there: {update}"
        return wrong(check, f"cannot be read: {vault.error}", advice)
    if vault.hmac is None:
        return wrong(check, "is missing", "select vault.create_secret('<DISPATCH_SECRET>', 'call_dispatcher_secret');")
    keys = [base64.b64decode(secret.removeprefix("whsec_")) for secret in settings.dispatch_secrets]
    if vault.hmac in [hmac.new(key, f"doctor:{nonce}".encode(), hashlib.sha256).hexdigest() for key in keys]:
        return ok(check, "is DISPATCH_SECRET" + (", or the second of two" if len(keys) > 1 else ""))
    return wrong(check, "is not DISPATCH_SECRET: every webhook is refused with 401", update)


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
