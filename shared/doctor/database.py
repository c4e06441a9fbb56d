"""The database, as the doctor finds it: does it answer, and do its webhooks leave, signed with our secret?"""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Iterator
from typing import Final

import httpx

from shared.doctor.connection import KEY, PROJECT, explain_silence
from shared.doctor.findings import NO_WEBHOOKS, Clocks, Finding, note_clock, ok, skipped, warning, wrong
from shared.doctor.schema import check_schema
from shared.jobs import Jobs, JobsUnavailable, connect
from shared.settings import Settings
from shared.setup_facts import SetupFacts

QUEUE_LOOK_SECONDS: Final = 2.5
"""Between two looks at pg_net's queue: a worker that lives takes something in that time, batches are a second apart."""
LATE_SECONDS: Final = 300
SLOW_SECONDS: Final = 3.0
AFTER: Final = (
    *("migrations", "functions", "rights", "row level security", "triggers", "guards"),
    *("pg_net", "webhook answers", "Vault's secret", "calls", "waiting calls", "Vault's URL"),
)
"""The checks that need the facts, in their order."""


def look(settings: Settings, clocks: Clocks) -> Iterator[Finding | SetupFacts]:
    """What the database is like; the facts come last, for those who go on from them, if there are any."""
    seen: list[httpx.Response] = []

    def note(response: httpx.Response) -> None:
        seen.append(response)
        note_clock(clocks, "Supabase", response.headers.get("date"))

    try:
        client = connect(settings)
    except Exception as error:  # noqa: BLE001 - supabase-py refuses some keys with an exception of its own
        yield from _given_up(
            [wrong("database", f"supabase-py refuses the key or the URL ({type(error).__name__})", KEY)]
        )
        return
    client.session.event_hooks["response"].append(note)
    jobs, nonce = Jobs(client), secrets.token_hex(16)
    began = time.monotonic()
    try:
        facts = jobs.check_setup(nonce)
    except JobsUnavailable as down:
        yield from _given_up(explain_silence(settings, jobs, down, seen[-1] if seen else None))
        return
    took_s = time.monotonic() - began
    clocks["Postgres"] = facts.now.timestamp() - time.time()
    yield _answers(facts, took_s)
    yield from check_schema(facts)
    yield from _pg_net(settings, facts, jobs)
    yield _secret(settings, facts, nonce)
    yield from _calls(facts)
    yield facts


def _given_up(found: list[Finding]) -> Iterator[Finding]:
    yield from found
    told = {finding.check for finding in found}
    yield from (skipped(check, "cannot be looked at before that") for check in AFTER if check not in told)


def _answers(facts: SetupFacts, took_s: float) -> Finding:
    if facts.read_only:
        return wrong(
            "database",
            "answers, but is read-only: nothing can be queued or claimed",
            "Supabase dashboard: Database, Disk: a full disk makes a project read-only; make room, or a bigger disk",
        )
    if took_s > SLOW_SECONDS:
        return warning(
            "database", f"answers, and took {took_s:.1f} s", f"a claim waits as long. {PROJECT}; Reports, Database"
        )
    return ok("database", f"answers in {1000 * took_s:.0f} ms, Postgres {facts.postgres}")


def _pg_net(settings: Settings, facts: SetupFacts, jobs: Jobs) -> Iterator[Finding]:
    check, answers, net = "pg_net", "webhook answers", facts.net
    if not settings.dispatch_secrets:
        yield from (skipped(name, NO_WEBHOOKS) for name in (check, answers))
        return
    if net.error or not net.installed:
        found = f"cannot be read: {net.error}" if net.error else "is not installed: jobs wait for the sweep"
        yield wrong(
            check, found, "Supabase dashboard: Database, Extensions, enable pg_net; or: create extension pg_net;"
        )
        yield skipped(answers, "without pg_net there are none")
        return
    yield _worker(check, net.waiting, net.oldest_waiting, jobs)
    bad = 0
    for answer in net.answers:  # the newest first: trouble that is over is no trouble
        if answer.status is not None and answer.status < 300:
            break
        bad += 1
    if bad:
        kinds = sorted({f"HTTP {a.status}" if a.status else a.error or "no answer" for a in net.answers[:bad]})
        yield warning(
            answers,
            f"pg_net's last {bad} within the hour were bad ({', '.join(kinds)}), the newest {net.answers[0].age_s:.0f} s ago",
            "if the lines about Vault and the signed webhook are ok, they are of before, or another webhook's of this project:"
            " select * from net._http_response order by created desc limit 20;",
        )
    else:
        yield ok(
            answers, f"{len(net.answers)} looked at, the newest is good" if net.answers else "none within the hour"
        )


