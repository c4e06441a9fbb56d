"""Hours by day, place and holiday: the notation of CALL_HOURS, the rules of shared/hours, and what they mean for a number."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from itertools import chain
from pathlib import Path
from zoneinfo import ZoneInfo

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phonenumbers import geocoder

from function import doctor
from shared import opening_hours
from shared.opening_hours import Schedule, calling_hours, parse_schedule
from shared.screening import PhoneNumber, PutOff, check_hours, parse_number, places
from shared.screening.places import states_of_area
from shared.screening.print_hours import in_words, main
from shared.settings import Settings, SettingsError
from tests.unit.examples import settings

MINUTE = timedelta(minutes=1)


READ = {
    "08:00-21:00": "Monday to Sunday 08:00-21:00",
    "Mo-Fr 09:00-20:00; Sa 10:00-18:00; Su,PH off": "Monday to Friday 09:00-20:00;"
    " Saturday 10:00-18:00; Sunday closed; public holidays closed",
    "10:00-13:00,14:00-20:00": "Monday to Sunday 10:00-13:00, 14:00-20:00",
    "Mo, We 09:00-12:00 ; Fr 10:00-11:00, 13:00-14:00":
        "Monday 09:00-12:00; Tuesday closed; Wednesday 09:00-12:00; Thursday closed;"
    " Friday 10:00-11:00, 13:00-14:00; Saturday to Sunday closed",
    "Sa-Mo 09:00-12:00": "Monday 09:00-12:00; Tuesday to Friday closed; Saturday to Sunday 09:00-12:00",
    "08:00-20:00; Su off": "Monday to Saturday 08:00-20:00; Sunday closed",
    "Mo-Fr 09:00-17:00; PH 10:00-12:00":
        "Monday to Friday 09:00-17:00; Saturday to Sunday closed; public holidays 10:00-12:00",
}  # fmt: skip
REFUSED = [
    "", ";", "Su off", "off", "24/7", "8-21", "8:00-21:00", "21:00-08:00", "08:00-08:00", "08:00-24:00", "08:00+",
    "22:00-02:00", "08:00-21:00;", "Mo-Fr", "Mo-Fr 09:00", "Mon-Fri 09:00-17:00", "mo-fr 09:00-17:00", "Mo-PH 09:00-17:00",
    "PH-Su off", "Xx 09:00-17:00", "Mo[1] 09:00-17:00", "week 1-10 Mo 09:00-17:00", "Jan-Mar 09:00-17:00", "sunrise-sunset",
    "SH off", "Mo-Fr 09:00-17:00 || off", 'Mo-Fr 09:00-17:00 "by law"', "Mo-Fr 09:00-17:00 open", "Mo 09:00-12:00,11:00-14:00",
    "Mo 13:00-14:00,09:00-10:00", "easter off", "Mo-Fr 09:00-17:00, Sa 10:00-12:00", "Mo--Fr 09:00-17:00", "Mo,,Tu 09:00-17:00",
    "09:00-17:60", "2026 Mo-Fr 09:00-17:00", "Mo-Fr 09:00\u201317:00", "Mo-Fr 09:00-17:00\nSa off", "STRICT", "strict.toml",
    "../strict", "no-such-file",
]  # fmt: skip


def test_notation_is_read_as_people_mean_it() -> None:
    assert {text: in_words(parse_schedule(text)) for text in READ} == READ


def test_notation_outside_the_subset_is_refused_at_start() -> None:
    accepted = []
    for text in REFUSED:
        try:
            accepted.append((text, settings(CALL_HOURS=text).call_hours))
        except SettingsError as error:
            (problem,) = error.problems
            assert problem.startswith("CALL_HOURS ")
            assert len(text) < 12 or text not in problem
    assert [row for row in accepted if row[0] != ""] == []  # an empty variable counts as not set


def test_strict_rules_are_sourced_and_narrow_the_default() -> None:
    strict = calling_hours("strict")
    ruled = {rule.place for rule in strict.rules if rule.source and rule.name}
    assert len(strict.rules) == len(ruled) == 27
    assert strict.read
    assert strict.review_after
    assert strict.read < strict.review_after
    assert ruled <= {*phonenumbers.SUPPORTED_REGIONS, *chain(*places._states_by_area().values())}


def test_wrong_files_of_hours_name_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default, rule = 'default = "08:00-21:00"', '[[rules]]\nname = "A"\nhours = "08:00-20:00"'
    table = {
        default[:-1]: "Unterminated|at line 1|Illegal",
        default.replace("default", "hours"): "default",
        'default = "8-21"': "part 1",
        f'{default}\n{rule}\nplace = "Alabama"\nsource = "s"': "rules.0.place",
        f'{default}\n{rule}\nplace = "US-AL"': "rules.0.source",
        f"{default}\nrule = []": "rule: Extra",
    }
    monkeypatch.setattr(opening_hours, "FOLDER", tmp_path)
    for text, named in table.items():
        (tmp_path / "mine.toml").write_text(text, "utf-8")
        with pytest.raises(ValueError, match=named):
            calling_hours("mine")  # a fault is not kept


def test_hours_are_printed_with_source_and_now(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strict"]) == 0
    out = capsys.readouterr().out
    for rule in calling_hours("strict").rules:
        assert f"{rule.name} ({rule.place}): {in_words(rule.hours)}\n    source: {rule.source}" in out
    assert out.count("    now: ") == 27
    assert main(["nowhere"]) == 1
    assert "strict" in capsys.readouterr().err


def test_doctor_warns_of_rules_after_their_review_date(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = settings(CALL_HOURS="strict")
    assert [finding for one in (strict, settings()) for finding in doctor._old_tables(one)] == []
    old = calling_hours("strict").model_copy(update={"review_after": date(2026, 1, 1)})
    monkeypatch.setattr(Settings, "calling_hours", old)
    (finding,) = doctor._old_tables(strict)
    assert (finding.state, finding.check) == ("warning", "CALL_HOURS")


def test_states_by_area_code_agree_with_the_geocoder() -> None:
    wrong, areas = [], 0
    for area in range(200, 990):
        number = phonenumbers.parse(f"+1{area}2345678")
        region = phonenumbers.region_code_for_number(number)
        if region not in ("US", "CA") or phonenumbers.number_type(number) not in (0, 1, 2):
            continue
        areas += 1
        states, described = states_of_area(f"{area}"), geocoder.description_for_number(number, "en")
        named = {f"{region}-{described[-2:]}"} if described[-4:-2] == ", " else set()
        if {state[:2] for state in states} != {region} or not named.issubset(states):
            wrong.append((area, states, described))
    assert (wrong, areas > 400) == ([], True)


# number -> (zone, place of the rule, name, spans of a weekday, of Saturday, of Sunday, whether holidays are closed)
DAY = ("08:00-21:00",)
RULES: dict[str, tuple[str, str | None, tuple[str, ...], tuple[str, ...], tuple[str, ...], bool]] = {
    "+12055550100": ("America/Chicago", "US-AL", ("08:00-20:00",), ("08:00-20:00",), (), True),
    "+15045550100": ("America/Chicago", "US-LA", ("08:00-20:00",), ("08:00-20:00",), (), True),
    "+12155550100": ("America/New_York", "US-PA", DAY, DAY, (), True),
    "+13055550100": ("America/New_York", "US-FL", ("08:00-20:00",), ("08:00-20:00",), ("08:00-20:00",), False),
    "+12145550100": ("America/Chicago", "US-TX", DAY, DAY, ("12:00-21:00",), False),
    "+14015550100": ("America/New_York", "US-RI", ("09:00-18:00",), ("10:00-17:00",), (), True),
    "+12075550100": ("America/New_York", "US-ME", ("09:00-17:00",), (), (), False),
    "+18015550100": ("America/Denver", "US-UT", DAY, DAY, (), True),
    "+14155550100": ("America/Los_Angeles", "US-CA", ("09:00-21:00",), ("09:00-21:00",), ("09:00-21:00",), False),
    "+12125550100": ("America/New_York", None, DAY, DAY, DAY, False),
    "+14165550100": ("America/Toronto", "CA", ("09:00-21:00",), ("10:00-18:00",), ("10:00-18:00",), False),
    "+33123456789": ("Europe/Paris", "FR", ("10:00-13:00", "14:00-20:00"), (), (), True),
    "+390612345678": ("Europe/Rome", "IT", ("09:00-20:00",), ("10:00-19:00",), (), False),
}  # fmt: skip
# Public holidays of 2026 in all of these places, and one that only Louisiana has; by hand.
US_HOLIDAYS = {
    date(2026, 1, 1), date(2026, 1, 19), date(2026, 5, 25), date(2026, 6, 19), date(2026, 7, 3), date(2026, 12, 25),
}  # fmt: skip
HOLIDAYS = {
    "US-AL": US_HOLIDAYS, "US-LA": {*US_HOLIDAYS - {date(2026, 7, 3)}, date(2026, 2, 17), date(2026, 4, 3)}, "US-PA": US_HOLIDAYS,
    "US-RI": {*US_HOLIDAYS - {date(2026, 7, 3)}, date(2026, 8, 10)}, "US-UT": {*US_HOLIDAYS, date(2026, 7, 24)},
    "FR": {date(2026, 1, 1), date(2026, 4, 6), date(2026, 5, 1), date(2026, 5, 14), date(2026, 7, 14), date(2026, 12, 25)},
}  # fmt: skip
DAYS = (
    "2026-01-01", "2026-03-07", "2026-03-08", "2026-05-14", "2026-06-17", "2026-06-20", "2026-06-21", "2026-07-24",
    "2026-11-01", "2026-12-25", "2026-12-31",
)  # fmt: skip


def is_open_by_hand(e164: str, stored: bool, moment: datetime) -> bool:
    zone, place, weekday, saturday, sunday, holidays = RULES[e164]
    local = moment.astimezone(ZoneInfo(zone))
    if holidays and local.date() in HOLIDAYS[place or ""]:
        return False
    spans = {5: saturday, 6: sunday}.get(local.weekday(), weekday)
    clock = f"{local:%H:%M}"
    inside = any(span[:5] <= clock < span[6:] for span in spans)
    return inside and (stored or "09:00" <= clock < "20:00")


@cache
def strict() -> Settings:
    return settings(CALL_HOURS="strict", CALL_COUNTRIES="US CA FR IT AU")


def answer(e164: str, metadata: dict[str, str], moment: datetime) -> datetime:
    number = parse_number(e164, strict())
    assert isinstance(number, PhoneNumber)
    late = check_hours(number, metadata, strict(), moment)
    assert late is None or isinstance(late, PutOff)
    return late.until if late else moment


def test_rules_days_and_holidays_agree_by_hand() -> None:
    wrong, cases = [], 0
    for e164, (zone, *_) in RULES.items():
        for stored in (False, True):
            for day in DAYS:
                for minutes in range(30, 1440, 120):
                    cases += 1
                    now = datetime.fromisoformat(day).replace(tzinfo=UTC) + minutes * MINUTE
                    until = answer(e164, {"timezone": zone} if stored else {}, now)
                    if (until == now) != is_open_by_hand(e164, stored, now) or not is_open_by_hand(e164, stored, until):
                        wrong.append((e164, stored, now, until))
    assert (wrong[:20], cases > 3_000) == ([], True)


def test_reason_names_the_rule_that_holds_the_job() -> None:
    def reason(e164: str, moment: str, metadata: dict[str, str]) -> str:
        number = parse_number(e164, strict())
        assert isinstance(number, PhoneNumber)
        late = check_hours(number, metadata, strict(), datetime.fromisoformat(moment).replace(tzinfo=UTC))
        assert isinstance(late, PutOff)
        return late.reason

    chicago = {"timezone": "America/Chicago"}
    assert [
        reason("+12055550100", "2026-06-21 17:00", chicago),
        reason("+12055550100", "2026-07-03 17:00", chicago),
        reason("+33123456789", "2026-06-22 11:30", {}),
        reason("+12055550100", "2026-06-22 07:00", {}),
    ] == [
        "Sunday in Alabama: not before Monday 08:00 there",
        "a public holiday in Alabama: not before Monday 08:00 there",
        "too early or too late in France: not before Monday 14:00 there",
        "too early or too late where this phone is, or may be: not before Monday 09:00 there",
    ]


def test_person_elsewhere_is_held_to_possible_states() -> None:
    """A Californian number whose owner lives by Chicago's time may be in Alabama, or in Kentucky."""
    central = {"app_timezone": "America/Chicago"}
    sunday, monday = datetime(2026, 6, 21, 17, tzinfo=UTC), datetime(2026, 6, 22, 14, 30, tzinfo=UTC)
    assert answer("+14155550100", central, sunday) == datetime(2026, 6, 22, 15, tzinfo=UTC)
    assert answer("+14155550100", central, monday) == datetime(2026, 6, 22, 15, tzinfo=UTC)  # Kentucky from 10:00
    assert answer("+12145550100", central, monday) == monday  # a Texan number by Texan time is in Texas


