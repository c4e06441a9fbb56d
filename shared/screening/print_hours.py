"""Print calling hours for people: each rule in words, its source, and the answer of this moment.

python -m shared.screening.print_hours            CALL_HOURS, or 08:00-21:00
python -m shared.screening.print_hours strict     a file of shared/hours
"""

import os
import sys
from datetime import UTC, datetime

from shared.opening_hours import CallingHours, Schedule, calling_hours
from shared.screening.hours import Hours
from shared.screening.places import zones_of_place
from shared.screening.zones import clock

_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "public holidays")


def in_words(schedule: Schedule) -> str:
    """Monday to Friday 09:00-20:00; Saturday 10:00-18:00; Sunday, public holidays closed"""
    runs: list[tuple[list[str], str]] = []
    for name, spans in zip(_NAMES, schedule.days, strict=True):
        if spans is not None:
            times = ", ".join(f"{start:%H:%M}-{end:%H:%M}" for start, end in spans) or "closed"
            if runs and runs[-1][1] == times and name != _NAMES[-1]:
                runs[-1][0].append(name)
            else:
                runs.append(([name], times))
    return "; ".join(
        f"{names[0]} to {names[-1]} {times}" if names[1:] else f"{names[0]} {times}" for names, times in runs
    )


def lines(given: CallingHours, now: datetime) -> list[str]:
    printed = [f"everywhere: {in_words(given.default)}"]
    for rule in given.rules:
        hours = Hours(rule.hours, (rule.place,), rule.name)
        locals_ = [now.astimezone(clock(zone)) for zone in zones_of_place(rule.place)]
        closed = sorted({f"closed ({hours.why_closed(local)})" for local in locals_ if not hours.is_open(local)})
        is_open = any(hours.is_open(local) for local in locals_)
        printed.append(f"{rule.name} ({rule.place}): {in_words(rule.hours)}")
        printed.append(f"    source: {rule.source}" + (f", read {given.read:%d %b %Y}" if given.read else ""))
        printed.append(f"    now: {', '.join([*(['open'] if is_open else []), *closed])}")
    if given.review_after:
        printed.append(f"Read the sources again after {given.review_after:%d %b %Y}. This is no legal advice.")
    return printed


def main(arguments: list[str]) -> int:
    setting = (arguments or [os.environ.get("CALL_HOURS") or "08:00-21:00"])[0]
    if setting == "always":
        print("always: calls may ring at any hour")
        return 0
    try:
        given = calling_hours(setting)
    except ValueError as error:
        print(f"CALL_HOURS {error}", file=sys.stderr)
        return 1
    print("\n".join(lines(given, datetime.now(UTC))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
