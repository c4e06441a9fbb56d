"""A value that a person typed is spoken when it looks like its kind; otherwise the fallback is spoken."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hypothesis import given
from hypothesis import strategies as st

from shared.conversation.values import (
    LONGEST_NAME,
    LONGEST_WORDS,
    READERS,
    read_given_name,
    read_name,
    read_number,
    read_words,
)

NAMES = """
    Ada | ada > Ada | ADA > Ada | aDa | Grace | Li | Jo | JO > Jo | JJ | TJ | J | O'Brien | o'brien > O'Brien
    O’Brien | O'BRIEN > O'Brien | D'Angelo | d'Artagnan | N'Golo | Sa'ad | Jean-Luc | JEAN-LUC > Jean-Luc
    jean-luc > Jean-Luc | Anne-Marie | María José | MARÍA JOSÉ > María José | José | Zoë | Björn | Łukasz | Ðorđe
    Þór | Ağaoğlu | İbrahim | Şebnem | Nguyễn | Thị Hồng Nhung | Mary Jane | Ana de Armas | McDonald | DeShawn
    LaToya | Xiomara | Ng | Wu | Na | Nan | Nil | True | Seven | Will | Mark | Bill | Grant | May | Chase | Rich
    Анна | АННА > Анна | анна > Анна | Владимир | Юлія | Ђорђе | Ελένη | ΕΛΕΝΗ > Ελενη | Γιώργος | Նարեկ | ნინო
    محمد | فاطمة | عبد الله | רחל | רָחֵל | अदिति | प्रिया | ஆதித்யா | ไพลิน | ကောင်း | 李小龙 | 小明 | 田中 | さくら | サクラ
    민준 | 김 민준 | Þorgerður Katrín | Ngọc Anh | Kwame | Oluwaseun | Nokuthula | Kealiʻikukahaoa | Siân | Maël | Ærin
    ﬁona > Fiona | Dr. Ada Lovelace > Ada | Dr Ada > Ada | Mr Ada > Ada | Mr. Ada > Ada | MR ADA > Ada
    Mrs. Ada Lovelace > Ada | Miss Ada > Ada | Prof. Dr. Ada > Ada | Sir Isaac > Isaac | Frau Ada > Ada
    Herr Karl > Karl | Señora María > María | Sra. Ana > Ana | Mme Léa > Léa | Don Draper | Don. Pedro > Pedro
    Signora Carla > Carla | Mevrouw Lotte > Lotte | Fru Astrid > Astrid | Г-н Иван > Иван | السيد أحمد > أحمد
    田中さん > 田中 | 김민수님 > 김민수 | 王先生 > 王 | Lovelace, Ada > Ada | LOVELACE, ADA > Ada | Lovelace, Dr. Ada > Ada
    O'Brien, Conan > Conan | Lovelace, Ada Augusta > Ada | de la Cruz, Ana > Ana | Ada, PhD > Ada
    Ada Lovelace, Jr. > Ada | Ada\u00a0Maria > Ada Maria | Jose\u0301 > José
