"""The values of placeholders. A value is spoken only when it looks like its kind; otherwise the script says the fallback.

Anyone can type the text and the number that hears it, so free text would make this program a relay for spam.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Final, Literal

from shared.conversation.numerals import NUMBER_WORDS

Kind = Literal["name", "words", "number"]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


LONGEST_NAME: Final = 40
LONGEST_WORDS: Final = 60
MOST_NAME_WORDS: Final = 3
MOST_WORDS: Final = 8
MOST_DIGITS: Final = 4
"""Digits in `words`. "Boeing 747" and "Company 2024" pass; five digits may be the end of a phone number."""
_LONGEST_INPUT: Final = 1000

_NAME_WORD: Final = r"'?L[LM]*(?:['-]L[LM]*)*'?"
_NAME: Final = re.compile(rf"{_NAME_WORD}(?: {_NAME_WORD}){{0,{MOST_NAME_WORDS - 1}}}")
_FULL_NAME: Final = re.compile(rf"{_NAME_WORD}\.?(?: {_NAME_WORD}\.?){{0,6}}")
_WORDS: Final = re.compile(r"[LMD '\-.,&+!?/():;\"#–—·]+")
_REPEATED: Final = re.compile(r"(.)\1{3}")
_NUMBER: Final = re.compile(r"[+-]?(?:\d{1,7}|\d{1,3}(?:,\d{3}){1,2})(?:[.]\d{1,4})?|[+-]?\d{1,7},\d{1,2}")
_ADDRESS: Final = re.compile(
    r"://|@|\bwww\b|\w\.[^\W\d_]{2,}|\d\.\d+\.\d|\b(?:dot|punto|punkt|point)\s+(?:com|net|org|io|info|co|de|uk|app|xyz|ly)\b"
)
_PREMIUM: Final = re.compile(r"(?<!\d)[01]\W{0,3}[89]00(?!\d)")

# What forms and programs write where nothing is known. Sources: JavaScript, Python, spreadsheets and test sign-ups.
_FILLERS: Final = _set(
    "null undefined none n/a nobody noname test tests testing tester prueba object string false default"
    " unknown anonymous user username guest admin name firstname lastname fullname surname customer tbd todo press asdf"
    " fname lname foo foobar root void xxx zzz hello provided applicable qwerty asdfgh"
    " unbekannt keine ninguno ninguna desconocido inconnu aucun"
)
_FILLERS_UNLESS_CAPITALIZED: Final = _set("na nan nil true")  # Na, Nan, Nil and True are names
# Words of a message, never of a name: one of them and the value is not spoken.
_MESSAGE_WORDS: Final = _set(
    "your you're youre call calling dial click please account password urgent locked blocked suspended hacked"
    " invoice winner congratulations bitcoin http https www com cuenta llame llamar marque contraseña urgente"
    " bloqueada bloqueado konto passwort dringend gesperrt anrufen votre compte appelez bloqué conta ligue bloqueada"
    " chiama bloccato"
)
# They belong to companies and products, but never to a name.
_NO_NAME_WORDS: Final = _set(
    "text stop pay money prize refund police security irs bank support agent department verify verification microsoft amazon"
    " paypal america fuck fucking bitch asshole nigger hitler and und"
)
_TITLES: Final = _set(
    "mr mister mrs ms miss mx dr doctor prof professor sir madam dame rev reverend capt captain señor señora"
    " señorita senor senora srta sra dra herr frau dipl mme mlle monsieur madame mademoiselle signor signora"
    " signorina dott dottssa dhr mevr meneer mevrouw doutor doutora hr fru pani shri smt г-н г-жа господин госпожа"
    " السيد السيدة الدكتور الدكتورة دكتور أستاذ"
)
_TITLES_WITH_DOT: Final = _set("sr. m. hon. mag. med. jur. phil. rer. nat. ing. sig. pan. don. st. fr. д-р. د.")
_TITLES_BEHIND: Final = re.compile(r"(?<=.)(?:さん|様|氏|님|씨|先生|女士|小姐)$")
_SUFFIXES: Final = _set("jr sr ii iii iv phd md esq mba dds cpa msc bsc ma ba")
_TWO_WORD_NAMES: Final = _set("abd abdul abdel abu عبد أبو ابو")


def read_name(value: object) -> str | None:
    """A first name of one to three words. Of a name with a title or a comma, only the given name."""
    text = _clean(value)
    if text is None:
        return None
    title = text.split(" ")[0].casefold()
    if "," in text or title.rstrip(".") in _TITLES or title in _TITLES_WITH_DOT:
        return read_given_name(text)
    return _checked_name(_TITLES_BEHIND.sub("", text))


def read_given_name(value: object) -> str | None:
    """The given name of a full one: "Ada" of "Dr. Ada Lovelace" and of "Lovelace, Ada"."""
    text = _clean(value)
    if text is None:
        return None
    parts = [part.split() for part in re.sub(r"\([^)]*\)", " ", text).split(",")]
    parts = [part for part in parts if not part or {word.replace(".", "").casefold() for word in part} - _SUFFIXES]
    if len(parts) not in (1, 2) or not all(_FULL_NAME.fullmatch(_shape(" ".join(part))) for part in parts):
        return None
    words = parts[-1]
    while words and (words[0].rstrip(".").casefold() in _TITLES or words[0].casefold() in _TITLES_WITH_DOT):
        words = words[1:]
    if any(_is_message(" ".join(part)) for part in parts):
        return None
    if words and len(parts) == 1 and re.fullmatch(r"\w\.", words[0]):
        words = words[1:] if len(words) > 2 else []  # "J. Robert Oppenheimer" is called Robert
    count = 2 if words and words[0].casefold() in _TWO_WORD_NAMES else 1
    return _checked_name(_TITLES_BEHIND.sub("", " ".join(words[:count]).rstrip(".")))


def read_words(value: object) -> str | None:
    """A company, a product, a place: short, on one line, without an address or a phone number."""
    if isinstance(value, int | float):
        value = read_number(value)
    text = _clean(value)
    if text is None or len(text) > LONGEST_WORDS or text.count(" ") >= MOST_WORDS:
        return None
    text = re.sub("[™®©]", "", text)
    digits = sum(c.isdecimal() or c in "〇零一二三四五六七八九" for c in text)
    if not _WORDS.fullmatch(_shape(text)) or not any(map(str.isalnum, text)) or digits > MOST_DIGITS:
        return None
    numbers = [word for word in _tokens(text) if word.isdecimal() or word in NUMBER_WORDS]
    if len(numbers) > 2 or _ADDRESS.search(text.casefold()) or _PREMIUM.search(text):
        return None
    return None if _is_message(text) or _is_filler(text) else text


def read_number(value: object) -> str | None:
    """A number of at most seven digits before the point and four behind it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, int) and abs(value) >= 10**7:
        return None  # Python also refuses to write out more than 4,300 digits
    if isinstance(value, float) and value.is_integer():
        value = f"{value:.0f}"
    text = _clean(str(value))
    return text if text is not None and _NUMBER.fullmatch(text) else None


