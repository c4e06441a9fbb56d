"""The next words: a pure function of the script, the place in it and the pressed key or the spoken words.

    first_turn -> asks at a place -> next_turn(place, key) -> asks at the next place -> ... -> the goodbye

Nothing is stored between two turns: the place travels in the URL that Twilio calls next and signs. The same request
yields the same turn.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from shared.conversation.hearing import confirms_opt_out, match, spoken_choices, wishes
from shared.conversation.later import LATER
from shared.conversation.script import GOODBYE, Answer, Connect, Question, Script
from shared.conversation.texts import Texts, given

OPT_OUT = "opt_out."
"""Before the id of a question: the place where a spoken opt-out waits for its confirmation."""
CONNECT = "connect.wait"
"""The place after the greeting of a script with an agent: the call waits a moment for the opt-out key, then the agent has it."""
AGENT_ENDED = "connect.ended"
AGENT_FAILED = "connect.failed"
"""The places after the agent's session, as Twilio reports its end."""
DIAL = "dial."
WHISPER = "whisper."
"""Before a key and the id of a question: the place after the colleague's leg, and the place on that leg itself."""


@dataclass(frozen=True)
class Place:
    """A position in a script, which is named by its file: a question's id, or "goodbye". `tries`: how often it was asked, with this
    time."""

    script: str
    at: str
    tries: int = 1


@dataclass(frozen=True)
class Learned:
    """An answer: the key that was pressed or spoken, and its meaning in this question."""

    question: str
    meaning: str
    key: str


@dataclass(frozen=True)
class Turn:
    """`says` comes first, then `asks` while keys are accepted. Without a `place` the call ends. `connects`: the agent has the call.

    All texts are the script's own, with their placeholders. `later`: when another call is wished for; `says` confirms it.
    `dials`: after `says` a colleague is rung, and the call comes back to `place`.
    """

    says: Texts = ()
    asks: Texts = ()
    place: Place | None = None
    learned: Learned | None = None
    opts_out: bool = False
    later: str | None = None
    connects: bool = False
    dials: bool = False


def first_turn(script: Script) -> Turn:
    """The greeting and the opt-out line. The opt-out key works from the first word, also in a script without questions."""
    opening = (script.greeting, script.opt_out.say)
    if script.connect is None and script.questions:
        first = script.questions[0]
        return Turn(asks=(*opening, first.say), place=Place(script.name, first.id))
    return Turn(asks=opening, place=Place(script.name, CONNECT if script.connect else GOODBYE))


def next_turn(script: Script, place: Place, key: str, heard: str = "") -> Turn:
    """The turn after `key` was pressed, or `heard` was said, at `place`; both are "" for silence. A place that the script
    does not have leads to the goodbye: the scripts may have changed since the question was asked."""
    if key == script.opt_out.key:
        return opt_out_turn(script)
    if place.at.startswith(DIAL):
        return _turn_after_dial(script, place)
    at = place.at.removeprefix(OPT_OUT)
    question = script.question(at) if place.script == script.name else None
    if place.script == script.name and script.connect is not None and at in (AGENT_ENDED, AGENT_FAILED):
        return _turn_after_agent(script, script.connect, ended=at == AGENT_ENDED)
    if place.at.startswith(OPT_OUT):
        return _after_opt_out_question(script, question, place, "" if key else heard)
    if heard and not key and script.listen != "keys":
        key = match(heard, spoken_choices(script, question), wishes(script), script.language) or ""
        if key == script.opt_out.key and script.opt_out.ask is not None:
            return Turn(asks=(script.opt_out.ask,), place=Place(script.name, f"{OPT_OUT}{at}", place.tries))
    if question is None:
        return _turn_without_question(script, place, at)
    answer = question.answers.get(key)
    if answer is None and place.tries <= question.repeat:
        return _turn_to(script, question, given(script.again), place.tries + 1)
    if answer is None:  # asked often enough
        return _turn_to(script, None, given(question.no_answer))
    says, learned = given(answer.say), Learned(question.id, answer.means, key)
    if answer.later:
        return Turn(says=says, learned=learned, later=answer.later)
    if answer.dial:
        return Turn(says=says, place=Place(script.name, f"{DIAL}{key}.{question.id}"), learned=learned, dials=True)
    return replace(_turn_to(script, script.following_question(question, key), says), learned=learned)


