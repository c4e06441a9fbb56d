"""explain_call_job: the story of a job held, refused, lost sight of or finished in every way that this code has."""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.database.sql_api import LEASE_S, Steps, a_number, a_sid
from tests.sandbox.supabase import database

JOBS, USERS = "public.outbound_call_jobs", "auth.users"
BERLIN = Jsonb({"app_timezone": "Europe/Berlin"})


class World:
    """One job, the last one queued, on its way to a question. Each method is one step, and returns the world."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.number = a_number()
        self.job = 0
        self.attempt, self.user, self.sid = uuid.uuid4(), uuid.uuid4(), a_sid()
        self.asked: dict[str, object] = {}

    def asks(self, **asked: object) -> World:
        """For this story, and not for that of the job, or of the user without a job."""
        self.asked = asked
        return self

    def asks_by_number(self) -> World:
        return self.asks(phone_number=self.number)

    def in_hours(self, hours: float) -> datetime:
        return self.steps.now() + timedelta(hours=hours)

    def later(self, seconds: float) -> World:
        self.steps.pass_time(seconds)
        return self

    def sql(self, query: str, *values: object) -> World:
        self.steps.rows(query, *values)
        return self

    def rpc(self, function: str, **arguments: object) -> World:
        self.steps.call(function, **arguments)
        return self

    def for_job(self, function: str, **arguments: object) -> World:
        return self.rpc(function, job_id=self.job, **arguments)

    # --- the job
    def queued(self, number: str | None = None, in_hours: float = 0, **columns: object) -> World:
        self.number = number or a_number()
        if in_hours:
            columns["due_at"] = self.in_hours(in_hours)
        self.job = self.steps.queue(self.number, **columns)
        return self

    def queued_for_another_user(self) -> World:
        return self.queued(self.number, user_id=uuid.uuid4())

    def enqueued(self, *numbers: str) -> World:
        """By enqueue_call_job, with one key."""
        for number in numbers:
            self.job = self.steps.call("enqueue_call_job", user_id=self.user, phone_number=number)["job_id"]
        return self

    def changed(self, **columns: object) -> World:
        self.steps.change_job(self.job, **columns)
        return self

    def finished_by_hand(self, status: str) -> World:
        return self.changed(status=status, due_at=None, finished_at=self.steps.now())

    def due(self) -> World:
        self.steps.make_due(self.job)
        return self

    def number_read(self, as_e164: str | None) -> World:
        why = {} if as_e164 else {"code": "number_invalid", "reason": "the text is not a phone number"}
        typed = {"job_id": self.job, "phone_number": self.number}
        assert self.steps.call("set_call_number", **typed, phone_e164=as_e164, **why)
        return self

    # --- its attempt
    def claim(self, outcome: str, **caps: Any) -> World:
        assert self.steps.claim(self.job, **caps)["outcome"] == outcome
        return self

    def restored(self) -> World:
        """Into another database, after it was queued: the first claim notices."""
        return self.queued(database_id="elsewhere").claim("paused")

    def halted(self) -> World:
        return self.given_back("twilio_20003", "the credentials are wrong", halt_s=60.0).due()

    def too_early(self) -> World:
        return self.given_back("outside_calling_hours", "too early there", not_before=self.in_hours(9))

    def taken_by_a_sweep(self) -> World:
        self.steps.claim()
        (attempt,) = self.steps.attempts(self.job)
        self.attempt = attempt["id"]
        return self

    def brought_to(self, state: str) -> World:
        """The attempt of this job, or of a new one."""
        self.attempt = self.steps.bring_to(state, self.job or self.queued().job)
        return self

    def given_back(self, code: str, reason: str, **more: Any) -> World:
        assert self.brought_to("started").steps.call(
            "release_call_job", attempt=self.attempt, delay_s=60.0, code=code, reason=reason, **more
        )
        return self

    def settled(self, outcome: str, *listed: str, **more: Any) -> World:
        calls = [(a_sid(), status) for status in listed]
        assert self.steps.settle(self.attempt, *calls, **more)["outcome"] == outcome
        return self

    def dialed(self) -> World:
        """Twilio has the call."""
        _, self.attempt, self.sid = self.steps.dial(self.job or self.queued().job)
        return self

    def ends(self, status: str, **more: Any) -> World:
        self.steps.status(self.attempt, self.sid, status, **more)
        return self

    def called(self, ends: str = "completed", **more: Any) -> World:
        return self.dialed().ends(ends, **more)

    def called_times(self, times: int) -> World:
        for _ in range(times):
            self.queued(self.number).called()
        return self

    def accepted_again(self) -> World:
        """With another SID: a second call."""
        self.sid = a_sid()
        self.steps.accept(self.attempt, self.sid)
        return self

    def put_off_in_the_queue(self) -> World:
        until = self.in_hours(9)
        return self.rpc("put_off_call", attempt=self.attempt, not_before=until, code="hours", reason="night there")

    def asks_for_later(self) -> World:
        self.steps.ask_for_later(self.attempt, self.sid, self.in_hours(2))
        return self

    def looked_after(self) -> World:
        self.steps.ask()
        return self

    # --- the person and the account
    def signed_up(self, phone: str | None = None, metadata: object = None) -> World:
        self.user = self.steps.sign_up(phone, metadata)
        jobs = self.steps.jobs_of(self.user)
        self.job = jobs[0]["id"] if jobs else 0
        return self

    def banned(self) -> World:
        self.user = self.steps.sign_up()
        return self.sql("update auth.users set banned_until = %s where id = %s", self.in_hours(24), self.user)

    def phone_becomes(self, phone: str | None) -> World:
        return self.sql("update auth.users set phone = %s where id = %s", phone and phone[1:], self.user)

    def user_deleted(self) -> World:
        return self.sql("delete from auth.users where id = %s", self.user)

    def missed(self, phone: str | None = None) -> World:
        """This user's sign-up, or change of phone, could not be followed."""
        values = "values (%s, 'a lock', private.clock(), %s)"
        return self.sql(f"insert into private.missed_signups {values}", self.user, phone)

    def without_its_job(self) -> World:
        self.job = 0
        return self.sql(f"delete from {JOBS} where user_id = %s", self.user)

    def healed(self) -> World:
        assert self.steps.call("heal_onboarding_calls") == 1
        self.job = self.steps.job_of(self.user)["id"]
        return self

    def verified_phones_only(self) -> World:
        return self.rpc("require_verified_phones")

    def opted_out(self, **how: object) -> World:
        return self.rpc("opt_out", phone_number=self.number, **how)

    def paused(self, reason: str, minutes: float | None = None) -> World:
        until = {} if minutes is None else {"until": self.in_hours(minutes / 60)}
        return self.rpc("pause_calls", reason=reason, **until)

    def has_webhook(self) -> World:
        names = "unnest('{call_dispatcher_url,call_dispatcher_secret}'::text[]) name"
        return self.sql(f"select vault.create_secret('x', name) from {names}")

    def without_trigger(self, name: str, table: str) -> World:
        """The test enables it again."""
        return self.sql(f"alter table {table} disable trigger {name}")

    def locked(self, lock: str) -> World:
        """By an open transaction, which the test rolls back."""
        return self.sql("begin").sql(lock)

    def told(self, state: str, note: str) -> World:
        """The call's result, to your own system."""
        columns = "subject, job_id, type, data, created_at, due_at, give_up_at, ended_at, state, note"
        values = "%s, %s, 'call.completed', '{}', now(), now(), now(), now(), %s, %s"
        insert = f"insert into private.call_results ({columns}) values ({values})"
        return self.sql(insert, str(self.job), self.job, state, note)


