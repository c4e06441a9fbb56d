"""Which number was meant, and whether it may be dialed."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.screening import Refusal, read_number, screen
from tests.unit.examples import settings


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        ("+14155550100", "+14155550100"),
        ("(415) 555-0100", "+14155550100"),
        ("1 415 555 0100", "+14155550100"),
        ("+44 (0)20 7946 0018", "+442079460018"),
        ("0044 20 7946 0018", None),
        ("abc", None),
        ("", None),
        ("12", None),
        ("+999999999999999", None),
        ("415 555 0100 ext. 7", None),
        ("\u0000", None),
        ("+49 30 1234567890123", None),
    ],
)
def test_what_was_typed_is_read_as_a_person_would(typed: str, number: str | None) -> None:
    read = read_number(typed, settings())
    if number is None:
        assert isinstance(read, Refusal)
        assert read.code == "number_invalid"
        assert typed not in read.reason or not typed
    else:
        assert read == number


def test_a_number_without_a_country_is_one_of_our_own_country() -> None:
    assert read_number("020 7946 0018", settings(TWILIO_PHONE_NUMBER="+442079460999")) == "+442079460018"


def test_call_only_to_is_all_that_is_dialed() -> None:
    ours = settings(CALL_ONLY_TO="+14155550100")
    assert screen("+14155550100", ours) is None
    refusal = screen("+14155550101", ours)
    assert refusal is not None
    assert refusal.code == "not_in_call_only_to"


def test_our_own_number_is_not_called() -> None:
    refusal = screen("+14155550199", settings())
    assert refusal is not None
    assert refusal.code == "own_number"


@given(st.text(alphabet="+0123456789 ()-.;extw*#abc", max_size=64) | st.text(max_size=64))
def test_whatever_was_typed_is_e164_or_a_refusal(typed: str) -> None:
    read = read_number(typed, settings())
    assert isinstance(read, Refusal) or re.fullmatch(r"\+[1-9][0-9]{6,14}", read)
