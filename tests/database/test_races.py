"""Two and more at once, with the real waits for locks: whoever comes first, the end is the same, and nobody deadlocks."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress

import psycopg
import pytest

from tests.conftest import Connection
from tests.database.conftest import Another, Queue, StepResult
from tests.database.sql_api import OPEN, Row, Steps, a_number, a_sid, all_at_once, behind, in_background, until
from tests.sandbox.postgres import Postgres


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


def words(answers: list[Row | bool | None], *keys: str) -> list[object]:
    """Of each answer, the word under its key."""
    return [answer[key] for answer, key in zip(answers, keys, strict=True) if isinstance(answer, dict)]


def claims(job: int) -> StepResult:
    return lambda steps: steps.claim(job)


def claimed_until_denied(steps: Steps) -> tuple[list[int], str]:
    """A whole sweep. -> the jobs that it took, and why it took no more"""
    taken = []
    while (claim := steps.claim())["outcome"] == "claimed":
        taken.append(claim["job"]["id"])
    return taken, claim["outcome"]


# --- claims -----------------------------------------------------------------------------------------------------------
def test_claims_of_one_job_at_once_are_one_call(steps: Steps, another: Another) -> None:
    job = steps.queue()
    answers = all_at_once(lambda caller: caller.claim(job), [another() for _ in range(50)])
    assert sorted(answer["outcome"] for answer in answers) == ["claimed"] + ["none"] * 49
    assert len(steps.attempts(job)) == 1


def test_sweeps_at_once_dial_each_job_once(steps: Steps, another: Another) -> None:
    jobs = [steps.queue() for _ in range(60)]
    sweeps = all_at_once(claimed_until_denied, [another() for _ in range(8)])
    assert sorted(itertools.chain.from_iterable(taken for taken, _ in sweeps)) == jobs


def test_job_held_by_another_sweep_is_passed_over(steps: Steps, another: Another) -> None:
    first, second = steps.queue(), steps.queue()
    locker = another().service
    locker.execute("reset role")
    with locker.transaction():
        locker.execute("select from public.outbound_call_jobs where id = %s for update", (first,))
        steps.service.execute("set statement_timeout = '5s'")
        assert steps.claim()["job"]["id"] == second
        assert steps.claim(first)["outcome"] == "none"


def test_jobs_of_one_number_at_once_are_one_call(steps: Steps, one_after_the_other: Queue) -> None:
    number = a_number()
    first, second = steps.queue(number), steps.queue(number)
    answers = one_after_the_other(claims(first), claims(second))
    assert words(answers, "outcome", "outcome") == ["claimed", "none"]
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
    for number in numbers * 40:
        steps.queue(number)
    answers = all_at_once(lambda mine: mine.claim(), [another() for _ in range(6)])
    assert {answer["outcome"] for answer in answers} <= {"none", "wait"}  # wait: as many put off as one claim may


def test_claim_that_put_off_makes_nobody_wait(steps: Steps, another: Another) -> None:
    """It goes on to other numbers: two that wait for each other's would be a deadlock."""
    steps.attempt_in("duplicate", number := a_number())
    first, second, holder = steps.queue(number), steps.queue(number), another()
    steps.service.execute("set statement_timeout = '5s'")
    with holder.service.transaction():
        assert holder.claim(first)["outcome"] == "none"
        assert steps.claim(second)["outcome"] == "none"


def test_pace_is_exact_over_claims_at_once(steps: Steps, another: Another) -> None:
    for _ in range(40):
        steps.queue()
    answers = all_at_once(lambda caller: caller.claim(pace=0.1), [another() for _ in range(20)])
    assert sorted(answer["outcome"] for answer in answers) == ["claimed"] + ["wait"] * 19


# --- pause ------------------------------------------------------------------------------------------------------------
def pause(steps: Steps) -> None:
    steps.call("pause_calls", reason="stop")


def test_claim_that_waited_for_a_pause_is_paused(steps: Steps, one_after_the_other: Queue) -> None:
    job = steps.queue()
    _, claim = one_after_the_other(pause, claims(job))
    assert isinstance(claim, dict)
    assert (claim["outcome"], steps.brief(job), steps.attempts(job)) == ("paused", ("queued", 0, None), [])


