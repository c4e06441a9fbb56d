"""explain_call_job: the story of a job held, refused, lost sight of or finished in every way that this code has."""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.database.sql_api import LEASE_S, Steps, a_number, a_sid
from tests.sandbox.supabase import database

T = TypeVar("T")
WAYS: dict[str, tuple[Callable[[Steps], Any], tuple[str, ...]]] = {}
"""By name: what makes such a job (-> its id, or the arguments of explain_call_job), and the sentences that must come, in order."""

BERLIN = {"app_timezone": "Europe/Berlin"}
BY_HAND = "update public.outbound_call_jobs set "


def way(*sentences: str) -> Callable[[Callable[[Steps], T]], Callable[[Steps], T]]:
    def add(arrange: Callable[[Steps], T]) -> Callable[[Steps], T]:
        WAYS[arrange.__name__.replace("_", " ")] = arrange, sentences
        return arrange

    return add


def story(steps: Steps, **arguments: object) -> list[str]:
    query = ", ".join(f"p_{name} => %s" for name in arguments)
    rows = steps.service.execute(f"select public.explain_call_job({query})".encode(), list(arguments.values()))
    return [line for (line,) in rows.fetchall()]


def called(steps: Steps, ends: str = "completed", job: int | None = None, **more: Any) -> int:
    job = job or steps.queue()
    attempt, sid = steps.start(job), a_sid()
    steps.accept(attempt, sid)
    steps.status(attempt, sid, ends, **more)
    return job


def in_queue(steps: Steps, **columns: Any) -> tuple[int, uuid.UUID, str]:
    job = steps.queue(**columns)
    attempt, sid = steps.start(job), a_sid()
    steps.accept(attempt, sid)
    return job, attempt, sid


def release(steps: Steps, attempt: uuid.UUID, code: str, reason: str, **more: Any) -> None:
    assert steps.call("release_call_job", attempt=attempt, delay_s=60.0, code=code, reason=reason, **more)


# --- as planned -------------------------------------------------------------------------------------------------------
@way(
    "queued, .*for",
    "claimed for call 1 from",
    "Twilio has the call",
    "the call is over, after 34 s",
    "now: completed: its call was picked up",
)
def reached_a_person(steps: Steps) -> int:
    return called(steps, duration_s=34)


@way("the call is over: a machine picked up", "now: completed: its call was picked up")
def reached_a_machine(steps: Steps) -> int:
    return called(steps, answered_by="machine_start")


@way("a machine picked up", "now: waits: a machine picked up; due")
def a_machine_that_counts_as_missed(steps: Steps) -> int:
    return called(steps, answered_by="machine_start", machine_counts_as="missed")


@way("the line was busy \\(SIP 486\\)", "claimed for call 2", "nobody answered", "now: waits: nobody answered; due")
def missed_twice(steps: Steps) -> int:
    job = called(steps, "busy", sip_code=486)
    steps.pass_time(60)
    return called(steps, "no-answer", job)


@way("the call could not be put through", "now: failed: the call could not be put through")
def missed_for_good(steps: Steps) -> int:
    return called(steps, "failed", delays_s=())


@way("now: waits: it is not due before .* in Berlin")
def queued_for_later(steps: Steps) -> int:
    return steps.queue(due_at=steps.now() + timedelta(hours=9), metadata=Jsonb(BERLIN))


# --- due and not claimed ----------------------------------------------------------------------------------------------
@way("now: waits: due since .*; nothing has claimed it: Vault has no webhook URL and secret.*; no sweep has ever run")
def due_and_never_swept(steps: Steps) -> int:
    return steps.queue()


@way("nothing has claimed it: jobs due before it: 1; .*; the last sweep began 5 min ago")
def due_behind_another(steps: Steps) -> int:
    steps.call("heal_onboarding_calls")
    steps.queue()
    steps.pass_time(300)
    return steps.queue()


@way(
    "all calls were paused by hand, until somebody calls",
    "calls are paused since .* by hand, until somebody calls resume",
)
def due_while_paused_by_hand(steps: Steps) -> int:
    steps.call("pause_calls", reason="wrong script, ask +14155550123")
    return steps.queue()


@way("all calls were paused by hand, for 10 min: lunch", "claimed for call 1")
def called_after_a_pause(steps: Steps) -> int:
    job = steps.queue()
    steps.call("pause_calls", reason="lunch", until=steps.now() + timedelta(minutes=10))
    steps.pass_time(1200)
    return called(steps, job=job)


@way("all calls were paused, until .*: CALLS_PER_DAY is reached", "calls are paused since .*, until .*: CALLS_PER_DAY")
def due_while_the_day_is_full(steps: Steps) -> int:
    called(steps)
    job = steps.queue()
    assert steps.claim(job, per_day=1)["outcome"] == "paused"
    return job


