"""Time zones: the country of a zone, and every zone in which a phone number may be.

The library `phonenumbers` names one zone for all that had the same clocks when it was made, also across borders (Algeria is
Paris, Kaliningrad is Bucharest). The zones of a country come from zone.tab of the package `tzdata` instead.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Final
from zoneinfo import ZoneInfo

import phonenumbers
from phonenumbers import PhoneNumberType
from phonenumbers.tzdata import TIMEZONE_DATA

_TZDATA: Final = files("tzdata")
ZONE_NAMES: Final = frozenset(_TZDATA.joinpath("zones").read_text("utf-8").split()) - {"Factory"}

# Abbreviations are no places, also where tzdata links them to one: EST is "Panama" there.
_NO_PLACE: Final = frozenset("CET CST6CDT EET EST EST5EDT HST MET MST MST7MDT PST8PDT WET".split())
# Old names that tzdata links to another country, where the clocks agree since 1970.
_RENAMED: Final = {
    "Africa/Asmera": "Africa/Asmara",
    "Africa/Timbuktu": "Africa/Bamako",
    "America/Coral_Harbour": "America/Atikokan",
    "America/Virgin": "America/St_Thomas",
    "Antarctica/South_Pole": "Antarctica/McMurdo",
    "Atlantic/Jan_Mayen": "Arctic/Longyearbyen",
    "Iceland": "Atlantic/Reykjavik",
    "Pacific/Ponape": "Pacific/Pohnpei",
    "Pacific/Truk": "Pacific/Chuuk",
    "Pacific/Yap": "Pacific/Chuuk",
}

_MORE_NAMES: Final = {
    **dict.fromkeys(("uk", "united kingdom", "great britain", "england", "scotland", "wales"), "GB"),
    **dict.fromkeys(("usa", "united states of america"), "US"),
    **dict.fromkeys(("deutschland", "allemagne"), "DE"),
    **dict.fromkeys(("italia", "italie"), "IT"),
    **dict.fromkeys(("españa", "espagne"), "ES"),
    **{"österreich": "AT", "schweiz": "CH", "suisse": "CH", "méxico": "MX", "brasil": "BR", "uae": "AE"},
}
# +1 867 is Yukon, Northwest Territories and Nunavut. Coral Harbour has Atikokan's clocks, Yellowknife has Edmonton's.
_NORTH: Final = tuple(
    f"America/{city}"
    for city in "Whitehorse Dawson Inuvik Edmonton Cambridge_Bay Rankin_Inlet Resolute Iqaluit Atikokan".split()
)
_ALASKA: Final = ("America/Anchorage", "America/Adak")
# The area code of these countries' mobile numbers is the one of a place. Elsewhere a mobile may be anywhere.
_MOBILES_WITH_A_PLACE: Final = frozenset({"1", "52", "54", "55"})
_FIXED: Final = frozenset({PhoneNumberType.FIXED_LINE, PhoneNumberType.FIXED_LINE_OR_MOBILE})
_JANUARY: Final = datetime(2026, 1, 15, tzinfo=UTC)


def _rows(table: str) -> list[list[str]]:
    lines = _TZDATA.joinpath("zoneinfo", table).read_text("utf-8").splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


@cache
def _zone_tab() -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """zone -> country, and country -> its zones."""
    country = {name: code for code, _, name, *_ in _rows("zone.tab")}
    zones: dict[str, tuple[str, ...]] = {}
    for name, code in country.items():
        zones[code] = (*zones.get(code, ()), name)
    return country, zones


@cache
def country_names() -> dict[str, str]:
    """Name, in lower case -> ISO 3166 code: the codes, their English names by iso3166.tab, and other spellings that people use."""
    rows = _rows("iso3166.tab")
    return {name.casefold(): code for code, *names in rows for name in (code, *names)} | _MORE_NAMES


def zones_of_country(country: str) -> tuple[str, ...]:
    return _zone_tab()[1].get(country, ())


@cache
def _links() -> dict[str, str]:
    """Old name -> new name."""
    lines = _TZDATA.joinpath("zoneinfo", "tzdata.zi").read_text("utf-8").splitlines()
    links = [line.split() for line in lines if line.startswith("L ")]
    return {old: new for _, new, old in links} | _RENAMED


@cache
def country_of_zone(name: str) -> str | None:
    """The ISO 3166 code of the country that zone.tab gives a zone; None for UTC, GMT, Etc/* and abbreviations."""
    if name in _NO_PLACE:
        return None
    country, _ = _zone_tab()
    return country.get(name) or country.get(_links().get(name, ""))


@cache  # zoneinfo keeps eight, and +1 has 42
def clock(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def possible_zones(e164: str, region: str | None, kind: int) -> tuple[str, ...]:
    """Every zone in which the phone may be; empty when that is not known.

    `region` is the ISO 3166 code of the number's country, `kind` its phonenumbers.PhoneNumberType.
    """
    own = zones_of_country(region or "")
    if len(own) == 1:
        return own
    code = _country_code(e164[1:])
    has_a_place = kind in _FIXED or (kind == PhoneNumberType.MOBILE and code in _MOBILES_WITH_A_PLACE)
    is_main_region = region == phonenumbers.region_code_for_country_code(int(code))
    prefix, found = _by_prefix(e164[1:] if has_a_place or not is_main_region else code)
    if prefix in ("1907", "1907581"):  # the library takes Unalaska for Honolulu
        return _ALASKA
    if prefix == "1867":
        return _NORTH
    regions = phonenumbers.region_codes_for_country_code(int(code))
    known = {name for name in found if not own or country_of_zone(name) in regions}
    names = known.union(*(_like(other, own) for other in found if other not in known))
    if not has_a_place or prefix == code or region in _one_zone_regions():
        names |= set(own)
    return tuple(sorted(names))


def _country_code(digits: str) -> str:
    return next(
        digits[:length] for length in (1, 2, 3) if int(digits[:length]) in phonenumbers.COUNTRY_CODE_TO_REGION_CODE
    )


def _by_prefix(digits: str) -> tuple[str, tuple[str, ...]]:
    """The longest prefix that the library's table knows, and its zones."""
    for length in range(len(digits), 0, -1):
        if zones := TIMEZONE_DATA.get(digits[:length]):
            return digits[:length], tuple(name for name in zones if name in ZONE_NAMES)
    return "", ()


def _like(other: str, own: Sequence[str]) -> tuple[str, ...]:
    """The country's own zones with the standard time of `other`, a zone of another country; all if none has it."""
    offset = _JANUARY.astimezone(clock(other)).utcoffset()
    same = tuple(name for name in own if _JANUARY.astimezone(clock(name)).utcoffset() == offset)
    return same or tuple(own)


@cache
def _one_zone_regions() -> frozenset[str]:
    """Countries with several zones by zone.tab, where the library's table has one for all numbers."""
    by_code: dict[str, set[str]] = {}
    for prefix, zones in TIMEZONE_DATA.items():
        by_code.setdefault(_country_code(prefix), set()).update(zones)
    return frozenset(
        region
        for region, own in _zone_tab()[1].items()
        if len(own) > 1 and len(by_code.get(str(phonenumbers.country_code_for_region(region)), ())) == 1
    )
