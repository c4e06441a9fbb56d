"""Phone numbers: parse the text that a person typed, or refuse it."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import phonenumbers
from phonenumbers import PhoneMetadata, shortnumberinfo
from phonenumbers import PhoneNumberType as Kind

from shared.screening.area_codes import AREA_CODES
from shared.screening.zones import country_names, possible_zones
from shared.settings import Settings


@dataclass(frozen=True)
class Refusal:
    """Never call this number. `code` is stable; `reason` is for people."""

    code: str
    reason: str


@dataclass(frozen=True)
class PhoneNumber:
    """A number that exists, parsed once per dial.

    `region` is the ISO 3166 code of its country (001 for a network without a country), `kind` its phonenumbers.PhoneNumberType,
    `zones` every time zone where the phone may be (empty: not known).
    """

    e164: str
    region: str
    kind: int
    zones: tuple[str, ...]

    @property
    def area_code(self) -> str | None:
        """The three digits after +1; None in other countries."""
        return self.e164[2:5] if self.e164.startswith("+1") else None


NO_COUNTRY: Final = "001"
"""The region of networks without a country, as the library has it."""

TYPED_LENGTH: Final = 64
"""The length of the column phone_number. The sign-up trigger cuts a longer text, so a text of this length may be cut."""

# The form of the column phone_e164. Some countries have numbers that are longer than E.164 allows, or shorter.
_E164: Final = re.compile(r"\+[1-9][0-9]{6,14}")

# North America: an area code does not begin with 0 or 1. NANPA keeps N9X for longer numbers, 37X and 96X in reserve, and equal
# last digits and 88X for services; 710 is the US government's.
PLUS_ONE: Final = re.compile(r"\+1(?P<area>[2-9][0-8][0-9])(?P<exchange>[2-9][0-9]{2})(?P<line>[0-9]{4})")
_NO_AREA: Final = re.compile(r".([0-9])\1|37.|96.|88.|710")

_FIXED: Final = (Kind.FIXED_LINE, Kind.FIXED_LINE_OR_MOBILE)

_UNKNOWN_AREA: Final = Refusal(
    "area_code_unknown", "neither the number library nor our table knows this area code: upgrade, then retry the job"
)

_LETTERS: Final = Refusal("number_invalid", "the phone number has letters or signs that are no part of a number")
_EXTENSION: Final = Refusal("number_invalid", "the phone number has an extension, which cannot be dialed")
_TOO_LONG: Final = Refusal("number_invalid", "the text is too long for a phone number")
_SEVERAL: Final = Refusal("number_invalid", "this may be several phone numbers, or a number with an extension")
_NO_NUMBER: Final = Refusal("number_invalid", "the text is not a phone number")
_OTHER_COUNTRY: Final = Refusal("number_invalid", "the number is of another country than the one beside it")
_NO_AREA_CODE: Final = Refusal(
    "number_invalid", "the area code may be missing: write the number with + and the country code"
)
_NOT_ASSIGNED: Final = Refusal("number_invalid", "no phone in its country has such a number")

_PLACE_WORDS: Final = (
    "t[eé]l|telephone|t[eé]l[eé]fono?|t[eé]l[eé]phone|telefone|telefoon|phone|ph|fon|mobile|mobil|m[oó]vil|mob|cellphone|cellular"
    "|celular|cell|cel|cellulare|telefonino|portable|handy|mobiltelefon|gsm|home|house|work|office|business|landline|fixe|fisso"
    "|festnetz|main|primary|preferred|personal|privado|privat|private|geschäftlich|dienstlich|büro|bureau|domicile|casa|ufficio"
    "|oficina|trabajo|direct|whatsapp|sms|text|voice|day|daytime|evening|my|ext|extn|extension"
)
_WORD_IN_FRONT: Final = re.compile(
    rf"[(\[]?(?:(?:{_PLACE_WORDS}|call|contact|me|number|num|no|nr|n[º°]?|n[uú]m[eé]ro|de|is|at"
    r"|(?:telefon|handy|mobil|ruf)?nummer)(?![^\W\d_])[)\]]?[\s.:=#-]*|[tpmcwh]\s*[.:)\]]\s*|#\s*)",
    re.IGNORECASE,
)
_COUNTRY_IN_FRONT: Final = re.compile(r"[(\[]?(?P<name>[^\W\d_][^\d+()\[\]:]*?)[)\]]?[\s:,-]*(?=[+(\d])")
_COUNTRY_BEHIND: Final = re.compile(r"[\s,-]*[(\[](?P<name>[^\W\d_][^\d()\[\]]*)[)\]]$")
_WORD_BEHIND: Final = re.compile(rf"[\s,;:/-]*(?<![^\W\d_])(?:{_PLACE_WORDS})\.?$", re.IGNORECASE)
_IN_BRACKETS_BEHIND: Final = re.compile(
    rf"[\s,;:/-]*[(\[]\s*(?:(?:{_PLACE_WORDS})[\s./,]*)+[)\]]$|\s*[(\[]\s*[tpmcwh]\s*[)\]]$", re.IGNORECASE
)
_EXTENSION_BEHIND: Final = re.compile(
    r"(?P<number>.*?[0-9].*?)[\s,;(\[/-]*(?:ext(?:n|ension)?|x|#|poste|anexo|int|dw)[\s.:=#]*[0-9]{1,7}[)\]]?",
    re.IGNORECASE,
)
_NUMBER: Final = re.compile(r"[(\[ ]*\+?[0-9()\[\] ._,/-]*")
_NOT_A_PHONE: Final = re.compile(
    r"(?:19|20)\d\d([./-])[01]?\d\1[0-3]?\d|[0-3]?\d([./-])[0-3]?\d\2(?:19|20)\d\d"  # a date
    r"|\+?[\d ]{7,}\.0{1,2}|\d{1,3}(?:\.\d{3})+,\d\d|\d{1,3}(?:,\d{3})+\.\d\d"  # an amount, or written as one
    r"|(?!\d\d\.)(?:(?:0|[1-9]\d?|1\d\d|2[0-4]\d|25[0-5])(?:\.(?!$)|$)){4}"  # an IP address
)
_PICTURES: Final = "☎☏✆📞📱\ufe0f"
_KEYPAD: Final = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "22233344455566677778889999")


def parse_number(typed: str, settings: Settings) -> PhoneNumber | Refusal:
    """Read a typed number. Without a country code it is one of the country of our own number."""
    if len(typed) >= TYPED_LENGTH:
        return _TOO_LONG
    home = home_region(settings.twilio_phone_number)
    text, extension, country = typed, None, None
    if not _E164.fullmatch(typed):
        text = _plain(typed)
        extension = _EXTENSION_BEHIND.fullmatch(text)
        text, country = _without_country(_without_words(extension["number"] if extension else text, home))
        text = _without_words(text, home)
    if _NOT_A_PHONE.fullmatch(text):
        return _NO_NUMBER
    if not _NUMBER.fullmatch(text):
        return _LETTERS if any(letter.isalpha() for letter in text) else _NO_NUMBER
    digits = re.sub(r"[^0-9]", "", text)
    if shortnumberinfo.is_emergency_number(digits, home):
        return Refusal("emergency_number", "an emergency number is not called by a machine")
    if _is_short(text, home):
        return Refusal("short_number", "a short code reaches a service, not a person")
    if extension:
        return _EXTENSION
    if _has_several(text, home):
        return _SEVERAL
    number = _first_number(text, home)
    if country and isinstance(number, PhoneNumber) and not number.e164.startswith(f"+{_calling_code(country)}"):
        return _OTHER_COUNTRY
    return number


def _plain(typed: str) -> str:
    """The text with ASCII punctuation and without invisible marks. Letters and digits stay as they are."""

    def plain(sign: str) -> str:
        category = unicodedata.category(sign)
        if category == "Cf" and sign != "\u202e":  # U+202E shows the digits in reverse: it stays, and is refused
            return ""
        if sign in _PICTURES:
            return ""
        if "\U0001f1e6" <= sign <= "\U0001f1ff":  # a flag is two of these
            return chr(ord(sign) - 0x1F1E6 + ord("A"))
        if category == "Pd" or sign in "\u2212\u30fc":
            return "-"
        if category == "Zs" or sign == "\t":
            return " "
        if sign in "\u00b7\u2022\u2027\u2219\u30fb":
            return "."
        return sign if category[0] in "LNM" else unicodedata.normalize("NFKC", sign)

    return "".join(map(plain, typed.strip())).strip("'\"` ")


def _without_words(text: str, home: str) -> str:
    """The text without `Tel.:` and the like in front, `(cell)` and the like behind."""
    while match := _WORD_IN_FRONT.match(text):
        text = text[match.end() :]
    while match := _IN_BRACKETS_BEHIND.search(text) or _WORD_BEHIND.search(text):
        # 030 1234 HOME may be a number that is spelled on the keypad: then its letters are part of it.
        spelled = re.sub(r"[^0-9+]", "", text.translate(_KEYPAD))
        if match[0].strip().isupper() and _readable(spelled, home):
            break
        text = text[: match.start()]
    return text.rstrip(" .,;:-")


def _without_country(text: str) -> tuple[str, str | None]:
    """The text without `UK`, `Germany` or a flag in front, or in brackets behind; and the region that these name."""
    for pattern in (_COUNTRY_IN_FRONT, _COUNTRY_BEHIND):
        match = pattern.match(text) if pattern is _COUNTRY_IN_FRONT else pattern.search(text)
        if match and (region := country_names().get(match["name"].strip(" .,-").replace(".", "").casefold())):
            return text[: match.start()] + text[match.end() :], region
    return text, None


def _calling_code(region: str) -> int:
    return phonenumbers.country_code_for_region(region)


@cache
def _needs_trunk_0(region: str) -> bool:
    """Whether a fixed line without its area code may look like another with one: Germany's have 5 to 15 digits."""
    plan = PhoneMetadata.metadata_for_region(region, None)
    lengths = plan.fixed_line.possible_length if plan and plan.national_prefix and plan.fixed_line else ()
    return bool(lengths) and max(lengths) - min(lengths) >= 4


