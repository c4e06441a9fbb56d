"""When to call: inside CALL_HOURS where the phone is. Where that is not known, in every zone where the phone may be.

The zone that the server wrote down (metadata `app_timezone`) is trusted. A zone that the person's device reported is not a
statement of place: private browsers report UTC, and applications store UTC or EST by default. So it counts together with the
zones of the number, unless it is a zone of the number's own country that agrees with one of them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from shared.opening_hours import CallingHours, Schedule, parse_schedule
from shared.screening.numbers import PhoneNumber, Refusal
from shared.screening.places import is_holiday, states_of_area, states_with_clock
from shared.screening.zones import ZONE_NAMES, clock, country_of_zone
from shared.settings import Settings


@dataclass(frozen=True)
class PutOff:
    """Not before `until`, an aware UTC datetime. `code` is stable; `reason` is for people."""

    until: datetime
    code: str
    reason: str


LAST_CALL: Final = timedelta(seconds=30)
"""No call starts this close to the end of its hours: 2 s until the request leaves, Twilio's answer, and the ringing."""
_TRUSTED_KEY: Final = "app_timezone"
_ZONE_KEYS: Final = ("timezone", "time_zone", "tz")
_NOTHING: Final = timedelta(0)
_QUARTER: Final = timedelta(minutes=15)
_SEARCHED: Final = timedelta(days=15)  # a week of holidays, with the weekends around it

_NO_ZONE: Final = Refusal("time_zone_unknown", "the local time of this phone is not known")
_NEVER: Final = Refusal(
    "no_calling_hours", "no moment is inside the calling hours in every zone where this phone may be"
)


def check_hours(
    number: PhoneNumber, metadata: Mapping[str, Any], settings: Settings, now: datetime, ring: timedelta = _NOTHING
) -> Refusal | PutOff | None:
    """The hours alone; None: the phone may ring at `now` (aware), and `ring` later.

    A call may ring from the first minute of a span up to, and not including, its end. The default is 08:00-21:00 where the
    phone is, by US law (47 CFR 64.1200(c)(1)). Rules by place narrow it, and all that may apply hold together.
    """
    if now.tzinfo is None:
        raise ValueError("now has no time zone: it would be read as this machine's")
    if settings.calling_hours is None:
        return None
    now = now.astimezone(UTC)
    rule = rule_for(number, metadata, settings.calling_hours, now)
    if rule is None:
        return _NO_ZONE
    moment = rule.first_right_moment(now, ring)
    if moment is None:
        return _NEVER
    if moment > now:
        return PutOff(moment, "outside_calling_hours", rule.reason(now, ring, moment))
    return None


def next_moment(
    number: PhoneNumber, metadata: Mapping[str, Any], settings: Settings, wish: datetime, ring: timedelta = LAST_CALL
) -> datetime | None:
    """The first moment from `wish` (aware) at which the phone may ring, and `ring` later; None: there is none."""
    match check_hours(number, metadata, settings, wish, ring):
        case PutOff(until=until):
            return until
        case Refusal():
            return None
    return wish


def persons_clock(number: PhoneNumber, metadata: Mapping[str, Any], now: datetime) -> tuple[ZoneInfo, str | None]:
    """The clock by which the person means a time, and its place if other clocks are possible, too.

    It is the zone that the server wrote, else the reported one if that is a place, else one of the number's country: the
    one where it is earliest, so that no call comes before the agreed time, wherever in the country the phone is.
    """
    reported = _stored_zone(metadata, _ZONE_KEYS)
    stored = _stored_zone(metadata, [_TRUSTED_KEY]) or (reported if reported and country_of_zone(reported) else None)
    if stored:
        return clock(stored), None
    known = [name for name in number.zones if name in ZONE_NAMES] or ["UTC"]
    own = [name for name in known if country_of_zone(name) == number.region] or known
    zones = sorted(map(clock, own), key=lambda zone: _offset(zone, now))
    is_certain = _offset(zones[0], now) == _offset(zones[-1], now)
    return zones[0], None if is_certain else zones[0].key.rpartition("/")[2].replace("_", " ")


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or _NOTHING


@dataclass(frozen=True)
class Hours:
    """A schedule, the places whose public holidays count for it, and the name of its place (None: the default)."""

    schedule: Schedule
    places: tuple[str, ...] = ()
    name: str | None = None

    def is_open(self, local: datetime) -> bool:
        return self.schedule.is_open(local, self._is_holiday)

    def why_closed(self, local: datetime) -> str:
        if self.schedule.names_holidays and self._is_holiday(local.date()):
            return "a public holiday"
        closed = not self.schedule.spans(local.date(), lambda _: False)
        return f"{local:%A}" if closed else "too early or too late"

    def _is_holiday(self, day: date) -> bool:
        return any(is_holiday(place, day) for place in self.places)


_NARROW: Final = Hours(parse_schedule("09:00-20:00"))
"""A guess may be an hour off: Kentucky's +1 270 is listed as New York's, and half of it lives by Chicago's time."""

_Clock = tuple[ZoneInfo, tuple[Hours, ...]]


