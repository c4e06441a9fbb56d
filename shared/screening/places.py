"""Places: the states of a number, and the public holidays there.

The state of a US or Canadian number is known by its area code: Florida presumes the same by law (F.S. 501.059).
"""

from datetime import UTC, date, datetime, time
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final

from phonenumbers import PhoneNumberType

from shared.screening.area_codes import AREA_CODES
from shared.screening.zones import clock, country_of_zone, possible_zones, zones_of_country

if TYPE_CHECKING:
    from holidays import HolidayBase

# ISO 3166-2 -> area codes, as the geocoder of phonenumbers 9.0.43 has them, read 28 Nov 2026. A test compares the two.
_STATES: Final = {
    "US-AK": "907", "US-AL": "205 251 256 334 659 938", "US-AR": "327 479 501 870", "US-AZ": "480 520 602 623 928",
    "US-CA": "209 213 279 310 323 341 350 369 408 415 424 442 510 530 559 562 619 626 628 650 657 661 669 "
    "707 714 738 747 760 805 818 820 831 840 858 909 916 925 949 951",
    "US-CO": "303 719 720 748 970 983", "US-CT": "203 475 860 959", "US-DC": "202 771", "US-DE": "302",
    "US-FL": "239 305 321 324 352 386 407 448 561 645 656 689 727 728 754 772 786 813 850 863 904 941 954",
    "US-GA": "229 404 470 478 678 706 762 770 912 943", "US-HI": "808", "US-IA": "319 515 563 641 712",
    "US-ID": "208 986", "US-IL": "217 224 309 312 331 447 464 618 630 708 730 773 779 815 847 872",
    "US-IN": "219 260 317 463 574 765 812 930", "US-KS": "316 620 785 913", "US-KY": "270 364 502 606 859",
    "US-LA": "225 318 337 504 985", "US-MA": "339 351 413 508 617 774 781 857 978", "US-MD": "227 240 301 410 443 667",
    "US-ME": "207", "US-MI": "231 248 269 313 517 586 616 734 810 906 947 989", "US-MN": "218 320 507 612 651 763 952",
    "US-MO": "235 314 417 557 573 636 660 816 975", "US-MS": "228 601 662 769", "US-MT": "406",
    "US-NC": "252 336 472 704 743 828 910 919 980 984", "US-ND": "701", "US-NE": "308 402 531", "US-NH": "603",
    "US-NJ": "201 551 609 640 732 848 856 862 908 973", "US-NM": "505 575", "US-NV": "702 725 775",
    "US-NY": "212 315 329 332 347 363 516 518 585 607 631 646 680 716 718 838 845 914 917 929 934",
    "US-OH": "216 220 234 283 326 330 380 419 440 513 567 614 740 937", "US-OK": "405 539 572 580 918",
    "US-OR": "458 503 541 971", "US-PA": "215 223 267 272 412 445 484 570 582 610 717 724 814 835 878", "US-RI": "401",
    "US-SC": "803 821 839 843 854 864", "US-SD": "605", "US-TN": "423 615 629 731 865 901 931",
    "US-TX": "210 214 254 281 325 346 361 409 430 432 469 512 682 713 726 737 806 817 830 832 903 915 936 "
    "940 945 956 972 979",
    "US-UT": "385 435 801", "US-VA": "276 434 540 571 686 703 757 804 826 948", "US-VT": "802",
    "US-WA": "206 253 360 425 509 564", "US-WI": "262 274 353 414 534 608 715 920", "US-WV": "304 681", "US-WY": "307",
    "CA-AB": "368 403 587 780 825", "CA-BC": "236 250 257 604 672 778", "CA-MB": "204 431 584", "CA-NB": "428 506",
    "CA-NL": "709 879", "CA-NS": "782 902", "CA-NT": "867", "CA-NU": "867",
    "CA-ON": "226 249 289 343 365 382 416 437 519 548 613 647 683 705 742 753 807 905 942", "CA-PE": "782 902",
    "CA-QC": "263 273 354 367 418 438 450 468 514 579 581 819 873", "CA-SK": "306 474 639", "CA-YT": "867",
}  # fmt: skip

# States with a second clock that the library's zones of area codes do not show.
_CENTRAL: Final = ("America/Chicago",)
_MOUNTAIN: Final = ("America/Denver",)
_SECOND_CLOCK: Final = {
    **dict.fromkeys(("US-FL", "US-IN", "US-KY", "US-MI", "US-TN"), _CENTRAL),
    **dict.fromkeys(("US-AZ", "US-ID", "US-KS", "US-ND", "US-NE", "US-NV", "US-OR", "US-SD", "US-TX"), _MOUNTAIN),
}


@cache
def _states_by_area() -> dict[str, tuple[str, ...]]:
    states: dict[str, tuple[str, ...]] = {area: (f"US-{known.state}",) for area, known in AREA_CODES.items()}
    for state, areas in _STATES.items():
        for area in areas.split():
            states[area] = (*states.get(area, ()), state)
    return states


def states_of_area(area_code: str) -> tuple[str, ...]:
    """The states or provinces of an area code, as ISO 3166-2 codes; empty when it has none (toll-free and the like)."""
    return _states_by_area().get(area_code, ())


@cache
def _zones_of_state(state: str) -> frozenset[str]:
    zones = set(_SECOND_CLOCK.get(state, ()))
    for area, states in _states_by_area().items():
        if state in states:
            known = AREA_CODES.get(area)
            kind = PhoneNumberType.FIXED_LINE_OR_MOBILE
            zones.update(known.zones if known else possible_zones(f"+1{area}2345678", state[:2], kind))
    return frozenset(zones)


def zones_of_place(place: str) -> tuple[str, ...]:
    """The zones of a country or state, by its ISO 3166 code; of a part outside the US and Canada, those of its country."""
    return tuple(sorted(_zones_of_state(place))) or zones_of_country(place[:2])


@lru_cache(1_000)
def states_with_clock(zone: str, day: date) -> tuple[str, ...]:
    """The states of the zone's country where clocks show the zone's time on that day; empty outside the US and Canada."""
    noon = datetime.combine(day, time(12), UTC)
    offset = noon.astimezone(clock(zone)).utcoffset()
    states = {state for states in _states_by_area().values() for state in states if state[:2] == country_of_zone(zone)}
    return tuple(
        state
        for state in sorted(states)
        if any(noon.astimezone(clock(name)).utcoffset() == offset for name in _zones_of_state(state))
    )


@lru_cache(10_000)
def is_holiday(place: str, day: date) -> bool:
    """Whether the day is a public holiday in a country or state. A place that the library does not know has none."""
    calendar = _calendar(place)
    return calendar is not None and day in calendar


@cache
def _calendar(place: str) -> "HolidayBase | None":
    # Loaded when the first rule asks: the import takes 40 ms, and a year of one state as much.
    import holidays

    country, _, part = place.partition("-")
    try:
        return holidays.country_holidays(country, subdiv=part or None, language="en_US")
    except NotImplementedError:
        return None if not part else _calendar(country)
