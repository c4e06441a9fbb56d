"""May this number be called, and when? Pure: a function of the number, the recipient's metadata, the settings and `now`.

Whom: a form that anyone may fill in is how toll fraud makes others pay for calls, so only numbers of ordinary phones in
the countries that are served pass. When: inside CALL_HOURS where the phone is. Where that is not known, the moment has
to be right in every zone where the phone may be.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, Final
from zoneinfo import ZoneInfo

import phonenumbers
from phonenumbers import PhoneNumber, PhoneNumberType, shortnumberinfo, timezone

from shared.settings import Settings


@dataclass(frozen=True)
class Refusal:
    """Never call it. `code` is stable; `reason` is for people."""

    code: str
    reason: str


@dataclass(frozen=True)
class PutOff:
    """Not before `until`, an aware UTC datetime. `code` is stable; `reason` is for people."""

    until: datetime
    code: str
    reason: str


# As the job table has it. Some countries allow more digits than E.164 does, or fewer than the table.
_E164: Final = re.compile(r"\+[1-9][0-9]{6,14}")
# https://www.twilio.com/docs/iam/test-credentials
_TWILIO_TEST_NUMBER: Final = re.compile(r"\+1500555[0-9]{4}")
_SATELLITE: Final = frozenset({870, 881, 882, 883})  # and other networks without a country

# What passes is listed, not what does not: a type that the library learns tomorrow is refused.
_CALLABLE: Final = frozenset(
    {
        PhoneNumberType.FIXED_LINE,
        PhoneNumberType.MOBILE,
        PhoneNumberType.FIXED_LINE_OR_MOBILE,
        PhoneNumberType.VOIP,
    }
)
_NOT_CALLABLE: Final[Mapping[int, Refusal]] = {
    PhoneNumberType.PREMIUM_RATE: Refusal("premium_rate", "a premium rate number: whoever calls it pays its owner"),
    PhoneNumberType.TOLL_FREE: Refusal("toll_free", "a toll-free number: it belongs to a company, not to a person"),
    PhoneNumberType.SHARED_COST: Refusal(
        "shared_cost", "a shared cost number: it belongs to a company, not to a person"
    ),
    PhoneNumberType.UAN: Refusal("uan", "a company's number for all its places, not a person's phone"),
    PhoneNumberType.PAGER: Refusal("pager", "a pager: nobody can talk there"),
    PhoneNumberType.VOICEMAIL: Refusal("voicemail", "a voice mail's own number: nobody picks up there"),
    PhoneNumberType.PERSONAL_NUMBER: Refusal(
        "personal_number", "a number that follows its owner from phone to phone, at a price nobody knows before"
    ),
}
_OTHER_TYPE: Final = Refusal("number_type_unknown", "a kind of number that is not known to be a phone")

_ZONE_KEYS: Final = ("timezone", "time_zone", "tz")
_ZONE_NAMES: Final = frozenset(files("tzdata").joinpath("zones").read_text("utf-8").split()) - {"Factory"}
# A guess may be an hour off: Kentucky's +1 270 is listed as New York's, and half of it lives by Chicago's time.
_GUESSED_FROM: Final = time(9)
_GUESSED_TO: Final = time(20)
_DAY: Final = timedelta(days=1)
_SECOND: Final = timedelta(seconds=1)
_SEARCH_DAYS: Final = 8


# --- whom ---------------------------------------------------------------------------------------------------------------


def read_number(typed: str, settings: Settings) -> str | Refusal:
    """What was typed, as E.164. A number without a country code is read as one of the country of our own number."""
    home = _home(settings.twilio_phone_number)
    if shortnumberinfo.is_emergency_number(typed, home):
        return Refusal("emergency_number", "an emergency number is not called by a machine")
    number = _parsed(typed, home)
    if number is None:
        return Refusal("number_invalid", "what was typed as a phone number is not one")
    # In any region of the code: Caribbean islands have 999, where the US has 911.
    if shortnumberinfo.is_valid_short_number(number):
        return Refusal("short_number", "a short code reaches a service, not a person")
    if number.extension:
        return Refusal("number_invalid", "the phone number has an extension, which cannot be dialed")
    e164 = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    if not _E164.fullmatch(e164) or not phonenumbers.is_valid_number(number):
        return Refusal("number_invalid", "no phone in its country has such a number")
    return e164


def screen(e164: str, metadata: Mapping[str, Any], settings: Settings, now: datetime) -> Refusal | PutOff | None:
    """Every rule, checked at each dial, just before it; None: call. `now` is aware."""
    return _whom(e164, settings) or hours(e164, metadata, settings, now)


def _whom(e164: str, settings: Settings) -> Refusal | None:
    read = read_number(e164, settings)
    if isinstance(read, Refusal):
        return read
    if read != e164:
        return Refusal("number_invalid", "the phone number is not written as it is dialed")
    if settings.call_only_to is not None and e164 not in settings.call_only_to:
        return Refusal(
            "not_in_call_only_to", "CALL_ONLY_TO names the only numbers that are called here, and not this one"
        )
    if e164 == settings.twilio_phone_number:
        return Refusal("own_number", "this is our own number")
    if settings.twilio_api_base_url is not None and _TWILIO_TEST_NUMBER.fullmatch(e164):
        return None  # only the stand-in takes them; elsewhere they are what they look like, personal numbers
    number = phonenumbers.parse(e164)
    if number.country_code in _SATELLITE:
        return Refusal("satellite", "a satellite phone, or another network of no country: such calls cost too much")
    kind = phonenumbers.number_type(number)
    if kind not in _CALLABLE:
        return _NOT_CALLABLE.get(kind, _OTHER_TYPE)
    # By region: 25 of them share +1, and not all are cheap to call.
    if phonenumbers.region_code_for_number(number) not in called_countries(settings):
        return Refusal("country_not_allowed", "calls do not go to the country of this number (CALL_COUNTRIES)")
    return None


def called_countries(settings: Settings) -> tuple[str, ...]:
    """The regions whose numbers may be called, as ISO 3166 codes: CALL_COUNTRIES, or where our own number is."""
    return settings.call_countries or (_home(settings.twilio_phone_number),)


def _parsed(typed: str, region: str | None = None) -> PhoneNumber | None:
    try:
        return phonenumbers.parse(typed, region)
    except phonenumbers.NumberParseException:
        return None


@cache
def _home(our_number: str) -> str:
    """The region of our own number; of a number newer than the library, the main one of its country code."""
    own = phonenumbers.parse(our_number)
    return phonenumbers.region_code_for_number(own) or phonenumbers.region_code_for_country_code(own.country_code or 0)


# --- when ---------------------------------------------------------------------------------------------------------------


def hours(e164: str, metadata: Mapping[str, Any], settings: Settings, now: datetime) -> Refusal | PutOff | None:
    """The hours alone, also for a call that waits in Twilio's queue; None: it may ring. `now` is aware.

    A call may ring from the first minute of the window up to, and not including, its end: 08:00-21:00 where the phone
    is, by US law (47 CFR 64.1200(c)(1)). The recipient's own zone, where metadata has it, decides alone.
    """
    if now.tzinfo is None:
        raise ValueError("now has no time zone: it would be read as this machine's")
    if settings.calling_hours is None:
        return None
    start, end = settings.calling_hours
    stored = _stored_zone(metadata)
    names = _possible_zones(e164) if stored is None else (stored,)
    if stored is None:
        start, end = max(start, _GUESSED_FROM), min(end, _GUESSED_TO)
    if not _ZONE_NAMES.issuperset(names):
        return Refusal("time_zone_unknown", "nobody knows what time it is where this phone is")
    moment = _first_right_moment(now.astimezone(UTC), tuple(map(_zone, names)), start, end)
    if moment is None:
        return Refusal("no_calling_hours", "no moment is inside the calling hours wherever this phone may be")
    if moment > now:
        return PutOff(moment, "outside_calling_hours", "it is too early or too late where this phone is, or may be")
    return None


def _stored_zone(metadata: Mapping[str, Any]) -> str | None:
    # Whoever signs up writes the metadata: anything may be in it.
    values = (metadata.get(key) for key in _ZONE_KEYS)
    names = (value.strip() for value in values if isinstance(value, str))
    return next((name for name in names if name in _ZONE_NAMES), None)


def _possible_zones(e164: str) -> tuple[str, ...]:
    number = _parsed(e164)
    if number is None:
        return (timezone.UNKNOWN_TIMEZONE,)
    # A mobile of Jamaica gets all 42 zones of +1 from the library, Guam's to Hawaii's, and so no right moment in summer;
    # its table of prefixes knows better. In a code's main region (US, RU) a mobile may be in any of them.
    region = phonenumbers.region_code_for_number(number)
    if region not in (None, phonenumbers.region_code_for_country_code(number.country_code or 0)):
        return timezone.time_zones_for_geographical_number(number)
    return timezone.time_zones_for_number(number)


@cache  # zoneinfo itself keeps eight, and +1 has 42
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _first_right_moment(now: datetime, zones: tuple[ZoneInfo, ...], start: time, end: time) -> datetime | None:
    """The first moment, from `now` (UTC), at which it is from `start` to before `end` in every zone; None: not soon.

    A moment becomes right only when a clock reaches `start`, or is changed: no other moment has to be looked at.
    """

    def right(moment: datetime) -> bool:
        return all(start <= moment.astimezone(zone).time() < end for zone in zones)

    if right(now):
        return now
    for day in range(_SEARCH_DAYS + 1):
        turns = {turn for zone in zones for turn in _turns(zone, start, now.date() + day * _DAY)}
        for turn in sorted(turns):
            if now < turn <= now + _SEARCH_DAYS * _DAY and right(turn):
                return turn
    return None


@lru_cache(10_000)
def _turns(zone: ZoneInfo, start: time, day: date) -> frozenset[datetime]:
    """When on that day of UTC the zone's clocks show `start`, twice if they are set back, and when they are changed."""

    def offset(moment: datetime) -> timedelta | None:
        return moment.astimezone(zone).utcoffset()

    before = datetime.combine(day, time(0), UTC)
    after = before + _DAY
    dates = (
        day - _DAY,
        day,
        day + _DAY,
    )  # some part of each may be this day of UTC; what is of another day is left to it
    starts = {datetime.combine(d, start.replace(fold=fold), zone).astimezone(UTC) for d in dates for fold in (0, 1)}
    shown = {moment for moment in starts if before <= moment < after}
    if offset(before) == offset(after):
        return frozenset(shown)
    while after - before > _SECOND:  # no zone changes its clocks twice in a day, nor within a second
        middle = before + (after - before) // _SECOND // 2 * _SECOND
        before, after = (middle, after) if offset(middle) == offset(before) else (before, middle)
    return frozenset({*shown, after})
