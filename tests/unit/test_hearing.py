"""Spoken words are matched to answers: 200 phrases in three languages, and the words of an opt-out."""

from __future__ import annotations

import re
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from function.twilio_form import read_heard, read_voice_request
from function.voice import handle
from shared.conversation.checks import check
from shared.conversation.hearing import hints, match, phrase, spoken_choices, wishes
from shared.conversation.script import Script
from shared.conversation.turns import Learned, Place, Turn, first_turn, next_turn
from shared.conversation.twiml import render_twiml
from shared.jobs import JobsUnavailable
from tests.sandbox.twilio import twiml

LANGUAGES: dict[str, dict[str, Any]] = {
    "en-US": {
        "voice": "Polly.Joanna", "1": ["yes", "yeah", "sure", "of course"], "2": ["no", "nope", "not now", "not sure"],
        "3": ["call me later", "later"], "9": ["stop calling", "do not call", "don't ever call", "off your list"],
        "yes": ["yes", "I am"],
    },
    "es-MX": {
        "voice": "Polly.Mia", "1": ["sí", "claro", "por supuesto"], "2": ["no", "ahora no", "no estoy seguro"],
        "3": ["más tarde", "luego"], "9": ["no me llamen", "dejen de llamar"], "yes": ["sí"],
    },
    "de-DE": {
        "voice": "Polly.Vicki", "1": ["ja", "klar", "gern", "natürlich"], "2": ["nein", "nö", "nicht jetzt", "nicht sicher"],
        "3": ["später"], "9": ["nicht mehr anrufen", "hört auf"], "yes": ["ja"],
    },
}  # fmt: skip

# key: phrases that count as it; "": asked again.
PHRASES = {
    "en-US": {
        "1": """yes | Yes. | YES! | yeah | Yeah, sure | sure | Sure thing | of course | Of course! | oh yes please
            yes please | uh one | one please | yeah I guess so | I do not know. Yes!
            well yes | yes yes yes | one | One. | 1 | number one | the first, so one | uh yeah | yes I would
            that would be yes | okay sure | hmm, yes | Yés""",
        "2": """no | No. | nope | NOPE | no thanks | no thank you | not now | not now please | I'm not sure | not sure
            no not now | no, not now | uh two | two not one | not one but two | no problem | of course not, no | never, two
            I am not sure yes | two | 2 | Two! | number two please | oh no | hell no | sorry, not now | well, no""",
        "3": """later | call me later | please call me later | could you call me later today | three | 3 | much later
            Call me, later""",
        "9": """stop calling | stop calling me | Stop calling me! | please stop calling | do not call
            do not call me again | don't call me | Don’t call | dont call me ever | nine | 9 | yes stop calling
            not now, stop calling | stop calling, call me later | do not call me later | why don't you stop calling me
            Don't ever call me again! | DO NOT EVER CALL ME | take me off your list, no
            one moment, stop calling | they do not stop calling | no, stop calling me | you must stop calling this number""",
        "": """ | maybe | yesterday | nobody | know | yes no | no yes | yes or no | surely | one two | two or three
            not yes | I'm not so sure | of course not | one moment please | in two minutes
            twenty two | which one | one more time | two hundred | the second one | don't say yes
            four | 7 | eleven | none | noon | hello | who is this | what | yes, later | yes two | I want a pizza
            call | stop | calling stop | oneself | stopcalling | no one | ...""",
    },
    "es-MX": {
        "1": """sí | Sí. | si | SI | sí señor | claro | claro que sí | ¡Claro! | por supuesto | uno | el uno | 1
            bueno, sí | ay sí""",
        "2": """no | No, gracias | ahora no | ahora no puedo | no estoy seguro | dos | 2 | pues no | no no no
            claro que no | por supuesto que no | dos por favor
            el dos por favor | No estoy seguro, sí""",
        "3": "más tarde | mas tarde | MÁS TARDE | luego | tres | 3 | mejor más tarde | hasta luego",
        "9": """no me llamen | no me llamen más | ya no me llamen por favor | dejen de llamar
            Dejen de llamarme, dejen de llamar | nueve | 9""",
        "": """ | tal vez | sí o no | nosotros | sino | unos | un | una | cuatro | quién habla | bueno | llamen | no sí
            un momento | dos minutos | treinta y dos | no está claro | no por supuesto que sí, claro
            asi | doscientos | luego no | qué""",
    },
    "de-DE": {
        "1": """ja | Ja. | JA | ja bitte | klar | na klar | gern | natürlich | naturlich | NATÜRLICH | eins | 1
            die eins | ach ja | ja ja""",
        "2": """nein | Nein danke | nö | no | nicht jetzt | jetzt nicht, nicht jetzt | bin nicht sicher | zwei | 2
            die Zwei bitte | nein nein | zwei bitte | nein nicht jetzt | Nicht sicher, ja""",
        "3": "später | spater | vielleicht später | drei | 3 | etwas später bitte | SPÄTER",
        "9": """nicht mehr anrufen | bitte nicht mehr anrufen | mich nicht mehr anrufen! | hört auf | hort auf damit
            neun | 9""",
        "": """ | vielleicht | jaja | ja oder nein | eine | ein Moment | anrufen | nicht | kein | vier | hallo
            natürlich nicht | zwei Minuten | ja nicht | nicht so gern | zwei Minuten bitte
            wer ist da | jahr | einsam | nein später | zweite""",
    },
}