def _has_several(text: str, home: str) -> bool:
    """Whether `/` or a comma parts two numbers, or a number and an extension, and not the groups of one number."""
    for match in re.finditer(r"[/,]", text):
        before, behind = text[: match.start()], text[match.end() :]
        part = re.sub(r"[^0-9]", "", behind)
        if ",," in text or (_readable(before, home) and (len(part) < 3 or _readable(behind, home))):
            return True
    return False


def _readings(text: str, home: str) -> Iterator[str]:
    """Ways to read the text, the likeliest first. 00 and 011 are the prefixes of international calls."""
    for shape in (text, re.sub(r"\(\s*0\s*\)", "", text, count=1)):
        digits = re.sub(r"[^0-9]", "", shape)
        if "+" in shape:
            yield f"+{digits}"
            yield f"+{digits.removeprefix('00')}"
            continue
        yield digits
        for prefix in ("00", "011"):
            if digits.startswith(prefix):
                yield f"+{digits.removeprefix(prefix)}"
        # People leave out the + more often than the 0 of their own country.
        if _needs_trunk_0(home) and digits.startswith(code := str(_calling_code(home))) and len(digits) > len(code) + 6:
            yield f"+{digits}"


def _readable(text: str, home: str) -> bool:
    return isinstance(_first_number(text, home), PhoneNumber)


