"""The SQL of the README and the guide, run as Studio runs it: as postgres, statement by statement."""

from __future__ import annotations

import re
import uuid

import psycopg

from tests.conftest import Connect
from tests.database.sql_api import Steps
from tests.unit.deployment import ROOT, code_blocks
from tests.unit.test_docs import PAGES

# polling-worker.md has a test and a database of its own; the sandbox has neither pg_cron nor a pg_net to install.
ELSEWHERE = re.compile(r"create extension|\bcron\.|pg_terminate_backend|net\.worker_restart")
EXAMPLES = {
    "<user id>": str(uuid.uuid4()), "<attempt>": str(uuid.uuid4()), "<CallSid>": "CA" + "0" * 32,
    "<call_sid>": "CA" + "0" * 32, "<CallStatus>": "ringing", "<To>": "+14155550100",
    "+1<your own phone>": "+14155550100", "+1<your number>": "+14155550100",
}  # fmt: skip


def statements() -> list[str]:
    """Each SQL statement of the pages, in blocks and in the text; a placeholder becomes an example."""
    found = []
    for page in PAGES:
        text = page.read_text()
        if page.name != "polling-worker.md":
            found += [line for block in code_blocks(text, "sql") for line in re.split(r"(?<=;)\n", block)]
            found += re.findall(r"`((?:select|insert|delete) [^`]+;)`", " ".join(text.split()))
    return [statement for statement in dict.fromkeys(found) if not ELSEWHERE.search(statement)]


def test_sql_of_the_guide_runs_or_is_refused(steps: Steps, connect: Connect) -> None:
    studio, wrong, ran = connect(user="postgres"), {}, 0
    for statement in statements():
        job = str(steps.queue())
        text = re.sub(r"(_call_job\()(?:\d+|<job_id>|<id>)\)", rf"\g<1>{job})", statement)
        for placeholder, example in EXAMPLES.items():
            text = text.replace(placeholder, example)
        try:
            with studio.transaction(force_rollback=True):
                studio.execute(text.encode())
            ran += 1
        except psycopg.errors.RaiseException:
            pass  # a refusal of ours, such as to retry a job that waits: the function and its arguments exist
        except psycopg.Error as error:
            wrong[statement] = str(error)
    assert wrong == {}
    assert ran > 30


def test_examples_of_queueing_make_jobs_of_their_own(steps: Steps, connect: Connect) -> None:
    """Operate's three calls for one user: at the sign-up, at a time that the person picked, and of a second kind."""
    text = (ROOT / "shared" / "docs" / "operate.md").read_text().replace("<user id>", EXAMPLES["<user id>"])
    plain, later, second = (line for line in re.findall(r"^select enqueue_call_job\(.*;$", text, flags=re.MULTILINE))
    studio = connect(user="postgres")
    answers = [studio.execute(line.encode()).fetchall()[0][0] for line in (plain, second, later)]
    assert [answer["created"] for answer in answers] == [True, True, False]
    kinds = steps.rows("select dedupe_key, signup_mode from public.outbound_call_jobs order by id")
    assert [row["signup_mode"] for row in kinds] == ["demo", "waitlist"]
    assert kinds[1]["dedupe_key"] == f"reminder:{EXAMPLES['<user id>']}"
