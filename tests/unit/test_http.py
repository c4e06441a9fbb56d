"""Every request that we make ends by its deadline, takes a bounded answer, and proves its peer. Real sockets, real TLS."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trustme

from shared import http
from shared.database import FIRST_TRY_SECONDS, connect
from shared.http import MAX_ANSWER_BYTES, Http, HttpError, NotConnected, TooLate
from shared.jobs import Jobs, JobsUnavailable
from shared.models import CallEvent, LiveCall
from shared.telephony import CLOCK_SKEW, CallNotPlaced, Telephony, TwilioUnavailable
from tests.unit.examples import settings

SID = "CA" + "0" * 32
DEADLINE_SECONDS = 0.3
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
Reply = Callable[[socket.socket], None]


@contextmanager
def server(
    *replies: Reply, tls: ssl.SSLContext | None = None, first_lines: list[bytes] | None = None, at_once: bool = False
) -> Iterator[str]:
    """Give each connection, in order, its reply to each of its requests; the last reply serves all later ones.

    `at_once`: it replies to the connection itself.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    number = itertools.count()

    def serve(connection: socket.socket, reply: Reply) -> None:
        with contextlib.suppress(OSError), connection:
            if tls:
                connection = tls.wrap_socket(connection, server_side=True)
            if at_once:
                reply(connection)
            while data := connection.recv(65536):
                if b"\r\n\r\n" in data:  # a body may come in a packet of its own
                    if first_lines is not None:
                        first_lines.append(data.partition(b"\r\n")[0])
                    reply(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                reply = replies[min(next(number), len(replies) - 1)]
                threading.Thread(target=serve, args=(connection, reply), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def answer(body: object, headers: bytes = b"") -> Reply:
    text = json.dumps(body).encode()
    return lambda connection: connection.sendall(HEAD + headers + b"Content-Length: %d\r\n\r\n" % len(text) + text)


def dripping(start: bytes, byte: bytes) -> Reply:
    def reply(connection: socket.socket) -> None:
        connection.sendall(start)
        for _ in range(500):
            connection.sendall(byte)
            time.sleep(0.02)

    return reply


def endless(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"\r\n")
    while True:
        connection.sendall(b" " * 65536)


def silent(_connection: socket.socket) -> None:
    pass


def bomb(connection: socket.socket) -> None:
    packed = gzip.compress(b"0" * 100_000_000, 1)
    connection.sendall(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed)


def ask(url: str) -> None:
    Http(url, kept=False).request("GET", url, {}, connect_s=DEADLINE_SECONDS, total_s=DEADLINE_SECONDS)


def test_every_slow_answer_ends_at_the_deadline() -> None:
    slow = {
        "silence": silent,
        "headers that drip": dripping(HEAD, b"X"),
        "a body that drips": dripping(HEAD + b"Content-Length: 500\r\n\r\n", b" "),
        "a body without a length that drips": dripping(HEAD + b"\r\n", b" "),
    }
    late = []
    for name, reply in slow.items():
        with server(reply) as url:
            began = time.monotonic()
            with pytest.raises(TooLate):
                ask(url)
            if not DEADLINE_SECONDS * 0.9 <= time.monotonic() - began < DEADLINE_SECONDS + 1:
                late.append((name, time.monotonic() - began))
    assert late == []


def test_request_is_not_sent_when_the_resolver_outlasts_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve, asked = socket.getaddrinfo, []  # type: ignore[var-annotated]

    def slow(*arguments: Any, **more: Any) -> Any:
        threading.Event().wait(DEADLINE_SECONDS + 0.3)
        return resolve(*arguments, **more)

    monkeypatch.setattr("socket.getaddrinfo", slow)
    with server(dripping(HEAD, b"X"), first_lines=asked) as url, pytest.raises(NotConnected, match="deadline"):
        ask(url)
    assert asked == []


def test_answer_whose_end_is_missing_is_lost() -> None:
    def half(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Length: 10\r\n\r\n{}")
        connection.shutdown(socket.SHUT_RDWR)

    with server(half) as url, pytest.raises(HttpError, match="the end of the answer is missing"):
        ask(url)


def test_proxy_of_the_environment_is_asked_except_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def refuse(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def note(url: str) -> type[Exception] | None:
        try:
            ask(url)
        except HttpError as error:
            return type(error)
        return None

    with server(answer({})) as loopback, server(refuse, first_lines=asked) as proxy:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.setenv("no_proxy", "direct.invalid")
        urls = ("https://api.example/x?y=1", "http://api.example/x?y=1", f"{loopback}/x", "https://direct.invalid")
        assert [note(url) for url in urls] == [NotConnected, None, None, NotConnected]
    assert asked == [b"CONNECT api.example:443 HTTP/1.0", b"GET http://api.example/x?y=1 HTTP/1.1"]


@pytest.mark.parametrize("reply", [endless, bomb])
def test_answer_beyond_the_size_limit_is_refused(reply: Reply) -> None:
    with server(reply) as url, pytest.raises(HttpError, match=str(MAX_ANSWER_BYTES)):
        Http(url, kept=False).request("GET", url, {}, connect_s=5, total_s=20)


def test_answer_that_drips_leaves_the_call_in_doubt() -> None:
    with server(dripping(b"HTTP/1.1 201 Created\r\n\r\n", b" ")) as url:
        ours = settings(TWILIO_API_BASE_URL=url, TWILIO_TIMEOUT_SECONDS="0.3")
        began = time.monotonic()
        with pytest.raises(CallNotPlaced) as failure:
            Telephony(ours).place(uuid4(), 7, "+14155550100", lambda: True)
    assert verdict(failure.value) == ("in_doubt", "read_timeout")
    assert time.monotonic() - began < 2


def test_endless_answer_of_twilio_is_given_up() -> None:
    with server(endless) as url, pytest.raises(TwilioUnavailable):
        Telephony(settings(TWILIO_API_BASE_URL=url)).fetch(SID)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ssl.SSLContext, Path]]:
    """A server's context, and the file of the authority that signed its certificate."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(file := tmp_path / "authority.pem")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    http.tls_context.cache_clear()
    yield context, file
    http.tls_context.cache_clear()


def place(url: str) -> CallNotPlaced | None:
    try:
        Telephony(settings(TWILIO_API_BASE_URL=url, TWILIO_TIMEOUT_SECONDS="1")).place(
            uuid4(), 7, "+14155550100", lambda: True
        )
    except CallNotPlaced as failure:
        return failure
    return None


def verdict(failure: CallNotPlaced | None) -> tuple[str, str]:
    assert failure is not None
    return failure.verdict.kind, failure.verdict.code


def test_authorities_of_the_environment_alone_are_trusted(
    authority: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, file = authority
    with server(answer({"sid": SID, "queue_time": "0"}), tls=context) as url:
        assert verdict(place(url)) == ("halt", "certificate")
        for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            with monkeypatch.context() as patched:
                patched.setenv(variable, str(file))
                http.tls_context.cache_clear()
                assert place(url) is None


def test_failed_handshake_is_known_to_send_nothing(authority: tuple[ssl.SSLContext, Path]) -> None:
    with server(answer({"sid": SID})) as url:
        assert verdict(place(url.replace("http:", "https:"))) == ("later", "not_connected")


def test_handshake_that_drips_ends_at_the_deadline() -> None:
    record = b"\x16\x03\x03\x3f\xff" + bytes(500)

    def drip(connection: socket.socket) -> None:
        for byte in record:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)

    with server(drip, at_once=True) as url:
        began = time.monotonic()
        with pytest.raises(NotConnected):
            ask(url.replace("http:", "https:"))
    assert time.monotonic() - began < DEADLINE_SECONDS + 1


def test_calls_share_one_tls_context(authority: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    context, file = authority
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    real, loads = ssl.SSLContext.load_verify_locations, []

    def counted(self: ssl.SSLContext, *given: Any, **named: Any) -> None:
        loads.append(given)
        real(self, *given, **named)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", counted)
    with server(answer({"sid": SID, "queue_time": "0"}), tls=context) as url:
        assert [place(url) for _ in range(3)] == [None] * 3
    assert len(loads) == 1


LIVE = {"then": "keep", "state": "accepted", "call_status": "ringing", "job": None}


def record(jobs: Jobs) -> LiveCall:
    return jobs.record_status(
        uuid4(), CallEvent(SID, "ringing"), ask_s=1, redial_delays_s=[], machine_counts_as="reached"
    )


def test_dead_kept_connection_costs_a_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.database.FIRST_TRY_SECONDS", DEADLINE_SECONDS)
    asked = []

    def once(connection: socket.socket) -> None:
        asked.append(connection)
        if len(asked) == 1:
            answer(LIVE)(connection)
        else:
            silent(connection)

    with server(once, answer(LIVE)) as url:
        jobs = Jobs(connect(settings(SUPABASE_URL=url)))
        assert record(jobs).is_wanted
        assert record(jobs).is_wanted
    assert len(asked) == 2


def test_other_calls_of_the_database_are_never_repeated() -> None:
    requests = []

    def drop(connection: socket.socket) -> None:
        requests.append(connection)
        connection.shutdown(socket.SHUT_RDWR)

    with server(drop) as url:
        jobs = Jobs(connect(settings(SUPABASE_URL=url)))
        with pytest.raises(JobsUnavailable):
            jobs.refuse(uuid4(), code="x", reason="y")
        assert len(requests) == 1
        with pytest.raises(JobsUnavailable):
            record(jobs)
        assert len(requests) == 3
    assert FIRST_TRY_SECONDS > 1


def test_call_dated_before_its_attempt_is_found() -> None:
    """Twilio's clock may be behind ours by CLOCK_SKEW."""
    began = datetime(2026, 1, 5, 12, tzinfo=UTC)

    def listed(sid: str, before: timedelta) -> dict[str, object]:
        at = (began - before).strftime("%a, %d %b %Y %H:%M:%S +0000")
        return {"sid": sid, "status": "queued", "date_created": at, "direction": "outbound-api", "duration": None}

    fresh, stale = "CA" + "1" * 32, "CA" + "2" * 32
    calls = [listed(fresh, CLOCK_SKEW), listed(stale, CLOCK_SKEW + timedelta(seconds=1))]
    with server(answer({"calls": calls, "next_page_uri": None, "page_size": 50})) as url:
        found = Telephony(settings(TWILIO_API_BASE_URL=url)).find("+14155550100", began)
    assert [call.sid for call in found] == [fresh]
    assert timedelta(seconds=2) <= CLOCK_SKEW
