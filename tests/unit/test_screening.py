"""Which number was meant, and whether it may be called at all. When it may be called: test_hours.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, cast

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phonenumbers import PhoneNumberFormat, PhoneNumberType

from function import doctor
from shared.screening import AREA_CODES_READ_ON, PhoneNumber, PutOff, Refusal, check_number, parse_number, screen
from shared.screening.area_codes import AREA_CODES
from shared.settings import Settings
from tests.unit.examples import settings

NOON_IN_DENVER = datetime(2026, 6, 17, 18, tzinfo=UTC)
US, DE, GB, IT = "US", "DE", "GB", "IT"
SF = "+14155550100"
REGIONS = sorted(phonenumbers.SUPPORTED_REGIONS)
PLUS_ONE = sorted(phonenumbers.region_codes_for_country_code(1))
SANDBOX = {"TWILIO_API_BASE_URL": "http://127.0.0.1:4010", "TWILIO_PHONE_NUMBER": "+15005550006"}
ORDINARY = ("FIXED_LINE", "MOBILE", "FIXED_LINE_OR_MOBILE", "VOIP")
REFUSED_TYPES = {
    "PREMIUM_RATE": "premium_rate", "TOLL_FREE": "toll_free", "SHARED_COST": "shared_cost", "UAN": "uan",
    "PAGER": "pager", "VOICEMAIL": "voicemail", "PERSONAL_NUMBER": "personal_number",
}  # fmt: skip
TOO_SHORT = "+989601"  # an Iranian number that is shorter than the job table takes


def example(region: str, kind: str = "FIXED_LINE") -> str | None:
    number = phonenumbers.example_number_for_type(region, getattr(PhoneNumberType, kind))
    return phonenumbers.format_number(number, PhoneNumberFormat.E164) if number else None


def existing(region: str, kind: str = "FIXED_LINE") -> str:
    number = example(region, kind)
    assert number
    return number


ANY_HOUR = settings(CALL_HOURS="always")
HOMES = {region: ANY_HOUR.model_copy(update={"twilio_phone_number": existing(region)}) for region in REGIONS}
HOMES[DE] = ANY_HOUR.model_copy(update={"twilio_phone_number": "+498912345678"})
EVERYWHERE = {region: home.model_copy(update={"call_countries": tuple(REGIONS)}) for region, home in HOMES.items()}


def code(answer: PhoneNumber | Refusal | PutOff | None) -> str | None:
    """None for a number that may be called. The reason is a sentence without a number in it."""
    if isinstance(answer, PhoneNumber | None):
        return None
    assert re.fullmatch(r"[a-z_]+", answer.code)
    assert re.fullmatch(r".* .*" if isinstance(answer, PutOff) else r"\D* \D*", answer.reason)
    return answer.code


def outcome(typed: str, given: Settings) -> str:
    """The number that is dialed, or the code of the refusal."""
    number = parse_number(typed, given)
    refused = code(screen(number, {}, given, NOON_IN_DENVER))
    return refused or cast(PhoneNumber, number).e164


def screened(e164: str, **changed: str) -> str | None:
    """At any hour."""
    given = settings(CALL_HOURS="always", **changed)
    return code(screen(parse_number(e164, given), {}, given, NOON_IN_DENVER))


TYPED: list[tuple[str, str, str]] = [
    # a right number, in any spelling
    *((US, typed, SF) for typed in (
        SF, "4155550100", "(415) 555-0100", "1 415 555 0100", "415.555.0100", "415_555_0100", "415,555,0100", "415/555/0100",
        "415\u2010555\u20110100", "415\u2013555\u20140100", "415\u2212555\u22120100", "415\u00a0555\u202f0100",
        "415\u3000555\t0100", "\u202a+1 415 555 0100\u202c", "415\u200e555\u200f0100", "\ufeff4155550100",
        "415\u00ad555\u200b0100", "\u2068415 555 0100\u2069", "001 415 555 0100", "00 1 415 555 0100", "0014155550100",
        "011 1 415 555 0100", "+1 (415) 555-0100", "+1 1 415 555 0100", "tel:+1-415-555-0100", "Tel. 415 555 0100",
        "TEL.: 415 555 0100", "Phone: (415) 555-0100", "phone number 415 555 0100", "Mobile 415 555 0100",
        "mobile: +14155550100", "Cell (415) 555 0100", "(cell) 415 555 0100", "[home] 415 555 0100", "My cell is 415 555 0100",
        "call me at 415 555 0100", "no. 415 555 0100", "ext. 415 555 0100", "t: 415 555 0100", "M. 415 555 0100",
        "(m) 415 555 0100", "Téléphone : 415 555 0100", "móvil 415 555 0100", "415-555-0100 (cell)", "415-555-0100(cell)",
        "415-555-0100 [Mobile]", "415 555 0100 (c)", "415 555 0100 (home, work)", "415 555 0100 home", "415 555 0100, work",
        "415 555 0100 - mobile", "415 555 0100 ext.", "415 555 0100 MOBILE", "'4155550100", '"415 555 0100"', "415 555 0100.",
        "\uff0b1 415 555 0100", "\uff08415\uff09555\uff0d0100", " 415 555 0100\n",
    )),
    (GB, "020 7946 0018", "+442079460018"), (US, "+44 (0)20 7946 0018", "country_not_allowed"),
    (GB, "+44 (0)20 7946 0018", "+442079460018"), (GB, "0044 (0) 20 7946 0018", "+442079460018"),
    (GB, "+44 020 7946 0018", "+442079460018"),
    (DE, "030 123456", "+4930123456"), (DE, "030/123456", "+4930123456"), (DE, "030/1234/5678", "+493012345678"),
    (DE, "030 123456-78", "+493012345678"), (DE, "0049 30 123456", "+4930123456"), (DE, "030 123456 (privat)",
    "+4930123456"),
    (DE, "Telefon 030 123456", "+4930123456"), (DE, "030 123456 home", "+4930123456"), (DE, "Handy: 0151 23456789",
    "+4915123456789"),
    (IT, "+39 06 1234 5678", "+390612345678"), (IT, "06/12345678", "+390612345678"),
    ("DK", "+45 (0)32 12 34 57", "+4532123457"), ("JP", "010 1 415 555 0100", "country_not_allowed"),
    # a country, a flag or a label beside it
    *((GB, typed, "+442079460018") for typed in (
        "UK +44 20 7946 0018", "UK: +44 (0)20 7946 0018", "United Kingdom 020 7946 0018", "U.K. 020 7946 0018",
        "\U0001f1ec\U0001f1e7 +44 20 7946 0018", "+44 20 7946 0018 (UK)", "England: 020 7946 0018",
        "\U0001f4de 020 7946 0018", "\u260e\ufe0f 020 7946 0018", "Phone #: 020 7946 0018", "# 020 7946 0018",
    )),
    (US, "USA: 415-555-0100", SF), (US, "+1 415 555 0100 (US)", SF), (US, "Cell# 415-555-0100", SF), (US, "+001 415 555 0100", SF),
    (US, "N\u00famero de tel\u00e9fono: 415 555 0100", SF), (US, "415\u2027555\u20270100", SF),
    (US, "415 555 0100 (my cell)", SF),
    *(("FR", typed, "+33612345678") for typed in (
        "T\u00e9l. : 06 12 34 56 78", "Portable : 06 12 34 56 78", "N\u00b0 06 12 34 56 78", "06 12 34 56 78 (bureau)",
        "France : +33 6 12 34 56 78", "FR +33 6 12 34 56 78",
    )),
    (IT, "cellulare: 312 345 6789", "+393123456789"), (IT, "312 345 6789 (casa)", "+393123456789"),
    (DE, "Telefonnummer: 030 123456", "+4930123456"), (DE, "030 123456 (B\u00fcro)", "+4930123456"),
    *((home, typed, "number_invalid") for home, typed in (
        (US, "UK +1 415 555 0100"), (US, "415 555 0100 (UK)"), (GB, "Germany 020 7946 0018"), (DE, "030 1234 DE"),
    )),
    ("MX", "+52 1 55 1234 5678", "+525512345678"), ("MX", "0052 1 55 1234 5678", "+525512345678"),
    # the country code without +, where a number without its 0 may lack its area code
    (DE, "49 151 23456789", "+4915123456789"), (DE, "4930123456", "+4930123456"), ("ID", "62 812 345 678", "+62812345678"),
    (DE, "151 23456789", "+4915123456789"), (DE, "30 123456", "number_invalid"), (DE, "40404", "number_invalid"),
    (DE, "611900123456", "number_invalid"),
    # dates, addresses of computers and amounts, which have the digits of a number
    *((home, typed, "number_invalid") for home, typed in (
        (DE, "2026-11-28"), (DE, "28.11.2026"), (DE, "28/11/2026"), (DE, "20261128"), (IT, "01/01/1990"), (IT, "01.01.1990"),
        ("FR", "172.16.254.1"), (DE, "255.255.255.255"), ("FR", "1.234.567,89"), (DE, "+4930123456.0"), (DE, "030 123456.00"),
    )),
    # no number
    *((US, typed, "number_invalid") for typed in (
        "", "abc", "12", "\u0000", "555-0100", "+999999999999999", "+1 555 555 0100", "+1 211 555 0100", "+1 415 155 0100",
        "+49 30 1234567890123", "415\n555 0100", "+1+4155550100", "++14155550100", "1-415-555-0100+", "*67 415 555 0100",
        # letters, of any script, and digits of other scripts
        "212 NO PHONE", "415 NOT MINE", "1-800-FLOWERS", "415-555-HOME", "4155 5501 OO", "4l55550100", "415555O1OO",
        "415555O100", "I 415 555 0100", "415 555 01oo", "\u0421415 555 0100", "415 555 010\u041e",
        "\uff14\uff11\uff15 \uff15\uff15\uff15 0100", "\u0664\u0661\u0665 555 0100", "415 555 010\u0966", "415 555 010\u2070",
        "415 555 010\u24ea", "4155550100a", "a4155550100", "4\ufe0f\u20e31 5 5 5 5 0 1 0 0", "\u202e0010 555 514",
        "fax 415 555 0100", "sip:4155550100", "415 555 0100 not mine", "nobody 415 555 0100",
        # several numbers, and extensions
        "415 555 0100 / 415 555 0101", "415 555 0100 or 415 555 0101", "415 555 0100, 415 555 0101",
        "415 555 0100 & 415 555 0101", "415 555 0100 415 555 0101", "415 555 0100; 415 555 0101", "+14155550100+14155550101",
        "415 555 0100 / 01", "415 555 0100/0101", "415 555 0100 ext. 7", "415 555 0100 x7", "415 555 0100 #7",
        "415 555 0100,,7", "415 555 0100;ext=7", "415 555 0100 (ext 7)", "415 555 0100 extension: 12",
        # the column holds 64 characters, and a longer text was cut there
        "4155550100".rjust(64), "4155550100".ljust(64), "x" * 50 + " (415) 555-0100", "(415) 555-0100" + " " * 50,
    )),
    *((DE, typed, "number_invalid") for typed in (
        "030 123456O", "030 l23456", "030 123456 / 78", "030 123456/7", "030 123456, 7", "030 123456,,7",
        "030 123456 oder 030 123457", "030 123456 / 030 123457", "030 1234 HOME", "030 123456 x 7", "030 123456 DW 12",
    )),
    # numbers of the network
    *((region, typed, "emergency_number") for region, typed in (
        (US, "911"), (US, "9-1-1"), (US, " 911 "), (US, "tel:911"), (US, "112"), (US, "911 ext. 5"), (US, "call 911"),
        (GB, "999"), (GB, "112"),
        (DE, "110"), ("AU", "000"), ("JP", "119"), ("BR", "190"),
    )),
    *((region, typed, "short_number") for region, typed in (
        (US, "411"), (US, "988"), (US, "+1 911"), (US, "411 x 5"), (US, "999"), (GB, "116 123"), (GB, "118118"),
        (DE, "115"), ("FR", "3117"),
    )),
    *((US, typed, "premium_rate") for typed in ("+1 900 555 0100", "212 976 0100", "+1 415 976 1212")),
    *((US, typed, "service_number") for typed in (
        "415 555 1212", "415-950-1234", "415 958 0100", "415 959 0100", "415 411 0100", "212 911 0100", "+1 861 958 0100",
    )),
    # area codes that the library does not know
    *((US, f"({area}) 555-0100", f"+1{area}5550100") for area in AREA_CODES),
    *((US, typed, "area_code_unknown") for typed in ("221 555 0100", "+1 982 555 0100", "1 (476) 555-0100 (cell)")),
    *((US, typed, "number_invalid") for typed in (
        "222 555 0100", "370 555 0100", "961 555 0100", "293 555 0100", "700 555 0100", "710 555 0100", "881 555 0100",
        "221 011 0100", "221 411 0100", "684 555 0100", "221 555 010",
    )),
]  # fmt: skip


def test_typed_texts_become_the_number_that_was_meant() -> None:
    seen = [(home, typed, right, outcome(typed, HOMES[home])) for home, typed, right in TYPED]
    assert [row for row in seen if row[2] != row[3]] == []


def spellings(number: phonenumbers.PhoneNumber) -> Iterator[str]:
    """A number as people type it, and none of them by this project's own code."""
    e164 = phonenumbers.format_number(number, PhoneNumberFormat.E164)
    world = phonenumbers.format_number(number, PhoneNumberFormat.INTERNATIONAL)
    country, _, local = world.partition(" ")
    yield from (e164, world, f" {world} ", phonenumbers.format_number(number, PhoneNumberFormat.RFC3966))
    yield from (f"{country} {re.sub('[ -]', mark, local)}" for mark in (".", "_", "\u2013", "\u00a0", "  ", "-", " - "))
    yield from (f"00{e164[1:]}", f"00 {world[1:]}", f"011 {world[1:]}")
    yield from (f"Tel.: {world}", f"mobile {world}", f"Phone: {e164}", f"(home) {world}")
    yield from (f"{world} (cell)", f"{world} mobile", f"{e164} home", f"{world} ext.")
    yield from (f"\u202a{world}\u202c", f"\u200e{e164}", "\u200b".join(world))