# fmt: off
WAYS: dict[str, tuple[Callable[[World], World], str]] = {
    # --- as planned
    "reached a person": (lambda job: job.called(duration_s=34),
        "queued, .*for … claimed for call 1 from … Twilio has the call … the call is over, after 34 s"
        " … now: completed: its call was picked up"),
    "reached a machine": (lambda job: job.called(answered_by="machine_start"),
        "the call is over: a machine picked up … now: completed: its call was picked up"),
    "a machine that counts as missed": (lambda job: job.called(answered_by="machine_start", machine_counts_as="missed"),
        "a machine picked up … now: waits: a machine picked up; due"),
    "missed twice": (lambda job: job.called("busy", sip_code=486).later(60).called("no-answer"),
        r"the line was busy \(SIP 486\) … claimed for call 2 … nobody answered … now: waits: nobody answered; due"),
    "missed for good": (lambda job: job.called("failed", delays_s=()),
        "the call could not be put through … now: failed: the call could not be put through"),
    "reached, and the voice failed": (lambda job: job.called(duration_s=2, error_code="11200"),
        r"claimed for call 1 … the call is over, after 2 s \(Twilio error 11200\)"),
    "queued for later": (lambda job: job.queued(in_hours=9, metadata=BERLIN),
        "now: waits: it is not due before .* in Berlin"),
    "told to your system": (lambda job: job.called().told("told", "answered 200").told("gave_up", "answered 500"),
        "the result was told to your system … the result could not be told to your system: answered 500"),
    # --- due and not claimed
    "due and never swept": (lambda job: job.queued(),
        "now: waits: due since .*; nothing has claimed it: Vault has no webhook URL.*; no sweep has ever run"),
    "due behind another": (lambda job: job.rpc("heal_onboarding_calls").queued().later(300).queued(),
        "nothing has claimed it: jobs due before it: 1; .*; the last sweep began 5 min ago"),
    "due while paused by hand": (lambda job: job.paused("wrong script, ask +14155550123").queued(),
        "all calls were paused by hand, until somebody calls"
        " … calls are paused since .* by hand, until somebody calls resume"),
    "called after a pause": (lambda job: job.queued().paused("lunch", minutes=10).later(1200).called(),
        "all calls were paused by hand, for 10 min: lunch … claimed for call 1"),
    "due while the day is full": (lambda job: job.called().queued().claim("paused", per_day=1),
        "all calls were paused, until .*: CALLS_PER_DAY is reached"
        " … calls are paused since .*, until .*: CALLS_PER_DAY"),
    "met a halt": (lambda job: job.halted(),
        "given back before it was dialed: the credentials are wrong"
        " … calls are paused since .* because our account .* is broken"),
    "due behind the probe of a halt": (lambda job: job.halted().later(61).brought_to("started").queued(),
        "after a halt one call goes first"),
    "queued before a restore": (lambda job: job.restored(),
        "this database was restored or copied"
        " … until somebody calls confirm_restore.*; it was queued in another database"),
    "not called before a restore": (
        lambda job: job.restored().rpc("confirm_restore").taken_by_a_sweep().settled("absent"),
        "in doubt: queued before the restore … restored|not called since … now: waits"),
    "due and held by the rate": (lambda job: job.queued().claim("claimed", pace=0.1).queued(),
        "the rate allows a call at"),
    "due and not read yet": (lambda job: job.queued("(415) 555-0100"), "its number has not been read yet"),
    "due and opted out": (lambda job: job.opted_out(how="by mail to +14155550123").queued(job.number),
        r"this number opted out of calls \(by mail to \*+\)"
        " … its number has opted out: the next claim cancels it"),
    "due and banned": (lambda job: job.banned().queued(user_id=job.user),
        "its user is banned: the next claim cancels it"),
    "not due and paused and opted out": (lambda job: job.paused("fire").opted_out().queued(job.number, in_hours=1),
        "now: waits: it is not due before [^;]*; calls are paused since .* by hand.*: fire; its number has opted out"),
    "not due and banned": (lambda job: job.banned().queued(user_id=job.user, in_hours=1),
        "now: waits: it is not due before [^;]*; its user is banned"),
    "not due before a pause ends": (lambda job: job.paused("lunch", minutes=10).queued(in_hours=1),
        r"now: waits: it is not due before [^;]*UTC\.$"),
    "due at no time at all": (lambda job: job.queued(due_at="infinity"), "now: waits: it is never due"),
    "paused and its history lost": (lambda job: job.paused("fire").sql("delete from private.call_history").queued(),
        "nothing has claimed it: calls are paused: fire"),
    "waits without the row of settings": (lambda job: job.queued().sql("delete from private.call_settings"),
        "nothing has claimed it: private.call_settings has lost its row"),
    "due and the trigger is disabled": (
        lambda job: job.has_webhook().without_trigger("on_outbound_call_job_created", JOBS).queued(),
        "the trigger on_outbound_call_job_created is missing or disabled: only sweeps dial"),
    "due while an index is built": (
        lambda job: job.queued().locked("lock table public.outbound_call_attempts in share mode"),
        r"an open transaction locks the table public.outbound_call_attempts \(process \d+\): end that session"),
    "locked by an open transaction": (
        lambda job: job.queued().locked(f"select from {JOBS} for update"),
        r"an open transaction holds its row \(process \d+\)"),
    "locked table": (lambda job: job.queued().locked(f"lock table {JOBS}"),
        r"^The tables are locked by an open transaction \(process \d+\)"),
    "locked settings": (lambda job: job.queued().locked("select from private.call_settings for update"),
        "an open transaction holds call_settings, which each claim needs"),
    # --- held
    "held by the hours": (
        lambda job: job.queued(metadata=BERLIN).later(9 * 3600).too_early().later(9 * 3600).too_early(),
        r"queued … given back before it was dialed: too early .*; due .*in Berlin\) \(2 times … now: waits: too early"),
    "held by another call to its number": (
        lambda job: job.brought_to("started").queued_for_another_user().claim("none"),
        "put off: another call to this number is under way"
        r" … now: waits: another call to this number.*; due .*; the same number has job \d+ \(dialing\)"),
    "held by the cap of its number": (lambda job: job.called().queued(job.number).claim("none", per_number=1),
        r"put off: this number reached CALLS_PER_NUMBER_PER_DAY; due … the same number has job \d+ \(completed\)"),
    "held because nobody presses a key": (lambda job: job.called_times(7).queued(job.number).claim("none"),
        "put off: too many calls within 7 days to a number at which nobody"),
    "held by the prefix": (
        lambda job: job.queued("+12015550101").called().queued("+12015550102").claim("none", per_prefix=1),
        "put off: held: too many numbers with this prefix"),
    "held by a frozen dispatcher": (
        lambda job: job.given_back("too_late", "the dispatcher was held up before it could dial; nothing was sent"),
        "given back before it was dialed: the dispatcher was held up … now: waits"),
    "held by twilio": (lambda job: job.given_back("twilio_20429", "too many requests at once (Twilio 20429)"),
        "given back before it was dialed: too many requests at once"),
    "its stored number was corrected": (
        lambda job: job.given_back("number_corrected", "the stored form is wrong").later(61).number_read(a_number()),
        "given back before it was dialed: the stored … now: waits: due since"),
    "asked for again": (lambda job: job.enqueued(*["+14155550100"] * 3),
        r"another call was asked for with the same key.*\(2 times"),
    "asked for again at another number": (lambda job: job.enqueued("+14155550100", "+14155550199"),
        r"asked for with the same key and for \+1\*+99, while this one was open"),
    "put off in the queue of twilio": (lambda job: job.dialed().put_off_in_the_queue().ends("canceled"),
        "its call must not ring now: night there … the call was canceled before it rang … put off: night there"
        " … now: waits: night"),
    "not yet canceled in the queue of twilio": (lambda job: job.dialed().put_off_in_the_queue(),
        "its call must not ring now: night there"
        " … now: its call waits in Twilio's queue; it must not ring now .*night there"),
    "paused in the queue of twilio": (lambda job: job.dialed().paused("fire").looked_after().ends("canceled"),
        "paused by hand … its call must not ring now: all calls were paused while it waited … canceled before it rang"
        " … put off: all"),
    "asked for later": (lambda job: job.dialed().asks_for_later().ends("completed"),
        "asked to be called at this time; due … now: waits: the person asked to be called at this time"),
    "asks for later just now": (lambda job: job.dialed().asks_for_later(),
        "now: the person is on the line; the person asked to be called again at"),
    # --- refused
    "refused by twilio": (lambda job: job.brought_to("refused"),
        "claimed for call 1 … failed: Twilio: no such number … now: failed: Twilio: no such number"),
    "refused as no number": (lambda job: job.queued("42 42 42 42").number_read(None),
        r"queued, .*for 42\*+42 … failed: the text is not a phone number … now: failed: the text is"),
    "refused because banned": (lambda job: job.banned().queued(user_id=job.user).claim("none"),
        "canceled: the user is banned … now: canceled"),
    "refused because reached": (lambda job: job.called().queued_for_another_user().claim("none"),
        "canceled: this number was reached within the hour, for another user"),
    "opted out while queued": (lambda job: job.queued().opted_out(),
        r"canceled: the number has opted out … this number opted out of calls \(by hand\)"),
    "opted out while calling": (lambda job: job.dialed().opted_out().ends("canceled"),
        "its call will be ended: the number has opted out … the call was canceled"
        " … canceled: the number has opted out"),
    # --- lost sight of
    "held by a dispatcher": (lambda job: job.brought_to("started"),
        "claimed for call 1 … now: a dispatcher holds it since .*; unless it reports, Twilio is asked .* at "),
    "held by a dead dispatcher": (lambda job: job.brought_to("started").later(LEASE_S + 5),
        "now: a dispatcher holds it .* since .*; no sweep has ever run"),
    "lost with its dispatcher": (lambda job: job.brought_to("started").later(LEASE_S + 5).looked_after(),
        "in doubt: the dispatcher that held it never reported back … now: in doubt for"),
    "in doubt": (lambda job: job.brought_to("in_doubt").later(180),
        "in doubt: no answer … now: in doubt for 3 min: no answer; nobody dials .*; Twilio is asked since"),
    "ambiguous": (lambda job: job.brought_to("in_doubt").settled("ambiguous", "queued", "queued").later(3600),
        r"in doubt: several calls at Twilio … now: in doubt for 60 min: several calls.*set up the scheduler\.$"),
    "found in the list of twilio": (lambda job: job.brought_to("in_doubt").later(41).settled("found", "queued"),
        r"in doubt: no answer … Twilio has the call, after 41 s in doubt \(CA … now: its call waits in Twilio's queue"),
    "absent and dialed again": (lambda job: job.brought_to("absent"),
        "in doubt: no answer … put off: it was in doubt, and Twilio has no such call; due"
        " … now: waits: it was in doubt"),
    "absent and given up": (lambda job: job.brought_to("in_doubt").settled("absent", gives_up=True),
        "failed: it was in doubt, Twilio has no such call, and doubtful calls are not repeated here … now: failed"),
    "revived by late truth": (
        lambda job: job.brought_to("in_doubt").settled("absent", gives_up=True).later(5).ends("completed"),
        "failed: it was in doubt … Twilio has the call, after … taken up again: Twilio has its call after all"
        " … the call is over"),
    "called one time too many": (lambda job: job.dialed().accepted_again().ends("canceled"),
        r"Twilio took one call too many, which is ended \(CA … the call too many is over"),
    "the end never became known": (lambda job: job.dialed().later(100_000).looked_after().later(50_000).looked_after(),
        "the end of the call never became known … failed: Twilio took the call, and its end never became known"),
    "without news": (lambda job: job.dialed().later(10_000),
        "Twilio has the call"
        " … now: its call waits in Twilio's queue; without news Twilio is asked since .*no sweep has ever"),
    # --- by hand
    "canceled by hand": (lambda job: job.queued().for_job("cancel_call_job"),
        "canceled: canceled by hand … now: canceled: canceled by hand"),
    "canceled by hand while calling": (lambda job: job.dialed().for_job("cancel_call_job"),
        r"its call will be ended: canceled by hand … now: its call waits .*; it will be canceled \(canceled by hand\)"),
    "retried by hand": (lambda job: job.queued().for_job("cancel_call_job").for_job("retry_call_job").called(),
        "canceled: canceled by hand … taken up again: retried by hand … claimed for call 1"
        " … now: completed: its call was picked up"),
    "canceled at twilio": (lambda job: job.called("canceled"), "canceled: the call was canceled at Twilio"),
    "answered during a pause": (lambda job: job.dialed().paused("fire").ends("in-progress").ends("completed"),
        "its call will be ended: answered while all calls were paused"
        " … canceled: answered while all calls were paused"),
    "deleted while calling": (lambda job: job.dialed().sql(f"delete from {JOBS}"),
        "its call will be ended: canceled by hand"),
    "put off in studio": (lambda job: job.queued().changed(due_at=job.in_hours(1)),
        "UTC: its time was changed; due … now: waits: its time was changed; due"),
    "put off in studio after a miss": (lambda job: job.called("busy").changed(due_at=job.in_hours(72)),
        "the line was busy … UTC: its time was changed; due … now: waits: its time was changed; due"),
    "canceled in studio": (lambda job: job.queued().finished_by_hand("canceled"),
        "canceled: no reason was stored … now: canceled: no reason was stored"),
    "completed in studio": (lambda job: job.queued().finished_by_hand("completed"),
        "now: completed: no call of it is stored"),
    "in doubt by an update in studio": (lambda job: job.queued().changed(status="in_doubt", attempts=1),
        "now: in_doubt; its rows do not fit together"),
    "completed before the dispatcher": (
        lambda job: job.queued(status="completed", finished_at=job.in_hours(0), reason="called by the earlier worker"),
        "now: completed: called by the earlier worker"),
    # --- users
    "the phone changed": (lambda job: job.signed_up(a_number()).phone_becomes(a_number()),
        r"the user signed up … queued, [^,]*\.$ … phone is now \+1\*+\d\d \(before: \+1\*+\d\d\); due"
        " … now: waits: due"),
    "the phone was removed and came back": (
        lambda job: job.signed_up(a_number()).phone_becomes(None).phone_becomes(a_number()),
        "canceled: the user has no phone to call any more … taken up again: the user's phone is now"),
    "the user was deleted": (
        lambda job: job.signed_up(a_number()).given_back("hours", "too early there").user_deleted(),
        "queued, signup … canceled: the user was deleted … the user was deleted: what was known before is erased"),
    "a change of phone was missed": (lambda job: job.signed_up(a_number()).missed("+1"),
        r"a change of the user's phone could not be followed \(a lock\): each sweep tries again"),
    "healed by a sweep": (lambda job: job.signed_up(a_number()).without_its_job().missed().healed(),
        r"the user signed up … it could not be queued or changed with the user \(a lock\): this sweep did it"
        " … now: waits: due"),
    # --- no job
    "pruned": (lambda job: job.called().later(40 * 86_400).rpc("prune_call_jobs", retention_days=30),
        r"^There is no call job \d+ any more"),
    "never made": (lambda job: job.asks(job_id=999_999),
        r"^There has never been a call job 999999: the ids go up to \d+"),
    "of an impossible id": (lambda job: job.asks(job_id=-1), "^There has never been a call job -1"),
    "a sign-up was missed": (lambda job: job.signed_up().missed(),
        r"has no call job: it could not be queued at .* \(a lock\). Each sweep tries again; no sweep"),
    "a sign-up was missed, by the number in its metadata": (
        lambda job: job.signed_up(metadata={"phone": job.number}).without_its_job().missed().asks_by_number(),
        r"has no call job: it could not be queued at .* \(a lock\)"),
    "without a phone": (lambda job: job.signed_up(), "has no call job: the user has no phone, neither"),
    "not confirmed": (lambda job: job.verified_phones_only().signed_up(a_number()),
        "has no call job: the phone is not confirmed, and only confirmed phones are called"),
    "not confirmed, by its number": (
        lambda job: job.verified_phones_only().signed_up(job.number).asks_by_number(),
        "has no call job: the phone is not confirmed"),
    "not confirmable": (lambda job: job.verified_phones_only().signed_up(metadata={"phone": a_number()}),
        r"has no call job: the user has no phone in auth.users, and no other is called \(require_verified_phones\)"),
    "signed up while the trigger was disabled": (
        lambda job: job.without_trigger("on_auth_user_created_onboarding", USERS).signed_up(a_number()),
        "has no call job: the trigger on_auth_user_created_onboarding is missing or disabled: no sign-up is queued"),
    "no such user": (lambda job: job.asks(user_id=uuid.uuid4()), "has no call job: there is no such user"),
    "signed up before the dispatcher": (
        lambda job: job.signed_up(job.number).without_its_job().asks_by_number(),
        "has no call job: the user signed up at .*, before the dispatcher was installed; or"),
    # --- by number
    "unknown number": (lambda job: job.asks_by_number(), "No call job has this number"),
    "unreadable number": (lambda job: job.asks(phone_number="+49 01512 3454567"),
        r"cannot be read as one certain number: was it \+4\*+67\?"),
    "unreadable number without a hint": (lambda job: job.asks(phone_number="call me"),
        r"cannot be read as one certain number. Write \+ and the country code … No call job has this number"),
    "typed without its country code": (lambda job: job.queued("(415) 555-0100").asks(phone_number="+1 415 555 0100"),
        r"^Job \d+: … its number has not been read yet"),
    "unknown number that opted out": (lambda job: job.opted_out().asks_by_number(),
        r"The number opted out of calls at .* \(by hand\)"),
    "all jobs of a number": (
        lambda job: job.brought_to("refused").queued(job.number).called().asks(phone_number=" ".join(job.number)),
        r"^Job \d+: … failed … ^Job \d+: … now: completed: its call was picked up"),
}
"""By name: what makes such a job, and the sentences (regular expressions) that its story must have, in this order."""
# fmt: on