def test_claims_after_a_committed_pause_never_pass(steps: Steps, another: Another) -> None:
    for _ in range(300):
        steps.queue()
    operator, *sweeps = (another() for _ in range(7))

    def work(mine: Steps) -> int:
        if mine is not operator:
            return len(claimed_until_denied(mine)[0])
        pause(mine)
        count: int = mine.service.execute("select count(*) from public.outbound_call_attempts").fetchall()[0][0]
        return count

    dialed, *taken = all_at_once(work, [operator, *sweeps])
    assert dialed < 300, "the sweeps were through before the pause: nothing was shown"
    assert steps.one("select count(*) from public.outbound_call_attempts") == sum(taken) == dialed


# --- one attempt, and all that can be said of it ----------------------------------------------------------------------
def accepts(attempt: uuid.UUID, sid: str) -> StepResult:
    return lambda steps: steps.accept(attempt, sid)


def finds(attempt: uuid.UUID, sid: str) -> StepResult:
    return lambda steps: steps.settle(attempt, (sid, "queued"))


def finds_nothing(attempt: uuid.UUID, _sid: str) -> StepResult:
    return lambda steps: steps.settle(attempt)


def hears(word: str) -> Callable[[uuid.UUID, str], StepResult]:
    return lambda attempt, sid: lambda steps: steps.status(attempt, sid, word)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("settle", [finds, finds_nothing])
