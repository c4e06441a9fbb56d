"""When a phone may ring: never too early or too late where it is, and as soon as that is so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import phonenumbers
import pytest
from freezegun import freeze_time
from hypothesis import example, given
from hypothesis import strategies as st
from phonenumbers import timezone
from phonenumbers.tzdata import TIMEZONE_DATA

from shared.screening import PhoneNumber, PutOff, Refusal, check_hours, parse_number, screen
from shared.screening.zones import ZONE_NAMES, country_of_zone
from shared.settings import Settings
from tests.unit.examples import settings

SAN_FRANCISCO = "+14155550100"
US_TOLL_FREE = "+18005550100"
JAMAICAN_MOBILE = "+18762101234"
KAZAKH_MOBILE = "+77710009998"
RUSSIAN_MOBILE = "+79123456789"
AUSTRALIAN_MOBILE = "+61412345678"
INDIAN_MOBILE = "+918123456789"
SATELLITE = "+881612345678"
MICROSECOND = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@cache
def phone(e164: str) -> PhoneNumber:
    parsed = parse_number(e164, settings())
    assert isinstance(parsed, PhoneNumber)
    return parsed


def hours(e164: str, metadata: Mapping[str, Any], given: Settings, now: datetime) -> Refusal | PutOff | None:
    return check_hours(phone(e164), metadata, given, now)


def when(e164: str, now: datetime, zone: object = None, call_hours: str = "08:00-21:00") -> datetime | str:
    """The first moment at which it may ring, or why it never may. The server wrote `zone`."""
    return first(e164, now, {} if zone is None else {"app_timezone": zone}, call_hours)


@cache
def with_hours(call_hours: str) -> Settings:
    return settings(CALL_HOURS=call_hours)


def first(e164: str, now: datetime, metadata: Mapping[str, Any], call_hours: str = "08:00-21:00") -> datetime | str:
    answer = hours(e164, metadata, with_hours(call_hours), now)
    match answer:
        case None:
            return now
        case PutOff():
            assert answer.until.utcoffset() == timedelta(0)
            assert answer.until > now
            assert (answer.code, ": not before " in answer.reason) == ("outside_calling_hours", True)
            return answer.until
        case Refusal():
            assert not any(letter.isdigit() for letter in answer.reason)
            return answer.code


def test_known_zone_has_the_window_without_its_end() -> None:
    inside = ("2026-06-17 08:00:00", "2026-06-17 08:00:00.000001", "2026-06-17 20:59:59.999999")
    table = [
        *((moment, moment) for moment in inside),
        ("2026-06-17 07:59:59.999999", "2026-06-17 08:00"),
        *((moment, "2026-06-18 08:00") for moment in ("2026-06-17 21:00", "2026-06-17 23:59:59", "2026-06-18 00:00")),
        ("2026-12-31 21:00:00", "2027-01-01 08:00"),
    ]
    wrong = []
    for zone in ("America/Los_Angeles", "Europe/Berlin", "Asia/Kathmandu", "Pacific/Kiritimati", "UTC"):
        for now, right in (map(local(zone), row) for row in table):
            seen = [when(SAN_FRANCISCO, moment, zone) for moment in (now, now.astimezone(UTC))]
            if seen != [right, right]:
                wrong.append((zone, now, seen))
    assert wrong == []


def local(zone: str) -> Callable[[str], datetime]:
    return lambda text: datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


JUNK: list[object] = [
    None, 5, True, [], ["Asia/Tokyo"], {"name": "Asia/Tokyo"}, "", "Mars/Olympus_Mons", "asia/tokyo", "Asia/Tokyo ,",
    "Asia", "Asia/", "Factory", "localtime", "Etc/Unknown", "posixrules", "zone.tab", "../../etc/passwd",
    "/usr/share/zoneinfo/Asia/Tokyo", "Asia/Tokyo\u0000", "UTC+2", "+09:00", "x" * 100_000,
]  # fmt: skip


def test_metadata_that_names_no_zone_is_ignored() -> None:
    wrong: list[tuple[object, ...]] = []
    keys = ("app_timezone", *KEYS)
    for junk in JUNK:
        for now in map(utc, ("2026-06-17 15:59", "2026-06-17 16:00", "2026-06-18 02:59", "2026-06-18 03:00")):
            nothing = first(SAN_FRANCISCO, now, {})
            wrong += [(junk, now, key) for key in keys if first(SAN_FRANCISCO, now, {key: junk}) != nothing]
        metadata = {"timezone": junk, "time_zone": "America/New_York", "tz": "America/Los_Angeles"}
        if first(SAN_FRANCISCO, utc("2026-06-17 15:30"), metadata) != utc("2026-06-17 16:00"):
            wrong.append((junk, utc("2026-06-17 15:30"), "timezone"))
    assert wrong == []


KEYS = ("timezone", "time_zone", "tz")


def test_first_key_with_a_zone_decides() -> None:
    now, kathmandu = utc("2026-06-17 15:00"), utc("2026-06-17 02:15")  # 08:00 in San Francisco, too early for a guess
    assert [first(SAN_FRANCISCO, now, {key: " America/Los_Angeles\n"}) for key in KEYS] == [now] * 3
    assert first(SAN_FRANCISCO, now, {}) == utc("2026-06-17 16:00")
    assert first(SAN_FRANCISCO, kathmandu - MINUTE, {"app_timezone": " Asia/Kathmandu\n"}) == kathmandu
    mixed = {"tz": "Asia/Tokyo", "time_zone": "Europe/Berlin", "timezone": "America/Los_Angeles"}
    assert first(SAN_FRANCISCO, now, mixed) == now
    assert first(SAN_FRANCISCO, kathmandu, mixed | {"app_timezone": "Asia/Kathmandu"}) == kathmandu


def test_only_the_servers_zone_helps_a_number_without_zones() -> None:
    noon = utc("2026-06-17 12:00")
    assert when(SATELLITE, noon) == "time_zone_unknown"
    assert first(SATELLITE, noon, {"timezone": "Europe/Berlin"}) == "time_zone_unknown"
    assert when(SATELLITE, noon, "Europe/Berlin") == noon


NEW_YORK = "+12125550100"
PHOENIX = "+16025550100"
BERLIN_FIXED = "+493012345678"
REPORTED: list[tuple[str, str, str, str]] = [
    # number, reported zone, now, first right moment (UTC)
    # of the number's own country, and agreeing with the number: it decides alone, by the full window
    (NEW_YORK, "US/Eastern", "2026-06-17 12:00", "2026-06-17 12:00"),
    (NEW_YORK, "America/Detroit", "2026-06-18 00:59", "2026-06-18 00:59"),
    (RUSSIAN_MOBILE, "Asia/Kamchatka", "2026-06-16 20:00", "2026-06-16 20:00"),
    # of the same country, and no zone of the number agrees: both
    (PHOENIX, "America/Denver", "2026-06-17 14:00", "2026-06-17 16:00"),  # 09:00 in Phoenix, 10:00 in Denver
    (PHOENIX, "America/Denver", "2026-01-14 15:00", "2026-01-14 15:00"),  # in winter they agree
    (SAN_FRANCISCO, "America/New_York", "2026-06-18 01:00", "2026-06-18 16:00"),  # 21:00 in New York
    # of no country, of an abbreviation, of another country: both
    *((NEW_YORK, zone, "2026-06-17 08:30", "2026-06-17 13:00") for zone in ("UTC", "Etc/UTC", "Zulu", "Etc/GMT+5", "EST5EDT")),
    (NEW_YORK, "EST", "2026-06-18 00:30", "2026-06-18 13:00"),  # 20:30 in New York
    (SAN_FRANCISCO, "PST8PDT", "2026-06-17 15:00", "2026-06-17 16:00"),
    ("+14165550100", "EST", "2026-01-14 13:00", "2026-01-14 14:00"),  # tzdata links EST to Panama
    (NEW_YORK, "Pacific/Auckland", "2026-06-17 06:30", "2026-06-17 20:00"),  # 08:00 in Auckland
    (BERLIN_FIXED, "Europe/Vienna", "2026-06-17 06:00", "2026-06-17 07:00"),
    (NEW_YORK, "Asia/Kolkata", "2026-06-17 15:30", "2026-06-18 13:00"),  # 21:00 in Kolkata
]  # fmt: skip


def test_reported_zones_never_contradict_the_number() -> None:
    seen = [(*row, first(row[0], utc(row[2]), {"timezone": row[1]})) for row in REPORTED]
    assert [row for row in seen if utc(row[3]) != row[4]] == []


def test_reported_zone_and_number_without_a_common_moment() -> None:
    far = {"timezone": "Asia/Shanghai"}  # 09:00-20:00 in Honolulu is 03:00-14:00 the next day there
    assert first("+18085550100", utc("2026-06-17 12:00"), far, "08:00-11:00") == "no_calling_hours"


def test_country_of_a_zone_is_that_of_zone_tab() -> None:
    right = {
        "America/New_York": "US", "US/Pacific": "US", "Navajo": "US", "America/Montreal": "CA", "America/Coral_Harbour": "CA",
        "Iceland": "IS", "America/Virgin": "VI", "Europe/Kiev": "UA", "Asia/Calcutta": "IN", "Pacific/Truk": "FM", "GB": "GB",
        "Africa/Asmera": "ER", "Europe/Copenhagen": "DK", "Asia/Istanbul": "TR", "Pacific/Samoa": "AS",
        "UTC": None, "GMT": None, "Etc/GMT-3": None, "EST": None, "MST7MDT": None, "CET": None, "HST": None, "Zulu": None,
    }  # fmt: skip
    assert {name: country_of_zone(name) for name in right} == right


MAY_BE_NORTH = ("America/Whitehorse", "America/Inuvik", "America/Rankin_Inlet", "America/Iqaluit", "America/Atikokan")
# One clock of each: the zones with that clock are written by the first of them.
MAY_BE: dict[str, str] = {
    "+18672012345": "Whitehorse Dawson Inuvik Edmonton Cambridge_Bay Rankin_Inlet Resolute Iqaluit Atikokan",
    "+18676692345": "Edmonton",  # Yellowknife, an exchange that the library knows
    "+19075550100": "Anchorage Adak", "+19075812345": "Anchorage Adak",  # the latter in Unalaska
    "+19072122345": "Juneau", "+18085550100": "Honolulu", "+17295550100": "New_York Chicago", BERLIN_FIXED: "Berlin Busingen",
    "+6281234567890": "Jakarta Pontianak Makassar Jayapura", "+56961234567": "Santiago Coyhaique Punta_Arenas Easter",
    "+56221234567": "Santiago Coyhaique Punta_Arenas Easter", "+299221234": "Nuuk Danmarkshavn Scoresbysund Thule",
    "+97688123456": "Ulaanbaatar Hovd", "+243812345678": "Kinshasa Lubumbashi", "+593991234567": "Guayaquil Galapagos",
    "+351912345678": "Lisbon Madeira Azores", "+34612345678": "Madrid Ceuta Canary", "+6913201234": "Pohnpei Kosrae",
    "+68640123": "Tarawa Kanton Kiritimati", "+68987123456": "Tahiti Marquesas Gambier",
    "+67570123456": "Port_Moresby Bougainville", "+35796123456": "Nicosia Famagusta", "+8613123456789": "Shanghai Urumqi",
    "+447400123456": "London", "+5511961234567": "Sao_Paulo",  # Brazil's mobiles have area codes
    # The library names a foreign zone that had the same clock once.
    "+213551234567": "Algiers", "+212650123456": "Casablanca", "+50581234567": "Managua", "+970599123456": "Gaza Hebron",
    "+74012345678": "Kaliningrad",
}  # fmt: skip


def test_numbers_may_be_in_every_zone_of_their_country() -> None:
    wrong = []
    for e164, right in MAY_BE.items():
        names = phone(e164).zones
        for month in range(1, 13):
            noon = datetime(2026, month, 15, 12, tzinfo=UTC)
            clocks = {noon.astimezone(ZoneInfo(name)).utcoffset() for name in names}
            full = [name for name in ZONE_NAMES if name.split("/")[-1] in right.split() and country_of_zone(name)]
            if clocks != {noon.astimezone(ZoneInfo(name)).utcoffset() for name in full}:
                wrong.append((e164, month, names))
    assert wrong == []


def test_guessed_zone_has_from_nine_to_eight_everywhere() -> None:
    table = [
        # One zone, from nine to eight there.
        (SAN_FRANCISCO, "2026-01-14", "17:00", "04:00"), (SAN_FRANCISCO, "2026-06-17", "16:00", "03:00"),
        # Split area codes. The library knows some exchanges and takes the rest for the larger part.
        ("+18504320100", "2026-01-14", "15:00", "02:00"), ("+18505550100", "2026-01-14", "14:00", "01:00"),
        ("+12705550100", "2026-01-14", "14:00", "01:00"),
        ("+12085550100", "2026-01-14", "17:00", "03:00"),  # Los Angeles in the morning, Boise in the evening
        ("+19075550100", "2026-01-14", "19:00", "05:00"),  # Adak, Anchorage
        # Many zones.
        (US_TOLL_FREE, "2026-01-14", "23:00", "23:30"),  # Guam in the morning, Newfoundland in the evening
        (RUSSIAN_MOBILE, "2026-01-14", "07:00", "08:00"),  # Kaliningrad, Kamchatka
        (AUSTRALIAN_MOBILE, "2026-01-14", "02:30", "09:00"),  # Cocos Islands, Lord Howe
        (AUSTRALIAN_MOBILE, "2026-06-17", "02:30", "09:30"),
        # Not the main regions of their codes: their own zones only.
        (JAMAICAN_MOBILE, "2026-01-14", "14:00", "01:00"), (KAZAKH_MOBILE, "2026-01-14", "04:00", "15:00"),
        # Half hours.
        (INDIAN_MOBILE, "2026-01-14", "03:30", "14:30"), ("+97714567890", "2026-01-14", "03:15", "14:15"),
    ]  # fmt: skip
    wrong = []
    for number, day, start, end in table:
        opens, closes = utc(f"{day} {start}"), utc(f"{day} {end}")
        closes += DAY if closes < opens else timedelta(0)
        last = closes - MICROSECOND
        right = {opens - MICROSECOND: opens, opens: opens, last: last, closes: opens + DAY}
        wrong += [(number, now) for now, moment in right.items() if when(number, now) != moment]
    assert wrong == []


def test_toll_free_number_has_no_moment_in_summer() -> None:
    assert when(US_TOLL_FREE, utc("2026-06-17 23:15")) == "no_calling_hours"
    assert when("+16005550100", utc("2026-06-17 23:15")) == "no_calling_hours"  # Canada's of no area


def test_right_moment_is_searched_on_the_next_fifteen_days() -> None:
    """New York's clocks are set back on the first of November at 06:00 UTC; then there is half an hour for all of +1."""
    first = utc("2026-11-01 23:00")
    assert when(US_TOLL_FREE, first - 15 * DAY) == first
    assert when(US_TOLL_FREE, first - 15 * DAY - MICROSECOND) == "no_calling_hours"


