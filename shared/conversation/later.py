"""A later call that a person asks for: the moment that an answer's `later` names, and its words in the script's language."""

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Final

LATER: Final = "later"
"""The placeholder of the agreed time, in the `say` of an answer with `later`."""

_WISH: Final = re.compile(
    r"(?P<hours>[1-9]|[1-3][0-9]|4[0-8])h|(?P<day>tomorrow|next weekday) (?P<time>([01][0-9]|2[0-3]):[0-5][0-9])"
)
_DAY: Final = timedelta(days=1)
_STEP: Final = timedelta(minutes=5)
_WEEK: Final = 7
_SATURDAY: Final = 5


@dataclass(frozen=True)
class _Words:
    """`days` are Monday to Sunday; with `at` and a time they follow each other. `zone` names the place of the clock."""

    today: str
    tomorrow: str
    days: tuple[str, ...]
    at: str
    zone: str
    clock: str = "%H:%M"


def _days(words: str) -> tuple[str, ...]:
    return tuple(words.split(","))


_WORDS: Final = {
    "en": _Words(
        "today", "tomorrow", _days("on Monday,on Tuesday,on Wednesday,on Thursday,on Friday,on Saturday,on Sunday"),
        "at {}", "{} time", "%I:%M %p",
    ),
    "es": _Words(
        "hoy", "mañana", _days("el lunes,el martes,el miércoles,el jueves,el viernes,el sábado,el domingo"),
        "a las {}", "hora de {}",
    ),
    "de": _Words(
        "heute", "morgen", _days("am Montag,am Dienstag,am Mittwoch,am Donnerstag,am Freitag,am Samstag,am Sonntag"),
        "um {} Uhr", "Zeit von {}",
    ),
    "fr": _Words(
        "aujourd'hui", "demain", _days("lundi,mardi,mercredi,jeudi,vendredi,samedi,dimanche"), "à {}", "heure de {}",
    ),
    "it": _Words(
        "oggi", "domani", _days("lunedì,martedì,mercoledì,giovedì,venerdì,sabato,domenica"), "alle {}", "ora di {}",
    ),
    "pt": _Words(
        "hoje", "amanhã",
        _days("na segunda-feira,na terça-feira,na quarta-feira,na quinta-feira,na sexta-feira,no sábado,no domingo"),
        "às {}", "hora de {}",
    ),
    "nl": _Words(
        "vandaag", "morgen",
        _days("op maandag,op dinsdag,op woensdag,op donderdag,op vrijdag,op zaterdag,op zondag"),
        "om {}", "tijd van {}",
    ),
}  # fmt: skip
LANGUAGES: Final = tuple(_WORDS)
"""The languages in which a time can be said."""


def is_wish(text: str) -> bool:
    return _WISH.fullmatch(text) is not None


def wished_moment(wish: str, now: datetime) -> datetime:
    """The moment that `wish` names, by the clock of `now` (aware, where the person is). Hours end on full five minutes."""
    found = _WISH.fullmatch(wish)
    if found is None:
        raise ValueError(f"{wish!r} names no moment")
    if found["hours"]:
        # Not by the wall clock: two hours are two hours, also when the clocks are changed.
        seconds = now.timestamp() + int(found["hours"]) * 3600
        step = _STEP.total_seconds()
        return datetime.fromtimestamp(-(-seconds // step) * step, now.tzinfo)
    day = now.date() + _DAY
    while found["day"] == "next weekday" and day.weekday() >= _SATURDAY:
        day += _DAY
    return datetime.combine(day, time.fromisoformat(found["time"]), now.tzinfo)


def time_in_words(language: str, moment: datetime, now: datetime, place: str | None = None) -> str:
    """ "tomorrow at 10:00 AM". `moment` is in the zone in which it is said; `place` is named if that is not certain."""
    words = _WORDS[language.partition("-")[0]]
    days = (moment.date() - now.astimezone(moment.tzinfo).date()).days
    day = {0: words.today, 1: words.tomorrow}.get(days, words.days[moment.weekday()])
    if days >= _WEEK:
        day = f"{day}, {moment:%Y-%m-%d},"
    said = f"{day} {words.at.format(moment.strftime(words.clock).removeprefix('0') or '0')}"
    return f"{said}, {words.zone.format(place)}" if place else said