def ordinary_numbers() -> Iterator[tuple[str, phonenumbers.PhoneNumber]]:
    for region in REGIONS:
        examples = {example(region, kind) for kind in ORDINARY} - {None, TOO_SHORT}
        for e164 in sorted(filter(None, examples)):
            yield region, phonenumbers.parse(e164)


def test_right_numbers_of_all_countries_pass_however_spelled() -> None:
    wrong, cases = [], 0
    for region, number in ordinary_numbers():
        e164 = phonenumbers.format_number(number, PhoneNumberFormat.E164)
        given = EVERYWHERE["US" if region != "US" else "CA"]
        for typed in spellings(number):
            cases += 1
            if (seen := outcome(typed, given)) != e164:
                wrong.append((typed, e164, seen))
    assert (wrong, cases > 8_000) == ([], True)


def test_national_spellings_are_read_in_our_numbers_country() -> None:
    wrong, cases = [], 0
    for region, number in ordinary_numbers():
        e164 = phonenumbers.format_number(number, PhoneNumberFormat.E164)
        national = phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL)
        dotted = re.sub("[ -]", ".", national)
        for typed in (national, dotted, f"tel {national}", f"{national} (home)", national.replace(" ", "\u00a0")):
            cases += 1
            seen = parse_number(typed, EVERYWHERE[region])
            if not isinstance(seen, PhoneNumber) or seen.e164 != e164:
                wrong.append((region, typed, e164, seen))
    assert (wrong, cases > 2_000) == ([], True)


