"""The door. Each request is proved, read once, handed to the room of its caller, and answered; no other file knows HTTP.

functions-framework --target=dispatch
"""

import threading
from collections.abc import Callable
from typing import Any

import flask
import structlog
from werkzeug.exceptions import HTTPException

from function import call_status, voice, webhook
from function.auth import (
    AuthenticationError,
    KeysUnavailable,
    authenticate_sweep,
    authenticate_twilio,
    authenticate_webhook,
    google_keys,
    own_path,
)
from function.sweep import sweep_once
from function.twilio_form import CallEvent, read_attempt, read_event, read_place
from shared.conversation.script import ScriptError, Scripts
from shared.conversation.turns import apology_turn
from shared.conversation.twiml import render_twiml
from shared.dispatcher import Dispatcher, build_dispatcher
from shared.jobs import JobsUnavailable
from shared.logs import bind_trace, clear, configure_logs
from shared.settings import SettingsError, load_settings

MAX_BODY_BYTES = 64 * 1024

log = structlog.get_logger()

try:
    settings = load_settings()
    scripts = Scripts()
except (SettingsError, ScriptError) as error:
    raise SystemExit(str(error)) from None
configure_logs(secrets=settings.secrets)

_dispatcher: Dispatcher | None = None
_building = threading.Lock()


def dispatcher() -> Dispatcher:
    """Made at the first request: gunicorn imports this file in its master and forks its workers afterwards."""
    global _dispatcher
    with _building:
        _dispatcher = _dispatcher or build_dispatcher(settings)
        return _dispatcher


def dispatch(request: flask.Request) -> flask.Response:
    """Every request comes in here, and every error is answered here."""
    clear()
    bind_trace(request.headers)
    route = ROUTES.get(own_path(settings, request.path))
    if route is None:
        return problem(404, "not_found", "there is nothing at this path")
    method, handle = route
    if request.method != method:
        return problem(405, "method_not_allowed", f"only {method} is answered here", Allow=method)
    if (
        method == "POST"
        and not 0 <= (-1 if request.content_length is None else request.content_length) <= MAX_BODY_BYTES
    ):
        return too_large()
    try:
        return handle(request)
    except AuthenticationError as unproved:
        log.warning("refused: no proof of who is calling", kind="unauthorized", path=request.path, reason=str(unproved))
        return problem(401, "unauthorized", "no valid proof of who is calling")
    except webhook.BadPayload as bad:
        return problem(400, "bad_request", str(bad))
    except HTTPException as odd:  # werkzeug's own, say of a client that went away in the middle of its body
        return problem(odd.code or 400, "bad_request", odd.name)
    except (JobsUnavailable, KeysUnavailable) as down:
        log.error("a dependency is down", path=request.path, reason=str(down))
        return problem(503, "unavailable", "a dependency is down; the sweep will look again", **{"Retry-After": "30"})
    except Exception:
        log.exception("a fault of ours", path=request.path)
        return problem(500, "internal", "a fault of ours; it has been logged")


def on_webhook(request: flask.Request) -> flask.Response:
    body = request.get_data(cache=True)
    authenticate_webhook(settings, request.headers, body)
    return reply(webhook.handle(body, dispatcher()))


def on_sweep(request: flask.Request) -> flask.Response:
    authenticate_sweep(settings, request.headers, google_keys())
    return reply(sweep_once(dispatcher()))


def on_voice(request: flask.Request) -> flask.Response:
    event, attempt, place = twilio_event(request), read_attempt(request.args.get("attempt")), read_place(request.args)
    try:
        twiml = voice.handle(attempt, place, event, dispatcher(), scripts)
    except Exception:
        # Somebody holds a phone to their ear: an error page would be read out to them as Twilio's own apology.
        log.exception(
            "a fault of ours: a call hears the apology", attempt=str(attempt), place=place, digits=event.digits
        )
        twiml = render_twiml(apology_turn(scripts.default), scripts.default, None)
    return flask.Response(twiml, content_type="text/xml; charset=utf-8")


def on_status(request: flask.Request) -> flask.Response:
    event, attempt = twilio_event(request), read_attempt(request.args.get("attempt"))
    call_status.handle(attempt, event, dispatcher(), scripts)
    return flask.Response(status=204)


def twilio_event(request: flask.Request) -> CallEvent:
    """Proved, then read. Twilio posts plain forms; a multipart one would be parsed at length before it could be refused."""
    if request.mimetype != "application/x-www-form-urlencoded":
        raise AuthenticationError("not a form as Twilio posts it")
    authenticate_twilio(settings, request.headers, request.path, request.query_string, request.form)
    return read_event(request.form)


def on_health(_request: flask.Request) -> flask.Response:
    return reply({"status": "ok"})


ROUTES: dict[str, tuple[str, Callable[[flask.Request], flask.Response]]] = {
    "/": ("POST", on_webhook),
    "/sweep": ("POST", on_sweep),
    "/voice": ("POST", on_voice),
    "/status": ("POST", on_status),
    "/health": ("GET", on_health),
}


def reply(body: dict[str, Any], status: int = 200, **headers: str) -> flask.Response:
    response = flask.jsonify(body)
    response.status_code = status
    response.headers.update(headers)
    return response


def problem(status: int, code: str, message: str, **headers: str) -> flask.Response:
    return reply({"error": {"code": code, "message": message}}, status, **headers)


def too_large() -> flask.Response:
    """Streamed, because functions-framework reads the whole request after any answer that is not."""
    body = problem(413, "too_large", f"a body of at most {MAX_BODY_BYTES} bytes, with its Content-Length").get_data()
    return flask.Response(iter([body]), 413, content_type="application/json")
