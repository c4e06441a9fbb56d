"""Which number was meant, and whether it may be called at all. When it may be called: test_hours.py."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phonenumbers import PhoneNumberFormat, PhoneNumberType

from shared.screening import PutOff, Refusal, read_number, screen
from tests.unit.examples import settings

NOON_IN_DENVER = datetime(2026, 6, 17, 18, tzinfo=UTC)
REGIONS = sorted(phonenumbers.SUPPORTED_REGIONS)
PLUS_ONE = sorted(phonenumbers.region_codes_for_country_code(1))
EVERYWHERE = settings(CALL_HOURS="always", CALL_COUNTRIES=" ".join(REGIONS))
SANDBOX = {"TWILIO_API_BASE_URL": "http://127.0.0.1:4010", "TWILIO_PHONE_NUMBER": "+15005550006"}

CODES = {
    "FIXED_LINE": None,
    "MOBILE": None,
    "FIXED_LINE_OR_MOBILE": None,
    "VOIP": None,
    "PREMIUM_RATE": "premium_rate",
    "TOLL_FREE": "toll_free",
    "SHARED_COST": "shared_cost",
    "UAN": "uan",
    "PAGER": "pager",
    "VOICEMAIL": "voicemail",
    "PERSONAL_NUMBER": "personal_number",
}


def example(region: str, kind: str = "FIXED_LINE") -> str | None:
    number = phonenumbers.example_number_for_type(region, getattr(PhoneNumberType, kind))
    return phonenumbers.format_number(number, PhoneNumberFormat.E164) if number else None


def existing(region: str, kind: str = "FIXED_LINE") -> str:
    number = example(region, kind)
    assert number
    return number


def code(answer: str | Refusal | PutOff | None) -> str | None:
    """None for a number that may be called. What is said of the others is a sentence, and tells no number."""
    if isinstance(answer, str | None):
        return None
    assert re.fullmatch(r"[a-z_]+", answer.code)
    assert " " in answer.reason
    assert not re.search(r"\d", answer.reason)
    return answer.code


def screened(e164: str, **changed: str) -> str | None:
    """At any hour."""
    return code(screen(e164, {}, settings(CALL_HOURS="always", **changed), NOON_IN_DENVER))


# --- what was typed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        ("+14155550100", "+14155550100"),
        ("(415) 555-0100", "+14155550100"),
        ("1 415 555 0100", "+14155550100"),
        ("+44 (0)20 7946 0018", "+442079460018"),
        ("0044 20 7946 0018", None),
        ("abc", None),
        ("", None),
        ("12", None),
        ("+999999999999999", None),
        ("415 555 0100 ext. 7", None),
        ("\u0000", None),
        ("+49 30 1234567890123", None),  # a number by its country's rules, and longer than E.164
        ("+98 9601", None),  # and one that is shorter than the job table takes
        ("555-0100", None),  # can be dialed next door only
        ("+1 555 555 0100", None),  # ten digits, and no such area
        ("+1 211 555 0100", None),
    ],
)
def test_what_was_typed_is_read_as_a_person_would(typed: str, number: str | None) -> None:
    read = read_number(typed, settings())
    if number is None:
        assert code(read) == "number_invalid"
    else:
        assert read == number


def test_a_number_without_a_country_is_one_of_our_own_country() -> None:
    assert read_number("020 7946 0018", settings(TWILIO_PHONE_NUMBER="+442079460999")) == "+442079460018"


def test_our_own_number_may_be_newer_than_the_library() -> None:
    ours = settings(TWILIO_PHONE_NUMBER="+12115550100", CALL_HOURS="always")
    assert read_number("(415) 555-0100", ours) == "+14155550100"
    assert screen("+14155550100", {}, ours, NOON_IN_DENVER) is None


def test_our_own_number_may_be_of_no_country() -> None:
    assert code(read_number("911", settings(TWILIO_PHONE_NUMBER="+883510012345"))) == "number_invalid"
    assert screened("+14155550100", TWILIO_PHONE_NUMBER="+883510012345") == "country_not_allowed"


@pytest.mark.parametrize(
    ("region", "typed"),
    [
        ("US", "911"),
        ("US", "9-1-1"),
        ("US", " 911 "),
        ("US", "tel:911"),
        ("US", "112"),
        ("GB", "999"),
        ("GB", "112"),
        ("DE", "110"),
        ("AU", "000"),
        ("JP", "119"),
        ("BR", "190"),
    ],
)
def test_an_emergency_number_of_our_country_is_refused(region: str, typed: str) -> None:
    assert code(read_number(typed, settings(TWILIO_PHONE_NUMBER=existing(region)))) == "emergency_number"


@pytest.mark.parametrize(
    ("region", "typed"),
    [
        ("US", "411"),
        ("US", "988"),
        ("US", "+1 911"),
        ("US", "911 ext. 5"),
        ("US", "999"),  # another region's of +1
        ("GB", "116 123"),
        ("GB", "118118"),
        ("DE", "115"),
        ("FR", "3117"),
    ],
)
def test_a_short_code_is_refused(region: str, typed: str) -> None:
    assert code(read_number(typed, settings(TWILIO_PHONE_NUMBER=existing(region)))) == "short_number"


@given(st.text(alphabet="+0123456789 ()-.;extw*#abc", max_size=64) | st.text(max_size=64))
def test_whatever_was_typed_is_e164_or_a_refusal(typed: str) -> None:
    read = read_number(typed, settings())
    if isinstance(read, Refusal):
        assert code(read) in ("emergency_number", "short_number", "number_invalid")
        assert code(screen(typed, {}, settings(), NOON_IN_DENVER)) == read.code
    else:
        assert re.fullmatch(r"\+[1-9][0-9]{6,14}", read)
        assert read_number(read, settings()) == read
        assert (code(screen(typed, {}, settings(), NOON_IN_DENVER)) == "number_invalid") == (typed != read)


def test_only_e164_is_screened() -> None:
    assert screened("(415) 555-0100") == "number_invalid"
    assert screened("+1 415 555 0100") == "number_invalid"


# --- whose number it is -------------------------------------------------------------------------------------------------


def test_call_only_to_is_all_that_is_dialed() -> None:
    assert screened("+14155550100", CALL_ONLY_TO="+14155550100") is None
    assert screened("+14155550101", CALL_ONLY_TO="+14155550100") == "not_in_call_only_to"
    assert screened(existing("US", "PREMIUM_RATE"), CALL_ONLY_TO="+14155550100") == "not_in_call_only_to"


def test_a_number_in_call_only_to_is_held_to_every_other_rule() -> None:
    for number, why in (
        ("+14155550199", "own_number"),
        (existing("US", "PREMIUM_RATE"), "premium_rate"),
        (existing("GB"), "country_not_allowed"),
    ):
        assert screened(number, CALL_ONLY_TO=number) == why


def test_our_own_number_is_not_called() -> None:
    assert screened("+14155550199") == "own_number"
    assert screened("+14155550199", CALL_ONLY_TO="+14155550100") == "not_in_call_only_to"
    assert screened("+15005550006", **SANDBOX) == "own_number"


# --- what kind of number it is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", REGIONS)
def test_only_the_ordinary_phones_of_a_region_pass(region: str) -> None:
    for kind, why in CODES.items():
        number = example(region, kind)
        if number and number != "+989601":  # too short for the job table: see above
            assert code(screen(number, {}, EVERYWHERE, NOON_IN_DENVER)) == why, kind


def test_the_table_above_has_every_type_that_the_library_knows() -> None:
    assert {PhoneNumberType.to_string(kind) for kind in PhoneNumberType.values()} == {*CODES, "UNKNOWN"}


@pytest.mark.parametrize("kind", [PhoneNumberType.UNKNOWN, 77])
def test_a_type_that_nobody_has_listed_is_refused(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    monkeypatch.setattr(phonenumbers, "number_type", lambda _number: kind)
    assert screened("+14155550100") == "number_type_unknown"


@pytest.mark.parametrize(
    ("country_code", "why"),
    [
        (870, "satellite"),
        (881, "satellite"),
        (882, "satellite"),
        (883, "satellite"),
        (800, "toll_free"),
        (808, "shared_cost"),
        (878, "country_not_allowed"),
        (888, "uan"),
        (979, "premium_rate"),
    ],
)
def test_a_number_of_no_country_is_refused(country_code: int, why: str) -> None:
    number = phonenumbers.example_number_for_non_geo_entity(country_code)
    assert number
    e164 = phonenumbers.format_number(number, PhoneNumberFormat.E164)
    assert code(screen(e164, {}, EVERYWHERE, NOON_IN_DENVER)) == why


@pytest.mark.parametrize("test_number", ["+15005550001", "+15005550004", "+15005550009", "+15005559999"])
def test_twilios_test_numbers_pass_in_the_sandbox_only(test_number: str) -> None:
    assert screened(test_number, **SANDBOX) is None
    assert screened(test_number, **SANDBOX, CALL_COUNTRIES="DE") is None
    assert screened(test_number, **SANDBOX, CALL_ONLY_TO="+14155550100") == "not_in_call_only_to"
    assert screened(test_number) == "personal_number"
    assert screened(test_number, TWILIO_PHONE_NUMBER="+15005550006") == "personal_number"


def test_no_other_number_passes_because_of_the_sandbox() -> None:
    assert screened("+14155550100", **SANDBOX) is None  # +1 500 is the US
    assert screened("+15005560001", **SANDBOX) == "personal_number"
    assert screened(existing("US", "TOLL_FREE"), **SANDBOX) == "toll_free"
    assert screened(existing("DE"), **SANDBOX) == "country_not_allowed"


# --- which country it is in ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", PLUS_ONE)
def test_of_the_regions_that_share_plus_one_only_the_allowed_one_passes(region: str) -> None:
    for other in PLUS_ONE:
        for kind in ("FIXED_LINE", "MOBILE"):
            why = None if other == region else "country_not_allowed"
            assert screened(existing(other, kind), CALL_COUNTRIES=region) == why


def test_25_regions_share_plus_one() -> None:
    assert len(PLUS_ONE) == 25


@pytest.mark.parametrize("region", ["US", "CA", "JM", "KZ", "GG", "IM", "VA", "AX", "YT", "IN"])
def test_without_a_list_of_countries_calls_stay_in_that_of_our_number(region: str) -> None:
    ours = existing(region)
    assert screened(ours[:-2] + "77", TWILIO_PHONE_NUMBER=ours) is None
    for elsewhere in {"US", "CA", "RU", "GB", "IT", "FI", "RE", "DE"} - {region}:
        assert screened(existing(elsewhere), TWILIO_PHONE_NUMBER=ours) == "country_not_allowed"


def test_a_premium_number_abroad_is_premium_whatever_is_allowed() -> None:
    for region in ("GB", "DE", "LV", "ES", "IT"):
        assert screened(existing(region, "PREMIUM_RATE")) == "premium_rate"
        assert screened(existing(region, "PREMIUM_RATE"), CALL_COUNTRIES=region) == "premium_rate"


def test_several_countries_may_be_allowed() -> None:
    assert [screened(existing(r), CALL_COUNTRIES="us, CA") for r in ("US", "CA", "MX")] == [
        None,
        None,
        "country_not_allowed",
    ]


# --- all together -------------------------------------------------------------------------------------------------------


def test_the_hours_are_looked_at_last() -> None:
    at_night = datetime(2026, 6, 17, 9, tzinfo=UTC)
    assert code(screen("+14155550100", {}, settings(), at_night)) == "outside_calling_hours"
    assert code(screen(existing("US", "PREMIUM_RATE"), {}, settings(), at_night)) == "premium_rate"
    assert screen("+14155550100", {"tz": "Europe/Berlin"}, settings(), at_night) is None


NUMBERS = [number for region in REGIONS for kind in CODES if (number := example(region, kind))]
SOME_REGIONS = ["US", "CA", "JM", "GB", "DE", "RU", "KZ", "AU", "IN"]
SOME_NUMBERS = [number for region in SOME_REGIONS for kind in CODES if (number := example(region, kind))]
TIMES = [f"{hour:02}:{minute:02}" for hour in range(24) for minute in (0, 30)]


@given(
    st.sampled_from(SOME_NUMBERS) | st.sampled_from(NUMBERS),
    st.datetimes(datetime(2025, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
    st.sampled_from([{}, {"timezone": "Asia/Kathmandu"}, {"tz": "nowhere"}]),
    st.lists(st.sampled_from(SOME_REGIONS), min_size=2, unique=True),
    st.lists(st.sampled_from(TIMES), min_size=4, max_size=4, unique=True).map(sorted),
    st.lists(st.sampled_from(SOME_NUMBERS), max_size=30),
)
def test_more_rules_never_let_more_calls_pass(
    number: str, now: datetime, metadata: dict[str, Any], countries: list[str], hours: list[str], only: list[str]
) -> None:
    rules = [
        {"CALL_HOURS": "always", "CALL_COUNTRIES": " ".join(countries)},
        {"CALL_HOURS": f"{hours[0]}-{hours[3]}", "CALL_COUNTRIES": " ".join(countries)},
        {"CALL_HOURS": f"{hours[1]}-{hours[2]}", "CALL_COUNTRIES": " ".join(countries)},
        {"CALL_HOURS": f"{hours[1]}-{hours[2]}", "CALL_COUNTRIES": countries[0]},
    ]
    rules.append({**rules[-1], "CALL_ONLY_TO": " ".join(only)})

    def earliest(more: dict[str, str]) -> datetime:
        match screen(number, metadata, settings(**more), now):
            case Refusal():
                return datetime.max.replace(tzinfo=UTC)
            case PutOff(until):
                return until
            case None:
                return now

    times = [earliest(more) for more in rules]
    assert all(before <= after for before, after in pairwise(times))