def _turn_to(script: Script, question: Question | None, says: Texts = (), tries: int = 1) -> Turn:
    """The question; without one the goodbye."""
    if question is None:
        return Turn(says=(*says, script.goodbye))
    return Turn(says=says, asks=(question.say,), place=Place(script.name, question.id, tries))


class Dialed(NamedTuple):
    """An answer that rings a colleague, its key and its question."""

    question: Question
    key: str
    answer: Answer


def dialed_answer(script: Script, place: Place) -> Dialed | None:
    """The answer that led to a place after `dial.` or `whisper.`; None: the script does not have it any more."""
    key, _, question_id = place.at.removeprefix(DIAL).removeprefix(WHISPER).partition(".")
    question = script.question(question_id) if place.script == script.name else None
    answer = question.answers.get(key) if question else None
    return Dialed(question, key, answer) if question and answer and answer.dial else None


def _turn_after_dial(script: Script, place: Place) -> Turn:
    """No colleague took the call."""
    dialed = dialed_answer(script, place)
    if dialed is None:
        return _turn_to(script, None)
    following = script.following_question(dialed.question, dialed.key)
    return _turn_to(script, following, given(dialed.answer.no_answer))


def _after_opt_out_question(script: Script, question: Question | None, place: Place, heard: str) -> Turn:
    """Only a clear yes confirms a spoken opt-out. After anything else the conversation goes on where it was."""
    if heard and confirms_opt_out(script, heard):
        return opt_out_turn(script)
    if question is None:
        return _turn_without_question(script, place, place.at.removeprefix(OPT_OUT))
    return _turn_to(script, question, tries=place.tries)


def _turn_without_question(script: Script, place: Place, at: str) -> Turn:
    """The handover to the agent; or the goodbye."""
    if script.connect is not None and (place.script, at) == (script.name, CONNECT):
        return Turn(place=Place(script.name, AGENT_FAILED), connects=True)
    return _turn_to(script, None)


def _turn_after_agent(script: Script, connect: Connect, *, ended: bool) -> Turn:
    first = script.questions[0].id if script.questions else GOODBYE
    question = script.question(connect.then if ended else connect.failed or first)
    if ended:
        return _turn_to(script, question)
    return _turn_to(script, question, given(connect.sorry or (None if question else script.apology)))


def agreed_turn(turn: Turn, time: str) -> Turn:
    """The turn of a wish for a later call, with the agreed time in words."""
    says = tuple(text.replace(f"{{{LATER}}}", time) if isinstance(text, str) else text for text in turn.says)
    return replace(turn, says=says)


def turn_without(script: Script, turn: Turn, answered: Mapping[str, str], *, may_ask_for_later: bool) -> Turn:
    """Leave out the questions that the agent has `answered`, and those that offer a later call if none may be asked for."""
    asked = following = script.question(turn.place.at) if turn.place else None
    left_out: set[str] = set()
    while following and following.id not in left_out:
        meaning = answered.get(following.id)
        if meaning is None and (may_ask_for_later or not following.offers_later):
            break
        left_out.add(following.id)
        following = script.following_question(following, following.key_of(meaning))
    if asked is None or not left_out:
        return turn
    opening = turn.asks[:-1]  # the greeting
    if following is None or following.id in left_out:
        return replace(turn, says=(*turn.says, *opening, script.goodbye), asks=(), place=None)
    return replace(turn, asks=(*opening, following.say), place=Place(script.name, following.id))


def opt_out_turn(script: Script) -> Turn:
    return Turn(says=(script.opt_out.confirm,), opts_out=True)


def apology_turn(script: Script) -> Turn:
    """For a fault on our side, such as a database that does not answer."""
    return Turn(says=(script.apology, script.goodbye))


def voicemail_turn(script: Script) -> Turn:
    """The message to an answering machine; without one the call hangs up."""
    return Turn(says=given(script.machine))