def hostile(e164: str) -> Iterator[str]:
    """Texts that look like the number, or hold it, and are not it alone."""
    digits = e164[1:]
    yield from (e164[:-1] + letter for letter in "OolISBZ\u041e\u03bf\u0661\uff11\u0967\u00b9")
    yield from (f"+{digits[:-4]}HOME", f"+{digits[:-3]} NOT MINE", f"{digits[:4]}O{digits[5:]}", f"x{e164}")
    extras = (" not mine", " x7", " ext 12", "#5", ",,5", ";5", " / 7", "w5", "p5", "@example.com")
    yield from (e164 + extra for extra in extras)
    yield from (e164 + between + e164 for between in (" / ", " or ", ", ", "", "\n"))
    yield from (e164.ljust(64), e164.rjust(70), f"\u202e{e164}", f"*67{e164}", f"+{e164}", f"<{e164}>")


def test_hostile_texts_of_all_countries_are_never_dialed() -> None:
    dialed, cases = [], 0
    for region, number in ordinary_numbers():
        for typed in hostile(phonenumbers.format_number(number, PhoneNumberFormat.E164)):
            cases += 1
            seen = outcome(typed, EVERYWHERE[region])
            if seen.startswith("+"):
                dialed.append((typed, seen))
    assert (dialed, cases > 8_000) == ([], True)


