"""The six questions of shared/monitoring/questions.sql, asked as Studio asks them, as postgres, of a database with answers."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from psycopg.rows import dict_row

from tests.conftest import Connect
from tests.database.sql_api import OURS, Row, Steps, a_number

QUESTIONS = Path(__file__).parents[2] / "shared" / "monitoring" / "questions.sql"
PERSON, SID = "+14155550100", "CA" + "0" * 32


def questions() -> dict[str, str]:
    """Each by its words."""
    found = re.findall(r"^-- \d+\. ([^\n]+\?)\n(.*?;)$", QUESTIONS.read_text(), re.MULTILINE | re.DOTALL)
    return dict(found)


class Studio:
    """The SQL editor: role postgres, and what people put in instead of the examples."""

    def __init__(self, connect: Connect) -> None:
        self._connection = connect(user="postgres")

    def ask(self, question: str, *, person: str = PERSON, sid: str = SID) -> list[Row]:
        (query,) = [text for words, text in questions().items() if words.startswith(question)]
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query.replace(PERSON, person).replace(SID, sid).encode()).fetchall()


@pytest.fixture
def studio(connect: Connect) -> Studio:
    return Studio(connect)


def called(steps: Steps, number: str, ends: str = "completed", **more: Any) -> tuple[int, str]:
    """-> (job, SID) of a call that went out from our number and ended so."""
    attempt = steps.bring_to("accepted", job := steps.queue(number))
    steps.says(attempt, ends, delays_s=(), **more)
    return job, steps.attempt(attempt)["call_sid"]


def test_six_questions_can_be_asked_of_empty_database(studio: Studio) -> None:
    assert len(questions()) == 6
    nothing: dict[str, list[Row]] = {words: [] for words in questions()}
    nothing["How long from sign-up to ring?"] = [{"jobs": 0, "p50_s": None, "p95_s": None, "longest_s": None}]
    assert {words: studio.ask(words) for words in questions()} == nothing


def test_which_number_called_this_person_and_when(steps: Steps, studio: Studio) -> None:
    called(steps, number := a_number(), "busy")
    _, sid = called(steps, number, duration_s=31)
    called(steps, a_number())
    answer = studio.ask("Which number called this person", person=number)
    assert [(row["call_status"], row["called_from"]) for row in answer] == [("completed", OURS), ("busy", OURS)]
    assert (answer[0]["call_sid"], answer[0]["duration_s"]) == (sid, 31)
    assert answer[0]["called_at"] > answer[1]["called_at"]


def test_is_anybody_being_called_too_often(steps: Steps, studio: Studio) -> None:
    often = a_number()
    for _ in range(3):
        called(steps, often)
    called(steps, a_number())
    answer = studio.ask("Is anybody being called too often?")
    assert [(row["phone_e164"], row["calls_24h"], row["calls_7d"], row["jobs"]) for row in answer] == [(often, 3, 3, 3)]


def test_question_who_opted_out_is_answered(steps: Steps, studio: Studio) -> None:
    steps.call("opt_out", phone_number=(number := a_number()), how="pressed 9")
    assert [(row["phone_e164"], row["how"]) for row in studio.ask("Who opted out?")] == [(number, "pressed 9")]


def test_what_calls_cost_in_time(steps: Steps, studio: Studio) -> None:
    for seconds in (5, 61):
        called(steps, a_number(), duration_s=seconds)
    called(steps, a_number(), "busy", duration_s=0)
    (day,) = studio.ask("What did calls cost in time?")
    assert (day["calls"], day["with_talk"], day["seconds"], day["minutes_billed"]) == (3, 2, 66, 3)
    assert (day["seconds_a_call"], day["longest_s"]) == (33, 61)


def test_how_long_from_sign_up_to_ring(steps: Steps, studio: Studio) -> None:
    for waited in (1, 2, 30):
        job, _ = called(steps, a_number())
        steps.rows("update public.outbound_call_attempts set accepted_at = j.created_at + make_interval(secs => %s)"
                   " from public.outbound_call_jobs j where j.id = job_id and j.id = %s", waited, job)  # fmt: skip
    steps.queue()
    (answer,) = studio.ask("How long from sign-up to ring?")
    assert (answer["jobs"], answer["p50_s"], answer["longest_s"]) == (3, 2, 30)
    assert answer["p95_s"] == pytest.approx(27.2)


def test_what_happened_to_this_call(steps: Steps, studio: Studio) -> None:
    job, sid = called(steps, number := a_number(), duration_s=12)
    called(steps, a_number())
    question = "What happened to this call SID?"
    (answer,) = studio.ask(question, sid=sid)
    expected = {"job": job, "phone_e164": number, "from_e164": OURS, "job_status": "completed"}
    assert {key: answer[key] for key in expected} == expected
    steps.rows("delete from public.outbound_call_jobs where id = %s", job)
    assert [row["state"] for row in studio.ask(question, sid=sid)] == ["its job was deleted"]
    assert studio.ask(question, sid="CA" + uuid.uuid4().hex) == []


def test_every_statement_of_the_runbook_is_understood(steps: Steps, connect: Connect) -> None:
    runbook = " ".join(QUESTIONS.with_name("README.md").read_text().split())
    statements = set(re.findall(r"`(select [^`]+;)`", runbook)) | set(re.findall(r"(select \* from \w+;)", runbook))
    assert len(statements) >= 12
    studio = connect(user="postgres")
    for statement in sorted(statements):
        job = steps.queue()
        with studio.transaction(force_rollback=True):
            assert studio.execute(statement.replace("<id>", str(job)).replace("<pid>", "0").encode()).description
