"""The settings, from environment variables. They are checked once, at start.

A wrong setting calls people wrongly, so nothing is repaired or guessed. `load_settings` raises one `SettingsError` that
names every variable that is missing or wrong, and says which values are allowed. The message never holds a value: a wrong
value of one variable is often the secret of another.

Times are in seconds and may be fractions. An empty variable counts as not set. White space around a value is dropped,
because secrets are often stored with a newline at the end.
"""

import difflib
import os
from collections.abc import Mapping
from typing import Any, Final, Literal, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from shared import setting_types as types
from shared.opening_hours import CallingHours, calling_hours

DIAL_WITHIN_SECONDS: Final = 2.0
"""The request to Twilio starts within this time of the claim, or the job is released."""
TWILIO_CONNECT_SECONDS: Final = 5.0
"""Longest wait for a connection to Twilio. A failed connection has not placed a call."""
LEASE_MARGIN_SECONDS: Final = 1.0
"""Time to write down Twilio's answer before the request ends."""
OWN_PATHS: Final = ("/", "/sweep", "/health", "/favicon.ico", "/robots.txt")
"""The function answers other requests here: ours, and the two last ones in functions-framework."""
REQUEST_PARTS: Final = 11
"""A sweep ends one part of REQUEST_TIMEOUT_SECONDS before its request, and a lease one part after it: 50 < 55 < 60."""

_PREFIXES: Final = tuple(
    f"{word}_" for word in "CALL CALLS TWILIO SUPABASE SWEEP DISPATCH API_BASE REQUEST VOICE STATUS RESULT".split()
)
_UNSUPPORTED: Final = ("TWILIO_REGION", "TWILIO_EDGE")
_QUOTES: Final = tuple("\"'`\u2018\u2019\u201c\u201d")
_WRONG: Final = {
    "missing": "is missing",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "bool_parsing": "must be true or false",
    **dict.fromkeys(("int_parsing", "int_from_float", "int_parsing_size", "int_type"), "must be a whole number"),
    **dict.fromkeys(("float_parsing", "finite_number"), "must be a number"),
}
"""By pydantic's type of the error: the same in our words."""