@way(
    "given back before it was dialed: the credentials are wrong",
    "calls are paused since .* because our account .* is broken",
)
def met_a_halt(steps: Steps) -> int:
    job = steps.queue()
    release(steps, steps.start(job), "twilio_20003", "the credentials are wrong", halt_s=60.0)
    steps.make_due(job)
    return job


@way("after a halt one call goes first")
def due_behind_the_probe_of_a_halt(steps: Steps) -> int:
    job = met_a_halt(steps)
    steps.pass_time(61)
    steps.start(job)
    return steps.queue()


@way(
    "this database was restored or copied", "until somebody calls confirm_restore.*; it was queued in another database"
)
def queued_before_a_restore(steps: Steps) -> int:
    job = steps.queue(database_id="elsewhere")
    assert steps.claim()["outcome"] == "paused"
    return job


@way("in doubt: queued before the restore", "restored|not called since", "now: waits")
def not_called_before_a_restore(steps: Steps) -> int:
    job = queued_before_a_restore(steps)
    steps.call("confirm_restore")
    steps.claim()
    (attempt,) = steps.attempts(job)
    assert steps.settle(attempt["id"])["outcome"] == "absent"
    return job


@way("the rate allows a call at")
def due_and_held_by_the_rate(steps: Steps) -> int:
    assert steps.claim(steps.queue(), pace=0.1)["outcome"] == "claimed"
    return steps.queue()


@way("its number has not been read yet")
def due_and_not_read_yet(steps: Steps) -> int:
    return steps.queue("(415) 555-0100")


@way(
    "this number opted out of calls \\(asked by mail to \\*+\\)", "its number has opted out: the next claim cancels it"
)
def due_and_opted_out(steps: Steps) -> int:
    steps.call("opt_out", phone_number=(number := a_number()), how="asked by mail to +14155550123")
    return steps.queue(number)


@way("its user is banned: the next claim cancels it")
def due_and_banned(steps: Steps) -> int:
    return steps.queue(user_id=a_user(steps, banned_until=steps.now() + timedelta(days=1)))


@way(
    "now: waits: it is not due before [^;]*; calls are paused since .* by hand, until .*: fire; its number has opted out"
)
def not_due_and_paused_and_opted_out(steps: Steps) -> int:
    steps.call("pause_calls", reason="fire")
    steps.call("opt_out", phone_number=(number := a_number()))
    return steps.queue(number, due_at=steps.now() + timedelta(hours=1))


@way("now: waits: it is not due before [^;]*; its user is banned")
def not_due_and_banned(steps: Steps) -> int:
    user = a_user(steps, banned_until=steps.now() + timedelta(days=1))
    return steps.queue(user_id=user, due_at=steps.now() + timedelta(hours=1))


@way("now: waits: it is not due before [^;]*UTC\\.$")
def not_due_before_a_pause_ends(steps: Steps) -> int:
    steps.call("pause_calls", reason="lunch", until=steps.now() + timedelta(minutes=10))
    return steps.queue(due_at=steps.now() + timedelta(hours=1))


@way("nothing has claimed it: calls are paused: fire")
def paused_and_its_history_lost(steps: Steps) -> int:
    steps.call("pause_calls", reason="fire")
    steps.rows("delete from private.call_history")
    return steps.queue()


@way("the trigger on_outbound_call_job_created is missing or disabled: only sweeps dial")
def due_and_the_trigger_is_disabled(steps: Steps) -> int:
    for name in ("call_dispatcher_url", "call_dispatcher_secret"):
        steps.rows("select vault.create_secret('x', %s)", name)
    steps.rows("alter table public.outbound_call_jobs disable trigger on_outbound_call_job_created")
    return steps.queue()


@way("an open transaction locks the table public.outbound_call_attempts \\(process \\d+\\): end that session")
def due_while_an_index_is_built(steps: Steps) -> int:
    job = steps.queue()
    steps.rows("begin")
    steps.rows("lock table public.outbound_call_attempts in share mode")
    return job


# --- held -------------------------------------------------------------------------------------------------------------
@way("queued", "given back before it was dialed: too early .*; due .*in Berlin\\) \\(2 times", "now: waits: too early")
def held_by_the_hours(steps: Steps) -> int:
    job = steps.queue(metadata=Jsonb(BERLIN))
    for _ in range(2):
        steps.pass_time(9 * 3600)
        release(
            steps,
            steps.start(job),
            "outside_calling_hours",
            "too early there",
            not_before=steps.now() + timedelta(hours=9),
        )
    return job