SCHEDULES = [parse_schedule(text) for text in READ]
ALL_DAYS = st.dates(date(2026, 1, 1), date(2027, 12, 31))


@given(st.sampled_from(SCHEDULES), ALL_DAYS, st.times(), st.booleans())
def test_schedule_is_open_exactly_in_its_spans(schedule: Schedule, day: date, at: time, holiday: bool) -> None:
    spans = schedule.spans(day, lambda _: holiday)
    inside = any(start <= at < end for start, end in spans)
    assert schedule.is_open(datetime.combine(day, at), lambda _: holiday) == inside
    assert {start for start, _ in spans} <= schedule.starts


def test_holidays_are_loaded_only_when_a_rule_names_them() -> None:
    program = (
        "import sys; from datetime import *; from shared.screening import check_hours, parse_number;"
        "from tests.unit.examples import settings;"
        "n = parse_number('+12125550100', settings());"
        "check_hours(n, {}, settings(), datetime(2026, 6, 17, 17, tzinfo=UTC)); print('holidays' in sys.modules);"
        "check_hours(n, {}, settings(CALL_HOURS='Mo-Fr 09:00-20:00; PH off'), datetime(2026, 6, 17, 17, tzinfo=UTC));"
        "print('holidays' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.split() == ["False", "True"]