@given(st.text(alphabet="+0123456789 ()-.;extw*#abc", max_size=64) | st.text(max_size=70))
def test_any_text_becomes_a_number_or_a_refusal(typed: str) -> None:
    read = parse_number(typed, settings())
    if isinstance(read, PhoneNumber):
        assert re.fullmatch(r"\+[1-9][0-9]{6,14}", read.e164)
        assert parse_number(read.e164, settings()) == read
        assert read.zones
    else:
        assert code(read) in ("emergency_number", "short_number", "number_invalid", "area_code_unknown")
        assert screen(read, {}, settings(), NOON_IN_DENVER) == read


def test_area_code_table_holds_codes_that_phonenumbers_lacks() -> None:
    """A newer library that knows a code fails here: take the line out of the table, and set its date."""
    now_known = [area for area in AREA_CODES if phonenumbers.is_valid_number(phonenumbers.parse(f"+1{area}5550100"))]
    assert now_known == []
    assert phonenumbers.__version__ == "9.0.43"  # the version that the table was compared with


def test_doctor_warns_of_an_old_area_code_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(doctor._old_tables(settings())) == []
    monkeypatch.setattr(doctor, "AREA_CODES_AGE", datetime.now(UTC).date() - AREA_CODES_READ_ON - timedelta(days=1))
    (finding,) = doctor._old_tables(settings())
    assert (finding.state, "area_code_unknown" in finding.advice) == ("warning", True)
    assert finding.found.endswith(f"{AREA_CODES_READ_ON:%d %b %Y}")


