"""Settings: all that is wrong is told at once, by name, and no secret with it."""

import base64
from datetime import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.settings import Settings, SettingsError, load_settings
from tests.unit.examples import ENVIRON, SECRET, settings

REQUIRED = [
    "SUPABASE_URL",
    "SUPABASE_SERVICE_KEY",
    "TWILIO_ACCOUNT_SID",
    "TWILIO_AUTH_TOKEN",
    "TWILIO_PHONE_NUMBER",
    "API_BASE_URL",
]
EXAMPLE = [
    line.partition("=")
    for line in (Path(__file__).parents[2] / ".env.example").read_text().splitlines()
    if line and not line.startswith("#")
]


def problems(**changed: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as refused:
        settings(**changed)
    assert all(problem in str(refused.value) for problem in refused.value.problems)
    return refused.value.problems


def test_an_empty_environment_is_refused_once_with_every_required_name() -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(environ={})
    assert {problem.split()[0] for problem in refused.value.problems} == {*REQUIRED, "DISPATCH_SECRET"}


@pytest.mark.parametrize("blank", ["", " ", "\n"])
@pytest.mark.parametrize("name", [*REQUIRED, "DISPATCH_SECRET"])
def test_an_empty_variable_counts_as_missing(name: str, blank: str) -> None:
    (problem,) = problems(**{name: blank})
    assert problem.startswith(f"{name} is missing")


def test_an_empty_optional_variable_leaves_the_default() -> None:
    optional = {name: " " for field in Settings.model_fields if (name := field.upper()) not in ENVIRON}
    assert settings(**optional) == settings()


def test_only_a_server_needs_the_dispatch_secret() -> None:
    without = {name: value for name, value in ENVIRON.items() if name != "DISPATCH_SECRET"}
    assert load_settings(http=False, environ=without).dispatch_secrets == ()


def test_a_wrong_dispatch_secret_is_refused_also_where_none_is_needed() -> None:
    with pytest.raises(SettingsError, match="DISPATCH_SECRET"):
        load_settings(http=False, environ={**ENVIRON, "DISPATCH_SECRET": "whsec_short"})


def test_the_process_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CALL_MAX_ATTEMPTS", "7")
    assert load_settings().call_max_attempts == 7


def test_nothing_but_the_given_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALL_MAX_ATTEMPTS", "7")
    assert settings().call_max_attempts == 3


def test_white_space_around_a_secret_is_dropped() -> None:
    assert settings(TWILIO_AUTH_TOKEN="f" * 32 + "\n").twilio_auth_tokens == ("f" * 32,)


WRONG = [
    *[
        (name, url)
        for name in ("SUPABASE_URL", "API_BASE_URL", "TWILIO_API_BASE_URL")
        for url in (
            "example.com",
            "/calls",
            "ftp://127.0.0.1",
            "https://",
            "https://user:hunter2@127.0.0.1",
            "https://127.0.0.1?",
            "https://127.0.0.1/?a=hunter2",
            "https://127.0.0.1/#",
            "https://127.0.0.1:port",
            "https://127.0.0.1:99999",
            "https://127.0.0.1/a b",
            "https://[::1",
            "https://bücher.example",
        )
    ],
    ("API_BASE_URL", "http://calls.example.com"),
    ("API_BASE_URL", "https://my_calls.example.com"),
    ("TWILIO_API_BASE_URL", "https://api.twilio.com"),
    ("TWILIO_API_BASE_URL", "http://localhost.example.com"),
    ("TWILIO_API_BASE_URL", "http://10.0.0.1"),
    ("SUPABASE_SERVICE_KEY", "two words"),
    ("SUPABASE_SERVICE_KEY", "schlüssel"),
    ("TWILIO_ACCOUNT_SID", "SK" + "0" * 32),
    ("TWILIO_ACCOUNT_SID", "AC" + "0" * 31),
    ("TWILIO_ACCOUNT_SID", "AC" + "g" * 32),
    ("TWILIO_AUTH_TOKEN", "one two three"),
    ("TWILIO_AUTH_TOKEN", "schlüssel"),
    ("TWILIO_PHONE_NUMBER", "14155550199"),
    ("TWILIO_PHONE_NUMBER", "+04155550199"),
    ("TWILIO_PHONE_NUMBER", "+1 415 555 0199"),
    ("TWILIO_PHONE_NUMBER", "+1415555019912345"),
    ("TWILIO_PHONE_NUMBER", "+9995550199"),
    ("DISPATCH_SECRET", "hunter2"),
    ("DISPATCH_SECRET", SECRET.removeprefix("whsec_")),
    ("DISPATCH_SECRET", "whsec_"),
    ("DISPATCH_SECRET", "whsec_" + base64.b64encode(b"23 bytes are not enough").decode()),
    ("DISPATCH_SECRET", SECRET + "!"),
    ("DISPATCH_SECRET", SECRET[:20] + "-" + SECRET[20:]),
    ("DISPATCH_SECRET", f"{SECRET} whsec_hunter2"),
    ("DISPATCH_SECRET", f"{SECRET} {SECRET} {SECRET}"),
    ("SWEEP_SERVICE_ACCOUNT", "scheduler"),
    ("CALL_HOURS", "8-21"),
    ("CALL_HOURS", "21:00-08:00"),
    ("CALL_HOURS", "08:00-08:00"),
    ("CALL_HOURS", "08:00-24:00"),
    ("CALL_HOURS", "never"),
    ("CALL_COUNTRIES", "US, Canada"),
    ("CALL_COUNTRIES", "XX"),
    ("CALL_COUNTRIES", ","),
    ("CALL_ONLY_TO", "+14155550123 4155550124"),
    ("CALL_IN_DOUBT", "retry"),
    ("CALL_MACHINE_DETECTION", "Enable"),
    ("API_BASE_URL_IS_THIS_FUNCTION", "perhaps"),
    ("CALL_MAX_ATTEMPTS", "0"),
    ("CALL_MAX_ATTEMPTS", "11"),
    ("CALL_DISPATCHER_LIMIT", "0"),
    ("CALL_DISPATCHER_LIMIT", "1001"),
    ("CALL_RING_SECONDS", "4"),
    ("CALL_RING_SECONDS", "601"),
    ("CALL_TIME_LIMIT_SECONDS", "0"),
    ("CALL_TIME_LIMIT_SECONDS", "14401"),
    ("CALLS_PER_SECOND", "0"),
    ("CALLS_PER_SECOND", "inf"),
    ("CALLS_PER_DAY", "0"),
    ("CALLS_PER_NUMBER_PER_DAY", "0"),
    ("CALLS_PER_PREFIX_PER_HOUR", "-1"),
    ("CALL_RETENTION_DAYS", "0"),
    *[
        (name, value)
        for name in (
            "TWILIO_TIMEOUT_SECONDS",
            "CALL_RETRY_SECONDS",
            "CALL_REDIAL_SECONDS",
            "CALL_LEASE_SECONDS",
            "CALL_SETTLING_SECONDS",
            "CALL_ASK_SECONDS",
            "SWEEP_TIMEOUT_SECONDS",
        )
        for value in ("0", "-1", "nan", "inf", "a minute")
    ],
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_refused_by_its_name_alone(name: str, value: str) -> None:
    together = {"SWEEP_AUDIENCE": "sweep"} if name == "SWEEP_SERVICE_ACCOUNT" else {}
    (problem,) = problems(**{name: value}, **together)
    assert problem.startswith(f"{name} ")
    assert "hunter2" not in problem


def test_everything_that_is_wrong_is_told_at_once() -> None:
    wrong = {
        "SUPABASE_URL": "example.com",
        "TWILIO_PHONE_NUMBER": "",
        "DISPATCH_SECRET": "hunter2",
        "CALL_LEASE_SECONDS": "5",
        "CALL_RING_SECONDS": "soon",
        "SWEEP_AUDIENCE": "sweep",
    }
    assert {problem.split()[0] for problem in problems(**wrong)} == {*wrong}


@given(
    st.sampled_from(["SUPABASE_SERVICE_KEY", "TWILIO_AUTH_TOKEN", "DISPATCH_SECRET"]),
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=6).map(lambda text: f"hunter2 {text} é"),
)
def test_the_value_of_a_secret_is_never_part_of_the_error(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        settings(**{name: value})
    assert "hunter2" not in f"{refused.value!s}{refused.value!r}{refused.value.__context__!s}"


def test_secrets_are_not_part_of_how_settings_look() -> None:
    shown = settings()
    assert not any(secret in f"{shown!r}{shown!s}{shown.model_dump_json()}" for secret in shown.secrets)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        settings().call_max_attempts = 9


def test_the_base_url_is_told_as_twilio_will_sign_it() -> None:
    assert settings(API_BASE_URL="HTTPS://Calls.Example.com/Up/").api_base_url == "https://calls.example.com/Up"


@pytest.mark.parametrize("url", ["http://localhost:8080", "http://127.0.0.1:8080", "http://[::1]:8080"])
def test_this_machine_may_be_reached_without_tls(url: str) -> None:
    local = settings(API_BASE_URL=url, TWILIO_API_BASE_URL=url)
    assert (local.api_base_url, local.twilio_api_base_url) == (url, url)


def test_two_secrets_and_two_tokens_hold_while_rotating() -> None:
    other = "whsec_" + base64.b64encode(b"b" * 24).decode()
    rotating = settings(DISPATCH_SECRET=f"{SECRET} {other}", TWILIO_AUTH_TOKEN="first second")
    assert rotating.dispatch_secrets == (SECRET, other)
    assert rotating.twilio_auth_tokens == ("first", "second")
    assert set(rotating.secrets) == {"service-key", "first", "second", SECRET, other}


@pytest.mark.parametrize("alone", ["SWEEP_SERVICE_ACCOUNT", "SWEEP_AUDIENCE"])
def test_the_sweeps_account_and_audience_are_set_together(alone: str) -> None:
    (problem,) = problems(**{alone: "sweep@project.example"})
    assert problem.startswith("SWEEP_AUDIENCE must be set exactly when SWEEP_SERVICE_ACCOUNT is")


def test_a_lease_that_does_not_outlast_the_request_is_refused_with_the_least_that_does() -> None:
    (problem,) = problems(TWILIO_TIMEOUT_SECONDS="20", CALL_LEASE_SECONDS="28")
    assert problem.startswith("CALL_LEASE_SECONDS must be more than 28")
    assert settings(TWILIO_TIMEOUT_SECONDS="20", CALL_LEASE_SECONDS="28.1").call_lease_seconds == 28.1


def test_a_longer_timeout_shows_that_the_default_lease_is_too_short() -> None:
    (problem,) = problems(TWILIO_TIMEOUT_SECONDS="100")
    assert problem.startswith("CALL_LEASE_SECONDS must be more than 108")


def test_a_connection_takes_no_longer_than_its_answer_may() -> None:
    assert settings(TWILIO_TIMEOUT_SECONDS="0.5").twilio_connect_seconds == 0.5
    assert settings().twilio_connect_seconds == 5


@pytest.mark.parametrize(
    ("changed", "seconds"),
    [
        ({}, 120),
        ({"API_BASE_URL_IS_THIS_FUNCTION": "false"}, 600),
        ({"API_BASE_URL_IS_THIS_FUNCTION": "false", "CALL_SETTLING_SECONDS": "3.5"}, 3.5),
    ],
)
def test_doubt_settles_more_slowly_where_another_service_hears_the_callbacks(
    changed: dict[str, str], seconds: float
) -> None:
    assert settings(**changed).call_settling_seconds == seconds


def test_calling_hours_are_times_or_none() -> None:
    assert settings().calling_hours == (time(8), time(21))
    assert settings(CALL_HOURS="always").calling_hours is None


def test_lists_take_commas_and_spaces() -> None:
    listed = settings(CALL_COUNTRIES="us, CA gb", CALL_ONLY_TO=" +14155550123,+14155550124 ")
    assert listed.call_countries == ("US", "CA", "GB")
    assert listed.call_only_to == ("+14155550123", "+14155550124")


def test_the_example_names_every_setting_once_and_no_other() -> None:
    assert sorted(name for name, _, _ in EXAMPLE) == sorted(field.upper() for field in Settings.model_fields)


def test_the_example_shows_the_defaults() -> None:
    optional = {name: value for name, _, value in EXAMPLE if name not in ENVIRON}
    assert settings(**optional) == settings()


def test_the_example_names_the_required_settings_first() -> None:
    assert {name for name, _, _ in EXAMPLE[: len(ENVIRON)]} == {*ENVIRON}


def test_nobody_can_start_with_the_placeholders_of_the_example() -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(environ={name: value for name, _, value in EXAMPLE})
    assert {problem.split()[0] for problem in refused.value.problems} >= {
        "SUPABASE_SERVICE_KEY",
        "TWILIO_ACCOUNT_SID",
        "TWILIO_AUTH_TOKEN",
        "TWILIO_PHONE_NUMBER",
        "API_BASE_URL",
        "DISPATCH_SECRET",
    }