@way(
    "put off: another call to this number is under way",
    "now: waits: another call to this number.*; due .*; the same number has job \\d+ \\(dialing\\)",
)
def held_by_another_call_to_its_number(steps: Steps) -> int:
    number = a_number()
    steps.start(steps.queue(number))
    job = steps.queue(number, user_id=uuid.uuid4())
    assert steps.claim(job)["outcome"] == "none"
    return job


@way("put off: this number reached CALLS_PER_NUMBER_PER_DAY; due", "the same number has job \\d+ \\(completed\\)")
def held_by_the_cap_of_its_number(steps: Steps) -> int:
    called(steps, job=steps.queue(number := a_number()))
    job = steps.queue(number)
    steps.claim(job, per_number=1)
    return job


@way("put off: too many calls within 7 days to a number at which nobody")
def held_because_nobody_presses_a_key(steps: Steps) -> int:
    number = a_number()
    for _ in range(7):
        called(steps, job=steps.queue(number))
    steps.claim(job := steps.queue(number))
    return job


@way("put off: held: too many numbers with this prefix")
def held_by_the_prefix(steps: Steps) -> int:
    called(steps, job=steps.queue("+12015550101"))
    steps.claim(job := steps.queue("+12015550102"), per_prefix=1)
    return job


@way("given back before it was dialed: the dispatcher was held up", "now: waits")
def held_by_a_frozen_dispatcher(steps: Steps) -> int:
    job = steps.queue()
    release(steps, steps.start(job), "too_late", "the dispatcher was held up before it could dial; nothing was sent")
    return job


@way("given back before it was dialed: too many requests at once")
def held_by_twilio(steps: Steps) -> int:
    job = steps.queue()
    release(steps, steps.start(job), "twilio_20429", "too many requests at once (Twilio 20429)")
    return job


@way("another call was asked for with the same key.*\\(2 times")
def asked_for_again(steps: Steps) -> int:
    user = uuid.uuid4()
    ids = [steps.call("enqueue_call_job", user_id=user, phone_number="+14155550100")["job_id"] for _ in range(3)]
    return int(ids[0])


@way(
    "its call must not ring now: night there",
    "the call was canceled before it rang",
    "put off: night there",
    "now: waits: night",
)
def put_off_in_the_queue_of_twilio(steps: Steps) -> int:
    job, attempt, sid = in_queue(steps)
    steps.call(
        "put_off_call", attempt=attempt, not_before=steps.now() + timedelta(hours=9), code="hours", reason="night there"
    )
    steps.status(attempt, sid, "canceled")
    return job


@way(
    "its call must not ring now: night there",
    "now: its call waits in Twilio's queue; it must not ring now .*night there",
)
def to_be_canceled_in_the_queue_of_twilio(steps: Steps) -> int:
    job, attempt, _ = in_queue(steps)
    steps.call(
        "put_off_call", attempt=attempt, not_before=steps.now() + timedelta(hours=9), code="hours", reason="night there"
    )
    return job


@way(
    "paused by hand",
    "its call must not ring now: all calls were paused while it waited",
    "canceled before it rang",
    "put off: all",
)
def paused_in_the_queue_of_twilio(steps: Steps) -> int:
    job, attempt, sid = in_queue(steps)
    steps.call("pause_calls", reason="fire")
    steps.ask()
    steps.status(attempt, sid, "canceled")
    return job


@way("asked to be called at this time; due", "now: waits: the person asked to be called at this time")
def asked_for_later(steps: Steps) -> int:
    job, attempt, sid = in_queue(steps)
    steps.ask_for_later(attempt, sid, steps.now() + timedelta(hours=2))
    steps.status(attempt, sid, "completed")
    return job


@way("now: the person is on the line; the person asked to be called again at")
def asks_for_later_just_now(steps: Steps) -> int:
    job, attempt, sid = in_queue(steps)
    steps.ask_for_later(attempt, sid, steps.now() + timedelta(hours=2))
    return job


@way("asked for with the same key and for \\+1\\*+99, while this one was open")
def asked_for_again_at_another_number(steps: Steps) -> int:
    user = uuid.uuid4()
    ids = [
        steps.call("enqueue_call_job", user_id=user, phone_number=f"+1415555{n}")["job_id"] for n in ("0100", "0199")
    ]
    return int(ids[1])


# --- refused ----------------------------------------------------------------------------------------------------------
@way("claimed for call 1", "failed: Twilio: no such number", "now: failed: Twilio: no such number")
def refused_by_twilio(steps: Steps) -> int:
    return steps.attempt_in("refused")[0]


@way("queued, .*for 42\\*+42", "failed: the text is not a phone number", "now: failed: the text is")
def refused_as_no_number(steps: Steps) -> int:
    job = steps.queue("42 42 42 42")
    steps.call("set_call_number", job_id=job, phone_number="42 42 42 42", phone_e164=None, code="number_invalid",
               reason="the text is not a phone number")  # fmt: skip
    return job