def script(language: str = "en-US", **changes: Any) -> Script:
    words = LANGUAGES[language]
    answers = {key: {"means": f"means {key}", "hear": words[key]} for key in "123"}
    raw = {
        "language": language, "voice": words["voice"], "listen": "speech", "greeting": "Hello.",
        "goodbye": "Bye.", "apology": "Sorry.",
        "opt_out": {"key": "9", "say": "Out.", "confirm": "Never.", "hear": words["9"], "ask": "Really?", "yes": words["yes"]},
        "questions": [{"id": "q", "say": "Well?", "answers": answers}],
    }  # fmt: skip
    made = check(raw | changes, "spoken")
    assert isinstance(made, Script), made
    return made


def test_spoken_phrases_count_as_their_keys_in_three_languages() -> None:
    wrong, count = [], 0
    for language, keys in PHRASES.items():
        made = script(language)
        choices = spoken_choices(made, made.questions[0])
        phrases = [(each.strip(), key) for key, text in keys.items() for each in re.split(r"[|\n]", text)]
        found = [(said, key, match(said, choices, wishes(made), language) or "") for said, key in phrases]
        wrong += [(language, *each) for each in found if each[1] != each[2]]
        count += len(phrases)
    assert wrong == []
    assert count >= 200


def test_an_answer_is_learned_from_spoken_words() -> None:
    made, place = script(), Place("spoken", "q")
    assert next_turn(made, place, "", "Sure!") == Turn(says=("Bye.",), learned=Learned("q", "means 1", "1"))
    assert next_turn(made, place, "2", "Sure!").learned == Learned("q", "means 2", "2")
    assert next_turn(made, place, "", "maybe") == next_turn(made, place, "")
    deaf = script().model_copy(update={"listen": "keys"})
    assert next_turn(deaf, place, "", "Sure!") == next_turn(deaf, place, "")


def test_a_spoken_opt_out_is_confirmed_once() -> None:
    made, place, asking = script(), Place("spoken", "q", 2), Place("spoken", "opt_out.q", 2)
    assert next_turn(made, place, "", "stop calling me") == Turn(asks=("Really?",), place=asking)
    out, back = Turn(says=("Never.",), opts_out=True), Turn(asks=("Well?",), place=place)
    table = {
        out: [("9", ""), *(("", said) for said in ("yes", "I am!", "stop calling", "yes, no more", "no, stop calling"))],
        back: [("", ""), ("1", ""), ("2", "yes"), *(("", said) for said in (
            "no", "maybe", "no, yes", "not yes", "no, do not stop calling", "don't stop calling",
        ))],
    }  # fmt: skip
    found = {turn: [next_turn(made, asking, *said) for said in table[turn]] for turn in table}
    assert found == {turn: [turn] * len(table[turn]) for turn in table}
    silent, bye = script(questions=[]), Turn(says=("Bye.",))
    asked = next_turn(silent, Place("spoken", "goodbye"), "", "do not call")
    assert asked.place is not None
    assert [next_turn(silent, asked.place, "", said) for said in ("yes", "no")] == [out, bye]
    assert next_turn(made, Place("gone", "opt_out.q"), "", "no") == bye


def test_spoken_opt_out_is_asked_about_without_a_database() -> None:
    """No URL holds the words, so a wait would lose them; a yes waits as its key."""
    made, dispatcher = script(), Mock()
    dispatcher.record_answer.side_effect = JobsUnavailable("down")
    library = Mock(named=Mock(return_value=made))
    table = {("q", "stop calling me"): ("at=opt_out.q", "Gather", None), ("opt_out.q", "yes"): ("keys=9", "Redirect", "yes"),
             ("q", "sure"): ("keys=1", "Redirect", "sure")}  # fmt: skip
    for (at, said), (kept, verb, heard) in table.items():
        query = {"attempt": str(uuid4()), "script": "spoken", "at": at, "try": "1"}
        form = {"CallSid": "CA" + "a" * 32, "SpeechResult": said}
        document = handle(read_voice_request(form, query, "https://x.example/voice"), dispatcher, library)
        assert (kept in document, verb in document) == (True, True), (at, said)
        assert dispatcher.record_answer.call_args.args[2].heard == heard, (at, said)


