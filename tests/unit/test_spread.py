"""CALL_REDIAL_SPREAD: a redial at another time of day than the one at which nobody picked up."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

from hypothesis import given
from hypothesis import strategies as st

from shared.models import Redial
from shared.screening import PhoneNumber, PutOff, Refusal, parse_number, screen
from shared.screening.spread import other_times, part_of_day
from tests.unit.examples import settings

NEW_YORK = {"timezone": "America/New_York"}
MINUTES = [time(*divmod(minute, 60)) for minute in range(1440)]


def seconds(at: time) -> float:
    return at.hour * 3600 + at.minute * 60 + at.second + at.microsecond / 1e6


@given(st.times())
def test_other_times_are_another_part_three_hours_apart(missed: time) -> None:
    open_at = {at for at in MINUTES for start, end in other_times(missed).days[0] or () if start <= at < end}
    since = {at: (seconds(at) - seconds(missed)) % 86_400 for at in MINUTES}
    others = {at for at in MINUTES if time(8) <= at < time(21) and part_of_day(at) != part_of_day(missed)}
    apart = {at for at in others if 3 * 3600 <= since[at] <= 21 * 3600}
    assert {at for at in apart if since[at] < 21 * 3600 - 60} <= open_at <= apart  # to the minute
    assert open_at


def moved(hours: str, missed: str, due: str, now: str, spread: str = "on", **metadata: str) -> str:
    """The answer for a New York number; times are UTC of June 2026, where New York is 4 hours behind."""
    at = {name: datetime.fromisoformat(f"2026-06-{given}Z") for name, given in [("m", missed), ("d", due), ("n", now)]}
    ours = settings(CALL_HOURS=hours, CALL_REDIAL_SPREAD=spread)
    number = parse_number("+12125550100", ours)
    assert isinstance(number, PhoneNumber)
    redial = Redial(missed_at=at["m"], due_at=at["d"])
    ring = timedelta(seconds=30)
    match screen(number, metadata or NEW_YORK, ours, at["n"], ring, redial):
        case None:
            return "call"
        case PutOff(until=until, code=code):
            assert until > at["n"]
            assert (
                screen(number, metadata or NEW_YORK, ours, until, ring, Redial(missed_at=at["m"], due_at=until)) is None
            )
            return f"{until:%d %H:%M} {code}"
        case Refusal(code=code):
            return code


def test_redial_waits_once_for_another_part_of_day() -> None:
    """Monday is 22 June; the hours of a New Yorker, in New York: missed at, due at, now -> when, and why."""
    spread, closed = "another_time_of_day", "outside_calling_hours"
    cases: dict[tuple[str, ...], str] = {
        # In the same part: the first other part that is three hours away.
        ("08:00-21:00", "22 14:00", "22 14:15", "22 14:15"): f"22 17:00 {spread}",
        ("08:00-21:00", "22 15:30", "22 15:45", "22 15:45"): f"22 18:30 {spread}",
        ("08:00-21:00", "22 19:00", "22 19:15", "22 19:15"): f"22 22:00 {spread}",
        ("08:00-21:00", "22 22:00", "22 22:15", "22 22:15"): f"23 12:00 {spread}",
        # In another part, and less than three hours away.
        ("08:00-21:00", "22 15:30", "22 16:05", "22 16:05"): f"22 18:30 {spread}",
        # At another time of day: by its delay, or because it is late.
        ("08:00-21:00", "22 14:00", "22 17:30", "22 17:30"): "call",
        ("08:00-21:00", "22 14:00", "22 14:15", "22 18:00"): "call",
        # It was put off before, and is late: not again.
        ("08:00-21:00", "22 14:00", "22 17:00", "23 14:00"): "call",
        # A day later, at the same time.
        ("08:00-21:00", "22 14:00", "23 14:00", "23 14:01"): f"23 17:00 {spread}",
        # The hours hold, too.
        ("08:00-21:00", "23 00:00", "23 01:00", "23 01:00"): f"23 12:00 {closed}",
        ("08:00-21:00", "22 14:00", "23 02:00", "23 02:00"): f"23 17:00 {closed}",
        ("08:00-21:00; Su off", "20 22:00", "20 22:15", "20 22:15"): f"22 12:00 {spread}",
        # The hours have no other time of day.
        ("09:00-11:00", "22 14:00", "22 14:15", "22 14:15"): "call",
        ("09:00-11:00", "22 14:00", "22 15:15", "22 15:15"): f"23 13:00 {closed}",
        # At any hour, but not in the night.
        ("always", "22 22:00", "22 22:15", "22 22:15"): f"23 12:00 {spread}",
        ("always", "22 06:00", "22 06:15", "22 06:15"): f"22 12:00 {spread}",
        # Off.
        ("08:00-21:00", "22 14:00", "22 14:15", "22 14:15", "off"): "call",
        ("08:00-21:00", "22 14:00", "23 02:00", "23 02:00", "off"): f"23 12:00 {closed}",
    }
    assert {case: moved(*case) for case in cases} == cases


def test_redial_is_moved_in_every_zone_of_the_number() -> None:
    """A Chilean mobile may be in three zones, two hours apart: 10:00 in Santiago is 08:00 on Easter Island."""
    ours = settings(CALL_REDIAL_SPREAD="on", CALL_COUNTRIES="CL")
    missed = datetime(
        2026, 6, 22, 15, 0, 30, tzinfo=UTC
    )  # 11:00 in Santiago, 12:00 in Punta Arenas, 09:00 on the island
    redial = Redial(missed_at=missed, due_at=missed + timedelta(minutes=15))
    held = screen(parse_number("+56961234567", ours), {}, ours, redial.due_at, redial=redial)
    assert isinstance(held, PutOff)
    zones = {"America/Santiago": -4, "America/Punta_Arenas": -3, "Pacific/Easter": -6}
    there = {zone: (held.until + timedelta(hours=offset)).time() for zone, offset in zones.items()}
    assert there == {"America/Santiago": time(16), "America/Punta_Arenas": time(17), "Pacific/Easter": time(14)}


def test_reason_of_a_moved_redial_names_the_part() -> None:
    ours = settings(CALL_REDIAL_SPREAD="on")
    missed = datetime(2026, 6, 22, 14, tzinfo=UTC)
    redial = Redial(missed_at=missed, due_at=missed + timedelta(minutes=15))
    held = screen(parse_number("+12125550100", ours), NEW_YORK, ours, redial.due_at, redial=redial)
    assert isinstance(held, PutOff)
    assert held.reason == "nobody picked up in the morning: not before Monday 13:00 there"