@way("canceled: the user is banned", "now: canceled")
def refused_because_banned(steps: Steps) -> int:
    job = due_and_banned(steps)
    steps.claim(job)
    return job


@way("canceled: this number was reached within the hour, for another user")
def refused_because_reached(steps: Steps) -> int:
    called(steps, job=steps.queue(number := a_number()))
    steps.claim(job := steps.queue(number, user_id=uuid.uuid4()))
    return job


@way("canceled: the number has opted out", "this number opted out of calls \\(by hand\\)")
def opted_out_while_queued(steps: Steps) -> int:
    job = steps.queue(number := a_number())
    steps.call("opt_out", phone_number=number)
    return job


@way("its call will be ended: the number has opted out", "the call was canceled", "canceled: the number has opted out")
def opted_out_while_calling(steps: Steps) -> int:
    job, attempt, sid = in_queue(steps, phone_number=(number := a_number()))
    steps.call("opt_out", phone_number=number)
    steps.status(attempt, sid, "canceled")
    return job


# --- lost sight of ----------------------------------------------------------------------------------------------------
@way("claimed for call 1", "now: a dispatcher holds it since .*; unless it reports, Twilio is asked .* at ")
def held_by_a_dispatcher(steps: Steps) -> int:
    return steps.attempt_in("started")[0]


@way("now: a dispatcher holds it .* since .*; no sweep has ever run")
def held_by_a_dead_dispatcher(steps: Steps) -> int:
    job = steps.attempt_in("started")[0]
    steps.pass_time(LEASE_S + 5)
    return job


@way("in doubt: the dispatcher that held it never reported back", "now: in doubt for")
def lost_with_its_dispatcher(steps: Steps) -> int:
    job = held_by_a_dead_dispatcher(steps)
    assert steps.ask()["lease_ran_out"]
    return job


@way("in doubt: no answer", "now: in doubt for 3 min: no answer; nobody dials .*; Twilio is asked since")
def in_doubt(steps: Steps) -> int:
    job = steps.attempt_in("in_doubt")[0]
    steps.pass_time(180)
    return job


@way("in doubt: several calls at Twilio", "now: in doubt for 60 min: several calls.*set up the scheduler\\.$")
def ambiguous(steps: Steps) -> int:
    job, attempt = steps.attempt_in("in_doubt")
    assert steps.settle(attempt, (a_sid(), "queued"), (a_sid(), "queued"))["outcome"] == "ambiguous"
    steps.pass_time(3600)
    return job


@way("in doubt: no answer", "Twilio has the call, after 41 s in doubt \\(CA", "now: its call waits in Twilio's queue")
def found_in_the_list_of_twilio(steps: Steps) -> int:
    job, attempt = steps.attempt_in("in_doubt")
    steps.pass_time(41)
    assert steps.settle(attempt, (a_sid(), "queued"))["outcome"] == "found"
    return job


@way("in doubt: no answer", "put off: it was in doubt, and Twilio has no such call; due", "now: waits: it was in doubt")
def absent_and_dialed_again(steps: Steps) -> int:
    return steps.attempt_in("absent")[0]


@way("failed: it was in doubt, Twilio has no such call, and doubtful calls are not repeated here", "now: failed")
def absent_and_given_up(steps: Steps) -> int:
    job, attempt = steps.attempt_in("in_doubt")
    steps.settle(attempt, gives_up=True)
    return job


@way(
    "failed: it was in doubt",
    "Twilio has the call, after",
    "taken up again: Twilio has its call after all",
    "the call is over",
)
def revived_by_late_truth(steps: Steps) -> int:
    job, attempt = steps.attempt_in("in_doubt")
    steps.settle(attempt, gives_up=True)
    steps.pass_time(5)
    steps.status(attempt, a_sid(), "completed")
    return job


@way("Twilio took one call too many, which is ended \\(CA", "the call too many is over")
def called_one_time_too_many(steps: Steps) -> int:
    job, attempt, _ = in_queue(steps)
    steps.accept(attempt, sid := a_sid())
    steps.status(attempt, sid, "canceled")
    return job


@way("the end of the call never became known", "failed: Twilio took the call, and its end never became known")
def the_end_never_became_known(steps: Steps) -> int:
    job, _, _ = in_queue(steps)
    for _ in range(3):
        steps.pass_time(50_000)
        steps.ask()
    return job


@way(
    "Twilio has the call",
    "now: its call waits in Twilio's queue; without news Twilio is asked since .*no sweep has ever",
)
def without_news(steps: Steps) -> int:
    job, _, _ = in_queue(steps)
    steps.pass_time(10_000)
    return job


