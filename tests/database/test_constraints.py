"""Rows that must not exist cannot: each constraint has a row that it, and no other, refuses."""

from __future__ import annotations

import uuid

import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from tests.database.sql_api import Steps, a_number, a_sid

# By constraint: changes of a queued job, and of the started attempt of another one.
JOBS = {
    "outbound_call_jobs_phone_number_check": ["phone_number = ''", "phone_number = repeat('1', 65)"],
    "outbound_call_jobs_phone_e164_check": [
        "phone_e164 = '4155550100'", "phone_e164 = '+04155550100'", "phone_e164 = '+1415555010099999'",
        "phone_e164 = E'+14155550100\\n'",
    ],
    "outbound_call_jobs_first_name_check": ["first_name = repeat('a', 101)"],
    "outbound_call_jobs_signup_mode_check": ["signup_mode = ''", "signup_mode = repeat('a', 65)"],
    "outbound_call_jobs_metadata_check": ["metadata = '[]'", "metadata = 'null'"],
    "outbound_call_jobs_status_check": ["status = 'retrying'"],
    "outbound_call_jobs_attempts_check": ["attempts = -1"],
    "outbound_call_jobs_cancel_code_check": ["cancel_code = 'complaint'"],
    "final_jobs_are_finished": ["finished_at = now(), due_at = null", "status = 'failed'"],
    "open_jobs_are_due": ["due_at = null", "status = 'failed', finished_at = now()"],
    "a_call_needs_a_number": ["status = 'dialing', attempts = 1, phone_e164 = null"],
    "a_call_needs_an_attempt": ["status = 'calling'"],
    "queued_jobs_are_canceled_at_once": ["cancel_requested = true"],
}  # fmt: skip
ATTEMPTS = {
    "outbound_call_attempts_number_check": ["number = 0"],
    "outbound_call_attempts_phone_e164_check": ["phone_e164 = '14155550100'"],
    "outbound_call_attempts_state_check": ["state = 'ringing', closed_at = now()"],
    "outbound_call_attempts_call_status_check": ["call_status = 'answered'"],
    "open_attempts_are_not_closed": ["closed_at = now()", "state = 'refused'"],
    "open_attempts_have_a_number": ["phone_e164 = null"],
    "a_taken_call_has_a_sid": [
        "state = 'accepted'", "call_sid = 'CA1'", "state = 'absent', call_sid = 'CA1', closed_at = now()",
    ],
    "a_doubt_has_a_time": ["state = 'in_doubt'"],
}  # fmt: skip


def refused(steps: Steps, statement: str, *values: object) -> str | None:
    """The constraint that refuses this; None: it was taken."""
    try:
        steps.rows(statement, *values)
    except errors.IntegrityError as error:
        return error.diag.constraint_name
    return None


def test_rows_that_must_not_exist_cannot(steps: Steps) -> None:
    rows = {
        "outbound_call_jobs": (steps.queue(), JOBS),
        "outbound_call_attempts": (steps.attempt_in("started")[1], ATTEMPTS),
    }
    for table, (row, changes) in rows.items():
        update = f"update public.{table} set {{}} where id = %s"
        found = {
            change: refused(steps, update.format(change), row) for changed in changes.values() for change in changed
        }
        assert found == {change: name for name, changed in changes.items() for change in changed}
        checks = "select conname from pg_constraint where contype = 'c' and conrelid = %s::regclass"
        assert {check["conname"] for check in steps.rows(checks, f"public.{table}")} == changes.keys()


def test_second_open_attempt_or_shared_call_cannot_be(steps: Steps) -> None:
    """Copies of an accepted attempt, with these changes."""
    _, attempt, _ = steps.dial()
    other = steps.queue()
    copies: dict[str, dict[str, object]] = {
        "outbound_call_attempts_one_open_per_number": {"job_id": other, "call_sid": a_sid()},
        "outbound_call_attempts_one_open_per_job": {"phone_e164": a_number(), "call_sid": a_sid()},
        "outbound_call_attempts_call_sid_key": {"job_id": other, "phone_e164": a_number()},
        "outbound_call_attempts_job_id_fkey": {"job_id": 4711, "phone_e164": a_number(), "call_sid": a_sid()},
    }
    insert = (
        "insert into public.outbound_call_attempts"
        " select (jsonb_populate_record(a, %s)).* from public.outbound_call_attempts a where id = %s"
    )
    for name, changes in copies.items():
        assert refused(steps, insert, Jsonb({"id": str(uuid.uuid4()), **changes}), attempt) == name


def test_job_does_not_choose_its_own_id(steps: Steps) -> None:
    with pytest.raises(errors.GeneratedAlways):
        steps.queue(id=1)


def test_there_is_one_row_of_settings(steps: Steps) -> None:
    for value in ("true", "false"):
        assert refused(steps, f"insert into private.call_settings (only_row) values ({value})")