def test_exchanges_without_subscribers_are_refused_in_every_area_code() -> None:
    known = [area for area in range(200, 990) if phonenumbers.is_valid_number(phonenumbers.parse(f"+1{area}2345678"))]
    services = ["5551212", *(f"{exchange}0100" for exchange in (950, 958, 959, *range(211, 1000, 100)))]
    lines = {"9760100": "premium_rate", **dict.fromkeys(services, "service_number")}
    wrong = []
    for area in [*known, *AREA_CODES]:
        for line, right in lines.items():
            number = parse_number(f"+1{area}{line}", EVERYWHERE["CA"])
            refused = code(check_number(number, EVERYWHERE["CA"]) if isinstance(number, PhoneNumber) else number)
            if refused not in (right, "number_invalid", *REFUSED_TYPES.values()):
                wrong.append((area, line, refused))
    assert (wrong, len(known) > 380) == ([], True)


def test_settings_decide_which_numbers_are_called() -> None:
    premium, ours = existing("US", "PREMIUM_RATE"), "+14155550199"
    table: list[tuple[str | None, str, dict[str, str]]] = [
        # CALL_ONLY_TO names all numbers that are dialed, and lifts no other rule
        (None, SF, {"CALL_ONLY_TO": SF}), ("not_in_call_only_to", "+14155550101", {"CALL_ONLY_TO": SF}),
        ("not_in_call_only_to", premium, {"CALL_ONLY_TO": SF}), ("premium_rate", premium, {"CALL_ONLY_TO": premium}),
        ("not_in_call_only_to", ours, {"CALL_ONLY_TO": SF}),
        ("country_not_allowed", existing("GB"), {"CALL_ONLY_TO": existing("GB")}),
        # our own number
        ("own_number", ours, {}), ("own_number", ours, {"CALL_ONLY_TO": ours}), ("own_number", "+15005550006", SANDBOX),
        ("country_not_allowed", SF, {"TWILIO_PHONE_NUMBER": "+883510012345"}),  # it is of no country
        (None, SF, {"TWILIO_PHONE_NUMBER": "+12115550100"}),  # it is newer than the library
        # the countries that are allowed; without a list, that of our number
        *((why, existing(region), {"CALL_COUNTRIES": "us, CA"}) for region, why in (
            ("US", None), ("CA", None), ("MX", "country_not_allowed"),
        )),
        *(("premium_rate", existing(region, "PREMIUM_RATE"), {} | allowed) for region in ("GB", "DE", "LV", "ES", "IT")
          for allowed in (dict[str, str](), {"CALL_COUNTRIES": region})),
        *rows_of_own_country(),
        # Twilio's test numbers, in the sandbox alone; +1 500 is the US
        *((why, number, given) for number in ("+15005550001", "+15005550004", "+15005550009", "+15005559999") for why, given in (
            (None, SANDBOX), (None, SANDBOX | {"CALL_COUNTRIES": "DE"}), ("not_in_call_only_to", SANDBOX | {"CALL_ONLY_TO": SF}),
            ("personal_number", {}), ("personal_number", {"TWILIO_PHONE_NUMBER": "+15005550006"}),
        )),
        (None, SF, SANDBOX), ("personal_number", "+15005560001", SANDBOX), ("toll_free", existing("US", "TOLL_FREE"), SANDBOX),
        ("country_not_allowed", existing("DE"), SANDBOX),
    ]  # fmt: skip
    seen = [(screened(number, **given), number, given) for _, number, given in table]
    assert [(row, right) for row, right in zip(seen, table, strict=True) if row != right] == []
    assert outcome("(415) 555-0100", settings(TWILIO_PHONE_NUMBER="+12115550100", CALL_HOURS="always")) == SF
    assert code(parse_number("911", settings(TWILIO_PHONE_NUMBER="+883510012345"))) == "number_invalid"


