"""What is said next: a pure function of the script, the place in it and the key that was pressed.

    begin -> asks at a place -> next_turn(place, key) -> asks at the next place -> ... -> the last words

Nothing is kept between two turns: the place travels in the URL that Twilio calls next, which it signs. A turn that is asked
for twice is the same turn.
"""

from dataclasses import dataclass

from shared.conversation.checks import GOODBYE
from shared.conversation.script import Question, Script


@dataclass(frozen=True)
class Place:
    """Where in which script we listen: a question's id, or "goodbye". `tries`: how often it was asked, this time included."""

    script: str
    at: str
    tries: int = 1


@dataclass(frozen=True)
class Learned:
    """An answer: what the key means in this question."""

    question: str
    meaning: str


@dataclass(frozen=True)
class Turn:
    """`says` is said first, and `asks` while the keys are listened to; at no `place` nobody listens, and the call ends.

    All texts are the script's own, placeholders and all.
    """

    says: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    place: Place | None = None
    learned: Learned | None = None
    opts_out: bool = False


def first_turn(script: Script) -> Turn:
    """The opt-out key is told, and listened to, before anything else: also where there is nothing to ask."""
    opening = (script.greeting, script.opt_out.say)
    if not script.questions:
        return Turn(asks=opening, place=Place(script.mode, GOODBYE))
    first = script.questions[0]
    return Turn(asks=(*opening, first.say), place=Place(script.mode, first.id))


def next_turn(script: Script, place: Place, key: str) -> Turn:
    """The turn after `key` was pressed at `place`; "" is silence. A place that the script does not have is a goodbye:
    scripts may have been changed since the question was asked."""
    if key == script.opt_out.key:
        return Turn(says=(script.opt_out.confirm,), opts_out=True)
    question = script.question(place.at) if place.script == script.mode else None
    if question is None:
        return Turn(says=(script.goodbye,))
    answer = question.answers.get(key)
    if answer is None:
        return _ask_again(script, question, place.tries)
    said = (answer.say,) if answer.say else ()
    learned = Learned(question.id, answer.means)
    following = script.question(answer.next or question.next or _below(script, question))
    if following is None:
        return Turn(says=(*said, script.goodbye), learned=learned)
    return Turn(says=said, asks=(following.say,), place=Place(script.mode, following.id), learned=learned)


def _ask_again(script: Script, question: Question, tries: int) -> Turn:
    if tries <= question.repeat:
        again = (script.again,) if script.again else ()
        return Turn(says=again, asks=(question.say,), place=Place(script.mode, question.id, tries + 1))
    last = (question.no_answer,) if question.no_answer else ()
    return Turn(says=(*last, script.goodbye))


def _below(script: Script, question: Question) -> str:
    """The id of the question after this one in the file."""
    ids = [each.id for each in script.questions]
    return [*ids[1:], GOODBYE][ids.index(question.id)]


def apology_turn(script: Script) -> Turn:
    """Our database, or we, do not work: a sentence and a goodbye."""
    return Turn(says=(script.apology, script.goodbye))


def voicemail_turn(script: Script) -> Turn:
    """What is left on an answering machine; nothing: it is hung up on."""
    return Turn(says=(script.machine,) if script.machine else ())
