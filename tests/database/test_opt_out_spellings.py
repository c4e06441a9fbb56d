"""Stop means stop, however the number is spelled: SQL reads it as the dispatcher does, or refuses it."""

from __future__ import annotations

import phonenumbers
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.screening import Refusal, parse_number
from tests.conftest import Connection
from tests.database import calling_codes
from tests.database.sql_api import Steps, a_number
from tests.unit import examples

# What is typed, and the number that is stopped.
READ = {
    "+14155550100": "+14155550100", "+1 (415) 555-0100": "+14155550100", "+1.415.555.0100": "+14155550100",
    " +1/415/555\t0100\n": "+14155550100", "(+1) 415 555 0100": "+14155550100",
    "+1\u00a0415\u2013555\u20110100": "+14155550100",
    "\u202a+1 (415) 555\u20100100\u202c": "+14155550100",  # as address books copy it, between marks of direction
    "\ufeff+1 415\u2013555\u20140100\u200b": "+14155550100",
    "+1 861 555 0100": "+18615550100",  # an area code that the library does not know yet
    "+39 (0)6 1234 5678": "+390612345678", "+61 491 570 006": "+61491570006",
}  # fmt: skip
# What is typed and refused with an error.
REFUSED = [
    # a trunk 0, or another trunk prefix, after the country code
    "+39 (0) 06 1234 5678", "+39 006 1234 5678", "+381 10 (0) 601234567", "+81 (0) 090 1234 5678", "+82 (0) 010 1234 5678",
    "+49 0171 1234567", "+49 (0) 171 1234567", "+44 (07400) 123456", "+44 (0)20 7946 0018", "+33 06 12 34 56 78",
    "+7 8 912 345 67 89", "+36 06 20 123 4567", "+55 0 11 96123 4567", "+54 11 15 2345 6789", "+54 9 11 15 2345 6789",
    "+55 90 50306 3933", "+375 8133297742", "+52 044 55 1234 5678", "+44\u00a0(\u00a00)20 7946 0018",
    # the country code twice, or missing, or another prefix in its place
    "+1 1 415 555 0100", "+1 +1 415 555 0100", "+44 44 7400 123456", "4155550100", "0171 1234567", "1 415 555 0100",
    "0014155550100", "+0014155550100", "+00 49 171 1234567", "011 1 415 555 0100",
    # letters, extensions, and more than one number
    "tel:+14155550100", "+1415555O100", "+1 415 NO PHONE", "+14155550100 x5", "+14155550100;ext=5", "+14155550100,,5",
    "+14155550100, +14155550101", "+14155550100 +14155550101", "+1 415 555 0100 / 0101",
    # other digits, too few, too many, nothing
    "+1415555010\u0660", "\uff0b\uff11\uff14\uff11\uff15\uff15\uff15\uff15\uff10\uff11\uff10\uff10", "+1415555010\u00b2",
    "+\u202e00105551414", "+1 415 555 010", "+1 415 555 01000", "+44 7400 12345", "+999 12345678", "+0415550100",
    "+123456", "+1234567890123456", "++14155550100", "Ada", "+", "", None,
]  # fmt: skip
# Two spellings of one phone: each is typed in two ways, and stops both.
PAIRS = [
    (("+52 55 1234 5678", "+52 1 55 1234 5678"), ("+525512345678", "+5215512345678")),
    (("+54 11 2345 6789", "+54 9 11 2345 6789"), ("+541123456789", "+5491123456789")),
    (("+378 0549 886377", "+39 0549 886377"), ("+3780549886377", "+390549886377")),
    (("+970 59 912 3456", "+972 59 912 3456"), ("+970599123456", "+972599123456")),
]


def stopped_by(steps: Steps, typed: str | None) -> set[str] | None:
    """The numbers that are stopped, or None for an error."""
    steps.rows("delete from public.call_opt_outs")
    try:
        steps.call("opt_out", phone_number=typed)
    except psycopg.errors.RaiseException:
        return None
    return {row["phone_e164"] for row in steps.rows("select phone_e164 from public.call_opt_outs")}


def test_each_spelling_stops_its_number_or_is_refused(steps: Steps) -> None:
    expected = {typed: {number} for typed, number in READ.items()} | dict.fromkeys(REFUSED)
    assert {typed: stopped_by(steps, typed) for typed in expected} == expected


def test_both_spellings_of_one_phone_stop_both(steps: Steps) -> None:
    expected = {typed: set(numbers) for spellings, numbers in PAIRS for typed in spellings}
    # Brazil's ninth digit makes another phone.
    expected |= {"+55 11 2345 6789": {"+551123456789"}, "+55 11 92345 6789": {"+5511923456789"}}
    assert {typed: stopped_by(steps, typed) for typed in expected} == expected