def rule_for(number: PhoneNumber, metadata: Mapping[str, Any], given: CallingHours, now: datetime) -> "Rule | None":
    """The zones that count, and the hours in each; None: no zone is known."""
    trusted = _stored_zone(metadata, [_TRUSTED_KEY])
    stored = trusted or _stored_zone(metadata, _ZONE_KEYS)
    own_country = stored is not None and country_of_zone(stored) == number.region
    if not trusted and not (number.zones and ZONE_NAMES.issuperset(number.zones)):
        return None
    hours = _all_hours(number, given, stored if trusted or own_country else None, now)
    if trusted:
        return Rule(((clock(trusted), hours),))
    guessed = tuple((clock(name), (*hours, _NARROW)) for name in number.zones)
    return Rule(guessed, (clock(stored), hours) if stored else None, own_country)


def _all_hours(number: PhoneNumber, given: CallingHours, lives_in: str | None, now: datetime) -> tuple[Hours, ...]:
    """The default, and the rule of each place where the phone may be. `lives_in`: a zone that may say otherwise."""
    states = _states(number, lives_in, now)
    countries = {number.region} | ({country_of_zone(lives_in)} if lives_in else set())
    hours = [Hours(given.default, states or tuple(sorted(filter(None, countries))))]
    for rule in given.rules:
        country = rule.place.partition("-")[0]
        may_apply = rule.place in (*countries, *states) or (rule.place != country in countries and not states)
        if may_apply:
            hours.append(Hours(rule.hours, (rule.place,), rule.name))
    return tuple(hours)


def _states(number: PhoneNumber, lives_in: str | None, now: datetime) -> tuple[str, ...]:
    """The state of the area code; and, where clocks in none of its zones show the person's time, all with that time."""
    states = states_of_area(number.area_code or "")
    if lives_in is None:
        return states
    offset = now.astimezone(clock(lives_in)).utcoffset()
    if any(now.astimezone(clock(name)).utcoffset() == offset for name in number.zones if name in ZONE_NAMES):
        return states
    return (*states, *(state for state in states_with_clock(lives_in, now.date()) if state not in states))


def _stored_zone(metadata: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    # The person may have written anything into the metadata.
    values = (metadata.get(key) for key in keys)
    names = (value.strip() for value in values if isinstance(value, str))
    return next((name for name in names if name in ZONE_NAMES), None)


@dataclass(frozen=True)
class Rule:
    """`zones` must all be inside their hours, and so must `stored`.

    With `own_country`, the stored zone decides alone while one of `zones` shows the same time.
    """

    zones: tuple[_Clock, ...]
    stored: _Clock | None = None
    own_country: bool = False

    def first_right_moment(self, now: datetime, ring: timedelta) -> datetime | None:
        """The first moment from `now` (UTC) at which the phone may ring, and `ring` later; None: not within 15 days.

        A moment becomes right only when a clock reaches the start of a span, or is changed. All zones change their clocks at a
        quarter of an hour of UTC, and differ from UTC by quarters; so each quarter is tried, with the minutes of each start.
        """
        if self.is_right(now, ring):
            return now
        clocks = self.zones if self.stored is None else (*self.zones, self.stored)
        starts = {start for _, all_hours in clocks for hours in all_hours for start in hours.schedule.starts}
        minutes = sorted({start.minute % 15 for start in starts} | {0})
        moment = now.replace(minute=now.minute // 15 * 15, second=0, microsecond=0)
        while moment <= now + _SEARCHED:
            for turn in (moment + timedelta(minutes=minute) for minute in minutes):
                if now < turn <= now + _SEARCHED and self.is_right(turn, ring):
                    return turn
            moment += _QUARTER
        return None

    def is_right(self, moment: datetime, ring: timedelta = _NOTHING) -> bool:
        return self._closed_at(moment) is None and (not ring or self._closed_at(moment + ring) is None)

    def narrowed(self, hours: Callable[[ZoneInfo], Hours]) -> "Rule":
        """This rule, with more hours that must be right in each zone."""
        zones = tuple((zone, (*all_hours, hours(zone))) for zone, all_hours in self.zones)
        stored = self.stored and (self.stored[0], (*self.stored[1], hours(self.stored[0])))
        return replace(self, zones=zones, stored=stored)

    @property
    def clock(self) -> ZoneInfo:
        """The zone in which a reason names a time."""
        return (self.stored or self.zones[0])[0]

    def reason(self, now: datetime, ring: timedelta, until: datetime) -> str:
        """Which rule holds the call back, in words."""
        closed = self._closed_at(now) or self._closed_at(now + ring)
        if closed is None:
            return "the calling hours end while the phone would ring"
        zone, hours, moment = closed
        where = f"in {hours.name}" if hours.name else "where this phone is, or may be"
        return (
            f"{hours.why_closed(moment.astimezone(zone))} {where}: not before {until.astimezone(zone):%A %H:%M} there"
        )

    def _closed_at(self, moment: datetime) -> tuple[ZoneInfo, Hours, datetime] | None:
        """The first zone and hours that are closed at the moment; None: the phone may ring."""
        zones = self.zones
        if self.stored is not None:
            zones = (self.stored, *zones)
            if self.own_country:
                offset = moment.astimezone(self.stored[0]).utcoffset()
                if any(moment.astimezone(zone).utcoffset() == offset for zone, _ in self.zones):
                    zones = (self.stored,)
        for zone, all_hours in zones:
            local = moment.astimezone(zone)
            for hours in all_hours:
                if not hours.is_open(local):
                    return zone, hours, moment
        return None
