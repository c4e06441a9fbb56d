"""The environment, read once: typed, checked, and refused as a whole when anything in it is wrong.

A service that starts with a wrong setting calls people with it, so nothing here is repaired or guessed: `load_settings`
raises one `SettingsError` that names every variable that is missing or wrong and says what is allowed. No value is ever
part of such a message: the wrong value of one variable is often the right secret of another.

Times are in seconds unless a name says otherwise, and may be fractions (a sandbox uses short ones).
A variable that is empty, or holds only white space, counts as not set; white space around a value is dropped, because
secrets are often stored with the newline that ended them.
"""

import base64
import ipaddress
import os
import re
from collections.abc import Mapping
from datetime import time
from typing import Annotated, Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

import phonenumbers
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

DIAL_WITHIN_SECONDS: Final = 2.0
"""A call is asked for within this time of its claim, or the job is released."""
TWILIO_CONNECT_SECONDS: Final = 5.0
"""Twilio's edge is reached within this time, or not at all; a failed connect is known not to have placed a call."""
LEASE_MARGIN_SECONDS: Final = 1.0
"""What is left of a lease, at worst, to write down what Twilio answered."""

_ALWAYS: Final = "always"
_E164: Final = re.compile(r"\+[1-9][0-9]{7,14}")
_HOURS: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")