def test_zones_change_their_clocks_on_quarters_of_an_hour() -> None:
    """The search for the next right moment tries no other moments."""
    odd = set()
    for zone in map(ZoneInfo, ZONE_NAMES):
        for month in range(36):
            before, after = utc("2026-11-15 00:00") + 30 * month * DAY, utc("2026-12-15 00:00") + 30 * month * DAY
            was = before.astimezone(zone).utcoffset()
            while was != after.astimezone(zone).utcoffset() and after - before > MICROSECOND:
                middle = before + (after - before) // 2
                before, after = (middle, after) if middle.astimezone(zone).utcoffset() == was else (before, middle)
            if was is None or was % timedelta(minutes=15) or (after - utc("2026-01-01 00:00")) % timedelta(minutes=15):
                odd.add((zone.key, after))
    assert odd == set()


def test_guess_of_a_zone_only_narrows_the_window() -> None:
    night, noon = utc("2026-01-14 09:00"), utc("2026-01-14 20:00")
    assert when(SAN_FRANCISCO, night, call_hours="10:30-12:00") == utc("2026-01-14 18:30")
    assert when(SAN_FRANCISCO, noon, call_hours="10:30-12:00") == utc("2026-01-15 18:30")
    assert when(SAN_FRANCISCO, night, call_hours="06:00-10:00") == utc("2026-01-14 17:00")
    assert when(SAN_FRANCISCO, noon, call_hours="20:00-22:00") == "no_calling_hours"
    assert when(SAN_FRANCISCO, noon, "America/Los_Angeles", "20:00-22:00") == utc("2026-01-15 04:00")