def world(steps: Steps, name: str) -> World:
    return WAYS[name][0](World(steps))


TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")


def story(steps: Steps, **arguments: object) -> list[str]:
    query = ", ".join(f"p_{name} => %s" for name in arguments)
    rows = steps.service.execute(f"select public.explain_call_job({query})".encode(), list(arguments.values()))
    return [line for (line,) in rows.fetchall()]


def faults(lines: list[str], sentences: Collection[str] = (), numbers: Collection[str] = ()) -> Iterator[str]:
    """A story's sentences that are missing or out of order, lines that say nothing or twice the same, whole numbers."""
    rest = iter(lines)
    for sentence in sentences:
        if not any(re.search(sentence, line) for line in rest):
            yield f"{sentence!r} is missing, or comes too early"
    if not lines or not all(lines):
        yield "an empty line, or no line"
    for line in lines:
        if re.search(r"NULL|None|: *\.|; *\.| \(\)", line):
            yield f"says nothing: {line}"
    bare = [re.sub(r"CA[0-9a-f]{32}|[0-9a-f]{8}-[-0-9a-f]{27}", "", line) for line in lines]
    if any(re.search(r"\d{7}", line) or any(number[1:] in line for number in numbers) for line in bare):
        yield "a whole number"
    if not lines[0].startswith("Job"):  # else several stories
        doubled = [line for line, times in Counter(lines).items() if times > 1]
        if sentences and doubled:
            yield f"told twice: {doubled}"
        times = [found[0] for line in lines if (found := TIME.match(line))]
        if times != sorted(times):
            yield "times are not in order"