def _worker(check: str, waiting: int, oldest: int | None, jobs: Jobs) -> Finding:
    if waiting:
        time.sleep(QUEUE_LOOK_SECONDS)
        try:
            net = jobs.check_setup(secrets.token_hex(16)).net
        except JobsUnavailable:
            return warning(check, "the queue could not be looked at twice", "run the doctor again")
        if net.oldest_waiting is not None and net.oldest_waiting == oldest:
            return wrong(
                check,
                f"its worker does not work: {net.waiting} requests wait, and none left in {QUEUE_LOOK_SECONDS:g} s",
                "select net.worker_restart(); if that does not help: Supabase dashboard, Project Settings, Restart project",
            )
    return ok(check, "installed, and its queue is " + ("moving" if waiting else "empty"))


def _secret(settings: Settings, facts: SetupFacts, nonce: str) -> Finding:
    check, vault = "Vault's secret", facts.vault
    if not settings.dispatch_secrets:
        return skipped(check, "there is no DISPATCH_SECRET here to compare it with")
    if vault.error:
        return wrong(
            check,
            f"Vault cannot be read: {vault.error}",
            "Supabase dashboard: Database, Extensions, enable supabase_vault",
        )
    if vault.form == "missing":
        return wrong(
            check, "is not there", "select vault.create_secret('<DISPATCH_SECRET>', 'call_dispatcher_secret');"
        )
    row = "(select id from vault.secrets where name = 'call_dispatcher_secret')"
    update = f"select vault.update_secret({row}, '<DISPATCH_SECRET>');"
    if vault.form == "no prefix":
        return wrong(check, "does not begin with whsec_: every webhook is signed wrongly", update)
    if vault.form == "not base64" or vault.hmac is None:
        return wrong(check, "is not whsec_ and base64: no webhook is sent", update)
    if not any(hmac.compare_digest(vault.hmac, proof) for proof in _proofs(settings, nonce)):
        return wrong(check, "is not DISPATCH_SECRET: every webhook is refused with 401", update)
    if not hmac.compare_digest(vault.hmac, _proofs(settings, nonce)[0]):
        return ok(check, "is the second of the two in DISPATCH_SECRET")
    return ok(check, "is DISPATCH_SECRET" + ("'s first" if len(settings.dispatch_secrets) > 1 else ""))


def _proofs(settings: Settings, nonce: str) -> list[str]:
    keys = [base64.b64decode(secret.removeprefix("whsec_")) for secret in settings.dispatch_secrets]
    return [hmac.new(key, f"doctor:{nonce}".encode(), hashlib.sha256).hexdigest() for key in keys]


def _calls(facts: SetupFacts) -> Iterator[Finding]:
    calls, check = facts.calls, "calls"
    if calls is None:
        yield wrong(
            check,
            "private.call_settings has lost its row: no claim succeeds",
            "insert into private.call_settings default values;",
        )
    elif calls.paused_until:
        until = "until somebody resumes them" if calls.paused_until == "infinity" else f"until {calls.paused_until}"
        mend_it = "see to the reason; then: select resume_calls();"
        if calls.paused_by == "hand":
            by, mend = "by hand", mend_it
        elif calls.paused_by == "calls_per_day":
            by = "by the ceiling of a day"
            mend = "wait; or raise CALLS_PER_DAY everywhere, then: select resume_calls();"
        elif calls.paused_by == "restore":
            by, mend = "by a restore or a copy", "follow shared/docs/restore.md, then: select confirm_restore();"
        else:
            by, mend = "by a halt, because Twilio refused one for a reason of ours", mend_it
        yield warning(check, f"paused {until}, {by}: {calls.pause_reason}", mend)
    else:
        trusted = "only confirmed phones" if calls.verified_phones_only else "every typed phone"
        yield ok(check, f"not paused; {trusted} of a sign-up is called (require_verified_phones)")
    due, open_ = facts.oldest_due_s or 0.0, facts.oldest_unattended_s or 0.0
    sweep = (
        "see that the sweep runs (Cloud Scheduler's job, the worker's or cron job's log); a long queue: more CALLS_PER_SECOND or a"
        " higher CALL_DISPATCHER_LIMIT"
    )
    if max(due, open_) > LATE_SECONDS and not (calls and calls.paused_until):
        yield warning(
            "waiting calls",
            f"the oldest has been due for {max(due, open_) / 60:.0f} minutes: does anybody sweep?",
            sweep,
        )
    elif facts.missed_signups:
        yield warning(
            "waiting calls",
            f"{facts.missed_signups} sign-ups without a job yet: a sweep queues them",
            f"private.missed_signups says why; {sweep}",
        )
    else:
        yield ok("waiting calls", f"the oldest has been due for {due:.0f} s" if due else "none is due")
