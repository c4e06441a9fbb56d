"""Numbers that nobody has and that screening lets pass: +1 NPA 555-0100 to 0199, in the area codes of the US."""

import phonenumbers


def _is_of_the_us(number: str) -> bool:
    parsed = phonenumbers.parse(number)
    ordinary = phonenumbers.number_type(parsed) == phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE
    return ordinary and phonenumbers.region_code_for_number(parsed) == "US"


US_AREA_CODES = tuple(npa for npa in range(201, 990) if _is_of_the_us(f"+1{npa}5550100"))
