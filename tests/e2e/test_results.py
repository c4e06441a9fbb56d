"""What came of a call is told to the receiver: at once, once, signed; and by nobody's fault less often than once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from function.doctor import main
from tests.chaos.results import KINDS, Count, judge, run
from tests.e2e.conftest import Row, World, fresh_world
from tests.sandbox.receiver import Receiver
from tests.sandbox.sandbox import Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """No sweeps but those that a test sends."""
    environ = {"RESULT_METADATA": "plan", "RESULT_RETRY_SECONDS": "1", "CALL_MAX_ATTEMPTS": "1"}
    with Sandbox(scheduler=False, environ=environ, results=True) as sandbox:
        yield sandbox


@pytest.fixture
def world(sandbox: Sandbox) -> Iterator[World]:
    with fresh_world(sandbox) as world:
        world.sweep()  # results are on
        yield world


@pytest.fixture
def receiver(world: World) -> Receiver:
    assert world.sandbox.receiver is not None
    return world.sandbox.receiver


def outbox(world: World) -> list[Row]:
    return world.rows("select * from private.call_results order by seq")


def call(world: World, *digits: str) -> int:
    number = world.number()
    world.behave(to=number, digits=list(digits))
    job = world.insert_job(number, "demo", metadata=json.dumps({"plan": "pro", "other": "x"}))
    world.until_status(job, "completed", "failed")
    return job


def test_a_result_is_told_at_once_signed_and_without_a_sweep(world: World, receiver: Receiver) -> None:
    job = call(world, "2", "1")
    (told,) = world.until(lambda: receiver.told)
    data = {name: told["event"]["data"][name] for name in ("job_id", "answers", "metadata")}
    assert (told["verified"], told["type"], data) == (True, "call.completed", {
        "job_id": job, "answers": {"team_size": "2_to_10", "single_sign_on": "yes"}, "metadata": {"plan": "pro"},
    })  # fmt: skip
    world.until(lambda: outbox(world)[0]["state"] == "told")
    world.until(lambda: world.log_lines("result told"))


def test_opt_outs_and_refused_numbers_are_told(world: World, receiver: Receiver) -> None:
    job = call(world, "9")
    told = world.until(lambda: told if len(told := receiver.told) == 2 else None) or []
    assert {(post["type"], post["event"]["data"]["job_id"]) for post in told} == {
        ("call.completed", job), ("number.opted_out", job),
    }  # fmt: skip
    world.insert_job("+1900" + world.number()[5:])
    last = world.until(lambda: receiver.told[2:])[0]
    assert (last["type"], last["event"]["data"]["reason_code"]) == ("call.failed", "premium_rate")


def test_a_hanging_receiver_holds_up_neither_twilio_nor_a_sweep(world: World, receiver: Receiver) -> None:
    receiver.behave(do="hang", seconds=60)
    for _ in range(6):
        call(world)
    began = time.monotonic()
    world.sweep()
    assert time.monotonic() - began < 6.7  # a sweep's own limit here; a fifth of it for the receiver
    waits_ms = [event["ms"] for event in world.sandbox.events.kept() if event["kind"] == "callback"]
    assert len(waits_ms) >= 6 * 4
    assert max(waits_ms) < 1000


def test_results_that_were_due_are_kept_while_no_url_is_set(world: World, receiver: Receiver) -> None:
    receiver.behave(do="refuse")
    call(world)
    world.until(lambda: outbox(world) and outbox(world)[0]["note"])
    receiver.behave()
    assert world.sweep_command(RESULT_URL="").returncode == 0
    assert world.rows("select results from private.call_settings") == [{"results": {}}]
    assert [row["state"] for row in outbox(world)] == ["due"]
    world.set_clock(5)
    assert world.sweep_command().returncode == 0  # a cron job waits for what it sends
    assert [row["state"] for row in outbox(world)] == ["told"]


def test_the_doctor_says_what_the_receiver_answers(
    world: World, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    ways: list[tuple[dict[str, Any], str, str]] = [
        ({}, "ok", "HTTP 200"), ({"do": "refuse", "status": 401}, "wrong", "RESULT_SECRET"),
        ({"do": "close"}, "wrong", "three days"),
    ]  # fmt: skip
    for behaviour, state, said in ways:
        receiver.behave(**behaviour)
        main(["--json"], world.sandbox.settings)
        (line,) = [found for found in json.loads(capsys.readouterr().out) if found["check"] == "results"]
        assert (line["state"], said in line["found"] + line["advice"]) == (state, True), line
    assert {(post["type"], post["verified"]) for post in receiver.posts} == {("test", True)}


# --- the proof, in a small form, and proof that its judge can see what it looks for ---------------------------------------
def test_every_result_arrives_in_order_whatever_dies() -> None:
    said: list[str] = []
    count = run(36, seed=20261128, kinds=KINDS, say=said.append)
    assert count.is_clean, "\n".join([*said, str(count)])
    assert count.events >= 36


def test_the_judge_sees_what_is_missing_changed_unsigned_or_late() -> None:
    def judged(rows: str, *posts: tuple[str, object], ends: int = 0, verified: bool = True) -> Count:
        """`rows`: ids, in capitals while they are due. `posts`: id and answer, or id and body."""
        outbox = [{"id": id_.lower(), "subject": "7", "state": "told" if id_.islower() else "due"} for id_ in rows]
        arrived = [
            {"id": id_, "answer": 200 if told == "[]" else told, "body": told if told == "[]" else "{}", "verified": verified}
            for id_, told in posts
        ]  # fmt: skip
        return judge(outbox, ends or len(outbox), arrived)

    a, b = ("a", 200), ("b", 200)
    clean = Count(events=2, posts=2, missing=0, changed=0, unsigned=0, out_of_order=0)
    assert judged("ab", a, b) == clean
    assert judged("ab", ("a", 500), a, b).is_clean
    wrong = {
        "missing": [judged("a", a, ends=2), judged("A", a), judged("a", ("a", "close"))],
        "changed": [judged("a", a, ("a", "[]"))],
        "unsigned": [judged("a", a, verified=False)],
        "out_of_order": [judged("ab", ("a", 500), ("b", 500), a, b)],
    }
    assert [(name, count) for name, counts in wrong.items() for count in counts if getattr(count, name) != 1] == []
