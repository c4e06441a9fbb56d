"""The proof is tested too: with one rule of the design taken out of the SQL, the state machine must find a history that breaks.

Each mutation is applied to a database of its own, by replacing a piece of a function as Postgres has it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.chaos.test_state_machine import ALSO, Broken, Dispatching, a_copy, the_machine
from tests.database.sql_api import change_function
from tests.sandbox.postgres import Postgres

# The first that breaks is enough, and is looked for in short runs: a long one that begins badly stays long.
SETTINGS = settings(
    database=None,
    max_examples=12,
    stateful_step_count=40,
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
MOST_RUNS = 40  # far more than any of them needs


@dataclass(frozen=True)
class Mutation:
    """In `function`, `old` becomes `new`, and so in the function of `and_in`; then `also` is run."""

    seed: int
    """Of a run in which a history breaks at once; without it one does later."""
    function: str
    old: str
    new: str
    trips: frozenset[str]
    """One of these invariants alone must find it: the others are not looked at."""
    also: str = ""
    and_in: tuple[str, str, str] | None = None
    may: Collection[str] = ALSO
    """What may happen besides the main story: less, where it only takes time to find."""


TWICE = frozenset({"nobody is called twice"})

MUTATIONS = {
    "a lease that ran out returns the job to the queue": Mutation(
        20, "public.claim_open_call", "if v_expired then", """if v_expired then
             delete from public.outbound_call_attempts where id = v_attempt.id;
             update public.outbound_call_jobs
             set status = 'queued', cancel_requested = false, due_at = v_now, attempts = attempts - 1
             where id = v_job.id;
             continue;""", TWICE,
    ),
    "two open attempts may have one number": Mutation(
        16, "public.claim_call_job",
        "on conflict (phone_e164) where state in ('started', 'in_doubt', 'accepted') do nothing", "",
        frozenset({"no phone rings for two calls at once"}),
        also="drop index public.outbound_call_attempts_one_open_per_number",
    ),
    "absent is believed at once": Mutation(
        0, "public.settle_call", "v_attempt.doubted_at + make_interval(secs => p_settling_s)",
        "v_attempt.doubted_at", TWICE, may=("sign-ups", "repeated callbacks", "long waits"),
    ),
    "a refusal counts in any state": Mutation(
        8, "public.refuse_call", "v_attempt.state is null or v_attempt.state not in ('started', 'in_doubt')",
        "v_attempt.state is null",
        frozenset({"a job goes only the ways of the design", "an attempt goes only the ways of the design",
                   "a job's open attempt is in the state that the job says"}),
        may=("repeated reports",),
    ),
    "a doubt is a refusal": Mutation(
        0, "public.doubt_call", "update public.outbound_call_attempts",
        "return public.refuse_call(p_attempt, p_code, p_reason); update public.outbound_call_attempts",
        frozenset({"no job is lost"}),
    ),
    "late truth is ignored": Mutation(
        16, "private.bind_call", "or (v_attempt.state = 'absent'", "or (false",
        frozenset({"late truth revives a job that came to nothing"}),
    ),
    "the last final word wins": Mutation(
        3, "public.record_call_status", "private.call_rank(p_call_status) > private.call_rank(call_status)",
        "private.call_rank(p_call_status) >= private.call_rank(call_status)",
        frozenset({"a call moves only forward, and the first final word wins"}),
    ),
    "an opt-out is looked at by opt_out alone": Mutation(
        2, "private.whom_not_to_call",
        "when exists (select from public.call_opt_outs o where o.phone_e164 = p_job.phone_e164)", "when false",
        frozenset({"who opted out is not dialed"}),
    ),
    "a pause is no more than a wish": Mutation(
        2, "public.claim_call_job", "and (paused_until is null or paused_until <= v_now)\n            and (halts",
        "and (halts", frozenset({"a pause holds"}),
        and_in=("private.gate_closed", "greatest(p_gate.paused_until, ", "greatest("),
    ),
    "a call that was put off is spent": Mutation(
        3, "public.record_call_status",
        "perform private.give_back_job(v_job, v_put_off_until, v_job.reason_code, v_job.reason);",
        """perform private.give_back_job(v_job, v_put_off_until, v_job.reason_code, v_job.reason);
           update public.outbound_call_jobs set attempts = attempts + 1 where id = v_job.id;""",
        frozenset({"every attempt is counted once"}),
    ),
}  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", MUTATIONS)
def test_mutation_is_noticed_by_the_state_machine(what: str, postgres: Postgres, template_database: str) -> None:
    mutation = MUTATIONS[what]
    with (
        a_copy(postgres, template_database, "mutated") as url,
        the_machine(url, mutation.trips, mutation.may) as machine,
    ):
        mutate(url, mutation)
        with pytest.raises(Broken) as broken:
            look_for_a_break(machine, mutation.seed)
    print(f"{what}: tripped {broken.value}")
    assert broken.value.invariant in mutation.trips


def look_for_a_break(machine: Callable[[], Dispatching], first_seed: int) -> None:
    for n in range(first_seed, first_seed + MOST_RUNS):
        run_state_machine_as_test(cast(Any, seed(n)(machine)), settings=SETTINGS)


def mutate(url: str, mutation: Mutation) -> None:
    with psycopg.connect(url) as connection:
        change_function(connection, mutation.function, mutation.old, mutation.new)
        if mutation.and_in is not None:
            change_function(connection, *mutation.and_in)
        connection.execute(mutation.also.encode())