def rows_of_own_country() -> Iterator[tuple[str | None, str, dict[str, str]]]:
    for region in ("US", "CA", "JM", "KZ", "GG", "IM", "VA", "AX", "YT", "IN"):
        ours = {"TWILIO_PHONE_NUMBER": existing(region)}
        yield None, existing(region)[:-2] + "77", ours
        for elsewhere in {"US", "CA", "RU", "GB", "IT", "FI", "RE", "DE"} - {region}:
            yield "country_not_allowed", existing(elsewhere), ours


def test_only_ordinary_phones_of_each_region_pass() -> None:
    wrong = []
    for region in REGIONS:
        for kind, why in {**dict.fromkeys(ORDINARY), **REFUSED_TYPES}.items():
            number = example(region, kind)
            given = EVERYWHERE["US" if region != "US" else "CA"]
            if number and number != TOO_SHORT and (seen := outcome(number, given)) != (why or number):
                wrong.append((region, kind, number, seen))
    assert wrong == []


def test_tables_of_types_name_every_type_of_the_library() -> None:
    known = {PhoneNumberType.to_string(kind) for kind in PhoneNumberType.values()}
    assert known == {*ORDINARY, *REFUSED_TYPES, "UNKNOWN"}


def test_types_that_are_not_listed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (PhoneNumberType.UNKNOWN, 77):
        monkeypatch.setattr(phonenumbers, "number_type", lambda _number, kind=kind: kind)
        assert screened(SF) == "number_type_unknown"


def test_numbers_of_no_country_are_refused() -> None:
    right = dict.fromkeys((870, 881, 882, 883), "satellite") | {800: "toll_free", 808: "shared_cost"}
    right |= {878: "country_not_allowed", 888: "uan", 979: "premium_rate"}
    seen = {}
    for country_code in right:
        number = phonenumbers.example_number_for_non_geo_entity(country_code)
        assert number
        seen[country_code] = outcome(phonenumbers.format_number(number, PhoneNumberFormat.E164), EVERYWHERE["US"])
    assert seen == right


