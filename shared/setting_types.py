"""The types of single settings: each parses one value, or says in our words which values are allowed."""

import base64
import ipaddress
import re
from typing import Annotated, Final, TypeVar
from urllib.parse import SplitResult, urlsplit

import phonenumbers
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_core import PydanticCustomError

from shared.opening_hours import calling_hours

ALWAYS: Final = "always"
_E164: Final = re.compile(r"\+[1-9][0-9]{7,14}")
Text = TypeVar("Text", str, SecretStr)


def refusal(allowed: str) -> PydanticCustomError:
    """Refuse a value and say which values are allowed. The template is fixed, because `allowed` may hold braces."""
    return PydanticCustomError("setting", "{allowed}", {"allowed": allowed})


def _matching(pattern: str, allowed: str) -> AfterValidator:
    """A text, or a secret, of this form."""

    def check(value: Text) -> Text:
        if not re.fullmatch(pattern, value.get_secret_value() if isinstance(value, SecretStr) else value):
            raise refusal(allowed)
        return value

    return AfterValidator(check)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parts(value: str, *, query: bool = False) -> SplitResult:
    allowed = refusal(f"must be an absolute http or https URL without user{'' if query else ', query'} and fragment")
    # urlsplit drops tabs and newlines silently, and it does not report an empty "?" or "#".
    if not value.isascii() or not value.isprintable() or any(mark in value for mark in ' "<>\\#' + "?" * (not query)):
        raise allowed
    try:
        parts = urlsplit(value)
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        raise allowed from None
    if not named or "@" in parts.netloc:
        raise allowed
    return parts


def _base_url(value: str) -> str:
    """Drop the last slash and lower the scheme and host. Twilio signs the URL letter by letter."""
    parts = _parts(value)
    return parts._replace(netloc=parts.netloc.lower()).geturl().rstrip("/")


def _public_url(value: str) -> str:
    if "_" in (urlsplit(value).hostname or ""):
        raise refusal("must be a URL without an underscore in its host (Twilio refuses one)")
    return _https_url(value)


def _https_url(value: str) -> str:
    """An address that is used as it stands."""
    parts = _parts(value, query=True)
    if parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
        raise refusal("must be an https URL, except on a loopback host")
    return value


def _loopback_url(value: str) -> str:
    # This host receives the account's credentials.
    if not _is_loopback(_parts(value).hostname or ""):
        raise refusal("must be a URL on a loopback host: it is for a stand-in, leave it out in production")
    return value


def _e164(value: str) -> str:
    allowed = refusal("must be a phone number in E.164 form: a plus sign, the country code, 8 to 15 digits in all")
    if not _E164.fullmatch(value):
        raise allowed
    try:
        phonenumbers.parse(value)
    except phonenumbers.NumberParseException:
        raise allowed from None
    return value


def _region(value: str) -> str:
    if value.upper() not in phonenumbers.SUPPORTED_REGIONS:
        raise refusal("must be ISO 3166 country codes of two letters, separated by commas or spaces")
    return value.upper()


def _hours(value: str) -> str:
    try:
        if value != ALWAYS:
            calling_hours(value)
    except ValueError as error:
        form = "must be HH:MM-HH:MM, opening hours (Mo-Fr 09:00-20:00; Su,PH off), a file of shared/hours, or always"
        raise refusal(f"{form}: {error}") from None
    return value


def _dispatch_secrets(value: SecretStr) -> SecretStr:
    secrets = value.get_secret_value().split()
    try:
        # The library that checks signatures reads broken base64 as a shorter key.
        keys = [base64.b64decode(secret.removeprefix("whsec_"), validate=True) for secret in secrets]
    except ValueError:
        keys = []
    if not all(secret.startswith("whsec_") for secret in secrets) or not 1 <= len(keys) <= 2 or len(min(keys)) < 24:
        raise refusal(
            "must be whsec_ and the base64 of at least 24 bytes; two of them, separated by a space, while rotating"
        )
    return value


def _none_when_off(value: object) -> object:
    return None if value == "off" else value


def _words(value: object) -> object:
    return tuple(re.split(r"[\s,]+", value.strip(" ,"))) if isinstance(value, str) else value


BaseUrl = Annotated[str, AfterValidator(_base_url)]
# Twilio, a proxy and Flask each decode and normalize other characters in their own way, and the path is signed.
RoutePath = Annotated[
    str,
    _matching(
        r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+/?|/",
        "must be a path such as /twilio/voice, of letters, digits and - . _ ~, without query, % and /../",
    ),
]
PublicUrl = Annotated[BaseUrl, AfterValidator(_public_url)]
SecretUrl = Annotated[str, AfterValidator(_https_url)]
LoopbackUrl = Annotated[BaseUrl, AfterValidator(_loopback_url)]
E164 = Annotated[str, AfterValidator(_e164)]
Numbers = Annotated[tuple[E164, ...], BeforeValidator(_words)]
Countries = Annotated[tuple[Annotated[str, AfterValidator(_region)], ...], BeforeValidator(_words)]
Hours = Annotated[str, AfterValidator(_hours)]
DispatchSecrets = Annotated[SecretStr, AfterValidator(_dispatch_secrets)]
AuthTokens = Annotated[
    SecretStr,
    _matching(
        r"[!-~]+( +[!-~]+)?", "must be the account's auth token; two of them, separated by a space, while rotating"
    ),
]
# The key is sent in a header, which takes only these characters.
Key = Annotated[SecretStr, _matching(r"[!-~]+", "must be one printable ASCII word")]
ServiceAccount = Annotated[str, _matching(r"[^@\s]+@[^@\s]+", "must be the e-mail address of a service account")]
AccountSid = Annotated[
    str, _matching(r"AC[0-9a-fA-F]{32}", "must be AC and 32 hexadecimal digits (Twilio console, Account Info)")
]
MetadataKeys = Annotated[
    tuple[
        Annotated[str, _matching(".{1,64}", "must be keys of at most 64 characters, separated by commas or spaces")],
        ...,
    ],
    BeforeValidator(_words),
]
DayLimit = Annotated[int | None, BeforeValidator(_none_when_off)]
# pydantic reads "inf" and "nan" as floats.
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Delays = Annotated[tuple[Seconds, ...], BeforeValidator(_words)]