def test_number_with_an_unknown_zone_is_not_called() -> None:
    unknown = Refusal("time_zone_unknown", "the local time of this phone is not known")
    for zones in ((), ("Etc/Unknown",), ("America/Los_Angeles", "America/New_Zone")):
        nowhere = replace(phone(SAN_FRANCISCO), zones=zones)
        assert check_hours(nowhere, {}, settings(), utc("2026-06-17 19:00")) == unknown, zones


def test_zones_of_the_library_all_have_clocks() -> None:
    names = {name for zones in TIMEZONE_DATA.values() for name in zones}
    assert (names - ZONE_NAMES, len(names) > 200) == (set(), True)


def test_numbers_without_zones_are_called_always() -> None:
    for now in (utc(f"2026-06-17 {hour:02}:00") for hour in range(24)):
        for number in (SAN_FRANCISCO, US_TOLL_FREE, SATELLITE):
            assert [when(number, now, zone, "always") for zone in (None, "Asia/Tokyo")] == [now, now]


def test_clock_of_the_machine_is_not_read() -> None:
    night, noon = utc("2026-06-17 09:00"), utc("2026-06-17 19:00")
    for machine in ("2026-06-17 09:00", "2026-06-17 19:00", "1999-12-31 23:59:59", "2041-03-10 10:00"):
        # The sandbox's threads run on beside this test: an event loop that went to sleep by a frozen clock would never wake.
        with freeze_time(machine, ignore=["asyncio", "psycopg", "tests.sandbox"]):
            for now, first in ((night, utc("2026-06-17 16:00")), (noon, noon)):
                assert when(SAN_FRANCISCO, now) == first
                answer = screen(phone(SAN_FRANCISCO), {}, settings(), now)
                assert (answer.until if isinstance(answer, PutOff) else now) == first


