"""May this number be called? Pure: a function of what was typed, the settings and the clock."""

import re
from dataclasses import dataclass
from typing import Final

import phonenumbers

from shared.settings import Settings

# As the job table has it. Some countries allow more digits than E.164 does.
_E164: Final = re.compile(r"\+[1-9][0-9]{6,14}")


@dataclass(frozen=True)
class Refusal:
    """Never call it. `code` is stable; `reason` is for people."""

    code: str
    reason: str


def read_number(typed: str, settings: Settings) -> str | Refusal:
    """What was typed, as E.164. A number without a country code is read as one of the country of our own number."""
    own = phonenumbers.parse(settings.twilio_phone_number)
    try:
        number = phonenumbers.parse(typed, phonenumbers.region_code_for_number(own))
    except phonenumbers.NumberParseException:
        return Refusal("number_invalid", "what was typed as a phone number is not one")
    if number.extension:
        return Refusal("number_invalid", "the phone number has an extension, which cannot be dialed")
    e164 = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    if not phonenumbers.is_possible_number(number) or not _E164.fullmatch(e164):
        return Refusal("number_invalid", "the phone number has too few or too many digits for its country")
    return e164


def screen(e164: str, settings: Settings) -> Refusal | None:
    """Checked at each dial, just before it."""
    if settings.call_only_to is not None and e164 not in settings.call_only_to:
        return Refusal(
            "not_in_call_only_to", "CALL_ONLY_TO names the only numbers that are called here, and not this one"
        )
    if e164 == settings.twilio_phone_number:
        return Refusal("own_number", "this is our own number")
    return None
