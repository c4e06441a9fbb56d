"""A restored or copied database calls nobody again: it notices, pauses, and asks Twilio before it dials what it remembers."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.conftest import Connection
from tests.database.sql_api import DELAYS_S, SETTLING_S, Steps, a_number, a_sid
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database

Copy = Callable[[], Steps]


@pytest.fixture
def steps(postgres: Postgres, template_database: str) -> Iterator[Steps]:
    """A database to which nobody else is connected, so that it can be copied."""
    database.create_database(postgres, "test_original", template_database)
    with (
        psycopg.connect(postgres.url(database="test_original"), autocommit=True) as service,
        psycopg.connect(postgres.url(database="test_original"), autocommit=True) as eyes,
    ):
        yield Steps(service, eyes)
    database.drop_database(postgres, "test_original")


@pytest.fixture
def copied(postgres: Postgres, steps: Steps) -> Iterator[Copy]:
    """copied(): the database as it is now, in another one."""
    opened: list[Connection] = []

    def copy() -> Steps:
        steps.service.close()
        steps._eyes.close()
        database.create_database(postgres, "test_copy", "test_original")
        opened.extend(psycopg.connect(postgres.url(database="test_copy"), autocommit=True) for _ in range(2))
        return Steps(*opened)

    yield copy
    for one in opened:
        one.close()
    database.drop_database(postgres, "test_copy")


def confirmed(copied: Copy) -> Steps:
    """A copy that has noticed what it is, and whose owner has said so."""
    restored = copied()
    restored.claim()
    assert restored.call("confirm_restore").startswith("calls go on; Twilio is asked about ")
    return restored


def settle(steps: Steps, attempt: uuid.UUID, *calls: tuple[str, str]) -> str:
    """Twilio's list is asked at the end of the settling time."""
    steps.pass_time(SETTLING_S + 1)
    outcome: str = steps.settle(attempt, *calls)["outcome"]
    return outcome


def test_copy_pauses_at_first_claim_with_reason(steps: Steps, copied: Copy) -> None:
    for _ in range(5):
        steps.queue()
    copy = copied()
    answer = copy.claim()
    assert (answer["outcome"], answer["until"]) == ("paused", "infinity")
    assert "confirm_restore()" in answer["reason"]
    stats = copy.call("call_job_stats")
    assert (stats["paused"], stats["paused_by"], stats["queued"]) == (True, "restore", 5)
    assert copy.claim(copy.queue())["outcome"] == "paused"  # nobody at all
    copy.call("resume_calls")  # not enough
    assert copy.claim()["outcome"] == "paused"
    assert copy.rows("select * from public.outbound_call_attempts") == []


def test_person_called_after_snapshot_is_not_redialed(steps: Steps, copied: Copy) -> None:
    called, waiting = steps.queue(), steps.queue()
    restored = copied()
    restored.claim()
    assert restored.call("confirm_restore").startswith("calls go on; Twilio is asked about 2 jobs")
    assert restored.claim()["outcome"] == "none"  # both are asked about first
    asked = {call["job_id"]: uuid.UUID(call["attempt"]) for call in (restored.ask(), restored.ask())}
    assert {job: restored.job(job)["status"] for job in asked} == {called: "in_doubt", waiting: "in_doubt"}
    for job, attempt in asked.items():
        row = restored.attempt(attempt)
        assert (row["started_at"], row["from_e164"]) == (restored.job(job)["created_at"], "+15005550006")
    assert settle(restored, asked[called], (a_sid(), "completed")) == "found"
    restored.says(asked[called], "completed")
    assert settle(restored, asked[waiting]) == "absent"
    assert restored.job(called)["status"] == "completed"
    assert restored.claim()["job"]["id"] == waiting


def test_restored_job_is_dialed_after_the_question(steps: Steps, copied: Copy) -> None:
    """Nothing was dialed, so neither spent attempts nor CALL_IN_DOUBT=give-up may end it."""
    job = steps.queue(attempts=len(DELAYS_S))
    restored = confirmed(copied)
    restored.claim()
    restored.pass_time(SETTLING_S + 1)
    assert restored.settle(uuid.UUID(restored.ask()["attempt"]), gives_up=True)["job_status"] == "queued"
    assert restored.claim(job)["outcome"] == "claimed"


def test_job_queued_after_restore_is_dialed_at_once(steps: Steps, copied: Copy) -> None:
    steps.queue()
    restored = confirmed(copied)
    assert restored.claim(restored.queue())["outcome"] == "claimed"


def test_old_jobs_of_one_number_are_asked_in_turn(steps: Steps, copied: Copy) -> None:
    number = a_number()
    first, second = steps.queue(number), steps.queue(number)
    restored = confirmed(copied)
    restored.claim()
    assert (restored.job(first)["status"], restored.job(second)["reason_code"]) == ("in_doubt", "number_in_use")
    attempt = uuid.UUID(restored.ask()["attempt"])
    settle(restored, attempt, (a_sid(), "completed"))
    restored.says(attempt, "completed")
    restored.make_due(second)
    assert restored.claim(second)["outcome"] == "none"
    assert restored.job(second)["status"] == "in_doubt"


def test_pause_by_hand_outlives_the_restore(steps: Steps, copied: Copy) -> None:
    steps.queue()
    steps.call("pause_calls", reason="the script is wrong")
    restored = copied()
    assert restored.claim()["reason"] == "the script is wrong"
    restored.call("confirm_restore")
    assert restored.call("call_job_stats")["paused_by"] == "hand"


def test_restore_is_noticed_after_pause_by_hand(steps: Steps, copied: Copy) -> None:
    steps.queue()
    steps.call("pause_calls", reason="the script is wrong")
    restored = copied()
    restored.call("resume_calls")
    assert "confirm_restore()" in restored.claim()["reason"]


def test_where_nothing_was_restored_there_is_nothing_to_confirm(steps: Steps) -> None:
    job = steps.queue()
    assert steps.call("confirm_restore").endswith("nothing to confirm")
    assert steps.claim(job)["outcome"] == "claimed"


def test_rows_that_a_dump_brings_are_noticed(steps: Steps) -> None:
    """`supabase db dump --data-only` of the schema public, loaded into a project with our migrations: no settings came along."""
    steps.rows("set session_replication_role = replica")  # as such a dump sets it: no trigger of ours runs
    job = steps.queue(
        due_at=steps.now(), created_at=steps.now(), phone_e164=a_number(), database_id="7-00000001-5-16400",
        dedupe_key="onboarding:1", dedupe_window="[2026-01-01,)",
    )  # fmt: skip
    steps.rows("set session_replication_role = origin")
    assert steps.claim(job)["outcome"] == "paused"
    assert steps.job(job)["status"] == "queued"


def test_unreadable_identity_costs_no_sign_up(steps: Steps, connection: Connection) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute("revoke execute on function pg_catalog.pg_control_system() from public")
        connection.execute("grant execute on function private.database_id() to postgres")
        connection.execute("set role postgres")
        found = connection.execute("select private.database_id()").fetchone()
        assert found == connection.execute("select 'public.outbound_call_jobs'::regclass::oid::text").fetchone()
