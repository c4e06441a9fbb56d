"""Settings: one error names every wrong variable and never holds a value."""

from __future__ import annotations

import base64
from datetime import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.settings import Settings, SettingsError, load_settings, unknown_settings
from tests.unit.examples import ENVIRON, SECRET, settings

REQUIRED = [
    "SUPABASE_URL", "SUPABASE_SERVICE_KEY", "TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "TWILIO_PHONE_NUMBER", "API_BASE_URL",
]  # fmt: skip
EXAMPLE = [
    line.partition("=")
    for line in (Path(__file__).parents[2] / ".env.example").read_text().splitlines()
    if line and not line.startswith("#")
]


def problems(**changed: str) -> tuple[str, ...]:
    """One line for each, which the error repeats; none if the settings are right."""
    try:
        settings(**changed)
        return ()
    except SettingsError as error:
        told = error
    assert all(problem in str(told) for problem in told.problems)
    return told.problems


def test_empty_environment_is_refused_with_every_required_name() -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(environ={})
    assert {problem.split()[0] for problem in refused.value.problems} == {*REQUIRED, "DISPATCH_SECRET"}
    with pytest.raises(SettingsError) as refused:  # nor does the example start as it stands
        load_settings(environ={name: value for name, _, value in EXAMPLE})
    assert {problem.split()[0] for problem in refused.value.problems} >= {*REQUIRED, "DISPATCH_SECRET"}
    without = {name: value for name, value in ENVIRON.items() if name != "DISPATCH_SECRET"}
    assert load_settings(http=False, environ=without).dispatch_secrets == ()  # only a server needs it
    with pytest.raises(SettingsError, match="DISPATCH_SECRET"):
        load_settings(http=False, environ={**ENVIRON, "DISPATCH_SECRET": "whsec_short"})


def test_empty_variables_count_as_missing() -> None:
    blanks = [(name, blank) for name in (*REQUIRED, "DISPATCH_SECRET") for blank in ("", " ", "\n")]
    told = {(name, blank): problems(**{name: blank}) for name, blank in blanks}
    assert {case: said for case, said in told.items() if not " ".join(said).startswith(f"{case[0]} is missing")} == {}


def test_the_process_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CALL_MAX_ATTEMPTS", "7")
    assert load_settings().call_max_attempts == 7
    assert settings().call_max_attempts == 3  # an environment that is given is the only one


NO_URLS = [
    "example.com", "/calls", "ftp://127.0.0.1", "https://", "https://user:hunter2@127.0.0.1", "https://127.0.0.1?",
    "https://127.0.0.1/?a=hunter2", "https://127.0.0.1/#", "https://127.0.0.1:port", "https://127.0.0.1:99999",
    "https://127.0.0.1/a b", "https://[::1", "https://bücher.example",
]  # fmt: skip
NO_PATHS = [
    "voice", "voice/", "//voice", "/a//b", "/voice?tenant=7", "/voice#now", "/..", "/../voice", "/a/./b", "/a/..", "/voice%2Fa",
    "/a%2e%2e", "/stimme-ü", "/a b", "/a\\b", "/a;b", "https://x.example/voice", "/sweep", "/health", "/", "/robots.txt",
]  # fmt: skip
NO_TIMES = ["0", "-1", "86401", "nan", "inf", "a minute"]
NO_DELAYS = [*NO_TIMES, ",", "60;120", "60,0", "60,-1", "60,86401", "60,nan", "60,soon"]
WRONG = {
    "SUPABASE_URL": NO_URLS, "API_BASE_URL": [*NO_URLS, "http://calls.example.com", "https://my_calls.example.com"],
    "TWILIO_API_BASE_URL": [*NO_URLS, "https://api.twilio.com", "http://localhost.example.com", "http://10.0.0.1"],
    "SUPABASE_SERVICE_KEY": ["two words", "schlüssel"],
    "TWILIO_ACCOUNT_SID": ["SK" + "0" * 32, "AC" + "0" * 31, "AC" + "g" * 32],
    "TWILIO_AUTH_TOKEN": ["one two three", "schlüssel"],
    "TWILIO_PHONE_NUMBER": ["14155550199", "+04155550199", "+1 415 555 0199", "+1415555019912345", "+9995550199"],
    "DISPATCH_SECRET": [
        *("hunter2", SECRET.removeprefix("whsec_"), "whsec_", SECRET + "!", SECRET[:20] + "-" + SECRET[20:]),
        "whsec_" + base64.b64encode(b"23 bytes are not enough").decode(),
        *(f"{SECRET} whsec_hunter2", f"{SECRET} {SECRET} {SECRET}"),
    ],
    "SWEEP_SERVICE_ACCOUNT": ["scheduler"],
    "CALL_HOURS": ["8-21", "21:00-08:00", "08:00-08:00", "08:00-24:00", "never", "Mo-Fr sunrise-sunset", "Su off"],
    "CALL_COUNTRIES": ["US, Canada", "XX", ","], "CALL_ONLY_TO": ["+14155550123 4155550124"],
    "CALL_IN_DOUBT": ["retry"], "CALL_MACHINES": ["on", "Enable", "MISSED"],
    "API_BASE_URL_IS_THIS_FUNCTION": ["perhaps"], "VOICE_PATH": NO_PATHS, "STATUS_PATH": [*NO_PATHS, "/voice"],
    "CALL_LATER_MAX": ["-1", "11", "twice"], "CALL_MAX_ATTEMPTS": ["0", "11", "three", "1.5", "9" * 5000],
    "CALL_DISPATCHER_LIMIT": ["0", "1001"], "CALL_RING_SECONDS": ["4", "601"],
    "CALL_TIME_LIMIT_SECONDS": ["0", "14401"], "CALLS_PER_SECOND": ["0", "inf", "fast"],
    "CALLS_PER_DAY": ["0", "none", "-1"], "CALLS_PER_NUMBER_PER_DAY": ["0"], "CALLS_PER_PREFIX_PER_HOUR": ["-1"],
    "CALL_RETENTION_DAYS": ["0"],
    "RESULT_URL": [*(set(NO_URLS) - {"https://127.0.0.1?", "https://127.0.0.1/?a=hunter2"}), "http://example.com/hook"],
    "RESULT_SECRET": ["hunter2", SECRET + "!", f"{SECRET} {SECRET} {SECRET}"], "RESULT_NUMBER": ["none", "FULL"],
    "RESULT_RETRY_SECONDS": NO_DELAYS,
    "RESULT_METADATA": [",", "plan, " + "k" * 65], "TWILIO_TIMEOUT_SECONDS": NO_TIMES,
    "REQUEST_TIMEOUT_SECONDS": NO_TIMES, "CALL_RETRY_SECONDS": NO_DELAYS, "CALL_REDIAL_SECONDS": NO_DELAYS,
    "CALL_REDIAL_SPREAD": ["ON", "yes", "3"], "CALL_SETTLING_SECONDS": NO_TIMES, "CALL_ASK_SECONDS": NO_TIMES,
}  # fmt: skip
CASES = [(name, value) for name, values in WRONG.items() for value in values]