@way("an open transaction holds its row \\(process \\d+\\)")
def locked_by_an_open_transaction(steps: Steps) -> int:
    job = steps.queue()
    steps.rows("begin")
    steps.rows("select from public.outbound_call_jobs where id = %s for update", job)
    return job


# --- by hand ----------------------------------------------------------------------------------------------------------
@way("canceled: canceled by hand", "now: canceled: canceled by hand")
def canceled_by_hand(steps: Steps) -> int:
    job = steps.queue()
    steps.call("cancel_call_job", job_id=job)
    return job


@way("its call will be ended: canceled by hand", "now: its call waits .*; it will be canceled \\(canceled by hand\\)")
def canceled_by_hand_while_calling(steps: Steps) -> int:
    job, _, _ = in_queue(steps)
    steps.call("cancel_call_job", job_id=job)
    return job


@way(
    "canceled: canceled by hand",
    "taken up again: retried by hand",
    "claimed for call 1",
    "now: completed: its call was picked up",
)
def retried_by_hand(steps: Steps) -> int:
    job = canceled_by_hand(steps)
    steps.call("retry_call_job", job_id=job)
    return called(steps, job=job)


@way("canceled: the call was canceled at Twilio")
def canceled_at_twilio(steps: Steps) -> int:
    return called(steps, "canceled")


@way("its call will be ended: answered while all calls were paused", "canceled: answered while all calls were paused")
def answered_during_a_pause(steps: Steps) -> int:
    job, attempt, sid = in_queue(steps)
    steps.call("pause_calls", reason="fire")
    steps.status(attempt, sid, "in-progress")
    steps.status(attempt, sid, "completed")
    return job


@way("its call will be ended: canceled by hand")
def deleted_while_calling(steps: Steps) -> int:
    job, _, _ = in_queue(steps)
    steps.rows("delete from public.outbound_call_jobs where id = %s", job)
    return job


@way("UTC: its time was changed; due", "now: waits: its time was changed; due")
def put_off_by_an_update_in_studio(steps: Steps) -> int:
    job = steps.queue()
    steps.rows(BY_HAND + "due_at = private.clock() + interval '1 hour' where id = %s", job)
    return job


@way("the line was busy", "UTC: its time was changed; due", "now: waits: its time was changed; due")
def put_off_by_an_update_after_a_miss(steps: Steps) -> int:
    job = called(steps, "busy")
    steps.rows(BY_HAND + "due_at = due_at + interval '3 days' where id = %s", job)
    return job


@way("canceled: no reason was stored", "now: canceled: no reason was stored")
def canceled_by_an_update_in_studio(steps: Steps) -> int:
    job = steps.queue()
    steps.rows(BY_HAND + "status = 'canceled', due_at = null, finished_at = private.clock() where id = %s", job)
    return job


@way("now: waits: it is never due")
def due_at_no_time_at_all(steps: Steps) -> int:
    return steps.queue(due_at="infinity")


# --- users ------------------------------------------------------------------------------------------------------------
def a_user(steps: Steps, phone: str | None = None, **columns: object) -> uuid.UUID:
    columns = {"id": uuid.uuid4(), "phone": phone and phone.removeprefix("+"), "created_at": steps.now(), **columns}
    names = ", ".join(columns)
    steps.rows(f"insert into auth.users ({names}) values ({', '.join(['%s'] * len(columns))})", *columns.values())
    return uuid.UUID(str(columns["id"]))


@way(
    "the user signed up",
    "queued, [^,]*\\.$",
    "phone is now \\+1\\*+\\d\\d \\(before: \\+1\\*+\\d\\d\\); due",
    "now: waits: due",
)
def the_phone_changed(steps: Steps) -> int:
    user = a_user(steps, a_number())
    steps.rows("update auth.users set phone = %s where id = %s", a_number().removeprefix("+"), user)
    return int(steps.one("select id from public.outbound_call_jobs where user_id = %s", user))


@way("canceled: the user has no phone to call any more", "taken up again: the user's phone is now")
def the_phone_was_removed_and_came_back(steps: Steps) -> int:
    user = a_user(steps, a_number())
    steps.rows("update auth.users set phone = null where id = %s", user)
    steps.rows("update auth.users set phone = %s where id = %s", a_number().removeprefix("+"), user)
    return int(steps.one("select id from public.outbound_call_jobs where user_id = %s", user))


@way("queued, signup", "canceled: the user was deleted", "the user was deleted: what was known before is erased")
def the_user_was_deleted(steps: Steps) -> int:
    user = a_user(steps, a_number())
    job = int(steps.one("select id from public.outbound_call_jobs where user_id = %s", user))
    release(steps, steps.start(job), "hours", "too early there")
    steps.rows("delete from auth.users where id = %s", user)
    return job


