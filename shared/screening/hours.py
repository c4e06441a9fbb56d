"""When to call: inside CALL_HOURS where the phone is. Where that is not known, in every zone where the phone may be.

The zone that the server wrote down (metadata `app_timezone`) is trusted. A zone that the person's device reported is not a
statement of place: private browsers report UTC, and applications store UTC or EST by default. So it counts together with the
zones of the number, unless it is a zone of the number's own country that agrees with one of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo

from shared.screening.numbers import PhoneNumber, Refusal
from shared.screening.zones import ZONE_NAMES, clock, country_of_zone
from shared.settings import Settings


@dataclass(frozen=True)
class PutOff:
    """Not before `until`, an aware UTC datetime. `code` is stable; `reason` is for people."""

    until: datetime
    code: str
    reason: str


_TRUSTED_KEY: Final = "app_timezone"
_ZONE_KEYS: Final = ("timezone", "time_zone", "tz")
# A guess may be an hour off: Kentucky's +1 270 is listed as New York's, and half of it lives by Chicago's time.
_GUESSED_FROM: Final = time(9)
_GUESSED_TO: Final = time(20)
_DAY: Final = timedelta(days=1)
_SECOND: Final = timedelta(seconds=1)
_NOTHING: Final = timedelta(0)
_SEARCH_DAYS: Final = 8

_NO_ZONE: Final = Refusal("time_zone_unknown", "the local time of this phone is not known")
_NEVER: Final = Refusal(
    "no_calling_hours", "no moment is inside the calling hours in every zone where this phone may be"
)


def check_hours(
    number: PhoneNumber,
    metadata: Mapping[str, Any],
    settings: Settings,
    now: datetime,
    ring: timedelta = _NOTHING,
) -> Refusal | PutOff | None:
    """The hours alone; None: the phone may ring at `now` (aware), and `ring` later.

    A call may ring from the first minute of the window up to, and not including, its end: 08:00-21:00 where the phone
    is, by US law (47 CFR 64.1200(c)(1)).
    """
    if now.tzinfo is None:
        raise ValueError("now has no time zone: it would be read as this machine's")
    if settings.calling_hours is None:
        return None
    rule = _rule(number, metadata, *settings.calling_hours)
    if rule is None:
        return _NO_ZONE
    moment = rule.first_right_moment(now.astimezone(UTC), ring)
    if moment is None:
        return _NEVER
    if moment > now:
        return PutOff(moment, "outside_calling_hours", "it is too early or too late where this phone is, or may be")
    return None


def _rule(number: PhoneNumber, metadata: Mapping[str, Any], start: time, end: time) -> "_Rule | None":
    """The zones that count, and how; None: no zone is known."""
    full, narrow = (start, end), (max(start, _GUESSED_FROM), min(end, _GUESSED_TO))
    if trusted := _stored_zone(metadata, [_TRUSTED_KEY]):
        return _Rule(((clock(trusted), full),))
    if not number.zones or not ZONE_NAMES.issuperset(number.zones):
        return None
    guessed = tuple((clock(name), narrow) for name in number.zones)
    stored = _stored_zone(metadata, _ZONE_KEYS)
    if stored is None:
        return _Rule(guessed)
    own_country = country_of_zone(stored) == number.region
    return _Rule(guessed, (clock(stored), full), own_country)


def _stored_zone(metadata: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    # The person may have written anything into the metadata.
    values = (metadata.get(key) for key in keys)
    names = (value.strip() for value in values if isinstance(value, str))
    return next((name for name in names if name in ZONE_NAMES), None)


_Window = tuple[time, time]


@dataclass(frozen=True)
class _Rule:
    """`zones` must all be inside their windows, and so must `stored`.

    With `own_country`, the stored zone decides alone while one of `zones` shows the same time.
    """

    zones: tuple[tuple[ZoneInfo, _Window], ...]
    stored: tuple[ZoneInfo, _Window] | None = None
    own_country: bool = False

    def first_right_moment(self, now: datetime, ring: timedelta) -> datetime | None:
        """The first moment from `now` (UTC) at which the phone may ring, and `ring` later; None: not within eight days.

        A moment becomes right only when a clock reaches the start of its window, or is changed.
        """

        def right(moment: datetime) -> bool:
            return self._is_right(moment) and (not ring or self._is_right(moment + ring))

        if right(now):
            return now
        for day in range(_SEARCH_DAYS + 1):
            for turn in sorted(self._turns(now.date() + day * _DAY)):
                if now < turn <= now + _SEARCH_DAYS * _DAY and right(turn):
                    return turn
        return None

    def _is_right(self, moment: datetime) -> bool:
        if self.stored is not None:
            if not _is_inside(moment, *self.stored):
                return False
            if self.own_country:
                offset = moment.astimezone(self.stored[0]).utcoffset()
                if any(moment.astimezone(zone).utcoffset() == offset for zone, _ in self.zones):
                    return True
        return all(_is_inside(moment, zone, window) for zone, window in self.zones)

    def _turns(self, day: date) -> set[datetime]:
        return {turn for zone, (start, _) in self._all() for turn in _turns(zone, start, day)}

    def _all(self) -> Iterator[tuple[ZoneInfo, _Window]]:
        yield from self.zones
        if self.stored is not None:
            yield self.stored


def _is_inside(moment: datetime, zone: ZoneInfo, window: _Window) -> bool:
    return window[0] <= moment.astimezone(zone).time() < window[1]


@lru_cache(10_000)
def _turns(zone: ZoneInfo, start: time, day: date) -> frozenset[datetime]:
    """When on that day of UTC the zone's clocks show `start` (twice if they are set back), and when they are changed."""

    def offset(moment: datetime) -> timedelta | None:
        return moment.astimezone(zone).utcoffset()

    before = datetime.combine(day, time(0), UTC)
    after = before + _DAY
    # A part of each of these local dates may belong to this day of UTC.
    dates = (day - _DAY, day, day + _DAY)
    starts = {datetime.combine(d, start.replace(fold=fold), zone).astimezone(UTC) for d in dates for fold in (0, 1)}
    shown = {moment for moment in starts if before <= moment < after}
    if offset(before) == offset(after):
        return frozenset(shown)
    while after - before > _SECOND:  # no zone changes its clocks twice in a day, nor within a second
        middle = before + (after - before) // _SECOND // 2 * _SECOND
        before, after = (middle, after) if offset(middle) == offset(before) else (before, middle)
    return frozenset({*shown, after})
