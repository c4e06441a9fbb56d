"""A later call: the moments that a script may name, their words, the first right moment, and the end of the offers."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from shared.conversation.checks import check
from shared.conversation.later import LANGUAGES, is_wish, time_in_words, wished_moment
from shared.conversation.library import FOLDER, Scripts
from shared.conversation.script import Script
from shared.conversation.turns import Place, Turn, agreed_turn, first_turn, next_turn, turn_without
from shared.models import LiveCall, LiveJob, Person
from tests.unit.test_dialing_hours import OPENS, World, at

__all__ = ["at"]

BERLIN = ZoneInfo("Europe/Berlin")
CALLBACK = Scripts().for_mode("callback")
THURSDAY = datetime(2026, 6, 18, 14, 3, 20, tzinfo=BERLIN)


def test_wish_names_a_moment_by_the_persons_clock() -> None:
    friday = THURSDAY + timedelta(days=1)
    spring, autumn = datetime(2026, 3, 29, 0, 30, tzinfo=BERLIN), datetime(2026, 10, 25, 0, 30, tzinfo=BERLIN)
    moments = {
        ("2h", THURSDAY): "2026-06-18T16:05:00+02:00",
        ("48h", THURSDAY): "2026-06-20T14:05:00+02:00",
        ("2h", THURSDAY.replace(minute=5, second=0)): "2026-06-18T16:05:00+02:00",
        ("2h", spring): "2026-03-29T03:30:00+02:00",
        ("3h", autumn): "2026-10-25T02:30:00+01:00",
        ("tomorrow 10:00", THURSDAY): "2026-06-19T10:00:00+02:00",
        ("tomorrow 10:00", datetime(2026, 12, 31, 23, 59, tzinfo=BERLIN)): "2027-01-01T10:00:00+01:00",
        ("tomorrow 10:00", spring - timedelta(days=1)): "2026-03-29T10:00:00+02:00",
        ("next weekday 09:00", THURSDAY): "2026-06-19T09:00:00+02:00",
        ("next weekday 09:00", friday): "2026-06-22T09:00:00+02:00",
        ("next weekday 09:00", friday + timedelta(days=2)): "2026-06-22T09:00:00+02:00",
    }
    assert {case: wished_moment(*case).isoformat() for case in moments} == moments
    wrong = [
        "0h", "49h", "2 h", "2hours", "-1h", "tomorrow", "tomorrow 24:00", "tomorrow 9:00", "weekday 09:00", "²h", "",
    ]  # fmt: skip
    assert [text for text in wrong if is_wish(text)] == []


def test_time_is_said_in_each_language() -> None:
    soon, tomorrow = THURSDAY.replace(hour=16, minute=5), datetime(2026, 6, 19, 10, tzinfo=BERLIN)
    said = {language: time_in_words(f"{language}-XX", tomorrow, THURSDAY.astimezone(UTC)) for language in LANGUAGES}
    assert said == {
        "en": "tomorrow at 10:00 AM", "es": "mañana a las 10:00", "de": "morgen um 10:00 Uhr", "fr": "demain à 10:00",
        "it": "domani alle 10:00", "pt": "amanhã às 10:00", "nl": "morgen om 10:00",
    }  # fmt: skip
    next_week, monday = tomorrow + timedelta(days=6), datetime(2026, 6, 22, 9, tzinfo=BERLIN)
    assert [time_in_words(*asked, THURSDAY) for asked in (("en-US", soon), ("de-DE", monday), ("en-GB", next_week))] == [
        "today at 4:05 PM", "am Montag um 9:00 Uhr", "on Thursday, 2026-06-25, at 10:00 AM",
    ]  # fmt: skip
    assert time_in_words("en-US", tomorrow, THURSDAY, "Perth") == "tomorrow at 10:00 AM, Perth time"


def live(now: str, zone: str = "", number: str = "+14155550100", laters: int = 0) -> LiveCall:
    metadata = {"app_timezone": zone} if zone else {}
    person = Person(first_name=None, signup_mode="x", metadata=metadata)
    job = LiveJob(id=7, status="calling", phone_e164=number, laters=laters, **vars(person))
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    return LiveCall(then="keep", state="accepted", call_status="in-progress", job=job, now=moment)


def test_later_call_waits_for_the_first_right_moment(at: Callable[[datetime], World]) -> None:
    dispatcher = at(OPENS).dispatcher

    def agreed(call: LiveCall, wish: str) -> tuple[str, str | None] | None:
        if (found := dispatcher.find_later(call, wish)) is None:
            return None
        words = dispatcher.later_in_words(call.model_copy(update={"later_at": found}), "en-US")
        return f"{found.astimezone(UTC):%d %H:%M}", words

    cases = [
        (live("2026-06-17 18:00"), "2h", ("17 20:00", "today at 1:00 PM")),
        (live("2026-06-18 02:00"), "2h", ("18 16:00", "tomorrow at 9:00 AM")),  # 21:00 there is too late
        (live("2026-06-18 02:00"), "tomorrow 08:30", ("18 16:00", "tomorrow at 9:00 AM")),  # a guessed zone: from 09:00
        (live("2026-06-18 02:00", "America/Los_Angeles"), "tomorrow 08:30", ("18 15:30", "tomorrow at 8:30 AM")),
        (live("2026-06-18 02:00", "Europe/Berlin"), "tomorrow 10:00", ("19 08:00", "tomorrow at 10:00 AM")),
        (live("2026-06-18 02:00", laters=1), "2h", ("18 16:00", "tomorrow at 9:00 AM")),
        (live("2026-06-18 02:00", laters=2), "2h", None),
        (live("2026-06-18 02:00", number="+61412345678"), "tomorrow 10:00", ("19 02:30", "tomorrow at 10:30 AM, Perth time")),
    ]  # fmt: skip
    assert [agreed(call, wish) for call, wish, _ in cases] == [expected for _, _, expected in cases]


def test_picked_time_outside_the_hours_is_put_off(at: Callable[[datetime], World]) -> None:
    world = at(OPENS - timedelta(hours=6))  # the job is due: p_not_before was 03:00 there
    assert world.dial() == "put_off"
    assert not world.telephony.place.called
    assert world.jobs.release.call_args.kwargs["not_before"] == OPENS


def test_answer_with_later_confirms_and_ends() -> None:
    turn = next_turn(CALLBACK, Place("callback", "good_time"), "2")
    assert (turn.later, turn.place, turn.learned and turn.learned.meaning) == ("2h", None, "in_two_hours")
    said = "Of course. We will call you again today at 4:00 PM. Goodbye."
    assert agreed_turn(turn, "today at 4:00 PM").says == (said,)


def changed(old: str, new: str) -> Script | list[str]:
    text = (FOLDER / "callback.toml").read_text()
    assert old in text
    return check(tomllib.loads(text.replace(old, new, 1)), "callback")


def test_question_without_a_possible_later_call_is_skipped() -> None:
    def without(script: Script, turn: Turn) -> Turn:
        return turn_without(script, turn, {}, may_ask_for_later=False)

    topic, asked, place = CALLBACK.questions[1].say, Place("callback", "good_time"), Place("callback", "topic")
    first, again, answered = first_turn(CALLBACK), next_turn(CALLBACK, asked, ""), next_turn(CALLBACK, asked, "1")
    opening = (CALLBACK.greeting, CALLBACK.opt_out.say)
    assert without(CALLBACK, first) == Turn(asks=(*opening, topic), place=place)
    assert without(CALLBACK, again) == replace(again, asks=(topic,), place=place)
    assert without(CALLBACK, answered) == answered
    only = changed('id = "topic"', 'id = "topic"\nnext = "good_time"')  # it leads back: nothing is asked for ever
    assert isinstance(only, Script)
    every = only.model_copy(update={"questions": [only.questions[0].model_copy(update={"next": "good_time"})]})
    assert without(every, first_turn(every)) == Turn(says=(*opening, only.goodbye))


def test_checker_names_each_mistake_with_later() -> None:
    later = 'later = "2h"'
    wish = 'must be "2h" (1 to 48 hours), "tomorrow 10:00" or "next weekday 09:00"'
    say = "must be words with {later}, the time of the later call; a recording cannot say it"
    first, place = "Of course. We will call you again {later}. Goodbye.", "questions.good_time.answers.2"
    time = "is the time of a later call: choose another name"
    undeclared = "{later} is not declared under [placeholders]; declared: {first_name}"
    expected: dict[tuple[str, str], Any] = {
        (later, 'later = "soon"'): [f"{place}.later: {wish}"],
        (later, "later = 2"): [f"{place}.later: must be text, in quotes"],
        (first, "Of course."): [f"{place}.say: {say}"],
        (f'say = "{first}"\n{later}', later): [f"{place}.say: {say}"],
        (later, f'{later}\nplay = "https://a.example/b.mp3"'): [f"{place}.say: {say}"],
        (later, f'{later}\nnext = "topic"'): [f"{place}.next: has no place beside later: the call ends"],
        (f"{later}\n", ""): [f"{place}.say: {undeclared}"],
        ("you asked us to call you", "we call {later}"): [f"greeting: {undeclared}"],
        ("[placeholders]", '[placeholders]\nlater = "soon"'): [f"placeholders.later: {time}"],
    }
    assert {case: changed(*case) for case in expected} == expected
    polish = tomllib.loads((FOLDER / "callback.toml").read_text()) | {"language": "pl-PL", "voice": "Polly.Ewa"}
    known = "needs a language in which times can be said: en, es, de, fr, it, pt, nl"
    assert check(polish, "callback") == [f"questions.good_time.answers.{key}.later: {known}" for key in "23"]