@way("a change of the user's phone could not be followed \\(a lock\\): each sweep tries again")
def a_change_of_phone_was_missed(steps: Steps) -> int:
    user = a_user(steps, a_number())
    steps.rows("insert into private.missed_signups values (%s, 'a lock', private.clock(), '+1')", user)
    return int(steps.one("select id from public.outbound_call_jobs where user_id = %s", user))


@way(
    "the user signed up",
    "it could not be queued or changed with the user \\(a lock\\): this sweep did it",
    "now: waits: due",
)
def healed_by_a_sweep(steps: Steps) -> int:
    user = a_user(steps, a_number())
    steps.rows("delete from public.outbound_call_jobs where user_id = %s", user)
    steps.rows("insert into private.missed_signups values (%s, 'a lock', private.clock())", user)
    assert steps.call("heal_onboarding_calls") == 1
    return int(steps.one("select id from public.outbound_call_jobs where user_id = %s", user))


# --- no job -----------------------------------------------------------------------------------------------------------
@way("^There is no call job \\d+ any more")
def pruned(steps: Steps) -> int:
    job = called(steps)
    steps.pass_time(40 * 86_400)
    assert steps.call("prune_call_jobs", retention_days=30)["deleted"] == 1
    return job


@way("^There has never been a call job 999999: the ids go up to \\d+")
def never_made(steps: Steps) -> int:
    return 999_999


@way("^There has never been a call job -1")
def of_an_impossible_id(steps: Steps) -> int:
    return -1


@way("has no call job: it could not be queued at .* \\(a lock\\). Each sweep tries again; no sweep")
def missed_sign_up(steps: Steps) -> dict[str, object]:
    user = a_user(steps)
    steps.rows("insert into private.missed_signups values (%s, 'a lock', private.clock())", user)
    return {"user_id": user}


@way("has no call job: the user has no phone")
def without_a_phone(steps: Steps) -> dict[str, object]:
    return {"user_id": a_user(steps)}


@way("has no call job: the phone is not confirmed, and only confirmed phones are called")
def not_confirmed(steps: Steps) -> dict[str, object]:
    steps.call("require_verified_phones")
    return {"user_id": a_user(steps, a_number())}


@way("has no call job: the phone is not confirmed")
def not_confirmed_asked_by_number(steps: Steps) -> dict[str, object]:
    steps.call("require_verified_phones")
    a_user(steps, number := a_number())
    return {"phone_number": number}


@way("has no call job: the user has no phone in auth.users, and no other is called \\(require_verified_phones\\)")
def not_confirmable(steps: Steps) -> dict[str, object]:
    steps.call("require_verified_phones")
    return {"user_id": a_user(steps, raw_user_meta_data=Jsonb({"phone": a_number()}))}


@way("has no call job: the trigger on_auth_user_created_onboarding is missing or disabled: no sign-up is queued")
def signed_up_while_the_trigger_was_disabled(steps: Steps) -> dict[str, object]:
    steps.rows("alter table auth.users disable trigger on_auth_user_created_onboarding")
    return {"user_id": a_user(steps, a_number())}


@way("has no call job: there is no such user")
def no_such_user(steps: Steps) -> dict[str, object]:
    return {"user_id": uuid.uuid4()}


@way("has no call job: the user signed up at .*, before the dispatcher was installed; or")
def signed_up_before_the_dispatcher(steps: Steps) -> dict[str, object]:
    user = a_user(steps, number := a_number())
    steps.rows("delete from public.outbound_call_jobs where user_id = %s", user)
    return {"phone_number": number}


@way("has no call job: it could not be queued at .* \\(a lock\\)")
def missed_sign_up_asked_by_a_number_in_its_metadata(steps: Steps) -> dict[str, object]:
    user = a_user(steps)
    number = a_number()
    steps.rows("update auth.users set raw_user_meta_data = %s where id = %s", Jsonb({"phone": number}), user)
    steps.rows("delete from public.outbound_call_jobs")
    steps.rows("insert into private.missed_signups values (%s, 'a lock', private.clock())", user)
    return {"phone_number": number}


@way("^The tables are locked by an open transaction \\(process \\d+\\)")
def locked_table(steps: Steps) -> int:
    job = steps.queue()
    steps.rows("begin")
    steps.rows("lock table public.outbound_call_jobs")
    return job


@way("an open transaction holds call_settings, which each claim needs")
def locked_settings(steps: Steps) -> int:
    job = steps.queue()
    steps.rows("begin")
    steps.rows("select from private.call_settings for update")
    return job