def numbers_of(steps: Steps) -> list[str]:
    query = f"select phone_number from {JOBS} union select phone_e164 from public.outbound_call_attempts"
    return [number for row in steps.rows(query) if (number := row["phone_number"]) and number != "erased"]


def test_story_tells_every_way_a_job_can_go(steps: Steps, database_url: str) -> None:
    wrong: dict[str, list[str]] = {}
    for name, (_, sentences) in WAYS.items():
        database.empty(database_url)
        job = world(steps, name)
        lines = story(steps, **(job.asked or ({"job_id": job.job} if job.job else {"user_id": job.user})))
        steps.rows("rollback")
        for table in (JOBS, USERS):
            steps.rows(f"alter table {table} enable trigger user")
        if found := list(faults(lines, sentences.split(" … "), numbers_of(steps))):
            wrong[name] = found + lines
    assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())


def test_question_that_names_nothing_is_refused(steps: Steps) -> None:
    for asked in ({}, {"job_id": None}, {"job_id": 1, "phone_number": "+14155550100"}):
        with pytest.raises(psycopg.Error, match="give one of p_job_id, p_user_id and p_phone_number"):
            story(steps, **asked)


def test_history_of_a_job_is_short_and_goes_with_it(steps: Steps) -> None:
    job = steps.queue()
    for n in range(60):
        steps.change_job(job, reason_code=f"r{n}")
        steps.call("pause_calls", reason=f"p{n}")
    codes = steps.rows("select code from private.call_history where job_id = %s order by id", job)
    assert [row["code"] for row in codes] == [f"r{n}" for n in range(10, 60)]
    assert "unusual events before this one are forgotten" in "".join(story(steps, job_id=job))
    kept = "select count(job_id) as of_the_job, count(*) - count(job_id) as pauses from private.call_history"
    assert steps.rows(kept) == [{"of_the_job": 50, "pauses": 50}]
    steps.rows("delete from public.outbound_call_jobs where id = %s", job)
    assert steps.rows(kept) == [{"of_the_job": 0, "pauses": 50}]