def _first_number(text: str, home: str) -> PhoneNumber | Refusal:
    """The first reading that is a number; else the first refusal that says more than "invalid"."""
    refusals = []
    for reading in dict.fromkeys(_readings(text, home)):
        number = _assigned(reading, home)
        if isinstance(number, PhoneNumber):
            return number
        refusals.append(number)
    return max(refusals, key=(_NO_NUMBER, _NOT_ASSIGNED, _NO_AREA_CODE, _UNKNOWN_AREA).index)


def _assigned(reading: str, home: str) -> PhoneNumber | Refusal:
    # Mexico's mobile numbers had a 1 in front until 2019. Address books have it still.
    reading = re.sub(r"^\+521(?=[0-9]{10}$)", "+52", reading)
    try:
        number = phonenumbers.parse(reading, home)
    except phonenumbers.NumberParseException:
        return _NO_NUMBER
    e164 = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    if not _E164.fullmatch(e164):
        return _NOT_ASSIGNED
    if phonenumbers.is_valid_number(number):
        region = phonenumbers.region_code_for_number(number) or NO_COUNTRY
        kind = phonenumbers.number_type(number)
        if kind in _FIXED and reading == e164.removeprefix(f"+{number.country_code}") and _needs_trunk_0(home):
            return _NO_AREA_CODE
        return PhoneNumber(e164, region, kind, possible_zones(e164, region, kind))
    parts = PLUS_ONE.fullmatch(e164)
    if not parts or parts["exchange"][1:] == "11" or _NO_AREA.fullmatch(parts["area"]):
        return _NOT_ASSIGNED
    if known := AREA_CODES.get(parts["area"]):
        return PhoneNumber(e164, "US", Kind.FIXED_LINE_OR_MOBILE, known.zones)
    return _NOT_ASSIGNED if _knows_area(parts["area"]) else _UNKNOWN_AREA


@cache
def _knows_area(area: str) -> bool:
    """Whether the library knows any number of the area code."""
    return any(
        phonenumbers.is_valid_number(phonenumbers.parse(f"+1{area}{exchange}5555")) for exchange in range(200, 1000)
    )


def _is_short(text: str, home: str) -> bool:
    """In any country of the code: Caribbean islands have 999, where the US has 911."""
    try:
        number = phonenumbers.parse(re.sub(r"[^0-9+]", "", text), home)
    except phonenumbers.NumberParseException:
        return False
    return shortnumberinfo.is_valid_short_number(number)


@cache
def home_region(our_number: str) -> str:
    """The region of our own number; of a number newer than the library, the main one of its country code."""
    own = phonenumbers.parse(our_number)
    return phonenumbers.region_code_for_number(own) or phonenumbers.region_code_for_country_code(own.country_code or 0)