@way("now: completed: no call of it is stored")
def completed_by_an_update_in_studio(steps: Steps) -> int:
    job = steps.queue()
    steps.rows(BY_HAND + "status = 'completed', due_at = null, finished_at = private.clock() where id = %s", job)
    return job


@way("now: in_doubt; its rows do not fit together")
def in_doubt_by_an_update_in_studio(steps: Steps) -> int:
    job = steps.queue()
    steps.rows(BY_HAND + "status = 'in_doubt', attempts = 1 where id = %s", job)
    return job


@way("now: completed: called by the earlier worker")
def completed_before_the_dispatcher(steps: Steps) -> int:
    return steps.queue(status="completed", finished_at=steps.now(), reason="called by the earlier worker")


@way("nothing has claimed it: private.call_settings has lost its row")
def waits_without_the_row_of_settings(steps: Steps) -> int:
    job = steps.queue()
    steps.rows("delete from private.call_settings")
    return job


@way("the result was told to your system", "the result could not be told to your system: answered 500")
def told_to_your_system(steps: Steps) -> int:
    job = called(steps)
    for state, note in (("told", "answered 200"), ("gave_up", "answered 500")):
        steps.rows(
            "insert into private.call_results (subject, job_id, type, data, created_at, state, due_at, give_up_at, ended_at, note)"
            " values (%s, %s, 'call.completed', '{}', private.clock(), %s, private.clock(), private.clock(), private.clock(), %s)",
            str(job), job, state, note,
        )  # fmt: skip
    return job


@way("claimed for call 1", "the call is over, after 2 s \\(Twilio error 11200\\)")
def reached_and_the_voice_failed(steps: Steps) -> int:
    return called(steps, duration_s=2, error_code="11200")


@way("given back before it was dialed: the stored", "now: waits: due since")
def its_stored_number_was_corrected(steps: Steps) -> int:
    job = steps.queue()
    release(steps, steps.start(job), "number_corrected", "the stored E.164 form was not the number's")
    number = steps.job(job)["phone_number"]
    steps.pass_time(61)
    assert steps.call("set_call_number", job_id=job, phone_number=number, phone_e164=a_number())
    return job


@way("No call job has this number")
def unknown_number(steps: Steps) -> dict[str, object]:
    return {"phone_number": a_number()}


@way("cannot be read as one certain number: was it \\+4\\*+67\\?")
def unreadable_number(steps: Steps) -> dict[str, object]:
    return {"phone_number": "+49 01512 3454567"}


@way("cannot be read as one certain number. Write \\+ and the country code", "No call job has this number")
def unreadable_number_without_a_hint(steps: Steps) -> dict[str, object]:
    return {"phone_number": "call me"}


@way("^Job \\d+:", "its number has not been read yet")
def typed_without_its_country_code(steps: Steps) -> dict[str, object]:
    steps.queue("(415) 555-0100")
    return {"phone_number": "+1 415 555 0100"}


@way("The number opted out of calls at .* \\(by hand\\)")
def unknown_number_that_opted_out(steps: Steps) -> dict[str, object]:
    steps.call("opt_out", phone_number=(number := a_number()))
    return {"phone_number": number}


@way("^Job \\d+:", "failed", "^Job \\d+:", "now: completed: its call was picked up")
def all_jobs_of_a_number(steps: Steps) -> dict[str, object]:
    steps.attempt_in("refused", number := a_number())
    called(steps, job=steps.queue(number))
    return {"phone_number": f"{number[:2]} {number[2:5]} {number[5:]}"}


# ----------------------------------------------------------------------------------------------------------------------

TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")


def faults(lines: list[str], sentences: tuple[str, ...] = (), numbers: Collection[str] = ()) -> Iterator[str]:
    """What is wrong with a story: a sentence that is missing or out of order, a line that says nothing, a whole number."""
    rest = iter(lines)
    for sentence in sentences:
        if not any(re.search(sentence, line) for line in rest):
            yield f"{sentence!r} is missing, or comes too early"
    doubled = [line for line, times in Counter(lines).items() if times > 1]
    if sentences and doubled and not lines[0].startswith("Job"):
        yield f"told twice: {doubled}"
    if not lines or not all(lines):
        yield "an empty line, or no line"
    for line in lines:
        if re.search(r"NULL|None|: *\.|; *\.| \(\)", line):
            yield f"says nothing: {line}"
    bare = [re.sub(r"CA[0-9a-f]{32}|[0-9a-f]{8}-[-0-9a-f]{27}", "", line) for line in lines]
    if any(re.search(r"\d{7}", line) or any(number[1:] in line for number in numbers) for line in bare):
        yield "a whole number"
    times = [found[0] for line in lines if (found := TIME.match(line))]
    if not lines[0].startswith("Job") and times != sorted(times):
        yield "times are not in order"


