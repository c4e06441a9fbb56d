"""Authenticate the caller of each route, before any other work. Each function returns nothing, or raises:

    AuthenticationError   401  missing or wrong authentication
    KeysUnavailable       503  Google's keys could not be fetched, so a token cannot be judged

Every input, however malformed, ends in one of these. Secrets and signatures are compared in constant time. `jwt` is
imported where a token is judged: it costs 30 ms of each cold start (measured), and only a sweep may need it.
"""

import functools
import hmac
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from twilio.request_validator import RequestValidator
from werkzeug.datastructures import MultiDict

from shared.logs import Headers
from shared.settings import Settings
from shared.signing import is_signed

if TYPE_CHECKING:
    import jwt

GOOGLE_KEYS: Final = "https://www.googleapis.com/oauth2/v3/certs"
GOOGLE_ISSUERS: Final = ("accounts.google.com", "https://accounts.google.com")
LEEWAY_SECONDS: Final = 10
LONGEST_TOKEN: Final = 8192
"""In characters. Google's tokens have about 1,000."""


class AuthenticationError(Exception):
    """The caller is not authenticated. The message is for the log; it holds nothing that the caller sent."""


class KeysUnavailable(Exception):
    """Google's signing keys could not be fetched."""


class SigningKeys(Protocol):
    """The used part of `jwt.PyJWKClient`."""

    def get_signing_key(self, kid: str) -> "jwt.PyJWK": ...


@functools.cache
def google_keys() -> "jwt.PyJWKClient":
    """One per process. It caches Google's keys for an hour, and asks for an unknown key at most every 30 s.

    google-auth would fetch them for each token, also for a junk one.
    """
    import jwt

    return jwt.PyJWKClient(GOOGLE_KEYS, lifespan=3600, timeout=3)


def authenticate_webhook(settings: Settings, headers: Headers, body: bytes) -> None:
    """Supabase: a signature over the body, at most 5 minutes old; or the bearer secret, from a dashboard webhook.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    given = _lower(headers)
    if _is_dispatch_secret(settings, _bearer(given)):
        return
    if "webhook-signature" not in given:
        raise AuthenticationError("neither a webhook signature nor the bearer secret")
    if not any(is_signed(secret, given, body) for secret in settings.dispatch_secrets):
        raise AuthenticationError("the webhook's signature is wrong, or too old")


def authenticate_sweep(settings: Settings, headers: Headers, keys: SigningKeys | None = None) -> None:
    """Cloud Scheduler: a Google ID token of the configured account, for our audience. pg_cron: the bearer secret.

    https://developers.google.com/identity/openid-connect/openid-connect#validatinganidtoken
    """
    token = _bearer(_lower(headers))
    if not token:
        raise AuthenticationError("no bearer token")
    if _is_dispatch_secret(settings, token):
        return
    if settings.sweep_service_account is None:
        raise AuthenticationError("the bearer secret is wrong, and no service account may sweep")
    if token.count(".") != 2 or len(token) > LONGEST_TOKEN:
        raise AuthenticationError("neither the bearer secret nor an ID token")
    import jwt

    try:
        # The claims are checked before the signature: Google is not asked for the key of a token that fails anyway.
        head = jwt.get_unverified_header(token)
        if head.get("alg") != "RS256" or not isinstance(head.get("kid"), str):
            raise AuthenticationError("the ID token is not signed as Google signs")
        _check_claims(settings, token, None)
        _check_claims(settings, token, _signing_key(keys or google_keys(), head["kid"]))
    except (jwt.PyJWTError, ValueError) as error:  # ValueError: text that is not Unicode
        raise AuthenticationError(f"the ID token is not valid: {type(error).__name__}") from None


def authenticate_twilio(
    settings: Settings, headers: Headers, path: str, query_string: bytes | str, form: MultiDict[str, str]
) -> None:
    """Twilio: X-Twilio-Signature over the URL that we gave it and the form, blank fields included.

    The URL starts with API_BASE_URL, never with Host or X-Forwarded-*, which anyone can write. `path` and `query_string`
    are the request's, the latter raw. Twilio signs calls made with the auth token with that token, so a signature with a
    shared key (X-Twilio-Webhooks-Signature-Settings) is refused.

    https://www.twilio.com/docs/usage/security#validating-requests
    """
    given = _lower(headers)
    signature = given.get("x-twilio-signature", "")
    if not signature or "x-twilio-webhooks-signature-settings" in given:
        raise AuthenticationError("no X-Twilio-Signature by an auth token")
    query = query_string.decode("latin-1") if isinstance(query_string, bytes) else query_string
    url = settings.api_base_url + own_path(settings, path) + (f"?{query}" if query else "")
    try:
        proofs = [RequestValidator(token).validate(url, form, signature) for token in settings.twilio_auth_tokens]
    except ValueError:  # an invalid URL, or text that is not Unicode
        proofs = []
    if not any(proofs):
        raise AuthenticationError("X-Twilio-Signature is wrong")


def own_path(settings: Settings, path: str) -> str:
    """The path without the path of API_BASE_URL (`https://x.example/calls`).

    A proxy may remove its `/calls` or keep it: `/voice` and `/calls/voice` are both `/voice` here. Twilio signs
    `/calls/voice`.
    """
    prefix = urlsplit(settings.api_base_url).path
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path


def _lower(headers: Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _bearer(given: dict[str, str]) -> str:
    scheme, _, token = given.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _is_dispatch_secret(settings: Settings, token: str) -> bool:
    # Compare with every secret, so the time tells nothing. As bytes, because compare_digest wants ASCII text.
    sent = token.encode("utf-8", "surrogatepass")
    equal = [hmac.compare_digest(sent, secret.encode()) for secret in settings.dispatch_secrets]
    return any(equal)


def _check_claims(settings: Settings, token: str, key: "jwt.PyJWK | None") -> None:
    """Check every claim of a token and, given a key, its signature."""
    import jwt

    required: list[str] = ["exp", "iat", "aud", "iss"]
    claims: dict[str, Any] = jwt.decode(
        token,
        key or "",
        algorithms=["RS256"],
        audience=settings.api_base_url,
        issuer=GOOGLE_ISSUERS,
        leeway=LEEWAY_SECONDS,
        options={
            "require": required,
            "verify_signature": key is not None,
            # Without the signature PyJWT skips these by default.
            **{"verify_exp": True, "verify_iat": True, "verify_nbf": True, "verify_aud": True, "verify_iss": True},
        },
    )
    if claims.get("email_verified") is not True or claims.get("email") != settings.sweep_service_account:
        raise AuthenticationError("the ID token belongs to another account")


def _signing_key(keys: SigningKeys, kid: str) -> "jwt.PyJWK":
    """Raises KeysUnavailable if the keys cannot be fetched or read, PyJWTError if none has this id."""
    import jwt

    try:
        return keys.get_signing_key(kid)
    except (jwt.PyJWKClientConnectionError, OSError, ValueError) as error:
        raise KeysUnavailable(f"Google's keys could not be fetched: {type(error).__name__}") from error