def test_call_that_goes_as_planned_writes_no_history(steps: Steps) -> None:
    steps.call_and_end()
    steps.call_and_end("busy")
    steps.call("heal_onboarding_calls")
    assert steps.rows("select * from private.call_history") == []


def test_forgetting_a_user_erases_the_history(steps: Steps) -> None:
    world(steps, "the user was deleted")
    assert steps.rows("select code from private.call_history") == [{"code": "user_deleted"}]


def test_no_text_shows_a_whole_number_and_dates_stay(steps: Steps) -> None:
    shown = {
        "call +1 (415) 555-0100 or 030/123456-78 by 2026-12-24": "call ******* or ******* by 2026-12-24",
        "+4915123456789": "*******",
        "closed 2026-12-24 08:00 to 2026-12-27 18:30": "closed 2026-12-24 08:00 to 2026-12-27 18:30",
        "2026-4155550100, 2026-12-24 4155550100": "*******, 2026-12-*******",
        "0151-23-45-678, 2012-10-20-4567, +2012-10-20 4567": "*******, *******, *******",
        "SIP 486, 60 s, Twilio 21211": "SIP 486, 60 s, Twilio 21211",
    }
    assert {text: steps.one("select private.masked(%s)", text) for text in shown} == shown


def test_zone_of_a_person_is_a_place_or_none(steps: Steps) -> None:
    zones = {
        '{"timezone": "Europe/Berlin"}': "Europe/Berlin",
        '{"app_timezone": "America/New_York", "timezone": "Europe/Berlin"}': "America/New_York",
        '{"app_timezone": "Nowhere/Land", "tz": " Europe/Berlin "}': "Europe/Berlin",
        "{}": None,
        '{"tz": "UTC"}': None,
        '{"tz": 5}': None,
        '{"tz": ["x"]}': None,
        '{"tz": "X+14155550100"}': None,
        '{"tz": "a/b\'--"}': None,
    }
    assert {metadata: steps.one("select private.zone_of(%s)", metadata) for metadata in zones} == zones


