"""CALL_HOURS: opening hours in the notation of OpenStreetMap, and rules by place from shared/hours/*.toml.

Understood is the subset that calls need: weekdays, PH (public holidays), times and off. The library opening-hours-py takes
all of the notation, sunsets and windows past midnight included, and would need the same check in front; it is 13 MB.
"""

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cache
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

FOLDER: Final = Path(__file__).parent / "hours"
_DAYS: Final = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su", "PH")
_HOLIDAY: Final = 7
_RULE: Final = re.compile(r"(?:(?P<days>[A-Z][A-Za-z,\- ]*?)\s*)??(?P<times>off|[0-9][0-9:,\- ]*)")
_SPAN: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")

Span = tuple[time, time]


@dataclass(frozen=True)
class Schedule:
    """For each weekday from Monday, and then for public holidays (None: as on any day), the spans in which calls may ring."""

    text: str
    days: tuple[tuple[Span, ...] | None, ...]

    @property
    def names_holidays(self) -> bool:
        return self.days[_HOLIDAY] is not None

    def spans(self, day: date, is_holiday: Callable[[date], bool]) -> tuple[Span, ...]:
        holiday = self.days[_HOLIDAY]
        if holiday is not None and is_holiday(day):
            return holiday
        return self.days[day.weekday()] or ()

    def is_open(self, local: datetime, is_holiday: Callable[[date], bool]) -> bool:
        now = local.time()
        return any(start <= now < end for start, end in self.spans(local.date(), is_holiday))

    @property
    def starts(self) -> frozenset[time]:
        return frozenset(start for spans in self.days for start, _ in spans or ())


def parse_schedule(text: str) -> Schedule:
    """Read `Mo-Fr 09:00-20:00; Sa 10:00-18:00; Su,PH off`. A later part replaces an earlier one for the days that it names.

    Days that no part names are closed. Raises ValueError, which names the part and never the text.
    """
    days: list[tuple[Span, ...] | None] = [(), (), (), (), (), (), (), None]
    for position, part in enumerate(text.split(";"), 1):
        match = _RULE.fullmatch(part.strip())
        if not match:
            raise ValueError(f"part {position} is not days and times, such as Mo-Fr 09:00-20:00 or Su,PH off")
        spans = () if match["times"] == "off" else _spans(match["times"], position)
        for day in _named_days(match["days"], position) if match["days"] else range(_HOLIDAY):
            days[day] = spans
    if not any(days):
        raise ValueError("no day has any hours")
    return Schedule(text, tuple(days))


def _named_days(text: str, position: int) -> list[int]:
    named: list[int] = []
    for item in text.replace(" ", "").split(","):
        first, dash, last = item.partition("-")
        if first not in _DAYS or (dash and (last not in _DAYS or "PH" in (first, last))):
            raise ValueError(f"part {position} has a day that is none of {' '.join(_DAYS)}")
        start, end = _DAYS.index(first), _DAYS.index(last or first)
        weekdays = range(start, end + 1 + (_HOLIDAY if end < start else 0))  # Sa-Mo goes over the end of the week
        named += [day % _HOLIDAY for day in weekdays] if dash else [start]
    return named


def _spans(text: str, position: int) -> tuple[Span, ...]:
    spans: list[Span] = []
    for item in text.replace(" ", "").split(","):
        start, end = item[:5], item[6:]
        if not _SPAN.fullmatch(item) or start >= end or (spans and spans[-1][1] > time.fromisoformat(start)):
            form = "times that are not HH:MM-HH:MM, each after the one before, at most 23:59"
            raise ValueError(f"part {position} has {form}")
        spans.append((time.fromisoformat(start), time.fromisoformat(end)))
    return tuple(spans)


# --- rules by place -----------------------------------------------------------------------------------------------------


def _place(text: str) -> str:
    if not re.fullmatch(r"[A-Z]{2}(-[A-Z0-9]{1,3})?", text):
        raise ValueError("must be an ISO 3166 code of a country (FR) or of a part of one (US-AL)")
    return text


_Hours = Annotated[Schedule, BeforeValidator(lambda hours: parse_schedule(hours) if isinstance(hours, str) else hours)]


class PlaceRule(BaseModel):
    """`place` is an ISO 3166 code; the rule narrows the default for numbers that may be there."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    place: Annotated[str, AfterValidator(_place)]
    name: str
    hours: _Hours
    source: str


class CallingHours(BaseModel):
    """One file of shared/hours, or CALL_HOURS itself as `default`."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    default: _Hours
    read: date | None = None
    review_after: date | None = None
    rules: tuple[PlaceRule, ...] = ()


@cache
def calling_hours(setting: str) -> CallingHours:
    """The hours that CALL_HOURS names: a file of shared/hours, or the notation. Raises ValueError, which names the fault."""
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", setting):
        return CallingHours(default=parse_schedule(setting))
    path = FOLDER / f"{setting}.toml"
    if not path.is_file():
        files = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise ValueError(f"names no file of shared/hours (there is: {files})")
    try:
        return CallingHours.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"shared/hours/{path.name}: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ValueError(f"shared/hours/{path.name}: {wrong}") from error
