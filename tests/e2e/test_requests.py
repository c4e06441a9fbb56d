"""What the function answers: to those who can prove who they are, and to everybody else."""

from __future__ import annotations

import json
import socket
import uuid
from typing import Any
from urllib.parse import urlencode

import pytest
from twilio.request_validator import RequestValidator

from tests.e2e.conftest import World

EVENT = {"type": "INSERT", "table": "outbound_call_jobs", "schema": "public", "old_record": None}


def signed(world: World, path: str, form: dict[str, str]) -> dict[str, str]:
    ready = world.sandbox.ready
    url = f"{ready.function_url}{path}"
    return {"X-Twilio-Signature": RequestValidator(ready.twilio_auth_token).compute_signature(url, form)}


def test_requests_without_proof_do_nothing(quiet: World) -> None:
    before = quiet.sandbox.gateway.requests.total()
    answers = [quiet.post(path, json={**EVENT, "record": {"id": 1}}) for path in ("/", "/sweep", "/voice", "/status")]
    said = {(answer.status_code, answer.json()["error"]["code"]) for answer in answers}
    assert (said, quiet.sandbox.gateway.requests.total()) == ({(401, "unauthorized")}, before)


BAD_BODIES: list[tuple[object, str]] = [
    (EVENT, "record.id"),
    *[({**EVENT, "record": record}, "record.id")
      for record in (None, {}, {"id": "seven"}, {"id": True}, {"id": 2**70})],
    ({"table": "outbound_call_jobs"}, "type"),
    ([], "body"),
]  # fmt: skip


def test_bad_body_is_400_with_the_field_named(quiet: World) -> None:
    answers = [(names, quiet.webhook(body)) for body, names in BAD_BODIES]
    odd = [(names, answer.text) for names, answer in answers
           if answer.status_code != 400 or names not in answer.json()["error"]["message"]]  # fmt: skip
    assert odd == []
    headers = {"Authorization": f"Bearer {quiet.sandbox.dispatch_secret}"}
    invalid = (b"", b"{", b"\xff\xfe", b"NaN", b"[" * 5000)
    assert {quiet.post("/", content=body, headers=headers).status_code for body in invalid} == {400}


def test_events_of_others_are_ignored_politely(quiet: World) -> None:
    others: list[dict[str, object]] = [
        {"record": {"id": 2**40}}, {"type": "UPDATE", "record": {"id": 1}},
        {"type": "DELETE", "record": None, "old_record": {"id": 1}}, {"table": "profiles", "record": {"id": 1}},
    ]  # fmt: skip
    answers = [quiet.webhook({**EVENT, **other}) for other in others]
    assert [(answer.status_code, "ignored" in answer.json()) for answer in answers] == [(200, True)] * 4


def test_dashboard_webhook_with_the_full_record_is_served(quiet: World) -> None:
    job_id = quiet.insert_job(quiet.number())
    record = quiet.rows("select to_jsonb(j) as j from public.outbound_call_jobs j where id = %s", job_id)[0]["j"]
    assert quiet.webhook({**EVENT, "record": record}).json() == {"did": "called", "job": job_id}


def test_unknown_paths_and_methods_are_refused(quiet: World) -> None:
    assert quiet.post("/nowhere").status_code == 404
    assert quiet.http.get(f"{quiet.sandbox.ready.function_url}/sweep").status_code == 405
    url = quiet.sandbox.ready.function_url
    assert quiet.http.get(f"{url}/health").json() == {"status": "ok"}
    assert quiet.http.head(f"{url}/health").status_code == 200
    assert quiet.http.get(f"{url}/favicon.ico").json()["error"]["code"] == "not_found"


def test_body_over_64_kib_is_413_unread(quiet: World) -> None:
    host, port = quiet.sandbox.ready.function_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n")
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]  # before a byte of the body was sent


def test_chunked_bodies_are_read_to_the_limit(quiet: World) -> None:
    """A tunnel or proxy may send no Content-Length."""
    bearer = {"Authorization": f"Bearer {quiet.sandbox.dispatch_secret}"}
    body = json.dumps({**EVENT, "record": {"id": 2**40}}).encode()
    assert "ignored" in quiet.post("/", content=iter([body[:9], body[9:]]), headers=bearer).json()
    form = {"CallSid": "CA" + "1" * 32, "CallStatus": "in-progress"}
    for path, status in (("/voice?attempt=x", 200), ("/status?attempt=x", 204)):
        headers = signed(quiet, path, form) | {"Content-Type": "application/x-www-form-urlencoded"}
        assert quiet.post(path, content=iter([urlencode(form).encode()]), headers=headers).status_code == status
    too_much = iter([b" " * 40_000] * 2)
    assert quiet.post("/", content=too_much, headers=bearer).status_code == 413


def test_sweep_needs_no_body_and_no_length(quiet: World) -> None:
    lines = ["POST /sweep HTTP/1.1", "Host: x", f"Authorization: Bearer {quiet.sandbox.dispatch_secret}", "", ""]
    assert send(quiet, "\r\n".join(lines).encode()).startswith(b"HTTP/1.1 200 ")


