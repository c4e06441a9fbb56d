"""What a release promises to the code that runs against it, written down so that later migrations can be held to it.

    python -m tests.database.released 20261201001000                 the migrations up to this one are released, with this code
    python -m tests.database.released 20261201001000 --keep-calls    only the files' hashes anew

A record holds the hash of each migration file, and a story: what `shared/jobs.py` sends to the database and what comes back,
word for word, with a clock of its own so that it can be told again. Code of that release needs no more than that every call
of the story still resolves, and is answered in a shape that its models take: those are kept as JSON Schemas.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from postgrest import SyncPostgrestClient
from pydantic import TypeAdapter

from shared.database import connect
from shared.jobs import ClaimPolicy, Jobs, SettlePolicy
from shared.models import CallEvent, Claim, ClaimedResult, NextOpenCall, OpenCall, TwilioCall
from shared.settings import load_settings
from tests.database.projects import Project, a_project
from tests.sandbox.postgres import Postgres
from tests.sandbox.serve import Server
from tests.sandbox.supabase import database
from tests.sandbox.supabase.gateway import Gateway, service_key

T = TypeVar("T")
StepResult = dict[str, Any]
RECORDS = Path(__file__).with_name("releases")
SECRET = "a secret of the sandbox's own, of no use to anybody else"

# Time stands still until the story says otherwise.
CLOCK = """
create schema story;
create table story.clock (now timestamptz not null);
insert into story.clock values ('2026-11-24 12:00:00+00');
grant usage on schema story to public;
grant select on story.clock to public;
create or replace function private.clock() returns timestamptz
language sql stable set search_path = '' as 'select now from story.clock';
"""


def hashes(upto: str, folder: Path = database.MIGRATIONS) -> dict[str, str]:
    """SHA-256 of each migration file up to this version, by name."""
    files = sorted(file for file in folder.glob("*.sql") if file.name.split("_")[0] <= upto)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@contextmanager
def service(project: Project) -> Iterator[SyncPostgrestClient]:
    """The product's own client of this database, by way of the sandbox's gateway. The clock stands still."""
    project.eyes.execute(CLOCK)
    gateway = Gateway(project.server.url("authenticator", project.name), jwt_secret=SECRET, pool_size=1)
    with Server(gateway.app) as http:
        environ = {
            "SUPABASE_URL": http.url, "SUPABASE_SERVICE_KEY": service_key(SECRET),
            "TWILIO_ACCOUNT_SID": "AC" + "0" * 32, "TWILIO_AUTH_TOKEN": "0" * 32,
            "TWILIO_PHONE_NUMBER": "+15005550006", "API_BASE_URL": "http://127.0.0.1:8080",
        }  # fmt: skip
        yield connect(load_settings(http=False, environ=environ))


class RecordedJobs(Jobs):
    """The real `Jobs`; what goes to and fro is written down."""

    def __init__(self, client: SyncPostgrestClient, story: list[StepResult], answers: dict[str, Any]) -> None:
        super().__init__(client)
        self._story = story
        self._answers = answers

    def _call(self, function: str, answer: TypeAdapter[T], **arguments: Any) -> T:
        self._answers[function] = answer.json_schema()
        return super()._call(function, answer, **arguments)

    def _request(self, function: str, parameters: dict[str, Any]) -> Any:
        data = super()._request(function, parameters)
        sent = json.loads(json.dumps(parameters, default=str))
        self._story.append({"rpc": function, "arguments": sent, "answer": data})
        return data


def tell(jobs: Jobs, sql: Callable[[str], None], by_hand: Callable[..., None]) -> None:
    """A story with every function in it, and every kind of answer."""
    numbers = iter(range(100, 200))
    ids = iter(range(1, 1000))

    def later(seconds: float) -> None:
        sql(f"update story.clock set now = now + interval '{seconds} seconds'")

    def a_job(number: str | None = None) -> None:
        values = f"('{UUID(int=next(ids))}', '{number or f'+14155550{next(numbers)}'}')"
        sql(f"insert into public.outbound_call_jobs (user_id, phone_number) values {values}")

    def claim(job_id: int | None = None, pace: float = 1e6) -> tuple[UUID, Claim]:
        attempt = UUID(int=next(ids), version=4)
        policy = ClaimPolicy(
            lease_s=30.0, calls_per_second=pace, calls_per_number_per_day=3, calls_per_prefix_per_hour=20,
            calls_per_day=None, from_="+15005550006",
        )  # fmt: skip
        return attempt, jobs.claim(attempt, job_id, policy, busy_s=45.0)

    def look() -> NextOpenCall:
        return jobs.claim_open(hold_s=20.0, ask_s=600.0, give_up_s=90_000.0)

    def settle(attempt: UUID, asked_at: datetime, *sids: str) -> None:
        calls = [TwilioCall(sid, "queued", asked_at, None, None) for sid in sids]
        policy = SettlePolicy(settling_s=60.0, ask_s=5.0, poll_s=600.0, gives_up=False)
        jobs.settle(attempt, asked_at, calls, policy, delays_s=(60.0, 240.0))

    def status(attempt: UUID, sid: str, word: Any) -> None:
        event = CallEvent(sid, word, answered_by="human", duration_s=7)
        jobs.record_status(attempt, event, ask_s=600.0, redial_delays_s=(60.0, 240.0), machine_counts_as="reached")

    def sid() -> str:
        return f"CA{next(ids):032x}"

    # A call in doubt: too early to tell, ambiguous, found, and by then settled; it is answered.
    claim()
    claim(404)
    a_job()
    attempt, _ = claim()
    jobs.doubt(attempt, code="read_timeout", reason="no answer", ask_s=5.0)
    look()
    later(6)
    call = look()
    assert isinstance(call, OpenCall)
    found, other = sid(), sid()
    settle(attempt, call.asked_at)
    settle(attempt, call.asked_at, found, other)
    settle(attempt, call.asked_at, found)
    settle(attempt, call.asked_at, found)
    for word in ("ringing", "in-progress", "completed", "ringing"):
        status(attempt, found, word)

    # A number that was typed oddly; it waits in Twilio's queue and is put off.
    a_job("(415) 555-0199")
    claim()
    jobs.set_number(2, "(415) 555-0199", "+14155550199")
    attempt, _ = claim()
    taken = sid()
    jobs.accept(attempt, taken, ask_s=600.0)
    jobs.put_off(attempt, not_before=call.asked_at + timedelta(hours=9), code="hours", reason="too late there")
    look()
    status(attempt, taken, "canceled")

    # Nobody answers, and nobody holds the third call back: refused, then it turns up all the same.
    a_job()
    attempt, _ = claim(3)
    jobs.refuse(attempt, code="number_invalid", reason="Twilio: no such number", slot_s=1.0)
    late = sid()
    jobs.accept(attempt, late, ask_s=600.0)
    look()
    status(attempt, late, "completed")
    status(UUID(int=0, version=4), sid(), "ringing")

    # A lease runs out, and Twilio has no such call.
    a_job()
    attempt, _ = claim(4)
    later(31)
    look()
    later(61)
    call = look()
    assert isinstance(call, OpenCall)
    settle(attempt, call.asked_at)

    # The pace, and two ways of giving back: late hours, and an account that is broken.
    a_job()
    a_job()
    attempt, _ = claim(5, pace=0.01)
    claim(6, pace=0.01)
    in_an_hour = call.asked_at + timedelta(hours=1)
    jobs.release(attempt, code="hours", reason="too early there", not_before=in_an_hour, slot_s=100.0)
    later(1)
    attempt, _ = claim(6)
    jobs.release(attempt, code="20003", reason="authentication failed", halt_s=60.0)
    claim(6)

    # The sweep's other errands.
    sql(f"insert into private.missed_signups values ('{UUID(int=next(ids))}', 'lock_timeout', private.clock())")
    jobs.heal_signups()
    jobs.prune(retention_days=90, results={"number": "masked", "metadata": ["plan"]})
    jobs.stats()
    jobs.waiting(0, calls_per_number_per_day=3, calls_per_prefix_per_hour=20)

    # What people's own code and the SQL editor say.
    person = str(UUID(int=next(ids)))
    by_hand("enqueue_call_job", p_user_id=person, p_phone_number="+14155550198")
    by_hand("resume_calls")
    for function in ("cancel_call_job", "retry_call_job"):
        by_hand(function, p_job_id=7)
    by_hand("pause_calls", p_reason="dinner time")
    by_hand("opt_out", p_phone_number="+14155550198")
    by_hand("require_verified_phones", p_required=True)
    by_hand("call_job_stats")
    sql(f"select public.enqueue_call_job('{UUID(int=next(ids))}', '+14155550197', 'demo', 'Ada')")
    sql(
        "select public.cancel_call_job(8), public.retry_call_job(8), public.pause_calls('why', 'infinity'), public.resume_calls()"
    )
    sql("select public.opt_out('+14155550197', 'by hand'), public.require_verified_phones(), public.call_job_stats()")

    # By now results were written. One is told at the second try, and once more by hand.
    sql("update private.call_results set id = md5(seq::text)::uuid")
    for state in ("due", "told"):
        result = jobs.claim_result(lease_s=0.0)
        assert isinstance(result, ClaimedResult)
        jobs.record_result(result.id, result.try_, state=state, note="HTTP 500", delay_s=0.0)
    sql("select public.retell(7)")
    sql("delete from private.call_results")
    jobs.claim_result(lease_s=0.0)


def record(server: Postgres, upto: str) -> dict[str, Any]:
    """Tell the story to a database that stands at this version."""
    story: list[StepResult] = []
    answers: dict[str, Any] = {}
    with a_project(server, f"released_{upto}") as project:
        project.migrate(upto=upto)
        with service(project) as client:

            def sql(query: str) -> None:
                project.eyes.execute(query.encode())
                story.append({"sql": query})

            def by_hand(function: str, **arguments: Any) -> None:
                data = client.rpc(function, arguments).execute().data
                story.append({"rpc": function, "arguments": arguments, "answer": data})

            tell(RecordedJobs(client, story, answers), sql, by_hand)
    return {"answers": answers, "story": story}


def written(record: dict[str, Any]) -> str:
    """As JSON, a line for each migration, schema and step: a change shows in a diff."""
    parts = []
    for name, part in record.items():
        steps = part.items() if isinstance(part, dict) else ((None, step) for step in part)
        lines = [(f"{json.dumps(key)}: " if key else "") + json.dumps(value, sort_keys=True) for key, value in steps]
        opening, closing = "{}" if isinstance(part, dict) else "[]"
        parts.append(f"{json.dumps(name)}: {opening}\n " + ",\n ".join(lines) + f"\n{closing}")
    return "{" + ",\n".join(parts) + "}\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.database.released", description=__doc__.partition("\n")[0])
    parser.add_argument("version", help="of the last migration of the release")
    parser.add_argument("--keep-calls", action="store_true", help="renew the hashes only")
    options = parser.parse_args()
    path = RECORDS / f"{options.version}.json"
    if options.keep_calls:
        calls = {key: value for key, value in json.loads(path.read_text()).items() if key != "migrations"}
    else:
        with Postgres() as server:
            calls = record(server, options.version)
    path.write_text(written({"migrations": hashes(options.version), **calls}))
    print(f"{path.name}: {len(hashes(options.version))} migrations, {len(calls['story'])} steps")


if __name__ == "__main__":
    main()
