"""One POST of a result: its signatures, its limits, and the meaning of each answer. Real sockets, no database."""

from __future__ import annotations

import email.utils
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from standardwebhooks import Webhook

from function.sender import THREADS, Sender
from shared.deadline import ClaimClock
from shared.http import DeadlinePassed
from shared.jobs import Jobs, JobsUnavailable
from shared.models import ClaimedResult, NextResult, Nothing
from shared.results import Outcome, judge, post, post_test
from shared.settings import Settings
from tests.unit.examples import SECRET, settings
from tests.unit.servers import DRIP_S, OK, certified, closing, dripping, endless, say, server, silent

OTHER = "whsec_" + "bmV3ZXIgYW5kIG5ld2VyIGFuZCBuZXdlciBhbmQgbmV3ZXI="
BODY = '{"type":"call.completed","data":{"é":1e300}}'


def ours(base: str, **changed: str) -> Settings:
    return settings(**{"RESULT_URL": f"{base}/hook?key=s3cret", "RESULT_SECRET": SECRET, **changed})


def send(base: str, **changed: str) -> Outcome:
    return post(ours(base, **changed), "evt_1", BODY, ClaimClock.now())


# --- what is sent ---------------------------------------------------------------------------------------------------------


def test_a_result_is_signed_with_every_secret_while_rotating() -> None:
    requests: list[bytes] = []
    with server(say(OK), requests=requests) as url:
        assert send(url, RESULT_SECRET=f"{OTHER} {SECRET}") == Outcome("told", "HTTP 200")
    ((head, _, body),) = (request.partition(b"\r\n\r\n") for request in requests)
    first_line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert (first_line, body) == ("POST /hook?key=s3cret HTTP/1.1", BODY.encode())
    assert (headers["webhook-id"], headers["content-type"]) == ("evt_1", "application/json")
    assert len(headers["webhook-signature"].split()) == 2
    for secret in (SECRET, OTHER):
        Webhook(secret).verify(body, headers)


def test_the_doctor_sends_an_event_of_type_test() -> None:
    requests: list[bytes] = []
    with server(say(OK), requests=requests) as url:
        outcome = post_test(ours("", RESULT_URL=f"{url}?key=s3cret"))  # without a path: to the root
    head, _, body = requests[0].partition(b"\r\n\r\n")
    event = json.loads(body)
    assert (outcome.state, event["type"], event["data"]) == ("told", "test", {})
    assert head.startswith(b"POST /?key=s3cret HTTP/1.1\r\n")


def test_a_frozen_process_sends_nothing() -> None:
    requests: list[bytes] = []
    with server(say(OK), requests=requests) as url:
        half = ours(url).call_lease_seconds / 2
        asleep = ClaimClock(time.monotonic(), time.time() - half - 1)  # the monotonic clock may stand still meanwhile
        with pytest.raises(DeadlinePassed):
            post(ours(url), "evt_1", BODY, asleep)
    assert requests == []


# --- what comes back ------------------------------------------------------------------------------------------------------


def be_late(connection: socket.socket) -> None:
    connection.recv(1)  # until the sender gives up
    connection.sendall(OK)