def test_moment_without_a_zone_is_an_error() -> None:
    for call_hours in ("08:00-21:00", "always"):
        with pytest.raises(ValueError, match="time zone"):
            hours(SAN_FRANCISCO, {}, settings(CALL_HOURS=call_hours), datetime(2026, 6, 17, 19))


def test_wait_ends_to_the_second_when_clocks_change() -> None:
    table = [
        # New York, 8 March 2026: at 07:00 UTC from 02:00 to 03:00.
        ("America/New_York", "08:00-21:00", "2026-03-08 03:00", "2026-03-08 12:00"),
        ("America/New_York", "02:30-05:00", "2026-03-08 06:00", "2026-03-08 07:00"),  # it begins where no clock shows
        ("America/New_York", "02:10-02:50", "2026-03-08 05:00", "2026-03-09 06:10"),  # it is left out on that day
        ("America/New_York", "01:00-02:30", "2026-03-08 07:00", "2026-03-09 05:00"),
        # and 1 November: at 06:00 UTC from 02:00 to 01:00.
        ("America/New_York", "08:00-21:00", "2026-11-01 02:00", "2026-11-01 13:00"),
        ("America/New_York", "01:30-01:45", "2026-11-01 04:00", "2026-11-01 05:30"),
        ("America/New_York", "01:30-01:45", "2026-11-01 05:45", "2026-11-01 06:30"),  # it comes twice
        ("America/New_York", "01:30-01:45", "2026-11-01 06:45", "2026-11-02 06:30"),
        ("America/New_York", "00:30-01:30", "2026-11-01 05:30", "2026-11-01 06:00"),  # the clock falls back into it
        # Berlin, 29 March and 25 October 2026: at 01:00 UTC.
        ("Europe/Berlin", "02:15-03:15", "2026-03-29 00:59:59.999999", "2026-03-29 01:00"),
        ("Europe/Berlin", "02:15-02:30", "2026-10-25 00:30", "2026-10-25 01:15"),
        # Sydney, 5 April 2026: at 16:00 UTC of the day before.
        ("Australia/Sydney", "02:30-02:40", "2026-04-04 15:40", "2026-04-04 16:30"),
        # Lord Howe changes by half an hour: 02:00 to 01:30 at 15:00 UTC, 02:00 to 02:30 at 15:30 UTC.
        ("Australia/Lord_Howe", "01:45-01:50", "2026-04-04 14:50", "2026-04-04 15:15"),
        ("Australia/Lord_Howe", "02:15-03:00", "2026-10-03 15:00", "2026-10-03 15:30"),
        # Havana goes back from 01:00 to midnight, Santiago from midnight to the day before.
        ("America/Havana", "00:15-00:20", "2025-11-02 04:20", "2025-11-02 05:15"),
        ("America/Santiago", "23:30-23:40", "2026-04-05 02:40", "2026-04-05 03:30"),
        # In the Azores, 30 March 2025, midnight is left out: the change at 01:00 UTC comes before the start that no clock shows.
        ("Atlantic/Azores", "00:01-01:02", "2025-03-29 23:59", "2025-03-30 01:00"),
        # Kathmandu never changes; it is 05:45 ahead.
        ("Asia/Kathmandu", "08:00-21:00", "2026-03-29 15:15", "2026-03-30 02:15"),
        # A guessed zone changes its clocks, too.
        (None, "08:00-21:00", "2026-03-08 04:00", "2026-03-08 16:00"),
        (None, "08:00-21:00", "2026-11-01 04:00", "2026-11-01 17:00"),
    ]
    assert [row for row in table if when(SAN_FRANCISCO, utc(row[2]), row[0], row[1]) != utc(row[3])] == []


