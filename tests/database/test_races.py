"""Two and more at once, with the real waits for locks: whoever comes first, the end is the same, and nobody deadlocks."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import psycopg
import pytest

from tests.conftest import Connection
from tests.database.conftest import Another
from tests.database.sql_api import OPEN, Row, Steps, a_number, a_sid, all_at_once, behind, in_background, until
from tests.sandbox.postgres import Postgres

StepResult = Callable[[Steps], Row | bool | None]


@pytest.fixture(scope="module", autouse=True)
def no_deadlocks(postgres: Postgres, module_database: str) -> Iterator[None]:
    """Over the whole file, as Postgres counted them."""
    yield
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        # A backend has told what it counted when it is gone.
        others = "select count(*) from pg_stat_activity where datname = %s"
        until(lambda: connection.execute(others, (module_database,)).fetchone() == (0,), "all connections are closed")
        query = "select deadlocks from pg_stat_database where datname = %s"
        row = connection.execute(query, (module_database,)).fetchone()
    assert row == (0,)


def one_after_the_other(eyes: Connection, another: Another, *crowd: StepResult) -> list[Row | bool | None]:
    """The first step holds its locks while the others, in this order, come and wait for them; then it commits."""
    first, *rest = (another() for _ in crowd)
    first.service.autocommit = False
    answer = crowd[0](first)
    with in_background(eyes) as start:
        waiting = [start(steps, partial(step, steps)) for steps, step in zip(rest, crowd[1:], strict=True)]
        first.service.commit()
        return [answer, *(future.result(20) for future in waiting)]


# --- claims -----------------------------------------------------------------------------------------------------------
def test_claims_of_one_job_at_once_are_one_call(steps: Steps, another: Another) -> None:
    job = steps.queue()
    callers = [another() for _ in range(50)]
    answers = all_at_once(lambda caller: caller.claim(job), callers)
    assert sorted(answer["outcome"] for answer in answers) == ["claimed"] + ["none"] * 49
    assert len(steps.attempts(job)) == 1


def test_sweeps_at_once_dial_each_job_once(steps: Steps, another: Another) -> None:
    jobs = [steps.queue() for _ in range(60)]

    def sweep(mine: Steps) -> list[int]:
        taken = []
        while (claim := mine.claim())["outcome"] == "claimed":
            taken.append(claim["job"]["id"])
        return taken

    sweeps = [another() for _ in range(8)]
    taken = all_at_once(sweep, sweeps)
    assert sorted(itertools.chain.from_iterable(taken)) == jobs


def test_job_held_by_another_sweep_is_passed_over(steps: Steps, another: Another) -> None:
    first, second = steps.queue(), steps.queue()
    locker = another().service
    locker.execute("reset role")
    with locker.transaction():
        locker.execute("select from public.outbound_call_jobs where id = %s for update", (first,))
        steps.service.execute("set statement_timeout = '5s'")
        assert steps.claim()["job"]["id"] == second
        assert steps.claim(first)["outcome"] == "none"


def test_jobs_of_one_number_at_once_are_one_call(steps: Steps, connection: Connection, another: Another) -> None:
    number = a_number()
    first, second = steps.queue(number), steps.queue(number)
    answers = one_after_the_other(connection, another, lambda s: s.claim(first), lambda s: s.claim(second))
    assert [answer["outcome"] for answer in answers if isinstance(answer, dict)] == ["claimed", "none"]
    assert steps.job(second)["reason_code"] == "number_in_use"


def test_claim_undone_leaves_the_number_to_another(steps: Steps, connection: Connection, another: Another) -> None:
    number = a_number()
    first, second = steps.queue(number), steps.queue(number)
    holder, waiter = another(), another()
    holder.service.autocommit = False
    holder.claim(first)
    with in_background(connection) as start:
        claim = start(waiter, lambda: waiter.claim(second))
        holder.service.rollback()
        assert claim.result(20)["outcome"] == "claimed"
    assert steps.job(first)["status"] == "queued"


def test_sweeps_among_numbers_in_use_do_not_deadlock(steps: Steps, another: Another) -> None:
    """Each puts off jobs of several numbers in one transaction; what it holds of one must not block the other."""
    numbers = [a_number() for _ in range(4)]
    for number, state in zip(numbers, ["duplicate", "duplicate", "accepted", "started"], strict=True):
        steps.attempt_in(state, number)
    for _ in range(40):
        for number in numbers:
            steps.queue(number)
    sweeps = [another() for _ in range(6)]
    answers = all_at_once(lambda mine: mine.claim(), sweeps)
    assert {answer["outcome"] for answer in answers} <= {"none", "wait"}  # wait: as many put off as one claim may


def test_claim_that_put_off_makes_nobody_wait(steps: Steps, another: Another) -> None:
    """It goes on to other numbers: two that wait for each other's would be a deadlock."""
    number = a_number()
    steps.attempt_in("duplicate", number)
    first, second = steps.queue(number), steps.queue(number)
    holder = another()
    holder.service.autocommit = False
    assert holder.claim(first)["outcome"] == "none"
    steps.service.execute("set statement_timeout = '5s'")
    assert steps.claim(second)["outcome"] == "none"
    holder.service.commit()