def test_receivers_of_every_bad_kind_cost_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.results.ANSWER_SECONDS", 1.0)
    moved = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    late = "no answer within 1 s"
    kinds = {
        "closes": (closing(), "due", "the connection was lost"),
        "hangs": (silent, "due", late),
        "drips": (dripping(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"), "due", late),
        "is late": (be_late, "due", late),
        "redirects": (say(moved), "due", "HTTP 302 (redirects are not followed)"),
        "talks nonsense": (say(b"ok\r\n\r\n"), "due", "the connection was lost"),
        "hints first": (say(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2 + OK), "told", "HTTP 200"),
        "hints without end": (dripping(b"", b"HTTP/1.1 102 Processing\r\n\r\n"), "due", late),
        "hints and closes": (closing(b"HTTP/1.1 103 Early Hints\r\n\r\n"), "due", "the connection was lost"),
        "answers a gigabyte": (endless, "told", "HTTP 200"),
        "promises a body and closes": (closing(b"HTTP/1.1 201 Made\r\nContent-Length: 9\r\n\r\n"), "told", "HTTP 201"),
    }
    seen, slow = {}, []
    for name, (reply, _, _) in kinds.items():
        with server(reply) as url:
            began = time.monotonic()
            outcome = send(url)
        seen[name] = (reply, outcome.state, outcome.note)
        if time.monotonic() - began > DRIP_S / 2:
            slow.append((name, time.monotonic() - began))
    assert (seen, slow) == (kinds, [])
    requests: list[bytes] = []
    with server(say(OK), tls=certified()[0], requests=requests) as url:
        assert (send(url).note, requests) == ("its certificate could not be verified", [])
    for url in ("http://127.0.0.1:1", "https://nowhere.invalid", f"https://{'a' * 64}.invalid"):
        outcome = send(url)
        assert (outcome.note, outcome.delay_s > 0) == ("no connection", True), url


def test_each_answer_has_its_meaning() -> None:
    in_a_minute = email.utils.format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)
    cases: list[tuple[int, str | None, str, float]] = [
        (200, None, "told", 0), (204, "60", "told", 0), (299, None, "told", 0), (410, "60", "gone", 0),
        (500, None, "due", 300), (404, None, "due", 300), (300, None, "due", 300), (100, None, "due", 300),
        (429, "120", "due", 120), (503, "1", "due", 5), (503, "-1", "due", 300), (503, "soon", "due", 300),
        (429, "9" * 400, "due", 86_400), (429, in_a_minute, "due", 60), (503, "٣", "due", 300), (503, "", "due", 300),
        (429, "Mon, 01 Jan 1990 00:00:00 GMT", "due", 5), (503, "Mon, 99 Jan 9999999 00:00:00 GMT", "due", 300),
    ]  # fmt: skip
    seen = []
    for status, retry_after, _, right in cases:
        outcome = judge(status, {} if retry_after is None else {"Retry-After": retry_after}, 300.0, 5.0)
        seen.append(
            (status, retry_after, outcome.state, right if abs(outcome.delay_s - right) < 1.5 else outcome.delay_s)
        )
    assert seen == cases


def test_delays_follow_the_tries_and_outlast_three_days(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.results.jittered", lambda delay_s: delay_s)
    url = "http://127.0.0.1:1"
    after = [post(ours(url), "evt_1", BODY, ClaimClock.now(), tries).delay_s for tries in (1, 2, 9, 99)]
    assert after == [5, 300, 86_400, 86_400]
    assert sum(ours(url).result_retry_seconds) > 3 * 86_400


# --- the threads that send ------------------------------------------------------------------------------------------------


class Outbox(Jobs):
    """So many events are due; the threads' doings are counted."""

    def __init__(self, due: int) -> None:
        self.due, self.claims, self.told = due, 0, 0
        self.lock = threading.Lock()
        self.is_down = False

    def claim_result(self, *, lease_s: float, results: dict[str, Any] | None = None) -> NextResult:
        with self.lock:
            self.claims += 1
            if self.is_down:
                raise JobsUnavailable("down")
            if not self.due:
                return Nothing(outcome="none")
            self.due -= 1
        result = {"outcome": "claimed", "id": uuid4(), "try": 1, "type": "call.failed", "job_id": 7, "body": "{}"}
        return ClaimedResult.model_validate(result)

    def record_result(self, id: UUID, try_: int, **outcome: Any) -> str | None:
        with self.lock:
            self.told += outcome["state"] == "told"
        return str(outcome["state"])


def run(sender: Sender) -> None:
    """Wake it, and wait until it rests."""
    sender.wake()
    sender.rest(time.monotonic() + 30)


def test_a_sender_tells_all_in_few_threads_and_rests() -> None:
    at_once, most = 0, 0
    lock = threading.Lock()

    def count(connection: socket.socket) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.01)
        with lock:
            at_once -= 1
        connection.sendall(OK)

    with server(count) as url:
        outbox = Outbox(30)
        sender = Sender(ours(url), outbox)
        run(sender)
        assert (outbox.told, most > 1) == (30, True)  # one wake is enough for several threads
        outbox.due = 30
        for _ in range(50):
            sender.wake()
        run(sender)
        assert (outbox.told, most <= THREADS) == (60, True)
        before = outbox.claims
        run(sender)
        assert outbox.claims == before + 1  # nothing due costs one claim


def test_nobody_waits_longer_than_agreed_for_a_dead_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.results.ANSWER_SECONDS", 1.0)
    with server(silent) as url:
        outbox = Outbox(100)
        sender, worker = Sender(ours(url), outbox), Sender(ours(url), outbox, patient=False)
        began = time.monotonic()
        sender.wake()
        for _ in range(10):
            run(worker)  # it never waits
        sender.rest(time.monotonic() + 0.2)
        assert 0.2 <= time.monotonic() - began < DRIP_S / 2  # not the 10 s of its share

        def timed(_: int) -> float:
            began = time.monotonic()
            sender.rest(began + 2)
            return time.monotonic() - began

        with ThreadPoolExecutor(4) as sweeps:
            assert sum(took > 1.9 for took in sweeps.map(timed, range(4))) == 1  # one thread waits, not all
        outbox.due = 0
        sender.rest(time.monotonic() + 9)


def test_a_sender_outlives_a_database_that_is_down() -> None:
    with server(say(OK)) as url:
        outbox = Outbox(1)
        sender = Sender(ours(url), outbox)
        outbox.is_down = True
        run(sender)
        outbox.is_down = False
        run(sender)
    assert outbox.told == 1


def test_a_sender_without_a_thread_to_start_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with server(say(OK)) as url:
        outbox = Outbox(1)
        sender = Sender(ours(url), outbox)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            run(sender)
        assert outbox.told == 0
        run(sender)
    assert outbox.told == 1


def test_without_a_url_nothing_is_asked() -> None:
    run(Sender(settings(), outbox := Outbox(1)))
    assert (outbox.claims, settings().result_policy) == (0, {})
