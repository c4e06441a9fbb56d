"""Digits in words, words of negation, and the words that tell a person to press a key, by language."""

import re
from collections.abc import Sequence
from typing import Final

# 0 to 9; a slash separates forms of one digit.
_DIGITS: Final = {
    "en": "zero/oh one two three four five six seven eight nine",
    "es": "cero uno/un/una dos tres cuatro cinco seis siete ocho nueve",
    "de": "null eins/ein/eine zwei/zwo drei vier fünf/fuenf sechs sieben acht neun",
    "fr": "zéro/zero un/une deux trois quatre cinq six sept huit neuf",
    "it": "zero uno/un/una due tre quattro cinque sei sette otto nove",
    "pt": "zero um/uma dois/duas três/tres quatro cinco seis sete oito nove",
    "nl": "nul één/een twee drie vier vijf zes zeven acht negen",
    "sv": "noll ett/en två tre fyra fem sex sju åtta nio",
    "da": "nul en/et to tre fire fem seks syv otte ni",
    "nb": "null en/ett to tre fire fem seks sju/syv åtte ni",
    "pl": "zero jeden/jedynkę dwa/dwójkę trzy/trójkę cztery/czwórkę pięć/piątkę sześć/szóstkę siedem/siódemkę osiem/ósemkę"
    " dziewięć/dziewiątkę",
}
_OTHER_KEYS: Final = {
    "*": "star asterisk asterisco estrella estrela stern sterntaste étoile astérisque stella sterretje stjärna gwiazdkę",
    "#": "hash pound almohadilla numeral raute rautetaste dièse cancelletto hekje cardinal krzyżyk",
}
_TENS: Final = "hundred thousand double triple cien ciento cientos hundert cent cento honderd hundra hundre sto"

NO: Final = frozenset("no nope nah nein nee non nao nej nei nie".split())
_NOT: Final = frozenset(
    "not dont didnt doesnt isnt arent wont wouldnt cant cannot never nicht kein keine keinen niemals pas jamais nunca jamas"
    " niet geen nooit inte ikke aldrig aldri".split()
)
_NO_BEFORE_VERBS: Final = {"es": "no", "it": "non", "pt": "nao"}
_POLITE: Final = frozenset(
    "thanks thank please sir madam danke bitte gracias por merci sil obrigado obrigada grazie per graag dank tack takk tak"
    " alstublieft".split()
)
_ARTICLES: Final = frozenset("un um een ett et en".split())
# Words around a number that is no key: "one moment", "in two hours", "that one", "twenty two". Without accents.
_COUNTED: Final = frozenset(
    "of more moment moments mas second seconds sec secs minute minutes min mins hour hours day days week weeks month months"
    " year years time times oclock am pm percent momento momentos minuto minutos segundo segundos hora horas dia dias semana"
    " semanas mes meses vez veces vezes instante de minuten sekunde sekunden stunde stunden uhr tag tage tagen woche wochen monat"
    " monate monaten mal jahr jahre prozent instant instants seconde secondes heure heures jour jours semaine semaines mois fois"
    " peu petit petite volta volte attimo ora ore ogenblik ogenblikje ojeblik oyeblikk ogonblick".split()
)
_BEFORE_COUNTED: Final = frozenset(
    "which this that any every other another second third last next at twenty thirty forty fifty sixty seventy eighty ninety"
    " otro otra este ese y las noch vingt trente quarante cinquante soixante".split()
)

