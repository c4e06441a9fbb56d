"""Each secret changes without a gap in the order of secrets.md: in every step the receiver accepts the sender's secret."""

from __future__ import annotations

import time
from datetime import UTC, datetime
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


def signed_headers(secret: str) -> dict[str, str]:
    """The headers of the trigger, which signs with the first secret of Vault."""
    now = datetime.now(UTC)
    first = secret.split()[0]
    signature = Webhook(first).sign("job_1", now, BODY.decode())
    return {"webhook-id": "job_1", "webhook-timestamp": str(int(time.time())), "webhook-signature": signature}


def accepts_webhooks_of(function: Settings, vault: str) -> None:
    authenticate_webhook(function, signed_headers(vault), BODY)
    authenticate_sweep(function, {"Authorization": f"Bearer {vault.split()[0]}"}, keys=None)


def test_dispatch_secret_changes_without_a_gap() -> None:
    """The function learns the new secret first and forgets the old one last. Between two steps either side may be ahead."""
    both = f"{NEW_SECRET} {SECRET}"
    steps = [(SECRET, SECRET), (both, SECRET), (both, NEW_SECRET), (NEW_SECRET, NEW_SECRET)]
    for (before, sent_before), (after, sent_after) in pairwise(steps):
        # During a release or a change of Vault, the old and the new revision meet the old and the new sender.
        for function in (before, after):
            for sent in {sent_before, sent_after}:
                accepts_webhooks_of(settings(DISPATCH_SECRET=function), sent)
    with pytest.raises(AuthenticationError):  # in the other order there is a gap
        accepts_webhooks_of(settings(DISPATCH_SECRET=SECRET), NEW_SECRET)


class Account:
    """Twilio's account. It accepts either token until the promotion ends the old one, and signs with the primary."""

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


def test_twilio_auth_token_changes_without_a_gap() -> None:
    old, created, promoted = Account(OLD_TOKEN), Account(OLD_TOKEN, NEW_TOKEN), Account(NEW_TOKEN)
    steps = [
        (OLD_TOKEN, old), (OLD_TOKEN, created), (f"{NEW_TOKEN} {OLD_TOKEN}", created),
        (f"{NEW_TOKEN} {OLD_TOKEN}", promoted), (NEW_TOKEN, promoted),
    ]  # fmt: skip
    for (before, account_before), (after, account_after) in pairwise(steps):
        for function in (before, after):
            for account in (account_before, account_after):
                assert account.works_with(settings(TWILIO_AUTH_TOKEN=function))
    # With the old one first there is a gap.
    assert not promoted.works_with(settings(TWILIO_AUTH_TOKEN=f"{OLD_TOKEN} {NEW_TOKEN}"))