def test_wrong_values_are_refused_by_name_in_our_words() -> None:
    """Each is one line: the name, then "must be". No value, and none of pydantic's words."""
    told = {(name, value): problems(**{name: value}) for name, value in CASES}
    pydantics = ("input should", "valid", "unable", "string", "pattern", "hunter2")
    right = {
        case: said
        for case, said in told.items()
        if len(said) == 1
        and said[0].startswith(f"{case[0]} must be ")
        and not any(word in said[0].partition("(")[0].lower() for word in pydantics)
    }
    assert {case: said for case, said in told.items() if case not in right} == {}
    assert {name for name, _ in CASES} == {field.upper() for field in Settings.model_fields}


def test_quotes_around_any_value_are_named_as_such() -> None:
    pairs = ["''", '""', "\u201c\u201d", "\u2018\u2019", "``", '" ', ' "']
    good = {**{name: value or "x" for name, _, value in EXAMPLE}, **ENVIRON}
    quoted = [(name, f"{pair[0]}{good[name]}{pair[1]}".strip()) for name in good for pair in pairs]
    told = [(name, problems(**{name: value})) for name, value in quoted]
    assert [row for row in told if row[1] != (f"{row[0]} has quotes around its value: leave them out",)] == []


def test_limits_are_part_of_the_message() -> None:
    cases = {
        ("CALL_MAX_ATTEMPTS", "11"): "CALL_MAX_ATTEMPTS must be at most 10",
        ("CALL_MAX_ATTEMPTS", "0"): "CALL_MAX_ATTEMPTS must be at least 1",
        ("CALL_MAX_ATTEMPTS", "x"): "CALL_MAX_ATTEMPTS must be a whole number",
        ("CALL_ASK_SECONDS", "0"): "CALL_ASK_SECONDS must be more than 0",
        ("CALL_ASK_SECONDS", "x"): "CALL_ASK_SECONDS must be a number",
        ("CALL_MACHINES", "on"): "CALL_MACHINES must be ignore, reached or missed",
        ("API_BASE_URL_IS_THIS_FUNCTION", "x"): "API_BASE_URL_IS_THIS_FUNCTION must be true or false",
        ("TWILIO_ACCOUNT_SID", "x"): "TWILIO_ACCOUNT_SID must be AC and 32 hexadecimal digits",
        ("CALLS_PER_DAY", "x"): "CALLS_PER_DAY must be a whole number (to all numbers, in any 24 hours; off lifts the limit)",
    }  # fmt: skip
    told = {(name, value): problems(**{name: value})[0] for name, value in cases}
    assert {case: said for case, said in told.items() if not said.startswith(cases[case])} == {}


