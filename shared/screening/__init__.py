"""May this number be called, and when? Pure: a function of the number, the metadata, the settings and the moment."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from shared.models import Redial
from shared.screening.area_codes import AREA_CODES_READ_ON
from shared.screening.hours import LAST_CALL, PutOff, check_hours, next_moment, persons_clock
from shared.screening.number_rules import called_countries, check_number
from shared.screening.numbers import PhoneNumber, Refusal, parse_number
from shared.screening.spread import spread
from shared.settings import Settings

__all__ = ["AREA_CODES_READ_ON", "LAST_CALL", "PhoneNumber", "PutOff", "Refusal", "called_countries", "check_hours"]
__all__ += ["check_number", "next_moment", "parse_number", "persons_clock", "screen"]


def screen(
    number: PhoneNumber | Refusal,
    metadata: Mapping[str, Any],
    settings: Settings,
    now: datetime,
    ring: timedelta = LAST_CALL,
    redial: Redial | None = None,
) -> Refusal | PutOff | None:
    """Every rule, checked just before each dial; None: call. `number`: the answer of parse_number.

    The phone may ring from `now` (aware) until `ring` later. `redial`: nobody picked up before.
    """
    if isinstance(number, Refusal):
        return number
    held = check_number(number, settings) or check_hours(number, metadata, settings, now, ring)
    if isinstance(held, Refusal) or redial is None or settings.call_redial_spread == "off":
        return held
    return spread(number, metadata, settings, now, ring, redial, held)
