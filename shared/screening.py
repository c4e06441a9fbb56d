"""May this number be called? Pure: a function of what was typed, the settings and the clock."""

from dataclasses import dataclass

import phonenumbers

from shared.settings import Settings


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
    if not phonenumbers.is_possible_number(number):
        return Refusal("number_invalid", "the phone number has too few or too many digits for its country")
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def screen(e164: str, settings: Settings) -> Refusal | None:
    """Checked at each dial, just before it."""
    if settings.call_only_to is not None and e164 not in settings.call_only_to:
        return Refusal(
            "not_in_call_only_to", "CALL_ONLY_TO names the only numbers that are called here, and not this one"
        )
    if e164 == settings.twilio_phone_number:
        return Refusal("own_number", "this is our own number")
    return None
