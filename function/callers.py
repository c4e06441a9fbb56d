"""Who is calling, and the proof. Each `prove_` returns nothing, or raises before any other work has been done.

Unproved           401: no proof, or a wrong one
ProofUnavailable   503: Google's keys could not be fetched, so nobody can tell
"""

import base64
import functools
import hmac
from typing import Any

import jwt
from standardwebhooks.webhooks import Webhook
from twilio.request_validator import RequestValidator
from werkzeug.datastructures import Headers, MultiDict

from shared.settings import Settings

GOOGLE_KEYS = "https://www.googleapis.com/oauth2/v3/certs"
GOOGLE_ISSUERS = ["https://accounts.google.com", "accounts.google.com"]
LEEWAY_SECONDS = 10


class Unproved(Exception):
    """The caller has not proved who they are. The message is for the log."""


class ProofUnavailable(Exception):
    """What is needed to judge the proof could not be fetched."""


@functools.cache
def google_keys() -> jwt.PyJWKClient:
    """One a process: it keeps Google's keys for an hour, and asks at most every 30 s for one that it does not know."""
    return jwt.PyJWKClient(GOOGLE_KEYS, lifespan=3600, timeout=3)


def prove_webhook(settings: Settings, headers: Headers, body: bytes) -> None:
    """Supabase: a Standard Webhooks signature over the body, or the bearer secret of a webhook made in the dashboard.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    if headers.get("Authorization"):
        return _prove_bearer(settings, headers)
    signed = {name: headers.get(name, "") for name in ("webhook-id", "webhook-timestamp", "webhook-signature")}
    if not all(signed.values()):
        raise Unproved("neither a webhook signature nor a bearer secret")
    reason = "no secret is configured"
    for secret in settings.dispatch_secrets:
        try:
            Webhook(base64.b64decode(secret.removeprefix("whsec_"))).verify(body, signed)
        except Exception as error:  # noqa: BLE001 - odd headers and bodies raise more than its own error
            reason = type(error).__name__
        else:
            return None
    raise Unproved(f"the webhook signature is wrong ({reason})")


def prove_sweep(settings: Settings, headers: Headers, keys: jwt.PyJWKClient) -> None:
    """Cloud Scheduler: a Google OIDC token for our audience, of the configured account; or the bearer secret."""
    token = _bearer(headers)
    if settings.sweep_service_account is None or token.count(".") != 2:
        return _prove_bearer(settings, headers)
    required: Any = {"require": ["exp", "iat", "aud", "iss"]}
    try:
        # A look without trust: Google is not asked about a token that could never pass.
        stranger = jwt.decode(token, options={"verify_signature": False})
        if stranger.get("iss") not in GOOGLE_ISSUERS or jwt.get_unverified_header(token).get("alg") != "RS256":
            raise Unproved("the token is not one of Google's")
        claims = jwt.decode(
            token,
            keys.get_signing_key_from_jwt(token),
            algorithms=["RS256"],
            audience=settings.sweep_audience,
            issuer=GOOGLE_ISSUERS,
            leeway=LEEWAY_SECONDS,
            options=required,
        )
    except jwt.PyJWKClientConnectionError as error:
        raise ProofUnavailable(f"Google's keys: {error}") from error
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError) as error:
        raise Unproved(f"the token is not valid ({type(error).__name__})") from error
    if claims.get("email_verified") is not True or claims.get("email") != settings.sweep_service_account:
        raise Unproved("the token belongs to another account")
    return None


def prove_twilio(settings: Settings, headers: Headers, path: str, query: bytes, form: MultiDict[str, str]) -> None:
    """Twilio: X-Twilio-Signature over the URL that we gave it and the form. https://www.twilio.com/docs/usage/security

    The URL is made from API_BASE_URL, never from Host or X-Forwarded-*. When API_BASE_URL has a path, the proxy in front has
    to take it away before the request comes here.
    """
    signature = headers.get("X-Twilio-Signature", "")
    if not signature.isascii() or not signature:
        raise Unproved("no X-Twilio-Signature")
    url = f"{settings.api_base_url}{path}" + (f"?{query.decode('latin-1')}" if query else "")
    if not any(RequestValidator(token).validate(url, form, signature) for token in settings.twilio_auth_tokens):
        raise Unproved("X-Twilio-Signature is wrong")


def _prove_bearer(settings: Settings, headers: Headers) -> None:
    given = _bearer(headers).encode("utf-8", "surrogateescape")
    # Compared with every secret, whichever it is: the time tells nothing.
    matches = [hmac.compare_digest(given, secret.encode()) for secret in settings.dispatch_secrets]
    if not any(matches):
        raise Unproved("the bearer secret is wrong" if given else "no bearer secret")


def _bearer(headers: Headers) -> str:
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