def test_a_spoken_opt_out_key_needs_its_question() -> None:
    opt_out = {"key": "9", "say": "Out.", "confirm": "Never."}
    assert next_turn(script(opt_out=opt_out), Place("spoken", "q"), "", "nine").opts_out is False
    assert next_turn(script(), Place("spoken", "q"), "", "nine").asks == ("Really?",)


def test_unsure_and_odd_speech_counts_as_silence() -> None:
    table: dict[str, tuple[dict[str, str], str]] = {
        "sure": ({"SpeechResult": "Yes.", "Confidence": "0.9"}, "Yes."),
        "just sure": ({"SpeechResult": "Yes.", "Confidence": "0.4"}, "Yes."),
        "unsure": ({"SpeechResult": "Yes.", "Confidence": "0.39"}, ""),
        "no confidence": ({"SpeechResult": " two\twords\x00 "}, "two words"),
        "odd confidence": ({"SpeechResult": "Yes.", "Confidence": "high"}, ""),
        "not a number": ({"SpeechResult": "Yes.", "Confidence": "nan"}, ""),
        "empty confidence": ({"SpeechResult": "Yes.", "Confidence": ""}, ""),
        "nothing": ({}, ""),
        "a speech": ({"SpeechResult": "word " * 101}, ""),
    }
    assert {name: (form, read_heard(form)) for name, (form, _) in table.items()} == table


def test_negations_and_articles_of_other_languages_count() -> None:
    """language, a phrase of key 1, the words said -> whether they are key 1."""
    table = {
        ("es-MX", "me interesa", "sí me interesa"): True, ("es-MX", "me interesa", "no me interesa"): False,
        ("de-DE", "interessiert mich", "das interessiert mich nicht"): False, ("fr-FR", "bien sûr", "bien sûr que non"): False,
        ("fr-FR", "oui", "oui, pas de souci"): True, ("fr-FR", "oui", "un instant"): False, ("fr-FR", "oui", "un autre"): False,
        ("fr-FR", "oui", "un s'il vous plaît"): True, ("fr-FR", "oui", "le numéro un"): True,
        ("fr-FR", "sûr", "pas très sûr"): False,
        ("pt-BR", "tenho interesse", "não tenho interesse"): False, ("nl-NL", "ja", "een moment"): False,
    }  # fmt: skip
    found = {}
    for language, hear, said in table:
        made = script().model_copy(update={"language": language})
        answers = {"1": made.questions[0].answers["1"].model_copy(update={"hear": [hear]})}
        choices = spoken_choices(made, made.questions[0].model_copy(update={"answers": answers}))
        found[language, hear, said] = match(said, choices, (), language) == "1"
    assert found == table


def test_a_listening_gather_takes_keys_and_speech() -> None:
    made = script("es-MX")
    turn = first_turn(made)
    text = render_twiml(turn, made, None, "https://x.example/voice?attempt=1")
    parsed = twiml.parse(text.encode(), "text/xml")
    (gather,) = parsed.verbs
    assert parsed.warnings == []
    assert isinstance(gather, twiml.Gather)
    assert gather.listens
    assert [each for each in ('input="dtmf speech"', 'language="es-MX"') if each not in text] == []
    assert hints(made, made.questions[0]).startswith("sí, claro, por supuesto, no, ahora no, ")
    deaf = made.model_copy(update={"listen": "keys"})
    assert 'input="dtmf"' in render_twiml(turn, deaf, None, "")


@given(st.text(st.characters(exclude_categories=()), max_size=80), st.sampled_from([*LANGUAGES]))
def test_any_speech_leads_to_a_turn_and_one_meaning(heard: str, language: str) -> None:
    made = script(language)
    choices = spoken_choices(made, made.questions[0])
    assert match(heard, choices) in {None, "1", "2", "3", "9"}
    upper, lower = heard.upper(), heard.lower()
    assert match(upper, choices) == match(lower, choices) or phrase(upper) != phrase(lower)
    for at in ("q", "opt_out.q", "goodbye", "gone"):
        turn = next_turn(made, Place("spoken", at), "", heard)
        assert turn.place or turn.says