def test_pace_is_exact_over_claims_at_once(steps: Steps, another: Another) -> None:
    for _ in range(40):
        steps.queue()
    callers = [another() for _ in range(20)]
    answers = all_at_once(lambda caller: caller.claim(pace=0.1), callers)
    assert sorted(answer["outcome"] for answer in answers) == ["claimed"] + ["wait"] * 19


# --- pause ------------------------------------------------------------------------------------------------------------
def pause(steps: Steps) -> None:
    steps.call("pause_calls", reason="stop")


def test_claim_that_waited_for_a_pause_is_paused(steps: Steps, connection: Connection, another: Another) -> None:
    job = steps.queue()
    _, claim = one_after_the_other(connection, another, pause, lambda s: s.claim(job))
    assert isinstance(claim, dict)
    assert claim["outcome"] == "paused"
    assert (steps.job(job)["status"], steps.job(job)["attempts"], steps.attempts(job)) == ("queued", 0, [])


def test_claims_after_a_committed_pause_never_pass(steps: Steps, another: Another) -> None:
    for _ in range(300):
        steps.queue()

    def sweep(mine: Steps) -> int:
        while (answer := mine.claim())["outcome"] == "claimed":
            pass
        return 0 if answer["outcome"] == "paused" else -1

    def stop(mine: Steps) -> int:
        pause(mine)
        count: int = mine.service.execute("select count(*) from public.outbound_call_attempts").fetchall()[0][0]
        return count

    operator, *sweeps = (another() for _ in range(7))
    dialed, *_ = all_at_once(lambda mine: stop(mine) if mine is operator else sweep(mine), [operator, *sweeps])
    assert dialed < 300, "the sweeps were through before the pause: nothing was shown"
    assert steps.one("select count(*) from public.outbound_call_attempts") == dialed


# --- one attempt, and all that can be said of it ----------------------------------------------------------------------
def accepts(attempt: uuid.UUID, sid: str) -> StepResult:
    return lambda steps: steps.accept(attempt, sid)


def finds(attempt: uuid.UUID, sid: str) -> StepResult:
    return lambda steps: steps.settle(attempt, (sid, "queued"))


def finds_nothing(attempt: uuid.UUID, _sid: str) -> StepResult:
    return lambda steps: steps.settle(attempt)


def hears(word: str) -> Callable[[uuid.UUID, str], StepResult]:
    return lambda attempt, sid: lambda steps: steps.status(attempt, sid, word)


