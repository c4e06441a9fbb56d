"""Which numbers may be called: ordinary phones in served countries.

Fraudsters type numbers that earn money for each call into sign-up forms. So each kind of number that may be called is listed.
"""

import re
from collections.abc import Mapping
from typing import Final

from phonenumbers import PhoneNumberType as Kind

from shared.screening.numbers import NO_COUNTRY, PLUS_ONE, PhoneNumber, Refusal, home_region
from shared.settings import Settings

# https://www.twilio.com/docs/iam/test-credentials
_TWILIO_TEST_NUMBER: Final = re.compile(r"\+1500555[0-9]{4}")
_SATELLITE: Final = ("+870", "+881", "+882", "+883")  # and other networks without a country
_US_TERRITORIES: Final = frozenset({"AS", "GU", "MP", "PR", "VI"})

# A type that the library learns tomorrow is refused until it is listed here.
_CALLABLE: Final = {Kind.FIXED_LINE, Kind.MOBILE, Kind.FIXED_LINE_OR_MOBILE, Kind.VOIP}
_PREMIUM: Final = Refusal("premium_rate", "a premium rate number: its owner earns money from each call")
_NOT_CALLABLE: Final[Mapping[int, Refusal]] = {
    Kind.PREMIUM_RATE: _PREMIUM,
    Kind.TOLL_FREE: Refusal("toll_free", "a toll-free number: it belongs to a company, not to a person"),
    Kind.SHARED_COST: Refusal("shared_cost", "a shared cost number: it belongs to a company, not to a person"),
    Kind.UAN: Refusal("uan", "a company's number for all its places, not a person's phone"),
    Kind.PAGER: Refusal("pager", "a pager: nobody can talk there"),
    Kind.VOICEMAIL: Refusal("voicemail", "a voice mailbox: nobody picks up there"),
    Kind.PERSONAL_NUMBER: Refusal("personal_number", "a number that follows its owner, at an unknown price"),
}
_OTHER_TYPE: Final = Refusal("number_type_unknown", "a kind of number that is not known to be a phone")
_SERVICE: Final = Refusal("service_number", "a number of the telephone network itself, not a person's phone")


def check_number(number: PhoneNumber, settings: Settings) -> Refusal | None:
    """Every rule about the number itself; None: it may be called."""
    if settings.call_only_to is not None and number.e164 not in settings.call_only_to:
        return Refusal("not_in_call_only_to", "only the numbers of CALL_ONLY_TO are called here")
    if number.e164 == settings.twilio_phone_number:
        return Refusal("own_number", "this is our own number")
    if settings.twilio_api_base_url is not None and _TWILIO_TEST_NUMBER.fullmatch(number.e164):
        return None  # the stand-in takes them; Twilio itself treats them as personal numbers
    if number.e164.startswith(_SATELLITE):
        return Refusal("satellite", "a satellite phone, or another network without a country: such calls cost too much")
    if number.kind not in _CALLABLE:
        return _NOT_CALLABLE.get(number.kind, _OTHER_TYPE)
    return _check_exchange(number) or _check_country(number, settings)


def _check_exchange(number: PhoneNumber) -> Refusal | None:
    """North American exchanges without subscribers, which the library takes for phones. Source: NANPA."""
    parts = PLUS_ONE.fullmatch(number.e164)
    if parts is None:
        return None
    exchange = parts["exchange"]
    if exchange == "976":
        return _PREMIUM
    if exchange in ("950", "958", "959") or exchange[1:] == "11" or exchange + parts["line"] == "5551212":
        return _SERVICE
    return None


def _check_country(number: PhoneNumber, settings: Settings) -> Refusal | None:
    # By region: 25 of them share +1, and some are expensive to call.
    called = called_countries(settings)
    if number.region in called:
        return None
    has_country = number.region != NO_COUNTRY
    country = f"the country of this number ({number.region})" if has_country else "numbers of no country"
    reason = f"calls do not go to {country}: CALL_COUNTRIES does not name it"
    if number.region in _US_TERRITORIES and "US" in called:
        reason += "; Puerto Rico, Guam and the other territories are not part of US there"
    return Refusal("country_not_allowed", reason)


def called_countries(settings: Settings) -> tuple[str, ...]:
    """The regions whose numbers may be called, as ISO 3166 codes: CALL_COUNTRIES, or the region of our own number."""
    return settings.call_countries or (home_region(settings.twilio_phone_number),)
