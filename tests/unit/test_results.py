"""One POST of a result: its signatures, its limits, and the meaning of each answer. Real sockets, no database."""

from __future__ import annotations

import contextlib
import email.utils
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import trustme
from standardwebhooks import Webhook

from function.sender import THREADS, Sender
from shared.deadline import ClaimClock
from shared.http import DeadlinePassed
from shared.jobs import Jobs, JobsUnavailable
from shared.models import ClaimedResult, NextResult, Nothing
from shared.results import Outcome, judge, post, post_test
from shared.settings import Settings
from tests.unit.examples import SECRET, settings

OTHER = "whsec_" + "bmV3ZXIgYW5kIG5ld2VyIGFuZCBuZXdlciBhbmQgbmV3ZXI="
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
BODY = '{"type":"call.completed","data":{"é":1e300}}'


def ours(url: str, **changed: str) -> Settings:
    return settings(**{"RESULT_URL": url, "RESULT_SECRET": SECRET, **changed})


@contextmanager
def receiver(
    reply: Callable[[socket.socket], None], tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[bytes]]]:
    """Reads each request whole, then replies. -> its URL, the requests"""
    listener = socket.create_server(("127.0.0.1", 0))
    requests: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection = tls.wrap_socket(connection, server_side=True) if tls else connection
            data = b""
            while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < length(data):
                if not (more := connection.recv(65536)):
                    return
                data += more
            requests.append(data)
            reply(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}/hook?key=s3cret", requests
    finally:
        listener.close()


def length(request: bytes) -> int:
    return next(int(line[15:]) for line in request.split(b"\r\n") if line.lower().startswith(b"content-length:"))


def headers_of(request: bytes) -> dict[str, str]:
    head = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in head)}


def send(url: str, **changed: str) -> Outcome:
    return post(ours(url, **changed), "evt_1", BODY, ClaimClock.now())


# --- what is sent ---------------------------------------------------------------------------------------------------------


def test_a_result_is_signed_with_every_secret_while_rotating() -> None:
    with receiver(lambda c: c.sendall(OK)) as (url, requests):
        assert send(url, RESULT_SECRET=f"{OTHER} {SECRET}") == Outcome("told", "HTTP 200")
    (request,) = requests
    assert request.startswith(b"POST /hook?key=s3cret HTTP/1.1\r\n")
    headers, body = headers_of(request), request.partition(b"\r\n\r\n")[2]
    assert body == BODY.encode()
    assert (headers["webhook-id"], headers["content-type"]) == ("evt_1", "application/json")
    assert len(headers["webhook-signature"].split()) == 2
    for secret in (SECRET, OTHER):
        Webhook(secret).verify(body, headers)


def test_the_doctor_sends_an_event_of_type_test() -> None:
    with receiver(lambda c: c.sendall(OK)) as (url, requests):
        assert post_test(ours(url)).state == "told"
    event = json.loads(requests[0].partition(b"\r\n\r\n")[2])
    assert (event["type"], event["data"]) == ("test", {})


def test_a_frozen_process_sends_nothing() -> None:
    with receiver(lambda c: c.sendall(OK)) as (url, requests):
        half = ours(url).call_lease_seconds / 2
        asleep = ClaimClock(time.monotonic(), time.time() - half - 1)  # the monotonic clock may stand still meanwhile
        with pytest.raises(DeadlinePassed):
            post(ours(url), "evt_1", BODY, asleep)
    assert requests == []


def test_an_address_without_a_path_is_posted_to_its_root() -> None:
    with receiver(lambda c: c.sendall(OK)) as (url, requests):
        assert send(url.replace("/hook?", "?")).state == "told"
    assert requests[0].startswith(b"POST /?key=s3cret HTTP/1.1\r\n")


