"""What a failed request for a call means. Real twilio-python, real sockets: the errors are those that production sees."""

from __future__ import annotations

import socket
import ssl
import threading
from uuid import uuid4

import pytest
from twilio.base.exceptions import TwilioRestException

from shared import telephony
from shared.telephony import CallNotPlaced, Telephony, verdict_on
from tests.unit.examples import settings
from tests.unit.servers import Reply, answer, closing, server, silent


def twilio(url: str) -> Telephony:
    return Telephony(settings(TWILIO_API_BASE_URL=url, TWILIO_TIMEOUT_SECONDS="0.3"))


def _error(status: int, code: int) -> Reply:
    return answer({"code": code, "message": "x", "status": status}, f"{status} No")


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()


FAILURES: dict[str, tuple[Reply, str, str]] = {
    "no answer in time": (silent, "in_doubt", "read_timeout"),
    "connection closed": (closing(), "in_doubt", "connection_lost"),
    "connection reset": (_reset, "in_doubt", "connection_lost"),
    "half an answer": (closing(b"HTTP/1.1 201 Cre"), "in_doubt", "no_sid"),
    "201 that is not JSON": (answer("<html>", "201 Created"), "in_doubt", "unreadable"),
    "201 without a SID": (answer("{}", "201 Created"), "in_doubt", "no_sid"),
    "500": (_error(500, 20500), "in_doubt", "twilio_20500"),
    "503": (_error(503, 20503), "in_doubt", "twilio_20503"),
    "502 of a proxy": (answer("<html>", "502 Bad", "text/html"), "in_doubt", "twilio_502"),
    "429": (_error(429, 20429), "later", "twilio_20429"),
    "429 of a proxy": (answer("<html>", "429 Slow", "text/html"), "later", "twilio_429"),
    "wrong credentials": (_error(401, 20003), "halt", "twilio_20003"),
    "our number is not ours": (_error(400, 21210), "halt", "twilio_21210"),
    "redirect": (answer("", "302 Go"), "halt", "twilio_302"),
    "invalid number": (_error(400, 21211), "refused", "twilio_21211"),
    "new code": (_error(400, 29999), "refused", "twilio_29999"),
}


def test_failed_requests_have_their_verdicts_and_are_never_repeated() -> None:
    seen = {}
    for name, (reply, _, _) in FAILURES.items():
        requests: list[bytes] = []
        with server(reply, requests=requests) as url, pytest.raises(CallNotPlaced) as failure:
            twilio(url).place(uuid4(), 7, "+14155550100", lambda: True)
        seen[name] = (failure.value.verdict.kind, failure.value.verdict.code, len(requests))
    assert seen == {name: (kind, code, 1) for name, (_, kind, code) in FAILURES.items()}


def test_refused_connection_is_known_to_send_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(CallNotPlaced) as failure:
        twilio(f"http://127.0.0.1:{port}").place(uuid4(), 7, "+14155550100", lambda: True)
    assert failure.value.verdict.kind == "later"


def test_code_decides_before_the_status_and_doubt_otherwise() -> None:
    table: dict[Exception, str] = {
        ssl.SSLCertVerificationError("bad"): "halt",
        RuntimeError("an error that nobody thought of"): "in_doubt",
        TwilioRestException(400, "uri", code=20003): "halt",
        TwilioRestException(503, "uri", code=21211): "refused",
    }
    assert {error: verdict_on(error).kind for error in table} == table
    tables = [telephony.REFUSED, telephony.LATER, telephony.HALT, telephony.IN_DOUBT]
    codes = [code for table in tables for code in table]
    assert len(codes) == len(set(codes))


def test_process_that_freezes_while_connecting_sends_no_body() -> None:
    """The clocks are looked at after connection and headers. Without its body a request for a call is no request."""
    got, looks = b"", []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            nonlocal got
            connection, _ = listener.accept()
            with connection:
                while chunk := connection.recv(65536):
                    got += chunk

        def may_still_send() -> bool:
            looks.append(got)
            return False

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(CallNotPlaced) as failure:
            twilio(f"http://127.0.0.1:{listener.getsockname()[1]}").place(uuid4(), 7, "+14155550100", may_still_send)
        thread.join(5)
    assert (failure.value.verdict.kind, failure.value.verdict.code) == ("later", "too_late")
    head, _, body = got.partition(b"\r\n\r\n")
    assert (len(looks), b"Content-Length: " in head, body) == (1, True, b"")