def test_invalid_chunk_is_a_400(quiet: World) -> None:
    head = b"POST /sweep HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert send(quiet, head + b"nonsense\r\n").startswith(b"HTTP/1.1 400 ")


def test_each_refusal_leaves_one_line_that_says_why(quiet: World) -> None:
    def refusals() -> list[str]:
        return [line for line in quiet.sandbox.function_log.read_text().splitlines() if '"refused"' in line]

    before = len(refusals())
    quiet.post("/nowhere")
    quiet.post("/health")
    quiet.post("/sweep")
    assert quiet.post("/sweep", content=b" " * 70_000).headers["Connection"] == "close"
    quiet.webhook({**EVENT, "record": {"id": "seven"}})
    said = [json.loads(line) for line in refusals()[before:]]
    assert [line["status"] for line in said] == [404, 405, 401, 413, 400]
    assert all(line["reason"] for line in said)
    assert send(quiet, b"GET / HTTP/1.1\r\nbogus\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert json.loads(refusals()[-1])["reason"] == "invalid HTTP (InvalidHeader)"


def send(world: World, request: bytes) -> bytes:
    host, port = world.sandbox.ready.function_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        return connection.recv(65536)


def test_signature_off_by_one_character_is_401(quiet: World) -> None:
    form = {"CallSid": "CA" + "0" * 32, "CallStatus": "ringing", "Digits": ""}
    for path in (f"/voice?attempt={uuid.uuid4()}", f"/status?attempt={uuid.uuid4()}"):
        good = signed(quiet, path, form)["X-Twilio-Signature"]
        assert quiet.post(path, data=form, headers={"X-Twilio-Signature": good}).status_code in (200, 204)
        for bad in ("", good[:-2] + ("A" if good[-2] != "A" else "B") + "=", good.lower(), "é", good + good):
            headers: dict[str, Any] = {"X-Twilio-Signature": bad.encode()}
            assert quiet.post(path, data=form, headers=headers).status_code == 401
        other = path.replace("attempt=", "attempt=0")
        assert quiet.post(other, data=form, headers={"X-Twilio-Signature": good}).status_code == 401
        assert quiet.post(path, data={**form, "x": "1"}, headers={"X-Twilio-Signature": good}).status_code == 401
        assert quiet.post(path, data=form).status_code == 401


def test_signed_request_for_an_unknown_attempt_changes_nothing(quiet: World) -> None:
    form = {"CallSid": "CA" + "1" * 32, "CallStatus": "in-progress"}
    for attempt in (str(uuid.uuid4()), "nonsense", ""):
        path = "/voice?" + urlencode({"attempt": attempt})
        answer = quiet.post(path, data=form, headers=signed(quiet, path, form))
        assert (answer.status_code, answer.text.count("<Hangup"), answer.text.count("<Say")) == (200, 1, 0)
        path = "/status?" + urlencode({"attempt": attempt})
        assert quiet.post(path, data=form, headers=signed(quiet, path, form)).status_code == 204


@pytest.mark.parametrize("path", ["/voice", "/status"])
def test_form_of_thousand_parts_is_refused_unread(quiet: World, path: str) -> None:
    part = "--b\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b", "X-Twilio-Signature": "x"}
    assert quiet.post(path, content=(part * 1001 + "--b--").encode(), headers=headers).status_code == 401


@pytest.mark.parametrize(
    "odd",
    [
        {"CallSid": ""}, {"CallSid": "CA1"}, {"CallSid": "x' or 1=1"}, {"CallStatus": "levitating"}, {"CallStatus": ""},
        {"CallDuration": "-5"}, {"CallDuration": "9" * 30}, {"SipResponseCode": "teapot"}, {"AnsweredBy": "\x00"},
        {"ErrorCode": "é" * 500},
    ],
)  # fmt: skip
def test_odd_form_that_twilio_signed_is_taken_calmly(quiet: World, odd: dict[str, str]) -> None:
    number = quiet.number()
    quiet.behave(to=number, callbacks="none", talk_s=5)
    job_id = quiet.insert_job(number)
    assert quiet.webhook({**EVENT, "record": {"id": job_id}}).json()["did"] == "called"
    (attempt,) = quiet.attempts(job_id)
    form = {"CallSid": attempt["call_sid"], "CallStatus": "in-progress", **odd}
    for path, answer in (("/voice", 200), ("/status", 204)):
        path += "?" + urlencode({"attempt": str(attempt["id"])})
        assert quiet.post(path, data=form, headers=signed(quiet, path, form)).status_code == answer
    (after,) = quiet.attempts(job_id)
    assert (after["call_sid"], after["state"]) == (attempt["call_sid"], "accepted")


def test_answers_and_logs_hold_no_numbers_or_secrets(quiet: World) -> None:
    number = quiet.number()
    job_id = quiet.insert_job(number)
    texts = [quiet.webhook({**EVENT, "record": {"id": job_id}}).text]
    quiet.until_status(job_id, "completed")
    texts += [quiet.webhook({**EVENT, "record": {"id": job_id}}).text, quiet.sandbox.function_log.read_text()]
    ready = quiet.sandbox.ready
    for secret in (number, number[1:], ready.dispatch_secret, ready.supabase_service_key, ready.twilio_auth_token):
        assert not [text for text in texts if secret in text]