@pytest.mark.parametrize(
    ("word", "job_status", "state"), [("ringing", "calling", "accepted"), ("completed", "completed", "ended")]
)
def test_answer_list_and_callback_come_in_any_order(
    steps: Steps, one_after_the_other: Queue, order: tuple[int, ...],
    settle: Callable[[uuid.UUID, str], StepResult], word: str, job_status: str, state: str,
) -> None:  # fmt: skip
    job, attempt = steps.attempt_in("in_doubt")
    sid = a_sid()
    crowd = [step(attempt, sid) for step in (accepts, settle, hears(word))]
    one_after_the_other(*(crowd[n] for n in order))
    (row,) = steps.attempts(job)
    assert (row["state"], row["call_sid"], row["call_status"]) == (state, sid, word)
    assert steps.brief(job)[:2] == (job_status, 1)


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.permutations(["accept", "doubt", "refuse", "release", "cancel", "ask"], 2))
)
def test_any_two_at_once_leave_a_possible_state(
    steps: Steps, one_after_the_other: Queue, another: Another, first: str, second: str
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
        with holder.service.transaction():
            crowd[first](holder)
            assert steps.ask() == {"outcome": "none"}
    else:
        one_after_the_other(crowd[first], crowd[second])
    row = steps.job(job)
    open_states = [a["state"] for a in steps.attempts(job) if a["state"] in OPEN]
    assert open_states == {"dialing": ["started"], "in_doubt": ["in_doubt"], "calling": ["accepted"]}.get(
        row["status"], []
    )
    if "accept" in (first, second):
        answer = steps.accept(attempt, sid)
        assert (answer["then"] == "keep") == (row["status"] == "calling" and not row["cancel_requested"])


# --- late truth, while another has the number -------------------------------------------------------------------------
def test_late_truth_behind_a_claim_is_a_duplicate(steps: Steps, one_after_the_other: Queue) -> None:
    job, late = steps.attempt_in("absent", number := a_number())
    answers = one_after_the_other(claims(steps.queue(number)), accepts(late, a_sid()))
    assert words(answers, "outcome", "then") == ["claimed", "end"]
    assert (steps.attempt(late)["state"], steps.job(job)["status"]) == ("duplicate", "queued")


def test_claim_behind_late_truth_is_put_off(steps: Steps, one_after_the_other: Queue) -> None:
    job, late = steps.attempt_in("absent", number := a_number())
    other = steps.queue(number)
    one_after_the_other(accepts(late, a_sid()), claims(other))
    assert (steps.job(job)["status"], steps.job(other)["reason_code"]) == ("calling", "number_in_use")


@pytest.mark.parametrize("state", ["absent", "refused", "ended", "canceled"])
def test_sid_for_two_attempts_at_once_is_one_call(steps: Steps, one_after_the_other: Queue, state: str) -> None:
    """The list gives the SID to one attempt while a callback claims it for another of the same number."""
    number, sid = a_number(), a_sid()
    job, first = steps.attempt_in("absent" if state == "canceled" else state, number)
    if state == "canceled":
        steps.call("cancel_call_job", job_id=job)
    other, second = steps.attempt_in("in_doubt", number)
    answers = one_after_the_other(finds(second, sid), hears("ringing")(first, sid))
    assert words(answers, "then", "then") == ["keep", "keep"]
    row = steps.attempt(second)
    assert (row["call_sid"], row["call_status"], steps.job(other)["status"]) == (sid, "ringing", "calling")


# --- by hand, meanwhile -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("by_hand", ["cancel", "delete", "opt_out"])
def test_stop_behind_a_claim_ends_its_call(steps: Steps, another: Another, by_hand: str) -> None:
    job, claimer, operator = steps.queue(number := a_number()), another(), another()
    operator.service.execute("reset role")

    def stop() -> object:
        match by_hand:
            case "cancel":
                return operator.call("cancel_call_job", job_id=job)
            case "opt_out":
                return operator.call("opt_out", phone_number=number)
            case _:
                return operator.service.execute("delete from public.outbound_call_jobs where id = %s", (job,)).rowcount

    answers = {"cancel": "dialing", "delete": 0, "opt_out": {"canceled": 0, "ending": 1, "jobs": 1, "calls": 1}}
    attempt, answer = behind(claimer, lambda: claimer.start(job), operator, stop)
    assert answer == answers[by_hand]
    assert (steps.job(job)["status"], steps.job(job)["cancel_requested"]) == ("dialing", True)
    assert steps.accept(attempt, a_sid())["then"] == "end"


def test_opt_out_locks_jobs_in_their_order(steps: Steps, connection: Connection, another: Another) -> None:
    """Two opt-outs at once cannot deadlock: one that waits for the older job holds no newer one yet."""
    older, newer = steps.queue(number := a_number()), steps.queue(number)
    steps.change_job(older, due_at=steps.now())  # an indexed column: now its index entries lie behind the newer one
    holder, operator = another(), another()
    holder.service.execute("reset role")
    with in_background(connection) as start, holder.service.transaction():
        holder.service.execute("select from public.outbound_call_jobs where id = %s for update", (older,))
        stopped = start(operator, lambda: operator.call("opt_out", phone_number=number))
        connection.execute("select from public.outbound_call_jobs where id = %s for update nowait", (newer,))
    assert stopped.result(20)["canceled"] == 2


def test_opt_out_spares_a_job_whose_number_changes(steps: Steps, connection: Connection, another: Another) -> None:
    job, holder, operator, user = steps.queue(number := a_number()), another(), another(), another()
    for each in (holder, user):
        each.service.execute("reset role")
    with in_background(connection) as start, user.service.transaction():
        with holder.service.transaction():
            holder.service.execute("select from public.outbound_call_jobs where id = %s for update", (job,))
            stopped = start(operator, lambda: operator.call("opt_out", phone_number=number))
            other = steps.queue(number)  # committed after the opt-out looked for jobs to lock
            change = "update public.outbound_call_jobs set phone_number = %(n)s, phone_e164 = %(n)s where id = %(id)s"
            user.service.execute(change, {"n": a_number(), "id": other})
        pids = (user.service.info.backend_pid, operator.service.info.backend_pid)
        until(lambda: steps.one("select %s = any (pg_blocking_pids(%s))", *pids), "the opt-out waits for the change")
    assert (stopped.result(20)["canceled"], steps.job(job)["status"], steps.job(other)["status"]) == (
        1, "canceled", "queued",
    )  # fmt: skip


def test_job_that_is_being_canceled_is_not_claimed(steps: Steps, another: Another) -> None:
    job, operator = steps.queue(), another()
    with operator.service.transaction():
        operator.call("cancel_call_job", job_id=job)
        assert steps.claim(job)["outcome"] == "none"
    assert steps.job(job)["status"] == "canceled"


def test_everything_at_once_ends_without_a_deadlock(steps: Steps, another: Another) -> None:
    """Eight that claim, doubt, accept, hear and settle over six numbers, each in an order of its own."""
    numbers = [a_number() for _ in range(6)]
    for number in numbers * 10:
        steps.queue(number)

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
    assert sum(all_at_once(lambda mine: work(mine, workers.index(mine)), workers)) > 20
