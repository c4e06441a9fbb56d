"""The hours once more, where a call is placed: the last one before they end, and those that wait in Twilio's queue."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from unittest.mock import create_autospec

import pytest

from shared import dispatcher
from shared.deadline import ClaimClock
from shared.dispatcher import Dispatcher
from shared.jobs import Jobs
from shared.models import (
    Attempt,
    Claimed,
    ClaimedJob,
    LiveCall,
    LiveJob,
    OpenCall,
    Placed,
    Redial,
    TwilioCall,
    finished,
)
from shared.screening import Refusal
from shared.telephony import Telephony
from tests.unit.examples import settings

SAN_FRANCISCO = "+14155550100"
SID = "CA" + "0" * 32
CLOSES = datetime(2026, 6, 18, 3, tzinfo=UTC)  # 20:00 there
OPENS = datetime(2026, 6, 18, 16, tzinfo=UTC)  # 09:00 there
SECOND = timedelta(seconds=1)


class World:
    """The dispatcher between a job table and a Twilio that do as they are told here; `now` is everybody's time."""

    def __init__(self, now: datetime, **changed: str) -> None:
        self.now = now
        self.jobs = create_autospec(Jobs, instance=True)
        self.telephony = create_autospec(Telephony, instance=True)
        self.dispatcher = Dispatcher(settings(**changed), cast(Any, self.jobs), cast(Any, self.telephony))
        self.jobs.accept.return_value = LiveCall(then="keep", state="accepted", call_status="queued", job=None)
        self.jobs.record_status.return_value = LiveCall(
            then="keep", state="accepted", call_status="queued",
            job=LiveJob(id=7, status="calling", first_name=None, signup_mode="default", metadata={}),
        )  # fmt: skip

    def dial(
        self,
        queue_s: float = 0.0,
        answers_after_s: float = 0.0,
        number: str = SAN_FRANCISCO,
        redial: Redial | None = None,
    ) -> str:
        job = ClaimedJob(
            id=7, phone_number=number, phone_e164=number,
            first_name=None, signup_mode="default", metadata={},
        )  # fmt: skip

        def claim(attempt: uuid.UUID, *_: object, **__: object) -> Claimed:
            claimed = Attempt(id=attempt, number=1)
            return Claimed(outcome="claimed", job=job, attempt=claimed, now=self.now, redial=redial)

        def place(*_: object) -> Placed:
            self.now += timedelta(seconds=answers_after_s)
            return Placed(SID, queue_s)

        self.jobs.claim.side_effect = claim
        self.telephony.place.side_effect = place
        return self.dispatcher.dial_one().outcome

    def look_after(self, status: str, put_off: bool = False) -> None:
        self.jobs.claim_open.return_value = OpenCall(
            outcome="ask", state="accepted", attempt=uuid.uuid4(), job_id=7, call_sid=SID, phone_e164=SAN_FRANCISCO,
            started_at=self.now, asked_at=self.now, end=False, put_off=put_off, lease_ran_out=False,
        )  # fmt: skip
        self.telephony.fetch.return_value = TwilioCall(SID, cast(Any, status), self.now, None, None)
        finished(self.dispatcher.claim_to_follow_up())

    @property
    def put_off_until(self) -> datetime | None:
        return self.jobs.put_off.call_args.kwargs["not_before"] if self.jobs.put_off.called else None

    @property
    def canceled(self) -> bool:
        return bool(self.telephony.cancel.called)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], World]:
    def at(now: datetime) -> World:
        world = World(now)
        monkeypatch.setattr(ClaimClock, "now", lambda: ClaimClock(world.now.timestamp(), world.now.timestamp()))
        return world

    return at


def test_no_call_is_begun_in_the_last_half_minute(at: Callable[[datetime], World]) -> None:
    world = at(CLOSES - 30 * SECOND)
    assert world.dial() == "put_off"
    assert not world.telephony.place.called
    assert world.jobs.release.call_args.kwargs["not_before"] == OPENS
    assert world.jobs.release.call_args.kwargs["slot_s"] == 1.0
    assert at(CLOSES - 31 * SECOND).dial() == "called"


def test_refusal_before_twilio_gives_the_slot_back(at: Callable[[datetime], World]) -> None:
    world = at(CLOSES - 3600 * SECOND)
    assert world.dial(number="+19005550100") == "refused"
    assert not world.telephony.place.called
    refused = world.jobs.refuse.call_args.kwargs
    assert (refused["code"], refused["slot_s"]) == ("premium_rate", 1.0)


def test_redial_is_put_off_to_another_time_of_day(at: Callable[[datetime], World]) -> None:
    now = OPENS + 600 * SECOND
    redial = Redial(missed_at=OPENS, due_at=now)
    world = World(at(now).now, CALL_REDIAL_SPREAD="on")
    assert world.dial(redial=redial) == "put_off"
    released = world.jobs.release.call_args.kwargs
    assert (released["code"], released["not_before"]) == ("another_time_of_day", OPENS + 3 * 3600 * SECOND)
    assert at(now).dial(redial=redial) == "called"


def test_calls_that_leave_twilios_queue_too_late_are_canceled(at: Callable[[datetime], World]) -> None:
    """Seconds to the end of the hours, in the queue, until Twilio's answer; does the database agree -> put off, canceled."""
    table: dict[tuple[int, int, int, bool], tuple[datetime | None, bool]] = {
        (31, 0, 0, True): (None, False), (60, 59, 0, True): (None, False), (60, 61, 0, True): (OPENS, True),
        (60, 50, 15, True): (OPENS, True), (60, 61, 0, False): (OPENS, False),
    }  # fmt: skip
    seen = {}
    for left_s, queue_s, answer_s, agrees in table:
        world = at(CLOSES - left_s * SECOND)
        world.jobs.put_off.return_value = agrees
        assert world.dial(queue_s=queue_s, answers_after_s=answer_s) == "called"
        seen[left_s, queue_s, answer_s, agrees] = (world.put_off_until, world.canceled)
    assert seen == table


def test_call_without_a_right_moment_after_it_is_canceled(
    at: Callable[[datetime], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = at(CLOSES - 60 * SECOND)
    never = Refusal("no_calling_hours", "no moment is right")
    monkeypatch.setattr(dispatcher, "check_hours", lambda *given: never if given[-1] > CLOSES else None)
    assert world.dial(queue_s=61) == "called"
    assert (world.put_off_until, world.canceled) == (CLOSES + SECOND, True)  # then it is screened again, and refused


def test_sweep_cancels_calls_that_may_leave_too_late(at: Callable[[datetime], World]) -> None:
    world = at(CLOSES - 100 * SECOND)
    world.look_after("queued")
    assert (world.put_off_until, world.canceled) == (OPENS, True)
    early = at(CLOSES - 130 * SECOND)
    early.look_after("queued")
    assert not early.canceled


def test_put_off_call_is_canceled_while_it_is_queued(at: Callable[[datetime], World]) -> None:
    canceled = {}
    for status in ("queued", "ringing", "in-progress"):
        world = at(CLOSES - 3600 * SECOND)  # by a pause, at a good hour
        world.look_after(status, put_off=True)
        canceled[status] = world.canceled
    assert canceled == {"queued": True, "ringing": False, "in-progress": False}
