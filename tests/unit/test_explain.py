"""function.explain and the dispatcher give one answer about every number; its arguments; all who wait, in a few lines."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import phonenumbers
import pytest

from function.explain import Verdict, explain_number, explain_waiting, judge_waiting, main
from shared.dispatcher import Dispatcher
from shared.jobs import Jobs
from shared.models import Attempt, Claimed, ClaimedJob, LiveCall, Placed, Redial, Unparsed
from shared.settings import Settings
from shared.stats import Waiting, WaitingJob
from shared.telephony import Telephony
from tests.unit.examples import settings

NOW = datetime(2026, 12, 24, 18, 30, tzinfo=UTC)
HOURS = ("08:00-21:00", "always", "strict", "Mo-Fr 09:00-20:00; Su,PH off", "23:00-23:10", "10:00-11:00,15:00-15:30")
ZONES = (
    "Europe/Berlin", "America/New_York", "America/Phoenix", "Asia/Kathmandu", "UTC", "EST", "Nowhere/Land", "", 5, None,
)  # fmt: skip
TYPED = (
    "911", "+1 415 555", "call me", "(415) 555-0100", "0151 23456789", "+1 415-555-0100 ext 5", "+18005550100", "", "+44",
)  # fmt: skip


def a_job(number: int, typed: str = "+14155550100", **more: Any) -> WaitingJob:
    rest = {"metadata": {}, "due_at": NOW, "reason_code": None, "redial": None, "held": None, "until": None}
    return WaitingJob.model_validate({"id": number, "phone_number": typed, **rest, **more})


class World:
    """A job table with one due job, and a Twilio that takes every call. `saw`: what the dispatcher did."""

    def __init__(self, typed: str, metadata: dict[str, Any], now: datetime, redial: Redial | None) -> None:
        self._typed, self._metadata, self._now, self._redial = typed, metadata, now, redial
        self._e164: str | None = None
        self.saw: Verdict | None = None

    def claim(self, attempt: UUID, *_: Any, **__: Any) -> Claimed | Unparsed:
        if self._e164 is None:
            return Unparsed(outcome="unparsed", job_id=1, phone_number=self._typed)
        person: dict[str, Any] = {"first_name": None, "signup_mode": "default", "metadata": self._metadata}
        job = ClaimedJob(id=1, phone_number=self._typed, phone_e164=self._e164, **person)
        first = Attempt(id=attempt, number=1)
        return Claimed(outcome="claimed", job=job, attempt=first, now=self._now, redial=self._redial)

    def set_number(self, _: int, __: str, e164: str | None, *, code: str = "", reason: str = "") -> bool:
        self._e164 = e164
        if e164 is None:
            self.saw = "never", code, None
        return True

    def refuse(self, _: UUID, *, code: str, **__: Any) -> bool:
        self.saw = "never", code, None
        return True

    def release(self, _: UUID, *, code: str, not_before: datetime, **__: Any) -> bool:
        self.saw = "later", code, not_before
        return True

    def place(self, *_: Any) -> Placed:
        self.saw = "now", "", None
        return Placed("CA" + "0" * 32, 0.0)

    def accept(self, *_: Any, **__: Any) -> LiveCall:
        return LiveCall(then="keep", state="accepted", call_status="queued", job=None)


def a_case(rng: random.Random) -> tuple[str, str, dict[str, Any], Settings, datetime, Redial | None]:
    ours = rng.choice(["+14155550199", "+4930123456", "+442079460000", "+5215512345678"])
    region = rng.choice(["US", "US", "CA", "DE", "GB", "MX", "PR", *sorted(phonenumbers.SUPPORTED_REGIONS)])
    kind = rng.choice([phonenumbers.PhoneNumberType.MOBILE, *phonenumbers.PhoneNumberType.values()])
    example = phonenumbers.example_number_for_type(region, kind)
    form = rng.choice([phonenumbers.PhoneNumberFormat.E164, phonenumbers.PhoneNumberFormat.NATIONAL])
    typed = phonenumbers.format_number(example, form) if example and rng.random() < 0.9 else rng.choice(TYPED)
    metadata = {key: rng.choice(ZONES) for key in ("timezone", "app_timezone", "language") if rng.random() < 0.4}
    now = NOW + timedelta(seconds=rng.randrange(370 * 86_400))
    if rng.random() < 0.4:  # near the end of the hours
        now = now.replace(minute=59, second=rng.choice([29, 31, 59]))
    missed = now - timedelta(hours=rng.choice([1, 5, 25]))
    due = now - timedelta(minutes=rng.choice([0, 90]))
    redial = Redial(missed_at=missed, due_at=due) if rng.random() < 0.3 else None
    given = settings(
        TWILIO_PHONE_NUMBER=ours, CALL_HOURS=rng.choice(HOURS), CALL_REDIAL_SPREAD=rng.choice(["on", "off"]),
        **rng.choice([{}, {}, {"CALL_ONLY_TO": "+14155550100"}]),
        **rng.choice([{}, {"CALL_COUNTRIES": ",".join({"US", "DE", region if region.isalpha() else "US"})}]),
    )  # fmt: skip
    return typed, rng.choice(["default", "demo", "x"]), metadata, given, now, redial


def test_explain_and_the_dispatcher_agree_in_a_thousand_cases() -> None:
    rng = random.Random(15)
    disagreements, outcomes = [], set()
    for _ in range(1000):
        typed, mode, metadata, given, now, redial = case = a_case(rng)
        world = World(typed, metadata, now, redial)
        Dispatcher(given, cast(Jobs, world), cast(Telephony, world)).dial_one(1)
        assert world.saw is not None
        job = a_job(1, typed, metadata=metadata, due_at=now, redial=redial)
        if (answer := judge_waiting(job, Waiting(now=now, paused=None, jobs=(job,)), given)) != world.saw:
            disagreements.append((case, world.saw, answer))
        if redial is None:
            (line,) = [line for line in explain_number(typed, mode, now, metadata, given) if line.startswith("called ")]
            when, code, _ = world.saw
            told = line.split()[1].strip(":") == when and line.endswith(f"({code})" if code else "now")
            assert told, (case, world.saw, line)
        outcomes.add(world.saw[:2])
    assert disagreements == []
    assert ({when for when, _ in outcomes}, len(outcomes) > 8) == ({"now", "later", "never"}, True)


def test_wrong_arguments_are_named_with_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    number = "+14155550100"
    wrong = {
        (number, "--at", "tomorrow"): "argument --at: 'tomorrow' is not a time",
        (number, "--at", "0001-01-01"): "argument --at: the year must be between 2000 and 2100",
        (number, "--metadata", "{"): "argument --metadata: invalid JSON",
        (number, "--metadata", "[" * 100_000): "argument --metadata: invalid JSON",
        (number, "--metadata", "[1]"): "argument --metadata: must be a JSON object",
        (number, "--mode", " "): "argument --mode: must have 1 to 64 characters",
        (number, "+14155550101"): "unrecognized arguments: +14155550101",
        ("--at", "2026-12-25 12:00"): "argument --at: needs a number",
        ("--mode", "demo"): "argument --mode: needs a number",
        ("--metadata", "{}"): "argument --metadata: needs a number",
    }
    for arguments, message in wrong.items():
        with pytest.raises(SystemExit) as ended:
            main(list(arguments), {})
        assert (ended.value.code, message in capsys.readouterr().err) == (2, True), arguments
    for name, value in {"CALL_HOURS": "late", "TWILIO_PHONE_NUMBER": "5"}.items():
        assert (main([number], {name: value}), f"{name} must be" in capsys.readouterr().err) == (2, True)
    assert (main([], {}), "SUPABASE_URL is missing" in capsys.readouterr().err) == (2, True)


def test_number_is_explained_without_any_setting(capsys: pytest.CaptureFixture[str]) -> None:
    metadata = '{"timezone": "America/Denver", "name": "Ada Lovelace", "signup_mode": "demo", "deep": [1], "no": null}'
    assert main(["(415) 555-0100", "--at", "2026-12-25 22:00", "--metadata", metadata], {}) == 0
    out, err = capsys.readouterr()
    assert "TWILIO_PHONE_NUMBER is not set" in err
    told = [
        "number  +1*******00 (US)", "moment  Friday 25 December 2026 22:00 in America/Denver (2026-12-26 05:00 UTC)",
        "called  later: too early or too late", "from    Saturday 26 December 2026", "by      +15005550006",
        "words   demo.toml (en-US", "Hi Ada, thanks for asking",
    ]  # fmt: skip
    assert [words for words in told if words not in out] == []
    assert "415" not in out
    assert main(["911", "--at", "2026-12-25T12:00Z"], {"TWILIO_PHONE_NUMBER": "+14155550199"}) == 0
    out, err = capsys.readouterr()
    assert "called  never: an emergency number" in out
    assert "words" not in out
    assert err == ""


def test_all_who_wait_are_counted_by_reason() -> None:
    hour = timedelta(hours=1)
    held = [
        a_job(1), a_job(2, due_at=NOW + hour), a_job(3, due_at=NOW + 2 * hour, reason_code="busy"), a_job(4, "911"),
        a_job(5, held="opted_out"), a_job(6, held="calls_per_number_per_day", until=NOW + hour),
        a_job(7, due_at=NOW + 2 * hour, reason_code="busy"), a_job(8, metadata={"app_timezone": "Asia/Tokyo"}),
    ]  # fmt: skip

    class Pages:
        paused: str | None = None

        def waiting(self, after: int, **_: int) -> Waiting:
            return Waiting(now=NOW, paused=self.paused, jobs=tuple(held[after : after + 3]))

    pages = Pages()
    told = list(explain_waiting(cast(Jobs, pages), settings()))
    assert told[:-1] == [
        "8 jobs wait", "now    1", "later  5",
        "       2 busy, the first from 2026-12-24 20:30 UTC, such as job 3",
        "       1 not_due_yet, the first from 2026-12-24 19:30 UTC, such as job 2",
        "       1 calls_per_number_per_day, the first from 2026-12-24 19:30 UTC, such as job 6",
        "       1 outside_calling_hours, the first from 2026-12-24 23:00 UTC, such as job 8",
        "never  2", "       1 emergency_number, such as job 4", "       1 opted_out, such as job 5",
    ]  # fmt: skip
    pages.paused = "ask +14155550123"
    told = list(explain_waiting(cast(Jobs, pages), settings()))
    assert told[:2] == ["8 jobs wait; all calls are paused: ask +1*******23", "now    0"]
    assert "       3 paused, the first from 2026-12-24 23:00 UTC, such as job 1" in told