def is_right(moment: datetime, zones: Iterable[str], window: tuple[int, int]) -> bool:
    """By the clocks on the wall, in minutes since their midnight."""
    walls = (moment.astimezone(ZoneInfo(zone)) for zone in zones)
    return all(window[0] <= wall.hour * 60 + wall.minute < window[1] for wall in walls)


def hhmm(window: tuple[int, int]) -> str:
    return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in window)


PLUS_ONE = tuple(timezone.time_zones_for_geographical_number(phonenumbers.parse(US_TOLL_FREE)))
MAY_BE_IN = {
    SAN_FRANCISCO: ("America/Los_Angeles",),
    "+12085550100": ("America/Boise", "America/Los_Angeles"),
    "+19075550100": ("America/Adak", "America/Anchorage"),
    US_TOLL_FREE: PLUS_ONE,
    JAMAICAN_MOBILE: ("America/Jamaica",),
    KAZAKH_MOBILE: ("Asia/Almaty", "Asia/Aqtobe"),
    RUSSIAN_MOBILE: (
        "Europe/Kaliningrad", "Europe/Moscow", "Europe/Samara", "Asia/Yekaterinburg", "Asia/Omsk", "Asia/Novosibirsk",
        "Asia/Irkutsk", "Asia/Yakutsk", "Asia/Vladivostok", "Asia/Magadan", "Asia/Kamchatka",
    ),
    AUSTRALIAN_MOBILE: tuple(timezone.time_zones_for_number(phonenumbers.parse(AUSTRALIAN_MOBILE))),
    INDIAN_MOBILE: ("Asia/Kolkata",),
}  # fmt: skip
CLOCKS = [
    "America/New_York", "America/Havana", "America/Santiago", "America/Nuuk", "Africa/Cairo", "Africa/Casablanca",
    "Antarctica/Troll", "Asia/Beirut", "Asia/Kathmandu", "Atlantic/Azores", "Australia/Lord_Howe", "Australia/Sydney",
    "Europe/Berlin", "Pacific/Chatham",
]  # fmt: skip
HOURS_OF_2025 = [utc("2025-01-01") + timedelta(hours=hour) for hour in range(0, 24 * 365 * 2, 12)]
CHANGES = [
    (zone, before)
    for zone in CLOCKS
    for before in HOURS_OF_2025
    if before.astimezone(ZoneInfo(zone)).utcoffset() != (before + DAY / 2).astimezone(ZoneInfo(zone)).utcoffset()
]
windows = st.tuples(st.integers(0, 1439), st.integers(0, 1439)).filter(lambda window: window[0] < window[1])
small_windows = st.tuples(st.integers(0, 240), st.integers(1, 90)).map(lambda window: (window[0], sum(window)))
moments = st.datetimes(datetime(2025, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC))


