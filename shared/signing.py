"""Signatures of Standard Webhooks, made and checked. Results are signed in the same way as Supabase's webhooks.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from standardwebhooks import Webhook, WebhookVerificationError


def sign(secrets: Sequence[str], id_: str, body: str) -> dict[str, str]:
    """The headers of a request that is sent now, with one signature for each secret (whsec_...)."""
    now = datetime.now(UTC)
    signatures = " ".join(Webhook(secret).sign(id_, now, body) for secret in secrets)
    return {"webhook-id": id_, "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signatures}


def is_signed(secret: str, headers: Mapping[str, str], body: bytes) -> bool:
    """Whether the body bears a signature by this secret, at most 5 minutes old. Names of `headers` are in lower case."""
    try:
        # json_parse=False: verify the signature only. `webhook.handle` rejects invalid JSON.
        Webhook(secret).verify(body, dict(headers), json_parse=False)
    except (WebhookVerificationError, ValueError):  # ValueError: invalid base64 or text, a missing comma
        return False
    return True
