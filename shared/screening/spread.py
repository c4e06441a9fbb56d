"""CALL_REDIAL_SPREAD: a redial prefers another time of day than the one at which nobody picked up.

Morning is 08:00-12:00, afternoon 12:00-17:00, evening 17:00-21:00, where the phone is. Another time of day is another part,
at least three hours away from the time of the miss.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, time, timedelta
from typing import Any, Final

from shared.models import Redial
from shared.opening_hours import Schedule, Span, calling_hours
from shared.screening.hours import Hours, PutOff, rule_for
from shared.screening.numbers import PhoneNumber
from shared.settings import Settings

_HOUR: Final = 60
_APART: Final = 3 * _HOUR
_PARTS: Final = {
    "morning": (8 * _HOUR, 12 * _HOUR),
    "afternoon": (12 * _HOUR, 17 * _HOUR),
    "evening": (17 * _HOUR, 21 * _HOUR),
}
_DAYTIME: Final = "08:00-21:00"


def spread(
    number: PhoneNumber,
    metadata: Mapping[str, Any],
    settings: Settings,
    now: datetime,
    ring: timedelta,
    redial: Redial,
    held: PutOff | None,
) -> PutOff | None:
    """`held`, the answer of the hours, or the first right moment at another time of day. None: call now.

    A redial that was due at another time of day is not put off again, so a late sweep does not put it off for ever. Where the
    hours allow no other time of day, or no zone is known, the hours alone decide.
    """
    rule = rule_for(number, metadata, settings.calling_hours or calling_hours(_DAYTIME), now)
    if rule is None:
        return held
    other = rule.narrowed(lambda zone: Hours(other_times(redial.missed_at.astimezone(zone).time())))
    if held is None and other.is_right(redial.due_at):
        return None
    until = other.first_right_moment(now, ring)
    if until is None or until <= now:
        return held
    if held is not None:
        return replace(held, until=until, reason=rule.reason(now, ring, until))
    there = redial.missed_at.astimezone(rule.clock)
    reason = (
        f"nobody picked up in the {part_of_day(there.time())}: not before {until.astimezone(rule.clock):%A %H:%M} there"
    )
    return PutOff(until, "another_time_of_day", reason)


def part_of_day(at: time) -> str:
    minute = at.hour * _HOUR + at.minute
    return next((name for name, (start, end) in _PARTS.items() if start <= minute < end), "night")


def other_times(missed: time) -> Schedule:
    """The spans of each day that are another time of day than `missed`."""
    before = missed.hour * _HOUR + missed.minute
    after = before + (missed > time(missed.hour, missed.minute))  # a started minute is not over
    spans: list[Span] = []
    for name, (start, end) in _PARTS.items():
        first, last = (start, min(end, before - _APART)) if end <= before else (max(start, after + _APART), end)
        if name != part_of_day(missed) and first < last:
            spans.append((time(*divmod(first, _HOUR)), time(*divmod(last, _HOUR))))
    return Schedule("another time of day", (*[tuple(spans)] * 7, None))