def test_zones_of_the_proof_all_change_clocks() -> None:
    assert {zone for zone, _ in CHANGES} == {*CLOCKS} - {"Asia/Kathmandu"}


@given(st.sampled_from(sorted(MAY_BE_IN)), moments, windows)
@example(SAN_FRANCISCO, utc("2026-06-17 16:00"), (480, 1260))
def test_phone_never_rings_too_early_or_late(number: str, now: datetime, window: tuple[int, int]) -> None:
    narrowed = max(window[0], 9 * 60), min(window[1], 20 * 60)
    answer = hours(number, {}, settings(CALL_HOURS=hhmm(window)), now)
    assert (answer is None) == is_right(now, MAY_BE_IN[number], narrowed)
    if isinstance(answer, PutOff):
        assert is_right(answer.until, MAY_BE_IN[number], narrowed)
        assert not is_right(answer.until - MICROSECOND, MAY_BE_IN[number], narrowed)
    elif isinstance(answer, Refusal):
        soon = (now + step * timedelta(minutes=10) for step in range(15 * 144 if narrowed[0] < narrowed[1] else 0))
        assert not any(is_right(moment, MAY_BE_IN[number], narrowed) for moment in soon)


@given(
    st.tuples(st.sampled_from(CLOCKS), moments)
    | st.tuples(st.sampled_from(CHANGES), st.integers(-36 * 60, 12 * 60), st.integers(0, 59_999_999)).map(
        lambda drawn: (drawn[0][0], drawn[0][1] + drawn[1] * MINUTE + drawn[2] * MICROSECOND)
    ),
    windows | small_windows,
)
def test_wait_ends_at_the_first_right_moment(at: tuple[str, datetime], window: tuple[int, int]) -> None:
    zone, now = at
    first = when(SAN_FRANCISCO, now, zone, hhmm(window))
    assert isinstance(first, datetime)
    assert is_right(first, [zone], window)
    moment = now
    while moment < first:
        assert not is_right(moment, [zone], window)
        moment = moment.replace(second=0, microsecond=0) + MINUTE


