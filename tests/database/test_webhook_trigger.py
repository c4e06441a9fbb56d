"""The webhook of a new job: signed so that any Standard Webhooks library verifies it, silent about the person, never in the way."""

from __future__ import annotations

import base64
import hmac
import json
import secrets

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from tests.conftest import Connection
from tests.database.conftest import Another
from tests.database.sql_api import Row, Steps, a_number, locked
from tests.sandbox.postgres import Postgres

URL = "https://dispatcher.example.com/"
SECRET = "whsec_" + base64.b64encode(b"a test's secret of 32 bytes, or so").decode()


def a_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def put_in_vault(steps: Steps, url: str | None, secret: str | None) -> None:
    for name, value in (("call_dispatcher_url", url), ("call_dispatcher_secret", secret)):
        if value is not None:
            steps.rows("select vault.create_secret(%s, %s)", value, name)


def requests(steps: Steps) -> list[Row]:
    return steps.rows("select * from net.http_request_queue order by id")


def only_request(steps: Steps) -> Row:
    (request,) = requests(steps)
    return request


@pytest.fixture
def secret(steps: Steps) -> str:
    put_in_vault(steps, URL, secret := a_secret())
    return secret


# --- what is sent -----------------------------------------------------------------------------------------------------
def test_job_sends_one_webhook_that_verifies(steps: Steps, secret: str) -> None:
    steps.pass_time(86400)  # the wire has the real time, whatever our clock says
    job = steps.queue()
    request = only_request(steps)
    assert Webhook(secret).verify(request["body"], request["headers"]) == json.loads(request["body"]) == {
        "type": "INSERT", "table": "outbound_call_jobs", "schema": "public", "record": {"id": job}, "old_record": None,
    }  # fmt: skip
    assert (request["method"], request["url"], request["timeout_milliseconds"]) == ("POST", URL, 10000)
    assert request["headers"]["Content-Type"] == "application/json"
    steps.queue()
    assert len({request["headers"]["webhook-id"] for request in requests(steps)}) == 2


def test_webhook_changed_anywhere_does_not_verify(steps: Steps, secret: str) -> None:
    steps.queue()
    request = only_request(steps)
    body, headers = bytes(request["body"]), dict(request["headers"])
    later = str(int(headers["webhook-timestamp"]) + 1)
    for key, sent, signed in (
        (secret, body + b" ", headers), (secret, body, headers | {"webhook-id": headers["webhook-id"] + "0"}),
        (secret, body, headers | {"webhook-timestamp": later}), (a_secret(), body, headers),
    ):  # fmt: skip
        with pytest.raises(WebhookVerificationError):
            Webhook(key).verify(sent, signed)


def test_webhook_body_holds_no_personal_data(steps: Steps, secret: str) -> None:
    """Every role of the database can read its tables."""
    row = steps.job(steps.queue(number := a_number(), first_name="Adalbert", metadata='{"company": "Lovelace"}'))
    request = only_request(steps)
    sent = f"{request['url']} {json.dumps(request['headers'])} {bytes(request['body']).decode()}"
    personal = (number[1:], "Adalbert", "Lovelace", str(row["user_id"]), secret.removeprefix("whsec_"))
    assert [word for word in personal if word in sent] == []


def test_webhook_is_signed_with_the_first_secret(steps: Steps) -> None:
    new, old = a_secret(), a_secret()
    put_in_vault(steps, URL, f"{new} {old}")
    steps.queue()
    request = only_request(steps)
    assert Webhook(new).verify(request["body"], request["headers"])
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(request["body"], request["headers"])


def test_jobs_that_are_not_due_send_no_webhook(connection: Connection, steps: Steps, secret: str) -> None:
    steps.queue(status="canceled", finished_at=steps.now())
    steps.queue(due_at=steps.now().replace(year=2099))
    with connection.transaction(force_rollback=True):
        steps.queue()
    assert requests(steps) == []
    steps.refuse(steps.start(job := steps.queue()))
    steps.call("retry_call_job", job_id=job)
    assert len(requests(steps)) == 1  # of the insert


# --- what may be missing ----------------------------------------------------------------------------------------------
def test_gaps_in_vault_cost_the_webhook_at_most(steps: Steps) -> None:
    for url, secret in (
        (None, SECRET), (URL, None), (None, None), (URL, "whsec_%%% no base64 %%%"), (URL, "whsec_abc"), (URL, ""),
        (URL, " "), ("", SECRET),
    ):  # fmt: skip
        put_in_vault(steps, url, secret)
        assert steps.job(steps.queue())["status"] == "queued", (url, secret)
        steps.rows("delete from vault.secrets")


@pytest.mark.parametrize("secret", ["", " ", "whsec_", f" {SECRET}"])
def test_webhook_is_never_signed_with_an_empty_key(steps: Steps, secret: str) -> None:
    put_in_vault(steps, URL, secret)
    steps.queue()
    for request in requests(steps):
        headers = request["headers"]
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request["body"]
        forged = base64.b64encode(hmac.digest(b"", signed, "sha256")).decode()
        assert headers["webhook-signature"] != f"v1,{forged}"


BROKEN = [
    "drop schema vault cascade",
    "drop schema net cascade",
    "drop function net.http_post",
    "drop function private.hmac_sha256",
    "drop function net.http_post;"
    " create function net.http_post(text, jsonb default '{}', jsonb default '{}', jsonb default '{}', int default 5)"
    " returns bigint language plpgsql as 'begin raise exception ''no''; end'",
]


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_parts_cost_the_webhook_not_the_job(
    connection: Connection, steps: Steps, secret: str, broken: str
) -> None:
    warnings: list[str] = []
    connection.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    with connection.transaction(force_rollback=True):
        connection.execute(broken.encode())
        warnings.clear()
        job = steps.queue()
        assert steps.job(job)["status"] == "queued"
    assert any(f"no webhook for call job {job}" in warning for warning in warnings)


@pytest.mark.parametrize("table", ["net.http_request_queue", "vault.secrets"])
def test_job_waits_for_no_lock_of_pg_net(steps: Steps, another: Another, secret: str, table: str) -> None:
    with locked(another(), table):
        steps.rows("set statement_timeout = '5s'")
        assert steps.job(steps.queue())["status"] == "queued"


# --- HMAC-SHA256 ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def module_connection(postgres: Postgres, module_database: str) -> Connection:
    return psycopg.connect(postgres.url(database=module_database), autocommit=True)


KEYS = st.one_of(*(st.binary(min_size=n, max_size=n) for n in (0, 1, 63, 64, 65, 200)), st.binary(max_size=200))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=KEYS, message=st.binary(max_size=1000))
def test_digests_equal_pythons(module_connection: Connection, key: bytes, message: bytes) -> None:
    """Keys of a block, 64 bytes, and around it among the rest."""
    row = module_connection.execute("select private.hmac_sha256(%s, %s)", (key, message)).fetchone()
    assert row is not None
    assert bytes(row[0]) == hmac.digest(key, message, "sha256")
