"""Who is calling, and the proof. Each `prove_` returns nothing, or raises before any other work has been done.

AuthenticationError            401: no proof, or a wrong one
KeysUnavailable    503: Google's keys could not be fetched, so nobody can tell

Everything that a stranger can send ends in one of the two, however odd. Secrets and signatures are compared in a time
that does not depend on where they differ.
"""

import functools
import hmac
from collections.abc import Iterable
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import jwt
from standardwebhooks import Webhook, WebhookVerificationError
from twilio.request_validator import RequestValidator
from werkzeug.datastructures import MultiDict

from shared.settings import Settings

GOOGLE_KEYS: Final = "https://www.googleapis.com/oauth2/v3/certs"
GOOGLE_ISSUERS: Final = ("accounts.google.com", "https://accounts.google.com")
LEEWAY_SECONDS: Final = 10
LONGEST_TOKEN: Final = 8192
"""Characters; a token of Google's has about 1,000."""


class AuthenticationError(Exception):
    """The caller has not proved who they are. The message is for the log and holds nothing that they sent."""


class KeysUnavailable(Exception):
    """What is needed to judge the proof could not be fetched."""


class Headers(Protocol):
    """A dict or werkzeug's headers: names are compared without regard to case."""

    def items(self) -> Iterable[tuple[str, str]]: ...


class SigningKeys(Protocol):
    """Of `jwt.PyJWKClient`, what is used here."""

    def get_signing_key(self, kid: str) -> jwt.PyJWK: ...


@functools.cache
def google_keys() -> jwt.PyJWKClient:
    """One a process: it keeps Google's keys for an hour, and asks at most every 30 s for one that it does not know.

    google-auth would fetch them for each token, also for a junk one.
    """
    return jwt.PyJWKClient(GOOGLE_KEYS, lifespan=3600, timeout=3)


def authenticate_webhook(settings: Settings, headers: Headers, body: bytes) -> None:
    """Supabase: a signature over the body that is at most 5 minutes old, or the bearer secret of a dashboard's webhook.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    given = _lower(headers)
    if _is_dispatch_secret(settings, _bearer(given)):
        return
    if "webhook-signature" not in given:
        raise AuthenticationError("neither a webhook signature nor the bearer secret")
    if not any(_is_signed(secret, given, body) for secret in settings.dispatch_secrets):
        raise AuthenticationError("the webhook's signature is wrong, or too old")


def authenticate_sweep(settings: Settings, headers: Headers, keys: SigningKeys) -> None:
    """Cloud Scheduler: a Google ID token for our audience, of the configured account; or pg_cron: the bearer secret.

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
    try:
        # A look without trust comes first: Google is not asked for the key of a token that could not pass anyway.
        head = jwt.get_unverified_header(token)
        if head.get("alg") != "RS256" or not isinstance(head.get("kid"), str):
            raise AuthenticationError("the ID token is not signed as Google signs")
        _check_claims(settings, token, None)
        _check_claims(settings, token, _signing_key(keys, head["kid"]))
    except (jwt.PyJWTError, ValueError) as error:  # the latter for text that is not Unicode
        raise AuthenticationError(f"the ID token is not valid: {type(error).__name__}") from None


def authenticate_twilio(
    settings: Settings, headers: Headers, path: str, query_string: bytes | str, form: MultiDict[str, str]
) -> None:
    """Twilio: X-Twilio-Signature over the URL that we gave it and the form, blank fields included.

    The URL is put together from API_BASE_URL, never from Host or X-Forwarded-*, which anyone can write. `path` is the
    request's, `query_string` its raw query. Signatures with a shared key (X-Twilio-Webhooks-Signature-Settings) are
    not ours: calls made with the auth token are signed with it.

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
    except ValueError:  # a URL that is none, or text that is not Unicode
        proofs = []
    if not any(proofs):
        raise AuthenticationError("X-Twilio-Signature is wrong")


def own_path(settings: Settings, path: str) -> str:
    """The path within this function, when API_BASE_URL has one of its own (`https://x.example/calls`).

    A proxy in front may take its `/calls` away or leave it; both `/voice` and `/calls/voice` are `/voice` here, and
    `/calls/voice` under API_BASE_URL, which is what Twilio signed.
    """
    prefix = urlsplit(settings.api_base_url).path
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path


def _lower(headers: Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _bearer(given: dict[str, str]) -> str:
    scheme, _, token = given.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _is_dispatch_secret(settings: Settings, token: str) -> bool:
    # Compared with every secret, whichever it is: the time tells nothing. As bytes, because text must be ASCII.
    sent = token.encode("utf-8", "surrogatepass")
    equal = [hmac.compare_digest(sent, secret.encode()) for secret in settings.dispatch_secrets]
    return any(equal)


def _is_signed(secret: str, given: dict[str, str], body: bytes) -> bool:
    try:
        # json_parse=False: a signed body that is no JSON is proved, and is the next room's to refuse.
        Webhook(secret).verify(body, given, json_parse=False)
    except (WebhookVerificationError, ValueError):  # the latter for odd base64, odd text and a missing comma
        return False
    return True


def _check_claims(settings: Settings, token: str, key: jwt.PyJWK | None) -> None:
    """Everything that is asked of a token; without a key, all but the signature."""
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
            # PyJWT leaves these out with the signature, unless told otherwise.
            **{"verify_exp": True, "verify_iat": True, "verify_nbf": True, "verify_aud": True, "verify_iss": True},
        },
    )
    if claims.get("email_verified") is not True or claims.get("email") != settings.sweep_service_account:
        raise AuthenticationError("the ID token belongs to another account")


def _signing_key(keys: SigningKeys, kid: str) -> jwt.PyJWK:
    """Raises KeysUnavailable when the keys cannot be fetched or read, PyJWTError when none has this name."""
    try:
        return keys.get_signing_key(kid)
    except (jwt.PyJWKClientConnectionError, OSError, ValueError) as error:
        raise KeysUnavailable(f"Google's keys could not be fetched: {type(error).__name__}") from error