# number -> its country, and a zone for each clock where it may be; written by hand
PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    SAN_FRANCISCO: ("US", ("America/Los_Angeles",)), NEW_YORK: ("US", ("America/New_York",)),
    PHOENIX: ("US", ("America/Phoenix",)), "+19075812345": ("US", ("America/Anchorage", "America/Adak")),
    "+17295550100": ("US", ("America/New_York", "America/Chicago")), "+14165550100": ("CA", ("America/Toronto",)),
    "+18672012345": ("CA", MAY_BE_NORTH), BERLIN_FIXED: ("DE", ("Europe/Berlin",)),
    INDIAN_MOBILE: ("IN", ("Asia/Kolkata",)),
    "+6281234567890": ("ID", ("Asia/Jakarta", "Asia/Makassar", "Asia/Jayapura")),
    "+56961234567": ("CL", ("America/Santiago", "America/Punta_Arenas", "Pacific/Easter")),
    "+299221234": ("GL", ("America/Nuuk", "America/Danmarkshavn", "America/Scoresbysund", "America/Thule")),
    "+212650123456": ("MA", ("Africa/Casablanca",)),
}  # fmt: skip
# reported zone -> the countries in which it lies
STORED: dict[str | None, str | None] = {
    None: None, "UTC": None, "Etc/GMT+8": None, "EST": None, "MST7MDT": None, "CET": None,
    "America/New_York": "US", "America/Denver": "US", "US/Pacific": "US", "US/Aleutian": "US", "America/Montreal": "CA",
    "America/Iqaluit": "CA", "Europe/Berlin": "DE", "Europe/Copenhagen": "DK", "Asia/Calcutta": "IN", "Asia/Jayapura": "ID",
    "Pacific/Easter": "CL", "America/Thule": "GL", "Pacific/Auckland": "NZ", "Africa/Casablanca": "MA",
}  # fmt: skip
MOMENTS = [
    utc(day) + timedelta(minutes=minutes) for day in ("2026-03-08", "2026-06-17") for minutes in range(17, 1440, 4 * 60)
]


@cache
def is_right_by_hand(place: tuple[str, tuple[str, ...]], zone: str | None, moment: datetime) -> bool:
    country, zones = place
    guessed = is_right(moment, zones, (9 * 60, 20 * 60))
    if zone is None:
        return guessed
    offsets = [moment.astimezone(ZoneInfo(name)).utcoffset() for name in (zone, *zones)]
    decides = STORED[zone] == country and offsets[0] in offsets[1:]
    return is_right(moment, [zone], (8 * 60, 21 * 60)) and (guessed or decides)


def test_numbers_zones_and_moments_agree_by_hand() -> None:
    wrong, cases = [], 0
    for e164, place in PLACES.items():
        for zone in STORED:
            for now in MOMENTS:
                cases += 1
                seen = first(e164, now, {} if zone is None else {"tz": zone})
                until = seen if isinstance(seen, datetime) else now + 15 * DAY
                waited = (now + timedelta(hours=step) for step in range(24 * 15))
                closed = (*(moment for moment in waited if moment < until), max(now, until - MINUTE))
                right = not isinstance(seen, datetime) or is_right_by_hand(place, zone, until)
                if not right or any(is_right_by_hand(place, zone, moment) for moment in closed if moment < until):
                    wrong.append((e164, zone, now, seen))
    assert (wrong, cases > 3_000) == ([], True)