"""
NO_NAMES = """
    null | NULL | Null | undefined | Undefined | None | none | nil | NaN | nan | NA | na | N/A | n/a | n.a. | true
    false | [object Object] | object Object | {} | [] | test | Test | TEST | test test | Test User | user | User
    username | guest | admin | anonymous | unknown | noname | first name | first_name | firstName | customer
    string | default | asdf | qwerty | prueba | unbekannt | desconocido | inconnu | {{first_name}} | {first_name}
    {0.__class__} | %FIRSTNAME% | %s | ${name} | *|FNAME|* | [First Name] | <name> | <<name>> | __name__
    ada@example.com | ada@localhost | ada.lovelace | www.example.com | example.com | https://x.example | http://x
    x.com | evil dot com | Ada1 | Ada 2 | 4da | A1 | 007 | 14155550100 | +1 415 555 0100 | (415) 555-0100 | ٤١٥
    Ada ٢ | Ⅷ | <b>Ada</b> | <script>alert(1)</script> | </Say><Hangup/> | <Dial>+14155550100</Dial> | &lt;b&gt;
    &amp; | a & b | Ada; drop table | Ada/Eve | Ada\\ | \\u0000Ada | "Ada" | Ada! | Ada? | Ada: | ¡Ada! | # | - | --
    ' | '' | . | ... | , | ,, | -Ada | Ada- | Ada--Eve | Ada 🎉 | 🎉 | ❤ | Ada™ | Ada² | ☎ Ada | ★Ada★ | Ada_
    Ada\u0000 | A\u0007da | Ada\u001b[1m | Ada\u202e | \u202eadA | Ada\u200f | \u200eAda | Ada\u200b
    \ufeffAd\ufeffa | A\u200dda | Ada\ue000 | \ud800 | your account is locked | Your Account Locked | your account
    call now | Call Nine | nine hundred | one nine hundred | uno nueve cero | neun null null | one-nine-hundred
    press one | Please call | urgent | URGENT | account locked | congratulations winner | llame ahora
    rufen bitte dringend | bitcoin | one two | Ada Grace Mary Jane | a b c d | This is a long message
    I am four words long | Dr. | Dr | Mr | Mrs. | Miss | Prof. Dr. | Herr | Frau | Señora | Г-н | Lovelace, | , Ada,
    Lovelace, null | Lovelace, 4 | Your account is locked, call | Ada, Eve, Mary | AAAAA | aaaa | xxxx | Adaaaaaa
    zzzzzz | xxx | FNAME | foo | foobar | root | void | not provided | Not Applicable | hello world | Hello Ada
    Text STOP | stop | free money | Pay now | Amazon refund | IRS agent | Bank of America | Social Security
    Police Department | Microsoft | fuck you | Heil Hitler
"""
FULL_NAMES = """
    Ada Lovelace > Ada | ada lovelace > Ada | ADA LOVELACE > Ada | Ada > Ada | Dr. Ada Lovelace > Ada
    Prof. Dr. Ada Lovelace > Ada | Mr Ada Lovelace > Ada | Lovelace, Ada > Ada | Lovelace, Ada King > Ada
    Lovelace, Ada, PhD > Ada | Ada Lovelace PhD > Ada | Ada Lovelace, Ph.D. > Ada | Ada King Lovelace > Ada
    Juan Carlos de la Cruz García > Juan | María José García > María | Jean-Luc Picard > Jean-Luc
    O'Brien Conan > O'Brien | Martin Luther King Jr. > Martin | Abdul Rahman > Abdul Rahman
    عبد الله أحمد > عبد الله | J. Robert Oppenheimer > Robert | Ada (she/her) > Ada | Ada Lovelace (Acme 1) > Ada
    John F. Kennedy > John | 李小龙 > 李小龙 | Владимир Иванов > Владимир | Ludwig van Beethoven > Ludwig
    John Smith III > John | Ana Test > Ana | Dr. med. Hans Maier > Hans | Dr. rer. nat. Ada Lovelace > Ada
"""
NO_FULL_NAMES = """
    Dr. | null | null null | undefined undefined | Your account is locked | call one nine hundred | Ada 2 Lovelace
    ada@example.com | Ada Lovelace http://x.com | Test User | [object Object] | a b c d e f g h | J. Smith | Ada <b>
    Mr. and Mrs. Smith |    Ada, Eve, Mary | , | () | Ada Lovelace call 911
"""
WORDS = """
    Acme | 3M | Acme & Sons | AT&T | H&M | 7-Eleven | Toys "R" Us | Yahoo! | L'Oréal | Société Générale
    Procter & Gamble Co. | Acme, Inc. | S.p.A. Roma | Boeing 747 | Company 2024 | 37signals | 99designs | 23andMe
    Forever 21 | Studio 54 | 1&1 | AC/DC | C++ | C# | Deutsche Bank | Oxford University Press
    International Business Machines Corporation | ООО Ромашка | 三井住友 | 삼성전자 | شركة النور | Dr. Oetker
    Ben & Jerry's | Acme (Berlin) | Berlin–Mitte | The Hongkong and Shanghai Banking Corporation | Twenty One Pilots
    S&P 500 | Acme™ > Acme | O2
"""
NO_WORDS = """
    null | undefined | N/A | none | test | [object Object] | {{company}} | %COMPANY% | <b>Acme</b> | </Say><Hangup/>
    acme.com | www.acme | https://acme.example | acme@example.com | evil dot com | +1 415 555 0100 | 415-555-0100
    4155550100 | 1-800-FLOWERS | 0900 12 | 1 900 HELP | call us at 5 5 5 | five five five zero one
    one nine hundred | nine zero zero | uno nueve cero cero | neun null null | un neuf zéro | 一九零零五五 | 12345
    1.2.3.4 | your account is locked | Your account is locked, call one nine hundred | Please call back
    urgent notice | congratulations winner | Acme 🎉 | Ac\u0007me | Acme\u202e | Acme\u0000 | Acme\ud800 | !!! | -
    & | Ac_me | Ac=me | $$$ | one word too many makes nine of them here
    AcmeAcmeAcmeAcmeAcmeAcmeAcmeAcmeAcmeAcmeAcmeAcmeAcmeAcmeAcmeA | dial star | llame ahora
    (none) | (null) | acme dot co dot uk | evil punkt de
"""
NUMBERS = "7 | 0 | -3 | +5 | 1.5 | 1,5 | 1,000 | 1,000,000 | 250000 | 9999999 | 0.25 | ٣ | 3.1415"
NO_NUMBERS = """
    seven | 1e5 | 0x10 | nan | inf | 12345678 | 4155550100 | +14155550100 | 555-0100 | 415 555 0100 | 1.23456
    1.2.3 | 1,2,3 | 1,00,000 | -- | - | . | 1. | .5 | 5% | $5 | 5 euros | ½ | ² | 1\u0000
"""


Reader = Callable[[object], str | None]
OTHERS: list[tuple[Reader, object, str | None]] = [
    (read_name, "  Ada \t", "Ada"), (read_name, "Ada\n", "Ada"), (read_name, "Ada  Maria", "Ada Maria"),
    (read_name, "Ada\nMaria", None), (read_name, "", None), (read_name, " \n", None), (read_name, "A" * 100, None),
    (read_name, "Ab" * 20, "Ab" * 20), (read_name, "Ab" * 20 + "a", None), (read_name, "رضا\u200cعلی", "رضا\u200cعلی"),
    (read_name, "Ada " * 300, None), (read_name, None, None), (read_name, 7, None), (read_name, ["Ada"], None),
    (read_name, {"a": "Ada"}, None), (read_name, True, None), (read_name, b"Ada", None), (read_given_name, None, None),
    (read_given_name, 3.5, None), (read_words, "two  words\n", "two words"), (read_words, "two\nlines", None),
    (read_words, "Ab" * 30, "Ab" * 30), (read_words, "Ab" * 30 + "a", None), (read_words, 7, "7"), (read_words, 1.5, "1.5"),
    (read_words, 12345, None), (read_words, True, None), (read_words, None, None), (read_words, [], None),
    (read_words, "x" * 8192, None), (read_number, 7, "7"), (read_number, 1.5, "1.5"), (read_number, 12.0, "12"),
    (read_number, -3, "-3"), (read_number, 9_999_999, "9999999"), (read_number, 10_000_000, None),
    (read_number, 10**5000, None), (read_number, -(10**99), None),
    (read_number, float("nan"), None), (read_number, float("inf"), None),
    (read_number, 1e300, None), (read_number, True, None), (read_number, None, None), (read_number, {}, None),
    (read_number, " 12 ", "12"), (read_number, "1" * 5000, None), (read_number, "", None),
]  # fmt: skip


def cases() -> Iterator[tuple[Reader, object, str | None]]:
    """(reader, value, spoken). In a block, "ADA > Ada" is spoken otherwise than it was typed."""
    tables: list[tuple[Reader, str, bool]] = [
        (read_name, NAMES, True), (read_name, NO_NAMES, False), (read_given_name, FULL_NAMES, True),
        (read_given_name, NO_FULL_NAMES, False), (read_words, WORDS, True), (read_words, NO_WORDS, False),
        (read_number, NUMBERS, True), (read_number, NO_NUMBERS, False),
    ]  # fmt: skip
    for reader, table, is_spoken in tables:
        for case in filter(None, (case.strip(" ") for line in table.split("\n") for case in line.split(" | "))):
            value, _, spoken = case.partition(" > ") if is_spoken else (case, "", "")
            yield reader, value, (spoken or value) if is_spoken else None
    yield from OTHERS


def test_values_that_fit_their_kind_alone_are_spoken() -> None:
    table = list(cases())
    wrong = [
        (reader.__name__, value, spoken, found) for reader, value, spoken in table if (found := reader(value)) != spoken
    ]
    assert wrong == []
    assert len(table) > 500
    assert {reader for reader, _, _ in table} >= set(READERS.values())


@given(st.text(st.characters(exclude_categories=()), max_size=120))
def test_spoken_values_are_short_plain_and_stable(text: str) -> None:
    for reader, longest in ((read_name, LONGEST_NAME), (read_given_name, LONGEST_NAME), (read_words, LONGEST_WORDS)):
        spoken = reader(text)
        if spoken is not None:
            assert len(spoken) <= longest
            assert not set(spoken) & set("<>{}[]@\\|\x00\n\u202e")
            assert reader(spoken) == spoken
