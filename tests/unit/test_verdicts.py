"""What a failed request for a call means. Real twilio-python, real sockets: the errors are those that production sees."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from twilio.base.exceptions import TwilioRestException

from shared import telephony
from shared.settings import Settings
from shared.telephony import CallNotPlaced, Telephony, verdict_on
from tests.unit.examples import settings

Reply = Callable[[socket.socket], None]


@contextmanager
def twilio_that(replies: Reply) -> Iterator[Settings]:
    """A server that reads one request after another and does `replies` to its connection. Counts them in `.requests`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[bytes] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    taken.append(_read_request(connection))
                    replies(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield settings(
                TWILIO_API_BASE_URL=f"http://127.0.0.1:{listener.getsockname()[1]}", TWILIO_TIMEOUT_SECONDS="0.3"
            )
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
        assert len(taken) == 1, "a request for a call is never repeated"


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head + body


def _answer(status: str, body: str, kind: str = "application/json") -> Reply:
    def reply(connection: socket.socket) -> None:
        connection.sendall(
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
        )

    return reply


def _hang(connection: socket.socket) -> None:
    connection.recv(1)  # until the client has gone


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


@pytest.mark.parametrize(
    ("reply", "kind", "code"),
    [
        pytest.param(_hang, "in_doubt", "read_timeout", id="no answer in time"),
        pytest.param(lambda c: None, "in_doubt", "connection_lost", id="connection closed"),
        pytest.param(_reset, "in_doubt", "connection_lost", id="connection reset"),
        pytest.param(lambda c: c.sendall(b"HTTP/1.1 201 Cre"), "in_doubt", "no_sid", id="half an answer"),
        pytest.param(_answer("201 Created", "<html>"), "in_doubt", "unreadable", id="201 that is not JSON"),
        pytest.param(_answer("201 Created", "{}"), "in_doubt", "no_sid", id="201 without a SID"),
        pytest.param(_answer("500 Oops", '{"code": 20500, "message": "x", "status": 500}'), "in_doubt", "twilio_20500", id="500"),
        pytest.param(_answer("503 Busy", '{"code": 20503, "message": "x", "status": 503}'), "in_doubt", "twilio_20503", id="503"),
        pytest.param(_answer("502 Bad", "<html>", "text/html"), "in_doubt", "twilio_502", id="502 of a proxy"),
        pytest.param(_answer("429 Slow", '{"code": 20429, "message": "x", "status": 429}'), "later", "twilio_20429", id="429"),
        pytest.param(_answer("429 Slow", "<html>", "text/html"), "later", "twilio_429", id="429 of a proxy"),
        pytest.param(_answer("401 No", '{"code": 20003, "message": "x", "status": 401}'), "halt", "twilio_20003", id="20003"),
        pytest.param(_answer("400 No", '{"code": 21210, "message": "x", "status": 400}'), "halt", "twilio_21210", id="21210"),
        pytest.param(_answer("302 Go", ""), "halt", "twilio_302", id="redirect"),
        pytest.param(_answer("400 No", '{"code": 21211, "message": "x", "status": 400}'), "refused", "twilio_21211", id="21211"),
        pytest.param(_answer("400 No", '{"code": 29999, "message": "x", "status": 400}'), "refused", "twilio_29999", id="new code"),
    ],
)  # fmt: skip
def test_each_failure_has_its_verdict(reply: Reply, kind: str, code: str) -> None:
    with twilio_that(reply) as ours, pytest.raises(CallNotPlaced) as failure:
        Telephony(ours).place(uuid4(), 7, "+14155550100", lambda: True)
    assert (failure.value.verdict.kind, failure.value.verdict.code) == (kind, code)


def test_a_refused_connection_sent_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ours = settings(TWILIO_API_BASE_URL=f"http://127.0.0.1:{port}")
    with pytest.raises(CallNotPlaced) as failure:
        Telephony(ours).place(uuid4(), 7, "+14155550100", lambda: True)
    assert failure.value.verdict.kind == "later"


def test_a_certificate_that_is_not_twilios_stops_everything() -> None:
    assert verdict_on(ssl.SSLCertVerificationError("bad")).kind == "halt"


def test_an_error_that_nobody_thought_of_is_in_doubt() -> None:
    assert verdict_on(RuntimeError("?")).kind == "in_doubt"


def test_the_code_decides_before_the_status() -> None:
    assert verdict_on(TwilioRestException(400, "uri", code=20003)).kind == "halt"
    assert verdict_on(TwilioRestException(503, "uri", code=21211)).kind == "refused"


def test_no_code_is_in_two_tables() -> None:
    tables = [telephony.REFUSED, telephony.LATER, telephony.HALT, telephony.IN_DOUBT]
    codes = [code for table in tables for code in table]
    assert len(codes) == len(set(codes))


def test_a_process_that_freezes_while_it_connects_sends_no_request() -> None:
    """The clocks are looked at when connection and headers are behind it: what Twilio gets then is no request."""
    got = b""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = settings(TWILIO_API_BASE_URL=f"http://127.0.0.1:{listener.getsockname()[1]}")

        def serve() -> None:
            nonlocal got
            connection, _ = listener.accept()
            with connection:
                while chunk := connection.recv(65536):
                    got += chunk

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        looks: list[bytes] = []

        def in_time() -> bool:
            looks.append(got)
            return False

        with pytest.raises(CallNotPlaced) as failure:
            Telephony(ours).place(uuid4(), 7, "+14155550100", in_time)
        thread.join(5)
    assert (failure.value.verdict.kind, failure.value.verdict.code) == ("later", "too_late")
    assert len(looks) == 1
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"Content-Length: " in head
    assert body == b""
