"""A later call that a person asks for: the moment that an answer's `later` names, and its words in the script's language."""

import re
from datetime import datetime, time, timedelta
from typing import Final, NamedTuple

LATER: Final = "later"
"""The placeholder of the agreed time, in the `say` of an answer with `later`."""

_WISH: Final = re.compile(
    r"(?P<hours>[1-9]|[1-3][0-9]|4[0-8])h|(?P<day>tomorrow|next weekday) (?P<time>([01][0-9]|2[0-3]):[0-5][0-9])"
)
_DAY: Final = timedelta(days=1)
_STEP_SECONDS: Final = 300
_WEEK: Final = 7
_SATURDAY: Final = 5


class _Words(NamedTuple):
    """A day, `at` and a time follow each other. `zone` names the place of the clock."""

    today: str
    tomorrow: str
    at: str
    zone: str
    clock: str = "%H:%M"


_WORDS: Final = {
    "en": _Words("today", "tomorrow", "at {}", "{} time", "%I:%M %p"),
    "es": _Words("hoy", "mañana", "a las {}", "hora de {}"),
    "de": _Words("heute", "morgen", "um {} Uhr", "Zeit von {}"),
    "fr": _Words("aujourd'hui", "demain", "à {}", "heure de {}"),
    "it": _Words("oggi", "domani", "alle {}", "ora di {}"),
    "pt": _Words("hoje", "amanhã", "às {}", "hora de {}"),
    "nl": _Words("vandaag", "morgen", "om {}", "tijd van {}"),
}
_WEEKDAYS: Final = {
    "en": "on Monday,on Tuesday,on Wednesday,on Thursday,on Friday,on Saturday,on Sunday",
    "es": "el lunes,el martes,el miércoles,el jueves,el viernes,el sábado,el domingo",
    "de": "am Montag,am Dienstag,am Mittwoch,am Donnerstag,am Freitag,am Samstag,am Sonntag",
    "fr": "lundi,mardi,mercredi,jeudi,vendredi,samedi,dimanche",
    "it": "lunedì,martedì,mercoledì,giovedì,venerdì,sabato,domenica",
    "pt": "na segunda-feira,na terça-feira,na quarta-feira,na quinta-feira,na sexta-feira,no sábado,no domingo",
    "nl": "op maandag,op dinsdag,op woensdag,op donderdag,op vrijdag,op zaterdag,op zondag",
}
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
        steps = -(-(now.timestamp() + int(found["hours"]) * 3600) // _STEP_SECONDS)
        return datetime.fromtimestamp(steps * _STEP_SECONDS, now.tzinfo)
    day = now.date() + _DAY
    while found["day"] == "next weekday" and day.weekday() >= _SATURDAY:
        day += _DAY
    return datetime.combine(day, time.fromisoformat(found["time"]), now.tzinfo)


def time_in_words(language: str, moment: datetime, now: datetime, place: str | None = None) -> str:
    """ "tomorrow at 10:00 AM". `moment` is in the zone in which it is said; `place` is named if that is not certain."""
    language = language.partition("-")[0]
    words, weekdays = _WORDS[language], _WEEKDAYS[language].split(",")
    days = (moment.date() - now.astimezone(moment.tzinfo).date()).days
    day = {0: words.today, 1: words.tomorrow}.get(days, weekdays[moment.weekday()])
    if days >= _WEEK:
        day = f"{day}, {moment:%Y-%m-%d},"
    said = f"{day} {words.at.format(moment.strftime(words.clock).removeprefix('0') or '0')}"
    return f"{said}, {words.zone.format(place)}" if place else said