class SettingsError(Exception):
    """The environment has missing or wrong settings. `problems` holds one line for each, without values."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("Settings are missing or wrong:\n  " + "\n  ".join(self.problems))


class Settings(BaseModel):
    """Each field is the environment variable of the same name in capitals."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    # The database.
    supabase_url: types.BaseUrl
    supabase_service_key: types.Key = Field(description="a secret key (sb_secret_...) or the legacy service_role key")

    # Twilio.
    twilio_account_sid: types.AccountSid
    twilio_auth_token: types.AuthTokens = Field(
        description="requests use the first; callbacks signed with either are accepted, while Twilio changes over"
    )
    twilio_phone_number: types.E164
    twilio_api_base_url: types.LoopbackUrl | None = Field(None, description="a Twilio stand-in on this machine")
    twilio_timeout_seconds: types.Seconds = Field(
        20, description="for the answer, once connected; Twilio itself gives up after about 26 s"
    )

    # HTTP: our address, and the proofs that Supabase and Cloud Scheduler send.
    api_base_url: types.PublicUrl
    api_base_url_is_this_function: bool = Field(True, description="false where another web service answers Twilio")
    voice_path: types.RoutePath = Field("/voice", description="below API_BASE_URL: Twilio asks there what to say")
    status_path: types.RoutePath = Field(
        "/status", validate_default=True, description="below API_BASE_URL: Twilio reports there on the call"
    )
    dispatch_secret: types.DispatchSecrets | None = None
    sweep_service_account: types.ServiceAccount | None = Field(
        None, description="its Google ID token, made for the audience API_BASE_URL, may start a sweep"
    )
    request_timeout_seconds: types.Seconds = Field(
        55, validate_default=True, description="the platform's limit for a request; sweep and lease follow from it"
    )

    # How much at a time.
    call_dispatcher_limit: int = Field(10, ge=1, le=1000, description="jobs per sweep")
    calls_per_second: float = Field(
        1, ge=0.01, le=1000, allow_inf_nan=False, description="the account's own limit; 1 is Twilio's default"
    )
    calls_per_day: types.DayLimit = Field(500, ge=1, description="to all numbers, in any 24 hours; off lifts the limit")
    calls_per_number_per_day: int = Field(3, ge=1, description="in any 24 hours")
    calls_per_prefix_per_hour: int = Field(
        20, ge=0, description="per number without its last four digits, against pumped traffic; 0 is off"
    )

    # How often one person.
    call_max_attempts: int = Field(3, ge=1, le=10)
    call_retry_seconds: types.Delays = Field(
        (60,), description="when a call could not be placed: the base of the backoff, or the delays: 600,3600"
    )
    call_redial_seconds: types.Delays = Field(
        (900,), description="when nobody picked up: the base of the backoff, or the delays: 600,3600"
    )
    call_redial_spread: Literal["on", "off"] = Field(
        "off", description="on: a redial prefers another time of day than the one at which nobody picked up"
    )
    call_later_max: int = Field(2, ge=0, le=10, description="how often one job's person may ask to be called later")

    # Never twice.
    call_settling_seconds: types.Seconds = Field(
        None,
        validate_default=True,
        description="how long Twilio is asked about a call in doubt before it counts as absent",
    )
    call_in_doubt: Literal["redial", "give-up"] = "redial"
    call_ask_seconds: types.Seconds = Field(60, description="wait before each question about a call without callbacks")

    # Whom, and when.
    call_hours: types.Hours = Field(
        "08:00-21:00", description="by the clock where the phone is; always allows any hour"
    )
    call_countries: types.Countries | None = Field(None, description="not set: the country of TWILIO_PHONE_NUMBER")
    call_only_to: types.Numbers | None = Field(None, description="staging: only these numbers are dialed")

    # The call itself, and after it.
    call_ring_seconds: int = Field(25, ge=5, le=600, description="less than voice mail's")
    call_time_limit_seconds: int = Field(600, ge=1, le=14_400, description="limits the cost of a call that hangs")
    call_machines: Literal["ignore", "reached", "missed"] = Field(
        "ignore",
        description="ignore: no detection; else Twilio charges for it, and a call that a machine answered counts as this",
    )
    call_retention_days: int = Field(90, ge=1, le=3650, description="then a finished job is deleted")

    # What leaves: the result of each job, and each opt-out.
    result_url: types.SecretUrl | None = Field(None, description="each result is posted there; not set: none is")
    result_secret: types.DispatchSecrets | None = Field(
        None, validate_default=True, description="signs the results, as Standard Webhooks do"
    )
    result_retry_seconds: types.Delays = Field(
        (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400),
        description="when a result was not taken: the delays; the last one repeats until three days are over",
    )
    result_number: Literal["masked", "full"] = "masked"
    result_metadata: types.MetadataKeys = Field((), description="keys of a job's metadata that leave with its result")

    # A rule over two fields is a validator of the later one. pydantic runs a validator of the whole model only when every
    # field is right, and then the other problems would be told first.

    @field_validator("voice_path", "status_path")
    @classmethod
    def _path_leads_to_one_route(cls, path: str, info: ValidationInfo) -> str:
        prefix = urlsplit(info.data.get("api_base_url", "")).path
        if prefix and path.startswith(f"{prefix}/"):
            raise types.refusal("must be the path below API_BASE_URL, without that URL's own path")
        taken = (*OWN_PATHS, info.data.get("voice_path"))
        if path in taken and info.data.get("api_base_url_is_this_function", True):
            others = (*OWN_PATHS, *(["VOICE_PATH"] if info.field_name == "status_path" else []))
            raise types.refusal(f"must be another path than {', '.join(others)}: something else is answered there")
        return path

    @field_validator("request_timeout_seconds")
    @classmethod
    def _request_outlasts_the_call_to_twilio(cls, timeout: float, info: ValidationInfo) -> float:
        answer = info.data.get("twilio_timeout_seconds", 0.0)
        connect = min(TWILIO_CONNECT_SECONDS, answer)
        least = DIAL_WITHIN_SECONDS + connect + answer + LEASE_MARGIN_SECONDS
        if timeout <= least:
            raise types.refusal(
                f"must be more than {least:g}: {DIAL_WITHIN_SECONDS:g} to start, {connect:g} to connect,"
                f" {answer:g} (TWILIO_TIMEOUT_SECONDS) and a margin of {LEASE_MARGIN_SECONDS:g}"
            )
        return timeout

    @field_validator("result_secret")
    @classmethod
    def _results_are_signed(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if secret is None and info.data.get("result_url"):
            raise types.refusal("is missing: RESULT_URL needs whsec_ and the base64 of at least 24 bytes")
        return secret

    @field_validator("call_retry_seconds", "call_redial_seconds")
    @classmethod
    def _delays_fit_the_attempts(cls, delays: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        attempts = info.data.get("call_max_attempts", 1)
        if 1 < len(delays) < attempts - 1:
            raise types.refusal(
                f"must be one number, or at least {attempts - 1} delays:"
                f" one after each attempt but the last (CALL_MAX_ATTEMPTS: {attempts})"
            )
        return delays

    @field_validator("call_settling_seconds", mode="before")
    @classmethod
    def _settling_without_callbacks_takes_longer(cls, settling: object, info: ValidationInfo) -> object:
        # Another service may not pass on the callbacks that bear the attempt's id. Then only Twilio's list can tell.
        default = 120.0 if info.data.get("api_base_url_is_this_function", True) else 600.0
        return default if settling is None else settling

    @property
    def voice_url(self) -> str:
        return self.api_base_url + self.voice_path

    @property
    def status_url(self) -> str:
        return self.api_base_url + self.status_path

    @property
    def sweep_timeout_seconds(self) -> float:
        """A sweep ends within this time."""
        return self.request_timeout_seconds - self.request_timeout_seconds / REQUEST_PARTS

    @property
    def call_lease_seconds(self) -> float:
        """A dispatcher holds a job for this time."""
        return self.request_timeout_seconds + self.request_timeout_seconds / REQUEST_PARTS

    @property
    def dispatch_secrets(self) -> tuple[str, ...]:
        """The secrets of Supabase's webhook and pg_cron (whsec_...); empty where HTTP is not served."""
        return tuple(self.dispatch_secret.get_secret_value().split()) if self.dispatch_secret else ()

    @property
    def result_secrets(self) -> tuple[str, ...]:
        """A result bears one signature by each; the receiver needs one of the secrets."""
        return tuple(self.result_secret.get_secret_value().split()) if self.result_secret else ()

    @property
    def result_policy(self) -> dict[str, Any]:
        """What SQL may write into a result; empty: it writes none."""
        return {"number": self.result_number, "metadata": list(self.result_metadata)} if self.result_url else {}

    @property
    def twilio_connect_seconds(self) -> float:
        """Longest wait for a connection to Twilio; at most the wait for the answer."""
        return min(TWILIO_CONNECT_SECONDS, self.twilio_timeout_seconds)

    @property
    def twilio_auth_tokens(self) -> tuple[str, ...]:
        """Requests to Twilio use the first. A callback signed with any of them is accepted."""
        return tuple(self.twilio_auth_token.get_secret_value().split())

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that no log line may hold."""
        key, url = self.supabase_service_key.get_secret_value(), (self.result_url,) if self.result_url else ()
        return (key, *self.twilio_auth_tokens, *self.dispatch_secrets, *self.result_secrets, *url)

    @property
    def calling_hours(self) -> CallingHours | None:
        """By the clock where the phone is; None means any hour."""
        return None if self.call_hours == types.ALWAYS else calling_hours(self.call_hours)


def load_settings(*, http: bool = True, environ: Mapping[str, str] | None = None) -> Settings:
    """Read `environ`, by default the process's own. `http`: requests are served, so DISPATCH_SECRET is required.

    Raises `SettingsError` with everything that is missing or wrong.
    """
    environ = os.environ if environ is None else environ
    given = {field: value for field in Settings.model_fields if (value := environ.get(field.upper(), "").strip())}
    quoted = [field for field, value in given.items() if value.startswith(_QUOTES) or value.endswith(_QUOTES)]
    problems = [f"{field.upper()} has quotes around its value: leave them out" for field in quoted]
    # twilio-python reads these two itself, and then asks another host.
    unsupported = "is not supported: take it out; accounts of Twilio's region US1 work"
    problems += [f"{name} {unsupported}" for name in _UNSUPPORTED if environ.get(name)]
    if http and "dispatch_secret" not in given:
        problems.append("DISPATCH_SECRET is missing: whsec_ and the base64 of at least 24 bytes")
    try:
        settings = Settings(**cast(dict[str, Any], given))
    except ValidationError as error:
        problems += [_problem(details) for details in error.errors() if details["loc"][0] not in quoted]
    if problems:
        raise SettingsError(list(dict.fromkeys(problems)))  # a list of ten wrong numbers is one problem
    return settings


def unknown_settings(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Variables that look like settings of ours and are not: name -> the setting with the nearest name, if one is near."""
    known = [field.upper() for field in Settings.model_fields]
    unknown = [name for name in environ if name.upper().startswith(_PREFIXES) and name not in (*known, *_UNSUPPORTED)]
    return {name: next(iter(difflib.get_close_matches(name.upper(), known, n=1)), None) for name in sorted(unknown)}


def _problem(details: ErrorDetails) -> str:
    """One line in our words: the variable, the values that are allowed, the meaning."""
    field, limits = str(details["loc"][0]), details.get("ctx", {})
    template = _WRONG.get(details["type"])
    wrong = template.format(**limits).replace("'", "") if template else details["msg"]
    meaning = Settings.model_fields[field].description
    return f"{field.upper()} {wrong}" + (f" ({meaning})" if meaning else "")