class SettingsError(Exception):
    """The environment is not one to start with. `problems` holds one line for each variable, values never."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("Settings are missing or wrong:\n  " + "\n  ".join(self.problems))


def _wrong(allowed: str) -> PydanticCustomError:
    """Refuse a value with the words for what is allowed; braces would be taken for a template."""
    return PydanticCustomError("setting", "{allowed}", {"allowed": allowed})


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parts(value: str) -> SplitResult:
    allowed = _wrong("must be an absolute http or https URL without user, query and fragment")
    # urlsplit drops tabs and newlines silently, and an empty "?" or "#" leaves no trace in its parts.
    if not value.isascii() or not value.isprintable() or any(mark in value for mark in ' "<>\\?#'):
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
    """Without the last slash, scheme and host in lower case: Twilio signs the URL letter by letter."""
    parts = _parts(value)
    return parts._replace(netloc=parts.netloc.lower()).geturl().rstrip("/")


def _public_url(value: str) -> str:
    host = _parts(value).hostname or ""
    if "_" in host:
        raise _wrong("must have a host without underscores (Twilio refuses such a URL)")
    if urlsplit(value).scheme != "https" and not _is_loopback(host):
        raise _wrong("must be an https URL, except on a loopback host")
    return value


def _loopback_url(value: str) -> str:
    # Whoever answers at this address is sent the account's credentials.
    if not _is_loopback(_parts(value).hostname or ""):
        raise _wrong("must be a URL on a loopback host: it is for stand-ins, leave it out in production")
    return value


def _e164(value: str) -> str:
    allowed = _wrong("must be a phone number in E.164 form: a plus sign, a country's code, 8 to 15 digits in all")
    if not _E164.fullmatch(value):
        raise allowed
    try:
        phonenumbers.parse(value)
    except phonenumbers.NumberParseException:
        raise allowed from None
    return value


def _region(value: str) -> str:
    if value.upper() not in phonenumbers.SUPPORTED_REGIONS:
        raise _wrong("must be ISO 3166 country codes of two letters, separated by commas or spaces")
    return value.upper()


def _hours(value: str) -> str:
    match = _HOURS.fullmatch(value)
    if value != _ALWAYS and not (match and value[:5] < value[6:]):
        raise _wrong("must be HH:MM-HH:MM, the end later than the start and by 23:59, or always")
    return value


def _dispatch_secrets(value: SecretStr) -> SecretStr:
    secrets = value.get_secret_value().split()
    try:
        # The library that checks signatures takes broken base64 for a shorter key; this does not.
        keys = [base64.b64decode(secret.removeprefix("whsec_"), validate=True) for secret in secrets]
    except ValueError:
        keys = []
    if not all(secret.startswith("whsec_") for secret in secrets) or not 1 <= len(keys) <= 2 or len(min(keys)) < 24:
        raise _wrong("must be whsec_ and the base64 of at least 24 bytes; two of them, by a space, while rotating")
    return value


def _auth_tokens(value: SecretStr) -> SecretStr:
    tokens = value.get_secret_value()
    if not (tokens.isascii() and tokens.isprintable() and len(tokens.split()) <= 2):
        raise _wrong("must be the account's auth token; two of them, by a space, while rotating")
    return value


def _key(value: SecretStr) -> SecretStr:
    # It becomes a header: what cannot be sent is better found here than at the first request.
    if not re.fullmatch(r"[!-~]+", value.get_secret_value()):
        raise _wrong("must be one printable ASCII word")
    return value


def _account(value: str) -> str:
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", value):
        raise _wrong("must be the e-mail address of a service account")
    return value


def _words(value: object) -> object:
    return tuple(re.split(r"[\s,]+", value.strip(" ,"))) if isinstance(value, str) else value


BaseUrl = Annotated[str, AfterValidator(_base_url)]
E164 = Annotated[str, AfterValidator(_e164)]
Region = Annotated[str, AfterValidator(_region)]
# A float takes "inf" and "nan", and neither is a time to wait.
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Each field is the variable of the same name in capitals, from the environment only."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    # Where the jobs are.
    supabase_url: BaseUrl
    supabase_service_key: Annotated[SecretStr, AfterValidator(_key)] = Field(
        description="a secret key (sb_secret_...) or the legacy service_role key"
    )

    # Who calls.
    twilio_account_sid: str = Field(pattern=r"^AC[0-9a-fA-F]{32}$")
    twilio_auth_token: Annotated[SecretStr, AfterValidator(_auth_tokens)] = Field(
        description="the first is used for requests; either proves a callback, while Twilio changes over"
    )
    twilio_phone_number: E164
    twilio_api_base_url: Annotated[BaseUrl, AfterValidator(_loopback_url)] | None = Field(
        default=None, description="a Twilio stand-in on this machine"
    )
    twilio_timeout_seconds: Seconds = Field(
        default=20, description="for the answer, once connected; Twilio itself gives up after about 26 s"
    )

    # Where Twilio, Supabase and Cloud Scheduler find us, and how they prove who they are.
    api_base_url: Annotated[BaseUrl, AfterValidator(_public_url)]
    api_base_url_is_this_function: bool = Field(
        default=True, description="false where another web service answers /voice and /status"
    )
    dispatch_secret: Annotated[SecretStr, AfterValidator(_dispatch_secrets)] | None = None
    sweep_service_account: Annotated[str, AfterValidator(_account)] | None = Field(
        default=None, description="whose Google ID token may start a sweep"
    )
    sweep_audience: str | None = Field(
        default=None, validate_default=True, description="the audience that token was made for"
    )

    # How much at a time.
    call_dispatcher_limit: int = Field(default=10, ge=1, le=1000, description="jobs per sweep")
    sweep_timeout_seconds: Seconds = Field(
        default=50, description="a sweep ends by then; below the platform's request timeout"
    )
    calls_per_second: float = Field(
        default=1, ge=0.01, le=1000, allow_inf_nan=False, description="the account's own limit; 1 is Twilio's default"
    )

    # How often one person.
    call_max_attempts: int = Field(default=3, ge=1, le=10)
    call_retry_seconds: Seconds = Field(
        default=60, description="backoff base when a call could not be placed: such trouble passes in minutes"
    )
    call_redial_seconds: Seconds = Field(
        default=900, description="backoff base when nobody picked up: ringing again at once is a nuisance"
    )

    # Never twice.
    call_lease_seconds: Seconds = Field(
        default=60, validate_default=True, description="how long a dispatcher holds a job"
    )
    call_settling_seconds: Seconds = Field(
        default=None,
        validate_default=True,
        description="how long Twilio is asked about a call in doubt before it counts as absent",
    )
    call_in_doubt: Literal["redial", "give-up"] = "redial"
    call_ask_seconds: Seconds = Field(
        default=60, description="after acceptance, and between asks, about a call whose end nobody reported"
    )

    # Whom, and when.
    call_hours: Annotated[str, AfterValidator(_hours)] = Field(
        default="08:00-21:00", description="where the phone is; always, to call at any hour"
    )
    call_countries: Annotated[tuple[Region, ...], NoDecode, BeforeValidator(_words)] | None = Field(
        default=None, description="not set: the country of TWILIO_PHONE_NUMBER"
    )
    call_only_to: Annotated[tuple[E164, ...], NoDecode, BeforeValidator(_words)] | None = Field(
        default=None, description="staging: only these numbers are dialed"
    )
    calls_per_day: int | None = Field(default=None, ge=1, description="over all numbers; not set: no cap")
    calls_per_number_per_day: int = Field(default=3, ge=1, description="in any 24 hours")
    calls_per_prefix_per_hour: int = Field(
        default=20, ge=0, description="per number less its last four digits, against pumped traffic; 0 is off"
    )

    # The call itself, and after it.
    call_ring_seconds: int = Field(default=25, ge=5, le=600, description="before voice mail takes over")
    call_time_limit_seconds: int = Field(default=600, ge=1, le=14_400, description="a call that hangs costs no more")
    call_machine_detection: Literal["off", "on"] = Field(
        default="off", description="Twilio charges for it; it listens beside the conversation"
    )
    call_machine_counts_as: Literal["reached", "missed"] = Field(
        default="reached", description="missed is called again like who did not pick up; detection errs one time in ten"
    )
    call_retention_days: int = Field(default=90, ge=1, le=3650, description="then a finished job is deleted")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings

    @model_validator(mode="before")
    @classmethod
    def _empty_is_not_set(cls, given: dict[str, Any]) -> dict[str, Any]:
        stripped = {name: value.strip() if isinstance(value, str) else value for name, value in given.items()}
        return {name: value for name, value in stripped.items() if value != ""}

    # Rules over two fields belong to the later one, not to the whole: pydantic runs a validator of the whole only when
    # every field is right, and all problems shall be told at once.

    @field_validator("call_lease_seconds")
    @classmethod
    def _lease_outlasts_the_request(cls, lease: float, info: ValidationInfo) -> float:
        timeout = info.data.get("twilio_timeout_seconds", 0.0)
        connect = min(TWILIO_CONNECT_SECONDS, timeout)
        least = DIAL_WITHIN_SECONDS + connect + timeout + LEASE_MARGIN_SECONDS
        if lease <= least:
            raise _wrong(
                f"must be more than {least:g}: {DIAL_WITHIN_SECONDS:g} to start, {connect:g} to connect,"
                f" {timeout:g} (TWILIO_TIMEOUT_SECONDS) and a margin of {LEASE_MARGIN_SECONDS:g}"
            )
        return lease

    @field_validator("call_settling_seconds", mode="before")
    @classmethod
    def _settling_without_callbacks_takes_longer(cls, settling: object, info: ValidationInfo) -> object:
        if settling is not None:
            return settling
        # Another service need not hand us the callbacks that bear the attempt's id: then only Twilio's list can tell.
        return 120.0 if info.data.get("api_base_url_is_this_function", True) else 600.0

    @field_validator("sweep_audience")
    @classmethod
    def _account_and_audience_go_together(cls, audience: str | None, info: ValidationInfo) -> str | None:
        if "sweep_service_account" in info.data and (audience is None) != (info.data["sweep_service_account"] is None):
            raise _wrong("must be set exactly when SWEEP_SERVICE_ACCOUNT is: both or neither")
        return audience

    @property
    def dispatch_secrets(self) -> tuple[str, ...]:
        """The secrets that prove Supabase and pg_cron, as they stand in the setting (whsec_...); none: no HTTP."""
        return tuple(self.dispatch_secret.get_secret_value().split()) if self.dispatch_secret else ()

    @property
    def twilio_connect_seconds(self) -> float:
        """How long a connection to Twilio may take: never longer than its answer."""
        return min(TWILIO_CONNECT_SECONDS, self.twilio_timeout_seconds)

    @property
    def twilio_auth_tokens(self) -> tuple[str, ...]:
        """The first one for requests to Twilio; any of them proves a request from Twilio."""
        return tuple(self.twilio_auth_token.get_secret_value().split())

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no log line may hold."""
        return (self.supabase_service_key.get_secret_value(), *self.twilio_auth_tokens, *self.dispatch_secrets)

    @property
    def calling_hours(self) -> tuple[time, time] | None:
        """From when until when a phone may ring, on the clock where the phone is; None means at any hour."""
        if self.call_hours == _ALWAYS:
            return None
        start, end = self.call_hours.split("-")
        return time.fromisoformat(start), time.fromisoformat(end)


def load_settings(*, http: bool = True, environ: Mapping[str, str] | None = None) -> Settings:
    """Read `environ`, or the process's own environment; `http` is true where requests are served and must be proved.

    Raises `SettingsError`, with all that is missing or wrong.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    if http and not environ.get("DISPATCH_SECRET", "").strip():
        problems.append("DISPATCH_SECRET is missing: whsec_ and the base64 of at least 24 bytes")
    try:
        # Every field is passed, the absent ones as empty, so that nothing but `environ` is read.
        given: dict[str, Any] = {field: environ.get(field.upper(), "") for field in Settings.model_fields}
        settings = Settings(**given)
    except ValidationError as error:
        problems += [_problem(details["loc"], details["type"], details["msg"]) for details in error.errors()]
        problems = list(dict.fromkeys(problems))  # a list of ten wrong numbers is one problem
    if problems:
        raise SettingsError(problems)
    return settings


def _problem(loc: tuple[int | str, ...], kind: str, message: str) -> str:
    field = str(loc[0])
    meaning = Settings.model_fields[field].description
    wrong = "is missing" if kind == "missing" else message[0].lower() + message[1:]
    return f"{field.upper()} {wrong}" + (f" ({meaning})" if meaning else "")
