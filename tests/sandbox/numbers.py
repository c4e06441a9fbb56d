"""Numbers that nobody has and that screening lets pass: +1 NPA 555-0100 to 0199, in the area codes of the US."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import phonenumbers


def numbers() -> Iterator[str]:
    """Area codes repeat only when all have been used. The first one takes 50 ms: all codes are looked up."""
    codes = [npa for npa in range(201, 990) if _is_of_the_us(f"+1{npa}5550100")]
    yield from (f"+1{npa}5550{last}" for last, npa in product(range(100, 200), codes))


def _is_of_the_us(number: str) -> bool:
    parsed = phonenumbers.parse(number)
    ordinary = phonenumbers.number_type(parsed) == phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE
    return ordinary and phonenumbers.region_code_for_number(parsed) == "US"