def test_job_of_the_other_spelling_is_never_dialed(steps: Steps) -> None:
    def queue(number: str) -> int:
        steps.change_job(
            job := steps.queue(number), phone_e164=number
        )  # as set_call_number would, where the library reads it
        return job

    for _, (one, other) in PAIRS:
        for number in (one, other):
            queue(number)
        assert steps.call("opt_out", phone_number=one)["canceled"] == 2
        assert steps.claim(queue(other))["reason_code"] == "opted_out"
    assert steps.rows("select * from public.outbound_call_attempts") == []


def test_answer_tells_a_number_that_was_never_here(steps: Steps) -> None:
    _, attempt = steps.attempt_in("accepted", number := a_number())
    steps.says(attempt, "completed")
    steps.queue(number)
    assert steps.call("opt_out", phone_number=number) == {"canceled": 1, "ending": 0, "jobs": 2, "calls": 1}
    assert steps.call("opt_out", phone_number=a_number()) == {"canceled": 0, "ending": 0, "jobs": 0, "calls": 0}


def test_error_names_the_number_that_was_probably_meant(steps: Steps) -> None:
    meant = {
        "+49 0171 1234567": "+491711234567", "0049 171 1234567": "+491711234567", "+44 (0)7400 123456": "+447400123456",
        "+1 1 415 555 0100": "+14155550100", "+14155550100 x5": "without letters", "4155550100": "country code",
    }  # fmt: skip
    hints = {}
    for typed in meant:
        with pytest.raises(psycopg.errors.RaiseException, match="p_phone_number cannot be read") as refused:
            steps.call("opt_out", phone_number=typed)
        hints[typed] = str(refused.value.diag.message_hint)
    assert {typed: hint for typed, hint in hints.items() if meant[typed] not in hint} == {}


def test_key_stops_number_that_sql_cannot_read(steps: Steps) -> None:
    """The library of the dispatcher may be newer than the table of calling codes."""
    _, attempt = steps.attempt_in("accepted", number := a_number())
    steps.rows("delete from private.calling_codes where code = '1'")
    try:
        with pytest.raises(psycopg.errors.RaiseException):
            steps.call("opt_out", phone_number=number)
        steps.press(attempt, steps.attempt(attempt)["call_sid"], opt_out=True)
        assert steps.one("select phone_e164 from public.call_opt_outs") == number
    finally:
        steps.rows("insert into private.calling_codes values ('1', %s)", calling_codes.patterns()["1"])


def test_calling_codes_are_those_of_the_installed_library(steps: Steps) -> None:
    table = {row["code"]: row["pattern"] for row in steps.rows("select * from private.calling_codes")}
    assert table == calling_codes.patterns(), "print them anew: python -m tests.database.calling_codes"


def test_every_kind_of_phone_can_be_stopped(steps: Steps) -> None:
    examples_of = phonenumbers.example_number_for_type
    kinds = (0, 1, 2, 6)  # fixed line, mobile, either, VoIP
    found = [examples_of(region, kind) for region in phonenumbers.SUPPORTED_REGIONS for kind in kinds]
    numbers = [phonenumbers.format_number(each, phonenumbers.PhoneNumberFormat.E164) for each in found if each]
    assert [number for number in numbers if not steps.one("select private.is_e164(%s)", number)] == []


EXAMPLES = [
    (example.country_code, phonenumbers.national_significant_number(example))
    for region in sorted(phonenumbers.SUPPORTED_REGIONS)
    for kind in (0, 1)
    if (example := phonenumbers.example_number_for_type(region, kind))
]
SIGNS = st.one_of(
    st.just(""), st.text(" ()-./\u00a0\u200e\u2011", max_size=3), st.text("0123456789+,;#x\t", min_size=1, max_size=2)
)


@st.composite
def spellings(draw: st.DrawFn) -> str:
    """A number as somebody might write it: with prefixes, signs and digits too many, too few, or not where they belong."""
    code, national = draw(st.sampled_from(EXAMPLES))
    drop = draw(st.sampled_from([0, 0, 0, 1]))
    prefix = draw(st.sampled_from(["", "", "", "0", "(0)", "00", "1", "8", "06", "9", "15", "90", "80", str(code)]))
    plus = draw(st.sampled_from(["+", "+", "+", "00", "", "(+", "+ "]))
    text = f"{plus}{code}{draw(SIGNS)}{prefix}{national[drop:]}{draw(SIGNS)}"
    at = draw(st.integers(0, len(text)))
    return f"{text[:at]}{draw(SIGNS)}{text[at:]}"


def test_no_spelling_stops_another_number_than_is_dialed(connection: Connection) -> None:
    read = []

    @settings(max_examples=1500, deadline=None)
    @given(spellings())
    def check(typed: str) -> None:
        (stopped,) = connection.execute("select private.read_number(%s)", (typed,)).fetchone() or (None,)
        if stopped is None:
            return
        number = parse_number(typed, examples.settings())
        if isinstance(number, Refusal):  # a number that no phone has is refused by the dispatcher, and never dialed
            return
        read.append(number)
        # Mexico's old 1 is another spelling of one phone, and an opt-out stops both.
        assert stopped in (number.e164, number.e164.replace("+52", "+521", 1)), typed

    check()
    assert len(read) > 30
