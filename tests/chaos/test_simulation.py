"""The simulation in a small form; and that it sees what it is there to see: with a fence taken away, it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias
from unittest.mock import patch
from uuid import UUID

import psycopg
import pytest

from shared.dispatcher import Dispatcher
from shared.models import StepResult, Verdict
from tests.chaos.simulation import DATABASE, Verdicts, prepared, run_history
from tests.database.sql_api import change_function
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase.database import drop_database

Connection = psycopg.Connection[Any]
HISTORIES, REPLAYED = 30, 5
FIRST_SEED = 30  # each missing fence is noticed within three histories from here
MOST_TO_FIND = 300  # histories until a missing fence is noticed; each was found within a third of it


@pytest.fixture
def database(postgres: Postgres, template_database: str) -> Iterator[Connection]:
    with prepared(postgres, template_database) as connection:
        yield connection
    drop_database(postgres, DATABASE)


def test_nobody_is_dialed_twice_and_nobody_is_lost(database: Connection) -> None:
    for seed in range(HISTORIES):
        history, verdicts = run_history(seed, database)
        assert verdicts.is_clean, "\n".join([f"seed {seed}: {verdicts}", *history.log])
        if seed < REPLAYED:
            again, _ = run_history(seed, database)
            assert (history.log, history.twilio.calls) == (again.log, again.twilio.calls)


TakeAway: TypeAlias = Callable[[Connection], AbstractContextManager[object]]


def sql_changed(*changes: tuple[str, str, str]) -> TakeAway:
    """In each function a piece replaced, for good: the database is the test's own."""

    def change(database: Connection) -> AbstractContextManager[object]:
        for function, old, new in changes:
            change_function(database, function, old, new)
        return nullcontext()

    return change


def a_timeout_taken_for(kind: Any) -> TakeAway:
    real = Dispatcher._record_failure

    def record(self: Dispatcher, job_id: int, attempt: UUID, verdict: Verdict) -> StepResult:
        changed = Verdict(kind, verdict.code, verdict.reason) if verdict.kind == "in_doubt" else verdict
        return real(self, job_id, attempt, changed)

    return lambda database: patch.object(Dispatcher, "_record_failure", record)


# What is taken away, and which of the promises breaks.
MUTATIONS: dict[str, tuple[TakeAway, str]] = {
    "a timeout is taken for a refusal": (a_timeout_taken_for("refused"), "lost"),
    "a timeout is taken for 'try again'": (a_timeout_taken_for("later"), "twice"),
    "absence is believed at once": (
        sql_changed(("public.settle_call", "or p_asked_at < v_settled_at", "")), "twice",
    ),
    "a lease that ran out counts as absence": (
        sql_changed((
            "public.claim_open_call",
            "return private.open_call(v_attempt, v_now, v_job.cancel_requested, v_expired);",
            """if v_expired and not v_job.cancel_requested then
                 update public.outbound_call_attempts set state = 'absent', closed_at = v_now where id = v_attempt.id;
                 update public.outbound_call_jobs set status = 'queued', due_at = v_now where id = v_job.id;
               end if;
               return private.open_call(v_attempt, v_now, v_job.cancel_requested, v_expired);""",
        )), "twice",
    ),
    "hours are not looked at": (lambda _: patch("shared.dispatcher.screen", lambda *_, **__: None), "against_the_rules"),
    "a wish for a later call is forgotten when the call ends": (
        sql_changed(("public.record_call_status", "if v_attempt.later_at is not null then", "if false then")), "lost",
    ),
    "a pause is a request": (  # for the look at the gate, and for the update that takes a slot
        sql_changed(
            ("private.gate_closed", "greatest(p_gate.paused_until, ", "greatest("),
            ("public.claim_call_job", "and (paused_until is null or paused_until <= v_now)\n            and (halts", "and (halts"),
        ), "against_the_rules",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_without_a_fence_the_simulation_fails(database: Connection, name: str) -> None:
    take_away, breaks = MUTATIONS[name]
    with take_away(database):
        found = Verdicts()
        for seed in range(FIRST_SEED, FIRST_SEED + MOST_TO_FIND):
            _, found = run_history(seed, database)
            if getattr(found, breaks):
                break
    assert getattr(found, breaks), f"{name}: not noticed in {MOST_TO_FIND} histories"