# Each verb as a pattern: other endings follow the stem.
_PRESS: Final = (
    r"press(?:ing)?|dial|hit"
    r"|marca(?:r|ndo)?|marque|oprim[ae]|puls[ae]|presion[ae]|teclee|teclea|digit[ae]|pressione|aperte|tecle|disque"
    r"|drück\w*|wähl\w*|tipp\w*|appuyez|tapez|composez|faites|prem[aie]|premere|digiti|druk|toets|kies|tryck|trykk?|naciśnij|wybierz"
)
_BETWEEN: Final = (
    r"(?:(?:sie|bitte|auf|sur|op|på|la|le|el|il|l'|a|o|die|der|das|den|de|the|key|button|number|digit|taste|touche|tecla|tasto"
    r"|toets|knappen|klawisz|num|numero|número|nummer|chiffre|ziffer|zahl|please|por|favor|now|jetzt)\s+){0,4}"
)
_OR: Final = r"(?:or|and|o|u|y|e|oder|und|ou|et|of|en|eller|och|og|lub|albo)"
_FOR: Final = r"(?:for|if|when|para|si|für|fuer|wenn|falls|pour|per|se|voor|als|för|om|hvis|dla|jeśli)"
_AT_THE_END: Final = r"(?:drücken|wählen|tippen|drukken|toetsen|kiezen)"


def _base(language: str) -> str:
    return language.partition("-")[0]


def digit_words(language: str) -> dict[str, str]:
    """word -> digit, in this language; empty for a language that is not listed."""
    forms = _DIGITS.get(_base(language), "").split()
    return {word: str(digit) for digit, form in enumerate(forms) for word in form.split("/")}


def spoken_digits(language: str) -> dict[str, str]:
    """word -> digit, 1 to 9, for speech: numerals, and words that are no article ("eins", not "eine")."""
    forms = _DIGITS.get(_base(language), "").split()
    words = {form.split("/")[0]: str(digit) for digit, form in enumerate(forms) if digit}
    return {str(digit): str(digit) for digit in range(1, 10)} | words


def is_negated(said: Sequence[str], before: Sequence[str], after: Sequence[str], language: str) -> bool:
    """Whether a phrase is negated by words of its clause: "not so sure", "no me interesa", "claro que no", "natürlich nicht"."""
    if _NOT.intersection(before) or (len(said) > 1 and before and before[-1] == _NO_BEFORE_VERBS.get(_base(language))):
        return True
    if NO.intersection(said) or not after:
        return False
    ends = len(after) == 1 or after[1] in _POLITE | NO
    return (after[0] in _NOT and ends) or (after[0] == "que" and len(after) > 1 and after[1] in NO)


def is_quantity(number: str, before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether a number counts something, or is an article: "one moment", "twenty two", "un autre"."""
    article = number in _ARTICLES and bool(after) and after[0] not in _POLITE
    beside = _BEFORE_COUNTED.intersection(before[-1:]) or _COUNTED.intersection(after[:1])
    return article or bool(beside) or bool(after and after[0] in _TENS.split())


NUMBER_WORDS: Final = frozenset({word for language in _DIGITS for word in digit_words(language)} | set(_TENS.split()))
"""The digits in every listed language, and the words that join them to longer numbers."""


def keys_told(text: str, language: str) -> dict[str, str]:
    """key -> the words that tell a person to press it: {"4": "press 4"}. A number of several digits stays one key."""
    names = {word: key for key, words in _OTHER_KEYS.items() for word in words.split()} | digit_words(language)
    words = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    key = rf"['\"“”„‚‘’»«]?(\d+|[*#]|{words})(?!\w)(?!\s+(?:of|more|moment|another|de|von|mal|million)\b)"
    separator = rf"\s*(?:[,;]\s*(?:{_OR}\s+)?|\s{_OR}\s+)"
    text = text.casefold()
    first = re.search(rf"\b(?:{_PRESS})\b", text)
    pressed = rf"\b(?:{_PRESS})\s+{_BETWEEN}{key}(?:{separator}{key})?(?:{separator}{key})?(?!\w)"
    listed = rf"(?:[,;.:]\s*(?:{_OR}\s+)?|\s{_OR}\s+){_BETWEEN}{key}(?=,?\s+(?:{_FOR}|to(?!\s+(?:\d|{words})))\b)"
    found = list(re.finditer(pressed, text))
    if re.search(_AT_THE_END, text):
        found += re.finditer(rf"(?<!\w){key}\s+{_AT_THE_END}\b", text)
    found += [match for match in re.finditer(listed, text) if first and match.start() > first.start()]
    return {names.get(told, told): match[0].strip(" ,;.:") for match in found for told in match.groups() if told}