def the_end(steps: Steps, job: int) -> tuple[object, ...]:
    (attempt,) = steps.attempts(job)
    row = steps.job(job)
    return row["status"], row["attempts"], attempt["state"], attempt["call_sid"], attempt["call_status"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("settle", [finds, finds_nothing])
@pytest.mark.parametrize(
    ("word", "job_status", "state"), [("ringing", "calling", "accepted"), ("completed", "completed", "ended")]
)
def test_answer_list_and_callback_come_in_any_order(
    steps: Steps, connection: Connection, another: Another, order: tuple[int, ...],
    settle: Callable[[uuid.UUID, str], StepResult], word: str, job_status: str, state: str,
) -> None:  # fmt: skip
    job, attempt = steps.attempt_in("in_doubt")
    sid = a_sid()
    crowd = [step(attempt, sid) for step in (accepts, settle, hears(word))]
    one_after_the_other(connection, another, *(crowd[n] for n in order))
    assert the_end(steps, job) == (job_status, 1, state, sid, word)


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.permutations(["accept", "doubt", "refuse", "release", "cancel", "ask"], 2))
)
def test_any_two_at_once_leave_a_possible_state(
    steps: Steps, connection: Connection, another: Another, first: str, second: str
) -> None:
    """No open job without its attempt, no final one with an open attempt, and a call that is not wanted is known as such."""
    job, attempt = steps.attempt_in("started")
    sid = a_sid()
    if "ask" in (first, second):
        steps.make_due(job)

    def cancels(mine: Steps) -> None:
        with suppress(psycopg.errors.RaiseException):  # when the refusal has ended the job, there is nothing to cancel
            mine.call("cancel_call_job", job_id=job)

    crowd: dict[str, StepResult] = {
        "accept": accepts(attempt, sid), "doubt": lambda s: s.doubt(attempt), "refuse": lambda s: s.refuse(attempt),
        "release": lambda s: s.release(attempt), "cancel": cancels, "ask": lambda s: s.ask(),
    }  # fmt: skip
    if second == "ask":  # it never waits: what another holds, it passes over
        holder = another()
        holder.service.autocommit = False
        crowd[first](holder)
        assert steps.ask() == {"outcome": "none"}
        holder.service.commit()
    else:
        one_after_the_other(connection, another, crowd[first], crowd[second])
    row = steps.job(job)
    open_states = [a["state"] for a in steps.attempts(job) if a["state"] in OPEN]
    expected = {"dialing": ["started"], "in_doubt": ["in_doubt"], "calling": ["accepted"]}.get(row["status"], [])
    assert open_states == expected
    if "accept" in (first, second):
        answer = steps.accept(attempt, sid)
        assert (answer["then"] == "keep") == (row["status"] == "calling" and not row["cancel_requested"])


# --- late truth, while another has the number -------------------------------------------------------------------------
def test_late_truth_behind_a_claim_is_a_duplicate(steps: Steps, connection: Connection, another: Another) -> None:
    number = a_number()
    job, late = steps.attempt_in("absent", number)
    other = steps.queue(number)
    claim, answer = one_after_the_other(connection, another, lambda s: s.claim(other), accepts(late, a_sid()))
    assert isinstance(claim, dict)
    assert isinstance(answer, dict)
    assert (claim["outcome"], answer["then"]) == ("claimed", "end")
    assert (steps.attempt(late)["state"], steps.job(job)["status"]) == ("duplicate", "queued")


def test_claim_behind_late_truth_is_put_off(steps: Steps, connection: Connection, another: Another) -> None:
    number = a_number()
    job, late = steps.attempt_in("absent", number)
    other = steps.queue(number)
    one_after_the_other(connection, another, accepts(late, a_sid()), lambda s: s.claim(other))
    assert (steps.job(job)["status"], steps.job(other)["reason_code"]) == ("calling", "number_in_use")