def test_all_wrong_settings_are_told_at_once() -> None:
    wrong = {
        "SUPABASE_URL": "example.com", "TWILIO_ACCOUNT_SID": '"AC"', "TWILIO_PHONE_NUMBER": "", "TWILIO_REGION": "ie1",
        "DISPATCH_SECRET": "hunter2", "REQUEST_TIMEOUT_SECONDS": "5", "CALL_RING_SECONDS": "soon",
    }  # fmt: skip
    assert {problem.split()[0] for problem in problems(**wrong)} == {*wrong}


def test_twilios_other_regions_are_refused_by_name() -> None:
    for name in ("TWILIO_REGION", "TWILIO_EDGE"):
        assert problems(**{name: "ie1"})[0].startswith(f"{name} is not supported: ")
    assert settings(TWILIO_REGION="", TWILIO_EDGE="") == settings()


@given(
    st.sampled_from(["SUPABASE_SERVICE_KEY", "TWILIO_AUTH_TOKEN", "DISPATCH_SECRET"]),
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=6).map(lambda text: f"hunter2 {text} é"),
)
def test_secret_values_are_never_part_of_the_error(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        settings(**{name: value})
    assert "hunter2" not in f"{refused.value!s}{refused.value!r}{refused.value.__context__!s}"


def test_unknown_variables_are_named_with_the_nearest_setting() -> None:
    cases = {
        "CALL_HOUR": "CALL_HOURS", "call_hours": "CALL_HOURS", "CALLS_PER_DAYS": "CALLS_PER_DAY",
        "CALL_PER_DAY": "CALLS_PER_DAY", "TWILIO_SID": "TWILIO_ACCOUNT_SID", "TWILIO_NUMBER": "TWILIO_PHONE_NUMBER",
        "TWILIO_TOKEN": "TWILIO_AUTH_TOKEN", "SUPABASE_SERVICE_ROLE_KEY": "SUPABASE_SERVICE_KEY",
        "DISPATCH_SECRETS": "DISPATCH_SECRET", "SWEEP_ACCOUNT": "SWEEP_SERVICE_ACCOUNT", "API_BASE_URI": "API_BASE_URL",
        "REQUEST_TIMEOUT": "REQUEST_TIMEOUT_SECONDS", "CALL_XYZZY": None,
    }  # fmt: skip
    known = [*ENVIRON, *(name for name, _, _ in EXAMPLE), "TWILIO_REGION", "PATH", "PORT", "RECALL_HOURS"]
    assert unknown_settings(dict.fromkeys([*known, *cases], "x")) == cases


def test_right_values_are_read_as_they_are_meant() -> None:
    elsewhere, nothing = {"API_BASE_URL_IS_THIS_FUNCTION": "false"}, dict[str, str]()
    table: list[tuple[str, object, dict[str, str]]] = [
        ("twilio_auth_tokens", ("f" * 32,), {"TWILIO_AUTH_TOKEN": "f" * 32 + "\r\n"}),
        ("api_base_url", "https://calls.example.com/Up", {"API_BASE_URL": "HTTPS://Calls.Example.com/Up/"}),  # as Twilio signs it
        ("twilio_connect_seconds", 0.5, {"TWILIO_TIMEOUT_SECONDS": "0.5"}), ("twilio_connect_seconds", 5, nothing),
        ("call_settling_seconds", 120, nothing), ("call_settling_seconds", 600, elsewhere),
        ("call_settling_seconds", 3.5, elsewhere | {"CALL_SETTLING_SECONDS": "3.5"}),
        ("calling_hours", None, {"CALL_HOURS": "always"}),
        ("calls_per_day", 500, nothing), ("calls_per_day", None, {"CALLS_PER_DAY": "off"}),
        ("call_countries", ("US", "CA", "GB"), {"CALL_COUNTRIES": "us, CA gb"}),
        ("call_only_to", ("+14155550123", "+14155550124"), {"CALL_ONLY_TO": " +14155550123,+14155550124 "}),
        ("call_redial_seconds", (600, 3600.5), {"CALL_REDIAL_SECONDS": "600,3600.5"}),
        *((name, url, {name.upper(): url}) for name in ("api_base_url", "twilio_api_base_url") for url in (
            "http://localhost:8080", "http://127.0.0.1:8080", "http://[::1]:8080",
        )),
        *((name, getattr(settings(), name), {name.upper(): " "}) for name in Settings.model_fields if name.upper() not in ENVIRON),
    ]  # fmt: skip
    seen = [(name, getattr(settings(**given), name), given) for name, _, given in table]
    assert [(row, right) for row, right in zip(seen, table, strict=True) if row != right] == []
    hours = settings().calling_hours
    assert hours is not None
    assert hours.default.starts == {time(8)}


def test_settings_are_frozen_and_show_no_secret() -> None:
    shown = settings()
    assert not any(secret in f"{shown!r}{shown!s}{shown.model_dump_json()}" for secret in shown.secrets)
    with pytest.raises(ValueError, match="frozen"):
        shown.call_max_attempts = 9


def test_two_secrets_and_two_tokens_hold_while_rotating() -> None:
    other = "whsec_" + base64.b64encode(b"b" * 24).decode()
    rotating = settings(DISPATCH_SECRET=f"{SECRET} {other}", TWILIO_AUTH_TOKEN="first second")
    assert rotating.dispatch_secrets == (SECRET, other)
    assert rotating.twilio_auth_tokens == ("first", "second")
    assert set(rotating.secrets) == {"service-key", "first", "second", SECRET, other}


def test_sweep_ends_before_its_request_and_lease_after() -> None:
    for timeout in ("28.1", "55", "300"):
        ours = settings(REQUEST_TIMEOUT_SECONDS=timeout)
        assert ours.sweep_timeout_seconds < ours.request_timeout_seconds < ours.call_lease_seconds
    assert (settings().sweep_timeout_seconds, settings().call_lease_seconds) == (50, 60)


def test_request_timeout_must_outlast_the_request_to_twilio() -> None:
    told = problems(REQUEST_TIMEOUT_SECONDS="28") + problems(
        TWILIO_TIMEOUT_SECONDS="100"
    )  # the default is compared, too
    assert [problem.split(":")[0] for problem in told] == [
        f"REQUEST_TIMEOUT_SECONDS must be more than {least}" for least in (28, 108)
    ]


def test_paths_of_twilio_lead_to_one_route_each() -> None:
    """VOICE_PATH, STATUS_PATH, whether another service answers -> the settings that are refused."""
    below = "https://x.example/calls"
    table = {
        ("/twilio/voice", "/twilio/voice/status", ""): [], ("/status", "/voice", ""): [],
        ("/Voice/", "/v1.0/_status-~", ""): [], ("/status", "", ""): ["STATUS_PATH"],
        ("/twilio", "/twilio", ""): ["STATUS_PATH"], ("/twilio", "/twilio", "false"): [], ("/", "/sweep", "false"): [],
        ("/callsvoice", "/a/calls/status", ""): [], ("/calls", "/calls/status", ""): ["STATUS_PATH"],
        ("/calls/voice", "/status", "false"): ["VOICE_PATH"],
    }  # fmt: skip
    told: dict[tuple[str, str, str], list[str]] = {}
    for voice, status, other in table:
        given = {
            "VOICE_PATH": voice,
            "STATUS_PATH": status,
            "API_BASE_URL_IS_THIS_FUNCTION": other,
            "API_BASE_URL": below,
        }
        told[voice, status, other] = [problem.split()[0] for problem in problems(**given)]
    assert told == table
    ours = settings(API_BASE_URL=below, VOICE_PATH="/twilio/voice")
    assert (ours.voice_url, ours.status_url) == (f"{below}/twilio/voice", f"{below}/status")


def test_delays_fit_the_attempts_or_are_refused() -> None:
    """attempts and delays -> what is wrong; nothing when they fit."""
    few = "must be one number, or at least 4 delays: one after each attempt but the last (CALL_MAX_ATTEMPTS: 5)"
    cases = {
        ("5", "600,3600,21600,86400"): None, ("5", "600, 3600 21600, 86400, 86400"): None, ("5", "600"): None,
        ("5", "600,3600,21600"): few, ("5", "600,3600"): few, ("3", "600,3600"): None, ("2", "600,3600"): None,
        ("1", "600,3600"): None,
    }  # fmt: skip
    for name in ("CALL_REDIAL_SECONDS", "CALL_RETRY_SECONDS"):
        told = {(n, delays): problems(CALL_MAX_ATTEMPTS=n, **{name: delays}) for n, delays in cases}
        shortened = {
            case: said[0].partition(" ")[2].split(" (when")[0] if said else None for case, said in told.items()
        }
        assert shortened == cases
        assert {said[0].split()[0] for said in told.values() if said} == {name}
    assert problems(CALL_MAX_ATTEMPTS="eleven", CALL_REDIAL_SECONDS="1,2") == problems(CALL_MAX_ATTEMPTS="eleven")


def test_example_names_every_setting_and_its_default() -> None:
    assert sorted(name for name, _, _ in EXAMPLE) == sorted(field.upper() for field in Settings.model_fields)
    assert {name for name, _, _ in EXAMPLE[: len(ENVIRON)]} == {*ENVIRON}  # the required ones first
    assert settings(**{name: value for name, _, value in EXAMPLE if name not in ENVIRON}) == settings()
