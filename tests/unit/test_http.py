"""Every request that we make ends by its deadline, takes a bounded answer, and proves its peer. Real sockets, real TLS."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from shared import http
from shared.database import FIRST_TRY_SECONDS, connect
from shared.http import MAX_ANSWER_BYTES, Http, HttpError, NotConnected, TooLate
from shared.jobs import Jobs, JobsUnavailable
from shared.models import CallEvent, LiveCall
from shared.telephony import CLOCK_SKEW, CallNotPlaced, Telephony, TwilioUnavailable
from tests.unit.examples import settings
from tests.unit.servers import DRIP_S, HEAD, Reply, answer, certified, closing, dripping, endless, server, silent

SID = "CA" + "0" * 32
DEADLINE_SECONDS = 0.3


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
            if not DEADLINE_SECONDS * 0.9 <= time.monotonic() - began < DRIP_S / 2:
                late.append((name, time.monotonic() - began))
    assert late == []


def test_request_is_not_sent_when_the_resolver_outlasts_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve, asked = socket.getaddrinfo, []  # type: ignore[var-annotated]

    def slow(*arguments: Any, **more: Any) -> Any:
        threading.Event().wait(DEADLINE_SECONDS + 0.3)
        return resolve(*arguments, **more)

    monkeypatch.setattr("socket.getaddrinfo", slow)
    with server(dripping(HEAD, b"X"), requests=asked) as url, pytest.raises(NotConnected, match="deadline"):
        ask(url)
    assert asked == []


def test_answer_whose_end_is_missing_is_lost() -> None:
    half = HEAD + b"Content-Length: 10\r\n\r\n{}"
    with server(closing(half)) as url, pytest.raises(HttpError, match="the end of the answer is missing"):
        ask(url)


def test_proxy_of_the_environment_is_asked_except_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def note(url: str) -> type[Exception] | None:
        try:
            ask(url)
        except HttpError as error:
            return type(error)
        return None

    with server(answer({})) as loopback, server(answer("", "403 No"), requests=asked) as proxy:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.setenv("no_proxy", "direct.invalid")
        urls = ("https://api.example/x?y=1", "http://api.example/x?y=1", f"{loopback}/x", "https://direct.invalid")
        assert [note(url) for url in urls] == [NotConnected, None, None, NotConnected]
    first_lines = [request.partition(b"\r\n")[0] for request in asked]
    assert first_lines == [b"CONNECT api.example:443 HTTP/1.0", b"GET http://api.example/x?y=1 HTTP/1.1"]


@pytest.mark.parametrize("reply", [endless, bomb])
def test_answer_beyond_the_size_limit_is_refused(reply: Reply) -> None:
    with server(reply) as url, pytest.raises(HttpError, match=str(MAX_ANSWER_BYTES)):
        Http(url, kept=False).request("GET", url, {}, connect_s=5, total_s=20)


def test_answer_that_drips_leaves_the_call_in_doubt() -> None:
    with server(dripping(b"HTTP/1.1 201 Created\r\n\r\n", b" ")) as url:
        ours = settings(TWILIO_API_BASE_URL=url, TWILIO_TIMEOUT_SECONDS="0.3")
        with pytest.raises(CallNotPlaced) as failure:
            Telephony(ours).place(uuid4(), 7, "+14155550100", lambda: True)
    assert verdict(failure.value) == ("in_doubt", "read_timeout")  # at its end it would be one without a SID


def test_endless_answer_of_twilio_is_given_up() -> None:
    with server(endless) as url, pytest.raises(TwilioUnavailable):
        Telephony(settings(TWILIO_API_BASE_URL=url)).fetch(SID)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ssl.SSLContext, Path]]:
    """A server's context, and the file of the authority that signed its certificate."""
    context, authority = certified()
    authority.cert_pem.write_to_path(file := tmp_path / "authority.pem")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    http.tls_context.cache_clear()
    yield context, file
    http.tls_context.cache_clear()


def place(url: str) -> CallNotPlaced | None:
    ours = settings(TWILIO_API_BASE_URL=url, TWILIO_TIMEOUT_SECONDS="1")
    try:
        Telephony(ours).place(uuid4(), 7, "+14155550100", lambda: True)
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
    with server(dripping(b"\x16\x03\x03\x3f\xff", b"\0"), at_once=True) as url:
        began = time.monotonic()
        with pytest.raises(NotConnected):
            ask(url.replace("http:", "https:"))
    assert time.monotonic() - began < DRIP_S / 2


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
    replies = iter([answer(LIVE), silent])
    with server(lambda connection: next(replies)(connection), answer(LIVE)) as url:
        jobs = Jobs(connect(settings(SUPABASE_URL=url)))
        assert [record(jobs).is_wanted for _ in range(2)] == [True, True]
    assert list(replies) == []


def test_other_calls_of_the_database_are_never_repeated() -> None:
    requests: list[bytes] = []
    with server(closing(), requests=requests) as url:
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
