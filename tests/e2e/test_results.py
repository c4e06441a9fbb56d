"""What came of a call is told to the receiver: at once, once, signed; and by nobody's fault less often than once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from function.doctor import main
from tests.chaos.results import KINDS, Count, judge, run
from tests.e2e.conftest import World, fresh_world
from tests.sandbox.receiver import Receiver
from tests.sandbox.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """No sweeps but those that a test sends."""
    environ = {"RESULT_METADATA": "plan", "RESULT_RETRY_SECONDS": "1", "CALL_MAX_ATTEMPTS": "1"}
    with Sandbox(scheduler=False, environ=environ, results=True) as sandbox:
        yield sandbox


@pytest.fixture
def world(sandbox: Sandbox) -> Iterator[World]:
    with fresh_world(sandbox) as world:
        sweep(world)  # results are on
        yield world


def receiver(world: World) -> Receiver:
    assert world.sandbox.receiver is not None
    return world.sandbox.receiver


def sweep(world: World) -> float:
    """-> how long it took"""
    began = time.monotonic()
    headers = {"Authorization": f"Bearer {world.sandbox.dispatch_secret}"}
    assert world.post("/sweep", headers=headers, json={}).status_code == 200
    return time.monotonic() - began


def outbox(world: World) -> list[Row]:
    return world.rows("select * from private.call_results order by seq")


def call(world: World, *digits: str, **rule: object) -> int:
    number = world.number()
    world.behave(to=number, digits=list(digits), **rule)
    job = world.insert_job(number, "demo", metadata=json.dumps({"plan": "pro", "other": "x"}))
    world.until_status(job, "completed", "failed")
    return job


def test_a_result_is_told_at_once_signed_and_without_a_sweep(world: World) -> None:
    job = call(world, "2", "1")
    (told,) = world.until(lambda: receiver(world).told)
    assert told["verified"]
    assert (told["type"], told["event"]["data"]["job_id"]) == ("call.completed", job)
    assert told["event"]["data"]["answers"] == {"team_size": "2_to_10", "single_sign_on": "yes"}
    assert told["event"]["data"]["metadata"] == {"plan": "pro"}
    world.until(lambda: outbox(world)[0]["state"] == "told")
    assert "result told" in world.sandbox.function_log.read_text()


def test_an_opt_out_is_told_before_the_call_that_it_ended(world: World) -> None:
    job = call(world, "9")
    told = world.until(lambda: told if len(told := receiver(world).told) == 2 else None) or []
    assert sorted(post["type"] for post in told) == ["call.completed", "number.opted_out"]
    assert {post["event"]["data"]["job_id"] for post in told} == {job}


def test_a_refused_number_is_told_by_its_reason(world: World) -> None:
    world.insert_job("+1900" + world.number()[5:])
    (told,) = world.until(lambda: receiver(world).told)
    assert (told["type"], told["event"]["data"]["reason_code"]) == ("call.failed", "premium_rate")


def test_a_hanging_receiver_holds_up_neither_twilio_nor_a_sweep(world: World) -> None:
    receiver(world).behave(do="hang", seconds=60)
    for _ in range(6):
        call(world)
    assert sweep(world) < 6.7  # a sweep's own limit here; a fifth of it for the receiver
    waits_ms = [event["ms"] for event in world.sandbox.events.kept() if event["kind"] == "callback"]
    assert len(waits_ms) >= 6 * 4
    assert max(waits_ms) < 1000


def test_a_result_is_told_again_with_its_id_after_each_failure(world: World) -> None:
    receiver(world).behave(do="refuse", status=503, headers={"Retry-After": "3"}, times=1)
    call(world)
    (first,) = world.until(lambda: receiver(world).posts)
    world.until(lambda: outbox(world)[0]["note"])
    sweep(world)
    assert len(receiver(world).posts) == 1  # the receiver asked for three seconds
    world.set_clock(3.1)
    receiver(world).behave(do="close", times=1)
    sweep(world)
    assert len(receiver(world).posts) == 2
    world.set_clock(9)
    sweep(world)
    assert [post["answer"] for post in receiver(world).posts] == [503, "close", 200]
    assert {(post["id"], post["body"]) for post in receiver(world).posts} == {(first["id"], first["body"])}
    world.set_clock(0)


def test_a_function_killed_in_mid_delivery_tells_it_later(world: World) -> None:
    receiver(world).behave(do="hang", seconds=60)
    call(world)
    world.until(lambda: receiver(world).posts)
    pid = world.sandbox.ready.function_pid
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid or 0, signal.SIGKILL)
    world.until(lambda: world.sandbox.ready.function_pid != pid)
    receiver(world).behave()
    sweep(world)
    assert receiver(world).told == []  # its lease holds
    world.set_clock(60)
    sweep(world)
    assert [post["id"] for post in receiver(world).told] == [receiver(world).posts[0]["id"]]
    world.set_clock(0)


def test_a_receiver_that_is_gone_is_asked_no_more(world: World) -> None:
    receiver(world).behave(do="refuse", status=410)
    call(world)
    world.until(lambda: outbox(world) and outbox(world)[0]["state"] == "gone")
    world.set_clock(86_400)
    sweep(world)
    assert len(receiver(world).posts) == 1
    world.set_clock(0)


def test_results_that_were_due_are_kept_while_no_url_is_set(world: World) -> None:
    receiver(world).behave(do="refuse")
    call(world)
    world.until(lambda: outbox(world)[0]["note"])
    receiver(world).behave()
    swept_alone(world, RESULT_URL="")
    assert world.rows("select results from private.call_settings") == [{"results": {}}]
    assert [row["state"] for row in outbox(world)] == ["due"]
    world.set_clock(5)
    swept_alone(world)  # a cron job waits for what it sends
    assert [row["state"] for row in outbox(world)] == ["told"]
    world.set_clock(0)


def swept_alone(world: World, **settings: str) -> None:
    command = [sys.executable, "-m", "function.sweep"]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **world.sandbox.settings, **settings}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_doctor_says_what_the_receiver_answers(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    ways: dict[str, tuple[dict[str, object], str, str]] = {
        "takes": ({}, "ok", "HTTP 200"), "refuses": ({"do": "refuse", "status": 401}, "wrong", "RESULT_SECRET"),
        "hangs up": ({"do": "close"}, "wrong", "three days"),
    }  # fmt: skip
    wrong = []
    for name, (behaviour, state, said) in ways.items():
        receiver(world).behave(**behaviour)
        main(["--json"], world.sandbox.settings)
        (line,) = [found for found in json.loads(capsys.readouterr().out) if found["check"] == "results"]
        if line["state"] != state or said not in line["found"] + line["advice"]:
            wrong.append((name, line))
    assert wrong == []
    assert {post["type"] for post in receiver(world).posts} == {"test"}
    assert all(post["verified"] for post in receiver(world).posts)


# --- the proof, in a small form, and proof that its judge can see what it looks for ---------------------------------------


def test_every_result_arrives_in_order_whatever_dies() -> None:
    said: list[str] = []
    count = run(36, seed=20261128, kinds=KINDS, say=said.append)
    assert count.is_clean, "\n".join([*said, str(count)])
    assert count.events >= 36


def test_the_judge_sees_what_is_missing_changed_unsigned_or_late() -> None:
    def row(id_: str, state: str = "told") -> Row:
        return {"id": id_, "subject": "7", "state": state}

    def post(id_: str, answer: object = 200, body: str = "{}", verified: bool = True) -> Row:
        return {"id": id_, "answer": answer, "body": body, "verified": verified}

    clean = Count(events=2, posts=2, missing=0, changed=0, unsigned=0, out_of_order=0)
    assert judge([row("a"), row("b")], 2, [post("a"), post("b")]) == clean
    assert judge([row("a"), row("b")], 2, [post("a", 500), post("a"), post("b")]).is_clean
    assert judge([row("a")], 2, [post("a")]).missing == 1
    assert judge([row("a", "due")], 1, [post("a")]).missing == 1
    assert judge([row("a")], 1, [post("a", "close")]).missing == 1
    assert judge([row("a")], 1, [post("a"), post("a", body="[]")]).changed == 1
    assert judge([row("a")], 1, [post("a", verified=False)]).unsigned == 1
    assert judge([row("a"), row("b")], 2, [post("a", 500), post("b", 500), post("a"), post("b")]).out_of_order == 1