# --- what comes back ------------------------------------------------------------------------------------------------------


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def hint(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
        time.sleep(0.02)


def pour(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(1000):
        connection.sendall(b"x" * 10**6)


def hang(connection: socket.socket) -> None:
    connection.recv(1)


def be_late(connection: socket.socket) -> None:
    hang(connection)  # until the sender gives up
    connection.sendall(OK)


def say(answer: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(answer)


def test_receivers_of_every_bad_kind_cost_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.results.ANSWER_SECONDS", 1.0)
    moved = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    late = "no answer within 1 s"
    kinds = {
        "closes": (say(b""), "due", "the connection was lost"),
        "hangs": (hang, "due", late),
        "drips": (drip, "due", late),
        "is late": (be_late, "due", late),
        "redirects": (say(moved), "due", "HTTP 302 (redirects are not followed)"),
        "talks nonsense": (say(b"ok\r\n\r\n"), "due", "the connection was lost"),
        "hints first": (say(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2 + OK), "told", "HTTP 200"),
        "hints without end": (hint, "due", late),
        "hints and closes": (say(b"HTTP/1.1 103 Early Hints\r\n\r\n"), "due", "the connection was lost"),
        "answers a gigabyte": (pour, "told", "HTTP 200"),
        "promises a body and closes": (say(b"HTTP/1.1 201 Made\r\nContent-Length: 9\r\n\r\n"), "told", "HTTP 201"),
    }
    wrong = []
    for name, (reply, state, note) in kinds.items():
        with receiver(reply) as (url, _):
            began = time.monotonic()
            outcome = send(url)
        if (outcome.state, outcome.note) != (state, note) or time.monotonic() - began > 2.5:
            wrong.append((name, outcome, time.monotonic() - began))
    unknown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(unknown)
    with receiver(say(OK), unknown) as (url, requests):
        if (outcome := send(url)).note != "its certificate could not be verified" or requests:
            wrong.append((url, outcome, 0.0))
    for url in ("http://127.0.0.1:1/", "https://nowhere.invalid/", "https://" + "a" * 64 + ".invalid/"):
        outcome = send(url)
        if outcome.note != "no connection" or outcome.delay_s == 0:
            wrong.append((url, outcome, 0.0))
    assert wrong == []


def test_each_answer_has_its_meaning() -> None:
    in_a_minute = email.utils.format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)
    cases: list[tuple[int, str | None, str, float]] = [
        (200, None, "told", 0), (204, "60", "told", 0), (299, None, "told", 0), (410, "60", "gone", 0),
        (500, None, "due", 300), (404, None, "due", 300), (301, None, "due", 300), (100, None, "due", 300),
        (429, "120", "due", 120), (503, "1", "due", 5), (503, "-1", "due", 300), (503, "soon", "due", 300),
        (429, "9" * 400, "due", 86_400), (429, in_a_minute, "due", 60), (503, "٣", "due", 300), (503, "", "due", 300),
        (429, "Mon, 01 Jan 1990 00:00:00 GMT", "due", 5), (503, "Mon, 99 Jan 9999999 00:00:00 GMT", "due", 300),
    ]  # fmt: skip
    wrong = []
    for status, retry_after, state, delay_s in cases:
        outcome = judge(status, {} if retry_after is None else {"Retry-After": retry_after}, 300.0, 5.0)
        if outcome.state != state or abs(outcome.delay_s - delay_s) > 1.5:
            wrong.append((status, retry_after, outcome))
    assert wrong == []


def test_delays_follow_the_tries_and_outlast_three_days(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.results.jittered", lambda delay_s: delay_s)
    url = "http://127.0.0.1:1/"
    after = [post(ours(url), "evt_1", BODY, ClaimClock.now(), tries).delay_s for tries in (1, 2, 9, 99)]
    assert after == [5, 300, 86_400, 86_400]
    assert sum(ours(url).result_retry_seconds) > 3 * 86_400


# --- the threads that send ------------------------------------------------------------------------------------------------


class Outbox(Jobs):
    """So many events are due; the threads' doings are counted."""

    def __init__(self, due: int) -> None:
        self.due, self.claims, self.told = due, 0, []  # type: ignore[var-annotated]
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
        return ClaimedResult.model_validate(
            {"outcome": "claimed", "id": uuid4(), "try": 1, "type": "call.failed", "job_id": 7, "body": "{}"}
        )

    def record_result(self, id: UUID, try_: int, **outcome: Any) -> str | None:
        with self.lock:
            self.told.append(outcome["state"])
        return str(outcome["state"])


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

    with receiver(count) as (url, _):
        outbox = Outbox(30)
        sender = Sender(ours(url), outbox)
        sender.wake()
        sender.rest(time.monotonic() + 30)
        assert outbox.told == ["told"] * 30
        assert most > 1  # one wake is enough for several threads
        outbox.due = 30
        for _ in range(50):
            sender.wake()
        sender.rest(time.monotonic() + 30)
        assert outbox.told == ["told"] * 60
        assert most <= THREADS
        before = outbox.claims
        sender.wake()
        sender.rest(time.monotonic() + 30)
        assert outbox.claims == before + 1  # nothing due costs one claim


def test_nobody_waits_longer_than_agreed_for_a_dead_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.results.ANSWER_SECONDS", 1.0)
    with receiver(hang) as (url, _):
        outbox = Outbox(100)
        sender, worker = Sender(ours(url), outbox), Sender(ours(url), outbox, patient=False)
        began = time.monotonic()
        for each in (sender, worker):
            each.wake()
        sender.rest(time.monotonic() + 0.2)
        worker.rest(time.monotonic() + 30)
        assert 0.2 <= time.monotonic() - began < 2

        def timed(_: int) -> float:
            began = time.monotonic()
            sender.rest(began + 1)
            return time.monotonic() - began

        with ThreadPoolExecutor(4) as sweeps:
            assert sum(took > 0.7 for took in sweeps.map(timed, range(4))) == 1  # one thread waits, not all
        outbox.due = 0
        sender.rest(time.monotonic() + 9)


def test_a_sender_outlives_a_database_that_is_down() -> None:
    with receiver(lambda c: c.sendall(OK)) as (url, _):
        outbox = Outbox(1)
        outbox.is_down = True
        sender = Sender(ours(url), outbox)
        sender.wake()
        sender.rest(time.monotonic() + 10)
        outbox.is_down = False
        sender.wake()
        sender.rest(time.monotonic() + 10)
        assert outbox.told == ["told"]


def test_a_sender_without_a_thread_to_start_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with receiver(say(OK)) as (url, _):
        outbox = Outbox(1)
        sender = Sender(ours(url), outbox)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            sender.wake()
        sender.rest(time.monotonic() + 10)
        assert outbox.told == []
        sender.wake()
        sender.rest(time.monotonic() + 10)
        assert outbox.told == ["told"]


def test_without_a_url_nothing_is_asked() -> None:
    outbox = Outbox(1)
    sender = Sender(settings(), outbox)
    sender.wake()
    sender.rest(time.monotonic() + 10)
    assert outbox.claims == 0
    assert settings().result_policy == {}
