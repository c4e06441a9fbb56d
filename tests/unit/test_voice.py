"""A person on the line hears words within Twilio's 15 seconds, whatever fails."""

from __future__ import annotations

import importlib
import io
import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from unittest.mock import Mock
from urllib.parse import urlencode
from uuid import uuid4

import flask
import pytest
import structlog
from twilio.request_validator import RequestValidator

from shared import database
from shared.conversation import library
from shared.logs import configure_logs
from tests.sandbox.twilio import twiml
from tests.unit.examples import ENVIRON

FORM = {"CallSid": "CA" + "0" * 32, "CallStatus": "in-progress", "Digits": "2"}
LONGEST_SECONDS = 15.0  # www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The HTTP entry point, imported with valid settings. Its logging is removed afterwards."""
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    monkeypatch.delitem(sys.modules, "function.main", raising=False)
    yield importlib.import_module("function.main")
    monkeypatch.delitem(sys.modules, "function.main")
    root.handlers[:], root.level = before
    structlog.reset_defaults()


def ask(main: ModuleType, path: str, form: dict[str, str]) -> flask.Response:
    signature = RequestValidator(ENVIRON["TWILIO_AUTH_TOKEN"]).compute_signature(ENVIRON["API_BASE_URL"] + path, form)
    app = flask.Flask(__name__)
    with app.test_request_context(path, method="POST", data=form, headers={"X-Twilio-Signature": signature}):
        response: flask.Response = main.dispatch(flask.request)
        return response


def test_internal_fault_is_an_apology_not_an_error_page(main: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = {
        "": ValueError("odd"),
        "&script=demo&at=team_size&try=1": RecursionError(),
        "&script=%00&at=%ff&try=1": MemoryError(),
    }
    default = main.scripts.default
    for place, fault in faults.items():
        monkeypatch.setattr(main, "parts", Mock(side_effect=fault))
        answer = ask(main, f"/voice?attempt={uuid4()}{place}", FORM)
        assert (answer.status_code, answer.mimetype) == (200, "text/xml")
        said = twiml.parse(answer.get_data(), "text/xml")
        assert said.verbs == [twiml.Say(default.apology), twiml.Say(default.goodbye), twiml.Hangup()]


def test_answer_lost_to_a_fault_is_logged(main: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logs(written := io.StringIO(), json=True)
    monkeypatch.setattr(main, "parts", lambda: (None, None))
    attempt = str(uuid4())
    query = urlencode({"attempt": attempt, "script": "demo", "at": "team_size", "try": "1"})
    ask(main, f"/voice?{query}", FORM)
    (line,) = [line for line in written.getvalue().splitlines() if "internal error" in line]
    assert all(word in line for word in (attempt, "team_size", '"digits": "2"', '"severity": "ERROR"'))


def test_numbers_of_colleagues_are_screened_at_the_start(main: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Mock(wraps=library.Scripts)
    monkeypatch.setattr(library, "Scripts", made)
    monkeypatch.delitem(sys.modules, "function.main")
    again = importlib.import_module("function.main")
    made.assert_called_once_with(settings=again.settings)


def test_database_timeouts_sum_below_twilio_limit() -> None:
    assert database.FIRST_TRY_SECONDS + database.SECOND_TRY_SECONDS < LONGEST_SECONDS
    assert database.ANSWER_SECONDS < LONGEST_SECONDS