def test_who_waits_is_told_with_what_a_claim_would_know(steps: Steps) -> None:
    def waiting(after: int = 0, **more: int) -> Any:
        caps = {"calls_per_number_per_day": 1, "calls_per_prefix_per_hour": 0}
        return steps.call("waiting_calls", after=after, **caps | more)

    number, in_use = World(steps).called().number, World(steps).brought_to("started").number
    expected = {
        world(steps, "due and banned").job: "user_banned",
        world(steps, "due and opted out").job: "opted_out",
        steps.queue(number): "calls_per_number_per_day",
        steps.queue(number, user_id=uuid.uuid4()): "number_reached",
        steps.queue(in_use, user_id=uuid.uuid4()): "number_in_use",
        steps.queue(number, due_at=steps.now() + timedelta(hours=1)): None,
        steps.queue("(415) 555-0100", due_at="infinity"): None,
        world(steps, "missed twice").job: None,
    }
    jobs, before = sorted(expected), steps.everything()
    answer = waiting()
    assert {job["id"]: job["held"] for job in answer["jobs"]} == expected
    assert [job["id"] for job in waiting(limit=3)["jobs"]] == jobs[:3]
    assert [job["id"] for job in waiting(after=jobs[-2])["jobs"]] == jobs[-1:]
    assert answer["paused"] is None
    assert answer["jobs"][-1]["redial"].keys() == {"missed_at", "due_at"}
    assert steps.everything() == before
    steps.call("pause_calls", reason="lunch")
    assert waiting()["paused"] == "lunch"
