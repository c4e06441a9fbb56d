"""What the function answers: to those who can prove who they are, and to everybody else."""

from __future__ import annotations

import json
import socket
import uuid
from urllib.parse import urlencode

from tests.e2e.conftest import EVENT, World

FORM = {"CallSid": "CA" + "1" * 32, "CallStatus": "in-progress"}


def bearer(world: World) -> dict[str, str]:
    return {"Authorization": f"Bearer {world.sandbox.dispatch_secret}"}


def send(world: World, request: str) -> str:
    """Raw bytes. -> the status line"""
    host, port = world.sandbox.ready.function_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request.encode())
        return connection.recv(65536).decode().partition("\r\n")[0]


def test_requests_without_proof_do_nothing(quiet: World) -> None:
    before = quiet.sandbox.gateway.requests.total()
    parts = "--b\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n" * 1001  # refused unread
    headers = {"Content-Type": "multipart/form-data; boundary=b", "X-Twilio-Signature": "x"}
    answers = [quiet.post(path, json={**EVENT, "record": {"id": 1}}) for path in ("/", "/sweep", "/voice", "/status")]
    answers += [quiet.post(path, content=f"{parts}--b--", headers=headers) for path in ("/voice", "/status")]
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
    invalid = (b"", b"{", b"\xff\xfe", b"NaN", b"[" * 5000)
    assert {quiet.post("/", content=body, headers=bearer(quiet)).status_code for body in invalid} == {400}


def test_events_of_others_are_ignored_politely(quiet: World) -> None:
    others: list[dict[str, object]] = [
        {"record": {"id": 2**40}}, {"type": "UPDATE", "record": {"id": 1}},
        {"type": "DELETE", "record": None, "old_record": {"id": 1}}, {"table": "profiles", "record": {"id": 1}},
    ]  # fmt: skip
    answers = [quiet.webhook({**EVENT, **other}) for other in others]
    assert [(answer.status_code, "ignored" in answer.json()) for answer in answers] == [(200, True)] * 4


def test_dashboard_webhook_with_the_full_record_is_served(quiet: World) -> None:
    job = quiet.insert_job(quiet.number())
    (row,) = quiet.rows("select to_jsonb(j) as record from public.outbound_call_jobs j where id = %s", job)
    assert quiet.webhook({**EVENT, **row}).json() == {"did": "called", "job": job}


def test_health_answers_and_unknown_paths_do_not(quiet: World) -> None:
    url = quiet.sandbox.ready.function_url
    assert quiet.http.get(f"{url}/health").json() == {"status": "ok"}
    assert quiet.http.head(f"{url}/health").status_code == 200
    assert quiet.http.get(f"{url}/sweep").status_code == 405
    assert quiet.http.get(f"{url}/favicon.ico").json()["error"]["code"] == "not_found"


def test_bodies_are_read_to_the_limit_however_sent(quiet: World) -> None:
    """A tunnel or proxy may send no Content-Length."""
    body = json.dumps({**EVENT, "record": {"id": 2**40}}).encode()
    assert "ignored" in quiet.post("/", content=iter([body[:9], body[9:]]), headers=bearer(quiet)).json()
    for path, status in (("/voice?attempt=x", 200), ("/status?attempt=x", 204)):
        headers = quiet.signature(path, FORM) | {"Content-Type": "application/x-www-form-urlencoded"}
        assert quiet.post(path, content=iter([urlencode(FORM).encode()]), headers=headers).status_code == status
    too_much = iter([b" " * 40_000] * 2)
    assert quiet.post("/", content=too_much, headers=bearer(quiet)).status_code == 413
    # Before a byte of the body was sent:
    assert " 413 " in send(quiet, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n")
    sweep = "POST /sweep HTTP/1.1\r\nHost: x\r\n"
    assert " 200 " in send(quiet, f"{sweep}Authorization: {bearer(quiet)['Authorization']}\r\n\r\n")
    assert " 400 " in send(quiet, f"{sweep}Transfer-Encoding: chunked\r\n\r\nnonsense\r\n")


def test_each_refusal_leaves_one_line_that_says_why(quiet: World) -> None:
    quiet.post("/nowhere")
    quiet.post("/health")
    quiet.post("/sweep")
    assert quiet.post("/sweep", content=b" " * 70_000).headers["Connection"] == "close"
    quiet.webhook({**EVENT, "record": {"id": "seven"}})
    assert " 400 " in send(quiet, "GET / HTTP/1.1\r\nbogus\r\n\r\n")
    said = [(line.get("status"), line["reason"]) for line in quiet.log_lines("refused")]
    assert [status for status, _ in said] == [404, 405, 401, 413, 400, None]
    assert all(reason for _, reason in said)
    assert said[-1][1] == "invalid HTTP (InvalidHeader)"


def test_signed_request_for_an_unknown_attempt_changes_nothing(quiet: World) -> None:
    for attempt in (str(uuid.uuid4()), "nonsense", ""):
        query = urlencode({"attempt": attempt})
        answer = quiet.twilio_posts(f"/voice?{query}", FORM)
        assert (answer.status_code, answer.text.count("<Hangup"), answer.text.count("<Say")) == (200, 1, 0)
        assert quiet.twilio_posts(f"/status?{query}", FORM).status_code == 204


def test_odd_form_that_twilio_signed_is_taken_calmly(quiet: World) -> None:
    number = quiet.number()
    quiet.behave(to=number, callbacks="none", talk_s=20)
    job = quiet.insert_job(number)
    assert quiet.dial(job)["did"] == "called"
    (attempt,) = quiet.attempts(job)
    odd = [
        {"CallSid": ""}, {"CallSid": "CA1"}, {"CallSid": "x' or 1=1"}, {"CallStatus": "levitating"}, {"CallStatus": ""},
        {"CallDuration": "-5"}, {"CallDuration": "9" * 30}, {"SipResponseCode": "teapot"}, {"AnsweredBy": "\x00"},
        {"ErrorCode": "é" * 500},
    ]  # fmt: skip
    for fields in odd:
        form = {"CallSid": attempt["call_sid"], "CallStatus": "in-progress", **fields}
        said = [quiet.twilio_posts(f"{path}?attempt={attempt['id']}", form) for path in ("/voice", "/status")]
        (after,) = quiet.attempts(job)
        assert [answer.status_code for answer in said] == [200, 204], fields
        assert (after["call_sid"], after["state"]) == (attempt["call_sid"], "accepted"), fields


def test_answers_and_logs_hold_no_numbers_or_secrets(quiet: World) -> None:
    number = quiet.number()
    job = quiet.insert_job(number)
    texts = [str(quiet.dial(job))]
    quiet.until_status(job, "completed")
    texts += [str(quiet.dial(job)), quiet.sandbox.function_log.read_text()]
    ready = quiet.sandbox.ready
    secrets = (number, number[1:], ready.dispatch_secret, ready.supabase_service_key, ready.twilio_auth_token)
    assert [secret for secret in secrets for text in texts if secret in text] == []