Reader = Callable[[object], str | None]
READERS: Final[dict[Kind, Reader]] = {"name": read_name, "words": read_words, "number": read_number}


def _clean(value: object) -> str | None:
    """The text on one line; None for any other type, and for control, format, private and unassigned characters."""
    if not isinstance(value, str) or len(value) > _LONGEST_INPUT:
        return None
    text = unicodedata.normalize("NFC", value.strip())
    for before, character in zip(" " + text, text, strict=False):
        joins = character in "\u200c\u200d" and before > "\u0590"  # Persian and Indic words need the joiners
        if unicodedata.category(character).startswith("C") and not joins:
            return None
    return " ".join(text.split()) or None


def _shape(text: str) -> str:
    """L for a letter, M for a mark, D for a digit, ' for each apostrophe, - for each hyphen; the rest as it is."""
    return "".join(_SHAPES.get(c) or {"L": "L", "M": "M"}.get(unicodedata.category(c)[0]) or c for c in _digits(text))


_SHAPES: Final = (
    dict.fromkeys("'’‘ʼ`´", "'") | dict.fromkeys("-‐‑", "-") | dict.fromkeys("\u200c\u200d", "M") | {"0": "D"}
)


def _digits(text: str) -> str:
    return "".join("0" if c.isdecimal() else c for c in text)


def _checked_name(text: str) -> str | None:
    if not _NAME.fullmatch(_shape(text)):
        return None
    text = unicodedata.normalize("NFKC", re.sub("[´`]", "'", text))
    if len(text) > LONGEST_NAME or not _NAME.fullmatch(_shape(text)) or _REPEATED.search(text.casefold()):
        return None
    words = _tokens(text)
    if _is_message(text) or _is_filler(text) or any(word in _FILLERS | _NO_NAME_WORDS for word in words):
        return None
    if sum(word in NUMBER_WORDS for word in words) > 1:
        return None
    return _in_mixed_case(text) if text.isupper() or text.islower() else text


def _in_mixed_case(name: str) -> str:
    """ADA and ada become Ada, o'brien becomes O'Brien. A voice spells capitals out; JJ is meant to be spelled."""

    def word(found: re.Match[str]) -> str:
        text = found[0]
        if len(text) == 2 and text.isupper() and not re.search("[AEIOUYÄÖÜ]", text):
            return text
        if len(text) > 2 and text[1] in "'’ʼ":
            return text[:2].upper() + text[2:].capitalize()
        return text.capitalize().replace("i\u0307", "i")

    return re.sub(r"[^ -]+", word, name)


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’]\w+)?", text.casefold())


def _is_message(text: str) -> bool:
    return any(word.replace("’", "'") in _MESSAGE_WORDS for word in _tokens(text))


def _is_filler(text: str) -> bool:
    plain = text.casefold().strip(" .-_()")
    return plain in _FILLERS or (plain in _FILLERS_UNLESS_CAPITALIZED and text != text.capitalize())