@pytest.mark.parametrize("state", ["absent", "refused", "accepted", "ended", "canceled"])
def test_sid_for_two_attempts_at_once_is_one_call(
    steps: Steps, connection: Connection, another: Another, state: str
) -> None:
    """The list gives the SID to one attempt while a callback claims it for another of the same number."""
    number, sid = a_number(), a_sid()
    job, first = steps.attempt_in({"canceled": "absent", "accepted": "ended"}.get(state, state), number)
    if state == "canceled":
        steps.call("cancel_call_job", job_id=job)
    other, second = steps.attempt_in("in_doubt", number)
    found, heard = one_after_the_other(connection, another, finds(second, sid), hears("ringing")(first, sid))
    assert isinstance(found, dict)
    assert isinstance(heard, dict)
    assert (found["then"], heard["then"]) == ("keep", "keep")
    assert (steps.attempt(second)["call_sid"], steps.attempt(second)["call_status"]) == (sid, "ringing")
    assert steps.job(other)["status"] == "calling"


# --- by hand, meanwhile -----------------------------------------------------------------------------------------------
def test_cancel_behind_a_claim_ends_its_call(steps: Steps, another: Another) -> None:
    job, attempt = steps.queue(), uuid.uuid4()
    claimer = another()
    behind(claimer, lambda: claimer.claim(job, attempt), steps, lambda: steps.call("cancel_call_job", job_id=job))
    assert (steps.job(job)["status"], steps.job(job)["cancel_requested"]) == ("dialing", True)
    assert steps.accept(attempt, a_sid())["then"] == "end"


def test_job_that_is_being_canceled_is_not_claimed(steps: Steps, another: Another) -> None:
    job, operator = steps.queue(), another()
    operator.service.autocommit = False
    operator.call("cancel_call_job", job_id=job)
    assert steps.claim(job)["outcome"] == "none"
    operator.service.commit()
    assert steps.job(job)["status"] == "canceled"


def test_delete_behind_a_claim_cancels_instead(steps: Steps, another: Another) -> None:
    job, claimer, deleter = steps.queue(), another(), another()
    deleter.service.execute("reset role")
    delete = "delete from public.outbound_call_jobs where id = %s"
    behind(claimer, lambda: claimer.claim(job), deleter, lambda: deleter.service.execute(delete, (job,)))
    assert (steps.job(job)["status"], steps.job(job)["cancel_requested"]) == ("dialing", True)


def test_everything_at_once_ends_without_a_deadlock(steps: Steps, another: Another) -> None:
    """Eight that claim, doubt, accept, hear and settle over six numbers, each in an order of its own."""
    numbers = [a_number() for _ in range(6)]
    for n in range(60):
        steps.queue(numbers[n % 6])

    def work(mine: Steps, seed: int) -> int:
        done = 0
        for turn in range(25):
            claim = mine.claim(1 + (seed * 7 + turn * 11) % 60) if turn % 2 else mine.claim()
            if claim["outcome"] == "claimed":
                attempt, sid = uuid.UUID(claim["attempt"]["id"]), a_sid()
                match (seed + turn) % 4:
                    case 0:
                        mine.doubt(attempt)
                    case 1:
                        mine.accept(attempt, sid)
                        mine.status(attempt, sid, "busy", delays_s=(0.0, 0.0))
                    case 2:
                        mine.status(attempt, sid, "ringing")
                        mine.accept(attempt, a_sid())
                    case _:
                        mine.release(attempt, halt_s=None)
                done += 1
            if (asked := mine.ask())["outcome"] == "ask":
                if asked["call_sid"] is None:
                    mine.settle(uuid.UUID(asked["attempt"]), delays_s=(0.0, 0.0))
                else:
                    mine.status(uuid.UUID(asked["attempt"]), asked["call_sid"], "completed")
            mine.pass_time(50)
        return done

    workers = [another() for _ in range(8)]
    done = all_at_once(lambda mine: work(mine, workers.index(mine)), workers)
    assert sum(done) > 20
