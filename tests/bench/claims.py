"""What a claim to dial costs in Postgres, with caps, opt-outs and the history of years in the tables.

    python -m tests.bench.claims [--attempts 1000000] [--claims 500]

Half of the attempts belong to a finished job each; the others are one call each 30 seconds, to 10,000 numbers of 100 prefixes. A
tenth as many opt-outs. Who waits has a number and a prefix of their own. Beside it the same with a hundredth of that: what is
flat costs the same. Each claim is a transaction of its own, on one connection; the call's end, which follows, is not measured.
Last lines: median and 95th percentile, in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
import uuid

import psycopg

from tests.database.sql_api import a_sid
from tests.database.test_claim_plans import DUE, FILL, LATER, TWICE
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database

CAPS = {
    "no caps": (None, 0, None),
    "3 per number, 20 per prefix": (3, 20, None),
    "the same, and 100,000 per day": (3, 20, 100_000),
}
MORE = """
update public.outbound_call_jobs set phone_e164 = '+13' || lpad((id % 100000)::text, 5, '0') || '0100' where status = 'queued';
insert into public.call_opt_outs (phone_e164, opted_out_at, how)
select '+4915' || 100000000 + n, now(), 'by hand' from generate_series(1, {}) n;
vacuum analyze public.call_opt_outs, public.outbound_call_jobs
"""
CLAIM = "select public.claim_call_job(%s, 60, 1000, 60, null, %s, %s, %s)"
END = "select public.record_call_status(%s, %s, 'completed', 60, '{60}')"


def fill(postgres: Postgres, attempts: int) -> str:
    """-> the name of a database with so many attempts"""
    name = f"claims_{attempts}"
    database.create_database(postgres, name)
    database.bootstrap(postgres, name)
    database.migrate(postgres, name)
    with psycopg.connect(postgres.url(database=name), autocommit=True) as connection:
        half = attempts // 2
        history = FILL.format(finished=half, later=LATER, due=DUE, twice=min(TWICE, half), calls=attempts - half)
        for statement in [*history.split(";\n"), *MORE.format(attempts // 10).split(";\n")]:
            connection.execute(statement.encode())
    return name


def claim_ms(url: str, caps: tuple[int | None, int, int | None], times: int) -> list[float]:
    """Each a claim that succeeded. The first ones, which load the catalogs, are left out."""
    measured: list[float] = []
    with psycopg.connect(url, autocommit=True) as connection:
        while len(measured) < times + 20:
            attempt = uuid.uuid4()
            began = time.perf_counter()
            ((answer,),) = connection.execute(CLAIM, (attempt, *caps)).fetchall()
            seconds = time.perf_counter() - began
            if answer["outcome"] == "wait":
                time.sleep(answer["wait_s"])
                continue
            assert answer["outcome"] == "claimed", answer
            measured.append(seconds * 1000)
            connection.execute(END, (attempt, a_sid()))
    return measured[20:]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.claims")
    parser.add_argument("--attempts", type=int, default=1_000_000)
    parser.add_argument("--claims", type=int, default=500, help=f"of each kind; there are {DUE} jobs to claim")
    options = parser.parse_args()
    if options.attempts < 100 or not 1 <= options.claims <= DUE // len(CAPS) - 20:
        parser.error("--attempts must be at least 100, --claims from 1 to a third of the jobs")
    with Postgres() as postgres:
        for attempts in (options.attempts // 100, options.attempts):
            began = time.monotonic()
            url = postgres.url(database=fill(postgres, attempts))
            print(
                f"{attempts:,} attempts, {attempts // 2:,} finished jobs, made in {time.monotonic() - began:.0f} s",
                flush=True,
            )
            for name, caps in CAPS.items():
                measured = claim_ms(url, caps, options.claims)
                median, most = statistics.median(measured), statistics.quantiles(measured, n=20)[-1]
                print(f"  {name:30}  median {median:5.2f}  95 % {most:5.2f}", flush=True)


if __name__ == "__main__":
    main()
