"""Rows that must not exist cannot: each constraint has a row that it, and no other, refuses."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from psycopg import errors

from tests.conftest import Connection
from tests.database.sql_api import a_number, a_sid

E = errors.CheckViolation

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


@pytest.fixture
def job(connection: Connection) -> int:
    return insert_job(connection)


@pytest.fixture
def attempt(connection: Connection, job: int) -> uuid.UUID:
    return insert_attempt(connection, job)


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


def refused_by(name: str, error: pytest.ExceptionInfo[psycopg.Error]) -> bool:
    return error.value.diag.constraint_name == name


@pytest.mark.parametrize(("constraint", "change"), JOBS)
def test_job_that_must_not_exist_cannot(connection: Connection, job: int, constraint: str, change: str) -> None:
    with pytest.raises(E) as error:
        connection.execute(f"update public.outbound_call_jobs set {change} where id = {job}".encode())
    assert refused_by(constraint, error)


@pytest.mark.parametrize(("constraint", "change"), ATTEMPTS)
def test_attempt_that_must_not_exist_cannot(
    connection: Connection, attempt: uuid.UUID, constraint: str, change: str
) -> None:
    with pytest.raises(E) as error:
        connection.execute(f"update public.outbound_call_attempts set {change} where id = '{attempt}'".encode())
    assert refused_by(constraint, error)


@pytest.mark.parametrize(
    ("table", "tested"),
    [("outbound_call_jobs", {name for name, _ in JOBS}), ("outbound_call_attempts", {name for name, _ in ATTEMPTS})],
)
def test_every_check_has_a_row_that_it_refuses(connection: Connection, table: str, tested: set[str]) -> None:
    query = "select conname from pg_constraint where contype = 'c' and conrelid = %s::regclass"
    assert {name for (name,) in connection.execute(query, (f"public.{table}",))} == tested


def test_two_open_attempts_to_one_number_cannot_be(connection: Connection) -> None:
    number = a_number()
    insert_attempt(connection, insert_job(connection), number)
    with pytest.raises(errors.UniqueViolation) as error:
        insert_attempt(connection, insert_job(connection), number)
    assert refused_by("outbound_call_attempts_one_open_per_number", error)


def test_two_open_attempts_of_one_job_cannot_be(connection: Connection, job: int) -> None:
    insert_attempt(connection, job)
    with pytest.raises(errors.UniqueViolation) as error:
        insert_attempt(connection, job)
    assert refused_by("outbound_call_attempts_one_open_per_job", error)


def test_one_call_of_two_attempts_cannot_be(connection: Connection) -> None:
    insert_attempt(connection, insert_job(connection), sid=(sid := a_sid()))
    with pytest.raises(errors.UniqueViolation) as error:
        insert_attempt(connection, insert_job(connection), sid=sid)
    assert refused_by("outbound_call_attempts_call_sid_key", error)


def test_attempt_of_no_job_cannot_be(connection: Connection) -> None:
    with pytest.raises(errors.ForeignKeyViolation):
        insert_attempt(connection, 4711)


def test_job_does_not_choose_its_own_id(connection: Connection) -> None:
    with pytest.raises(errors.GeneratedAlways):
        connection.execute(
            "insert into public.outbound_call_jobs (id, user_id, phone_number) values (1, %s, %s)", (uuid.uuid4(), "1")
        )


def test_there_is_one_row_of_settings(connection: Connection) -> None:
    for value in ("true", "false"):
        with pytest.raises((errors.UniqueViolation, E)):
            connection.execute(f"insert into private.call_settings (only_row) values ({value})".encode())
