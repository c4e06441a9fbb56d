"""What check_call_setup proves, and to whom."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

import psycopg
import pytest

from tests.conftest import Connection

KEY = b"0123456789abcdef0123456789abcdef"
NONCE = "0" * 32


def facts(connection: Connection, nonce: str = NONCE) -> dict[str, Any]:
    row = connection.execute("select public.check_call_setup(%s)", (nonce,)).fetchone()
    assert row is not None
    return dict(row[0])


def test_secret_in_vault_is_proved_and_not_shown(connection: Connection) -> None:
    secret = "whsec_" + base64.b64encode(KEY).decode()
    connection.execute("select vault.create_secret(%s, 'call_dispatcher_secret')", (secret,))
    vault = facts(connection)["vault"]
    assert vault["hmac"] == hmac.new(KEY, f"doctor:{NONCE}".encode(), hashlib.sha256).hexdigest()
    assert secret[6:] not in str(facts(connection))


@pytest.mark.parametrize("nonce", ["", "0" * 31, "job_1.1764160000.{}", "0" * 32 + "\n", "G" * 32])
def test_proof_is_never_a_webhooks_signature(connection: Connection, nonce: str) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="p_nonce"):
        facts(connection, nonce)


def test_unreadable_facts_do_not_hide_the_rest(connection: Connection) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute("drop schema vault cascade; drop table net._http_response")
        found = facts(connection)
    assert "vault.decrypted_secrets" in found["vault"]["error"]
    assert "net._http_response" in found["net"]["error"]
    assert len(found["guards"]) >= 3