def test_regions_that_share_plus_one_are_told_apart() -> None:
    assert len(PLUS_ONE) == 25
    wrong = []
    for region in PLUS_ONE:
        given = settings(CALL_HOURS="always", CALL_COUNTRIES=region)
        for other in PLUS_ONE:
            for kind in ("FIXED_LINE", "MOBILE"):
                number = existing(other, kind)
                right = number if other == region else "country_not_allowed"
                if (seen := outcome(number, given)) != right:
                    wrong.append((region, other, kind, seen))
    assert wrong == []


def test_refusal_of_a_territory_says_how_to_allow() -> None:
    told = {}
    for region in ("PR", "GU", "VI", "AS", "MP", "GB"):
        refusal = screen(parse_number(existing(region), settings()), {}, settings(), NOON_IN_DENVER)
        assert isinstance(refusal, Refusal)
        assert (refusal.code, f"({region})" in refusal.reason) == ("country_not_allowed", True)
        told[region] = "Puerto Rico, Guam" in refusal.reason
        assert screened(existing(region), CALL_COUNTRIES=f"US {region}") is None
    assert told == {**dict.fromkeys(told, True), "GB": False}


def test_hours_are_checked_after_the_number() -> None:
    at_night = datetime(2026, 6, 17, 9, tzinfo=UTC)
    given = settings()
    assert code(screen(parse_number(SF, given), {}, given, at_night)) == "outside_calling_hours"
    premium = parse_number(existing("US", "PREMIUM_RATE"), given)
    assert code(screen(premium, {}, given, at_night)) == "premium_rate"
    assert screen(parse_number(SF, given), {"app_timezone": "Europe/Berlin"}, given, at_night) is None


NUMBERS = [number for region in REGIONS for kind in (*ORDINARY, *REFUSED_TYPES) if (number := example(region, kind))]
SOME_REGIONS = ["US", "CA", "JM", "GB", "DE", "RU", "KZ", "AU", "IN"]
SOME_NUMBERS = [
    number for region in SOME_REGIONS for kind in (*ORDINARY, *REFUSED_TYPES) if (number := example(region, kind))
]
TIMES = [f"{hour:02}:{minute:02}" for hour in range(24) for minute in (0, 30)]


@given(
    st.sampled_from(SOME_NUMBERS) | st.sampled_from(NUMBERS),
    st.datetimes(datetime(2025, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
    st.sampled_from([{}, {"timezone": "Asia/Kathmandu"}, {"tz": "nowhere"}, {"app_timezone": "Europe/Berlin"}]),
    st.lists(st.sampled_from(SOME_REGIONS), min_size=2, unique=True),
    st.lists(st.sampled_from(TIMES), min_size=4, max_size=4, unique=True).map(sorted),
    st.lists(st.sampled_from(SOME_NUMBERS), max_size=30),
)
def test_more_rules_never_let_more_calls_pass(
    number: str, now: datetime, metadata: dict[str, Any], countries: list[str], hours: list[str], only: list[str]
) -> None:
    rules = [
        {"CALL_HOURS": "always", "CALL_COUNTRIES": " ".join(countries)},
        {"CALL_HOURS": f"{hours[0]}-{hours[3]}", "CALL_COUNTRIES": " ".join(countries)},
        {"CALL_HOURS": f"{hours[1]}-{hours[2]}", "CALL_COUNTRIES": " ".join(countries)},
        {"CALL_HOURS": f"{hours[1]}-{hours[2]}", "CALL_COUNTRIES": countries[0]},
    ]
    rules.append({**rules[-1], "CALL_ONLY_TO": " ".join(only)})

    def earliest(more: dict[str, str]) -> datetime:
        given = settings(**more)
        match screen(parse_number(number, given), metadata, given, now):
            case Refusal():
                return datetime.max.replace(tzinfo=UTC)
            case PutOff(until):
                return until
            case None:
                return now

    times = [earliest(more) for more in rules]
    assert all(before <= after for before, after in pairwise(times))
