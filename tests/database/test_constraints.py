"""Rows that must not exist cannot: each constraint has a row that it, and no other, refuses."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial

import psycopg
import pytest
from psycopg import errors

from tests.conftest import Connection
from tests.database.sql_api import a_number, a_sid

JOBS = [
    ("outbound_call_jobs_phone_number_check", "phone_number = ''"),
    ("outbound_call_jobs_phone_number_check", "phone_number = repeat('1', 65)"),
    ("outbound_call_jobs_phone_e164_check", "phone_e164 = '4155550100'"),
    ("outbound_call_jobs_phone_e164_check", "phone_e164 = '+04155550100'"),
    ("outbound_call_jobs_phone_e164_check", "phone_e164 = '+1415555010099999'"),
    ("outbound_call_jobs_phone_e164_check", "phone_e164 = E'+14155550100\\n'"),
    ("outbound_call_jobs_first_name_check", "first_name = repeat('a', 101)"),
    ("outbound_call_jobs_signup_mode_check", "signup_mode = ''"),
    ("outbound_call_jobs_signup_mode_check", "signup_mode = repeat('a', 65)"),
    ("outbound_call_jobs_metadata_check", "metadata = '[]'"),
    ("outbound_call_jobs_metadata_check", "metadata = 'null'"),
    ("outbound_call_jobs_status_check", "status = 'retrying'"),
    ("outbound_call_jobs_attempts_check", "attempts = -1"),
    ("final_jobs_are_finished", "finished_at = now(), due_at = null"),
    ("final_jobs_are_finished", "status = 'failed'"),
    ("open_jobs_are_due", "due_at = null"),
    ("open_jobs_are_due", "status = 'failed', finished_at = now()"),
    ("a_call_needs_a_number", "status = 'dialing', attempts = 1, phone_e164 = null"),
    ("a_call_needs_an_attempt", "status = 'calling'"),
    ("queued_jobs_are_canceled_at_once", "cancel_requested = true"),
]

ATTEMPTS = [
    ("outbound_call_attempts_number_check", "number = 0"),
    ("outbound_call_attempts_phone_e164_check", "phone_e164 = '14155550100'"),
    ("outbound_call_attempts_state_check", "state = 'ringing', closed_at = now()"),
    ("outbound_call_attempts_call_status_check", "call_status = 'answered'"),
    ("open_attempts_are_not_closed", "closed_at = now()"),
    ("open_attempts_are_not_closed", "state = 'refused'"),
    ("open_attempts_have_a_number", "phone_e164 = null"),
    ("a_taken_call_has_a_sid", "state = 'accepted'"),
    ("a_taken_call_has_a_sid", "call_sid = 'CA1'"),
    ("a_taken_call_has_a_sid", "state = 'absent', call_sid = 'CA1', closed_at = now()"),
    ("a_doubt_has_a_time", "state = 'in_doubt'"),
]


def insert_job(connection: Connection) -> int:
    query = "insert into public.outbound_call_jobs (user_id, phone_number) values (%s, %s) returning id"
    row = connection.execute(query, (uuid.uuid4(), a_number())).fetchone()
    assert row is not None
    return int(row[0])


def insert_attempt(connection: Connection, job: int, number: str | None = None, sid: str | None = None) -> uuid.UUID:
    """Open, and accepted when it has a SID."""
    attempt = uuid.uuid4()
    connection.execute(
        "insert into public.outbound_call_attempts (id, job_id, number, phone_e164, state, call_sid, started_at)"
        " values (%s, %s, 1, %s, %s, %s, now())",
        (attempt, job, number or a_number(), "accepted" if sid else "started", sid),
    )
    return attempt


def refused(step: Callable[[], object]) -> str | None:
    """The constraint that refuses this; None: it was taken."""
    try:
        step()
    except psycopg.errors.IntegrityError as error:
        return error.diag.constraint_name
    return None


def test_rows_that_must_not_exist_cannot(connection: Connection) -> None:
    job = insert_job(connection)
    rows = {
        "outbound_call_jobs": (str(job), JOBS),
        "outbound_call_attempts": (str(insert_attempt(connection, job)), ATTEMPTS),
    }
    for table, (row, changes) in rows.items():
        updates = [
            (name, f"update public.{table} set {change} where id = '{row}'".encode()) for name, change in changes
        ]
        odd = {sql: by for name, sql in updates if (by := refused(partial(connection.execute, sql))) != name}
        assert odd == {}
        checks = "select conname from pg_constraint where contype = 'c' and conrelid = %s::regclass"
        assert {name for (name,) in connection.execute(checks, (f"public.{table}",))} == {name for name, _ in changes}


def test_second_open_attempt_or_shared_call_cannot_be(connection: Connection) -> None:
    job, other, number, sid = insert_job(connection), insert_job(connection), a_number(), a_sid()
    insert_attempt(connection, job, number, sid)
    attempts: dict[str, tuple[int, str | None, str | None]] = {
        "outbound_call_attempts_one_open_per_number": (other, number, None),
        "outbound_call_attempts_one_open_per_job": (job, None, None),
        "outbound_call_attempts_call_sid_key": (other, None, sid),
        "outbound_call_attempts_job_id_fkey": (4711, None, None),
    }
    assert {name: refused(partial(insert_attempt, connection, *row)) for name, row in attempts.items()} == {
        name: name for name in attempts
    }


def test_job_does_not_choose_its_own_id(connection: Connection) -> None:
    with pytest.raises(errors.GeneratedAlways):
        connection.execute(
            "insert into public.outbound_call_jobs (id, user_id, phone_number) values (1, %s, %s)", (uuid.uuid4(), "1")
        )


def test_there_is_one_row_of_settings(connection: Connection) -> None:
    for value in ("true", "false"):
        with pytest.raises((errors.UniqueViolation, errors.CheckViolation)):
            connection.execute(f"insert into private.call_settings (only_row) values ({value})".encode())
