"""Each secret is changed without a gap, when it is changed in the README's order: who sends and who takes, step by step."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from standardwebhooks import Webhook
from twilio.request_validator import RequestValidator
from werkzeug.datastructures import MultiDict

from function.auth import AuthenticationError, authenticate_sweep, authenticate_twilio, authenticate_webhook
from shared.settings import Settings
from tests.unit.examples import SECRET, settings

NEW_SECRET = "whsec_bmV3ZXIgYW5kIG5ld2VyIGFuZCBuZXdlciBhbmQgbmV3ZXI="
OLD_TOKEN, NEW_TOKEN = "0" * 32, "1" * 32
BODY = b'{"type": "INSERT"}'


def signed(secret: str) -> dict[str, str]:
    """As the trigger signs: with the first of Vault's."""
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    first = secret.split()[0]
    signature = Webhook(first).sign("job_1", now, BODY.decode())
    return {"webhook-id": "job_1", "webhook-timestamp": str(int(time.time())), "webhook-signature": signature}


def takes_webhooks_of(function: Settings, vault: str) -> None:
    authenticate_webhook(function, signed(vault), BODY)
    authenticate_sweep(function, {"Authorization": f"Bearer {vault.split()[0]}"}, keys=None)  # type: ignore[arg-type]


def test_dispatch_secret() -> None:
    """The function learns the new one first and forgets the old one last; between two steps either side may be ahead."""
    steps = [
        (SECRET, SECRET),
        (f"{NEW_SECRET} {SECRET}", SECRET),
        (f"{NEW_SECRET} {SECRET}", NEW_SECRET),
        (NEW_SECRET, NEW_SECRET),
    ]
    for (before, sent_before), (after, sent_after) in pairwise(steps):
        # While the release or Vault changes, the old and the new revision meet the old and the new sender.
        for function in (before, after):
            for sent in {sent_before, sent_after}:
                takes_webhooks_of(settings(DISPATCH_SECRET=function), sent)


def test_dispatch_secret_the_other_way_round_has_a_gap() -> None:
    with pytest.raises(AuthenticationError):
        takes_webhooks_of(settings(DISPATCH_SECRET=SECRET), NEW_SECRET)


class Account:
    """Twilio's account: requests by either token until the promotion, which ends the old one; the primary signs."""

    def __init__(self, primary: str, secondary: str | None = None) -> None:
        self.primary, self.secondary = primary, secondary

    def works_with(self, function: Settings) -> bool:
        url, form = f"{function.api_base_url}/status", {"CallSid": "CA1"}
        signature = RequestValidator(self.primary).compute_signature(url, form)
        try:
            authenticate_twilio(function, {"X-Twilio-Signature": signature}, "/status", "", MultiDict(form))
        except AuthenticationError:
            return False
        return function.twilio_auth_tokens[0] in (self.primary, self.secondary)


def test_twilio_auth_token() -> None:
    old, created, promoted = Account(OLD_TOKEN), Account(OLD_TOKEN, NEW_TOKEN), Account(NEW_TOKEN)
    steps = [
        (OLD_TOKEN, old),
        (OLD_TOKEN, created),
        (f"{NEW_TOKEN} {OLD_TOKEN}", created),
        (f"{NEW_TOKEN} {OLD_TOKEN}", promoted),
        (NEW_TOKEN, promoted),
    ]
    for (before, account_before), (after, account_after) in pairwise(steps):
        for function in (before, after):
            for account in (account_before, account_after):
                assert account.works_with(settings(TWILIO_AUTH_TOKEN=function))


def test_twilio_auth_token_with_the_old_one_first_has_a_gap_at_the_promotion() -> None:
    assert not Account(NEW_TOKEN).works_with(settings(TWILIO_AUTH_TOKEN=f"{OLD_TOKEN} {NEW_TOKEN}"))
