"""The colleague whom an answer's `dial` names: may this phone ring now, and how long may the two talk?"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from shared.conversation.script import Answer
from shared.opening_hours import parse_schedule
from shared.settings import Settings

LEAST_TALK_SECONDS: Final = 30
"""A colleague is not rung when CALL_TIME_LIMIT_SECONDS leaves less time than this after the ringing."""
GOODBYE_SECONDS: Final = 15
"""The colleague's leg ends this long before the call, so the person hears the last words."""


@dataclass(frozen=True)
class Transfer:
    """A second leg, in seconds: `ring_s` before anybody picks up, `limit_s` for all of it. `caller_id` is our number."""

    number: str
    caller_id: str
    ring_s: int
    limit_s: int


def dial_problem(answer: Answer, settings: Settings | None) -> str | None:
    """The fault of an answer's `dial`, in words; None: it can be used. Without settings every country is allowed."""
    assert answer.dial is not None
    if settings is None:
        import phonenumbers

        settings = Settings.model_construct(
            twilio_phone_number="+15005550006",
            twilio_api_base_url=None,
            call_countries=tuple(phonenumbers.SUPPORTED_REGIONS),
            call_time_limit_seconds=Settings.model_fields["call_time_limit_seconds"].default,
        )
    if settings.call_time_limit_seconds < answer.ring_s + LEAST_TALK_SECONDS + GOODBYE_SECONDS:
        return "cannot be used: CALL_TIME_LIMIT_SECONDS leaves no time to ring and to talk"
    # A staging service has the scripts of production and must start. It rings only the numbers of CALL_ONLY_TO.
    return _refusal(answer.dial, settings.model_copy(update={"call_only_to": None}))


def plan_transfer(answer: Answer, settings: Settings, now: datetime, left_s: float) -> Transfer | None:
    """The second leg; None: the colleague is not rung. `left_s`: the seconds left of CALL_TIME_LIMIT_SECONDS."""
    limit_s = int(left_s) - GOODBYE_SECONDS
    if answer.dial is None or limit_s < answer.ring_s + LEAST_TALK_SECONDS or not _is_at_work(answer, now):
        return None
    if _refusal(answer.dial, settings):
        return None
    return Transfer(answer.dial, settings.twilio_phone_number, answer.ring_s, limit_s)


def _is_at_work(answer: Answer, now: datetime) -> bool:
    """By the clock of `zone`. PH are the public holidays of the zone's country."""
    if answer.hours is None or answer.zone is None:
        return True
    from shared.screening.hours import Hours
    from shared.screening.zones import country_of_zone

    hours = Hours(parse_schedule(answer.hours), tuple(filter(None, [country_of_zone(answer.zone)])))
    return hours.is_open(now.astimezone(ZoneInfo(answer.zone)))


def _refusal(number: str, settings: Settings) -> str | None:
    from shared.screening import Refusal, check_number, parse_number  # not at the start: the number library takes 14 ms

    parsed = parse_number(number, settings)
    refusal = parsed if isinstance(parsed, Refusal) else check_number(parsed, settings)
    return refusal.reason if refusal else None