def numbers_of(steps: Steps) -> list[str]:
    query = (
        "select phone_number from public.outbound_call_jobs union select phone_e164 from public.outbound_call_attempts"
    )
    return [
        str(row["phone_number"]) for row in steps.rows(query) if row["phone_number"] and row["phone_number"] != "erased"
    ]


def test_story_tells_every_way_a_job_can_go(steps: Steps, database_url: str) -> None:
    wrong: dict[str, list[str]] = {}
    for name, (arrange, sentences) in WAYS.items():
        database.empty(database_url)
        asked = arrange(steps)
        lines = story(steps, **(asked if isinstance(asked, dict) else {"job_id": asked}))
        steps.rows("rollback")
        for table in ("public.outbound_call_jobs", "auth.users"):
            steps.rows(f"alter table {table} enable trigger user")
        if found := list(faults(lines, sentences, numbers_of(steps))):
            wrong[name] = found + lines
    assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())


def test_question_that_names_nothing_is_refused(steps: Steps) -> None:
    for asked in ({}, {"job_id": None}, {"job_id": 1, "phone_number": "+14155550100"}):
        with pytest.raises(psycopg.Error, match="give one of p_job_id, p_user_id and p_phone_number"):
            story(steps, **asked)


def test_history_of_a_job_is_short_and_goes_with_it(steps: Steps) -> None:
    job = steps.queue()
    for n in range(60):
        steps.rows(BY_HAND + "reason_code = %s where id = %s", f"r{n}", job)
        steps.call("pause_calls", reason=f"p{n}")
    codes = [
        row["code"] for row in steps.rows("select code from private.call_history where job_id = %s order by id", job)
    ]
    assert codes == [f"r{n}" for n in range(10, 60)]
    assert "unusual events before this one are forgotten" in "".join(story(steps, job_id=job))
    assert steps.one("select count(*) from private.call_history where job_id is null") == 50
    steps.rows("delete from public.outbound_call_jobs where id = %s", job)
    assert steps.one("select count(*) from private.call_history where job_id is not null") == 0


def test_call_that_goes_as_planned_writes_no_history(steps: Steps) -> None:
    called(steps)
    called(steps, "busy")
    steps.call("heal_onboarding_calls")
    assert steps.rows("select * from private.call_history") == []


def test_forgetting_a_user_erases_the_history(steps: Steps) -> None:
    the_user_was_deleted(steps)
    assert [row["code"] for row in steps.rows("select code from private.call_history")] == ["user_deleted"]


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
    zones = [
        ({"timezone": "Europe/Berlin"}, "Europe/Berlin"),
        ({"app_timezone": "America/New_York", "timezone": "Europe/Berlin"}, "America/New_York"),
        ({"app_timezone": "Nowhere/Land", "tz": " Europe/Berlin "}, "Europe/Berlin"),
        *(
            (wrong, None)
            for wrong in ({}, {"tz": "UTC"}, {"tz": 5}, {"tz": ["x"]}, {"tz": "X+14155550100"}, {"tz": "a/b'--"})
        ),
    ]
    for metadata, zone in zones:
        assert steps.one("select private.zone_of(%s)", Jsonb(metadata)) == zone, metadata


def test_who_waits_is_told_with_what_a_claim_would_know(steps: Steps) -> None:
    def waiting(after: int = 0, **more: int) -> Any:
        caps = {"calls_per_number_per_day": 1, "calls_per_prefix_per_hour": 0}
        return steps.call("waiting_calls", after=after, **caps | more)

    number = a_number()
    called(steps, job=steps.queue(number))
    in_use = a_number()
    steps.start(steps.queue(in_use))
    expected = {
        due_and_banned(steps): "user_banned",
        due_and_opted_out(steps): "opted_out",
        steps.queue(number): "calls_per_number_per_day",
        steps.queue(number, user_id=uuid.uuid4()): "number_reached",
        steps.queue(in_use, user_id=uuid.uuid4()): "number_in_use",
        steps.queue(number, due_at=steps.now() + timedelta(hours=1)): None,
        steps.queue("(415) 555-0100", due_at="infinity"): None,
        missed_twice(steps): None,
    }
    before = steps.everything()
    answer = waiting()
    assert {job["id"]: job["held"] for job in answer["jobs"]} == expected
    assert [job["id"] for job in waiting(limit=3)["jobs"]] == sorted(expected)[:3]
    assert [job["id"] for job in waiting(sorted(expected)[-2])["jobs"]] == sorted(expected)[-1:]
    assert answer["paused"] is None
    assert answer["jobs"][-1]["redial"].keys() == {"missed_at", "due_at"}
    assert steps.everything() == before
    steps.call("pause_calls", reason="lunch")
    assert waiting()["paused"] == "lunch"
