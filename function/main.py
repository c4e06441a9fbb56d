"""HTTP entry point. Each request is authenticated, parsed once and passed to its handler. No other module depends on HTTP.

    cd function && functions-framework --target=dispatch

The program's errors, and the status that each becomes:

    AuthenticationError   401  the caller did not prove its identity                 function/auth.py
    KeysUnavailable       503  Google's signing keys could not be fetched            function/auth.py
    BadPayload            400  the body is not a Database Webhook                    function/webhook.py
    JobsUnavailable       503  the database did not answer; on_voice apologizes      shared/jobs.py
    CallNotPlaced         200  Twilio did not take the call; a verdict says why      shared/telephony.py
      DeadlinePassed           its cause when the claim was too old to dial
    TwilioUnavailable     200  Twilio did not answer another question; ask later     shared/telephony.py
    SettingsError         -    the process exits at start                            shared/settings.py
    ScriptError           -    the process exits at start                            shared/conversation/library.py

Any other exception is a defect: 500, and a stack trace in the log; on_voice apologizes.
"""

import io
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import flask
import structlog
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException

from function import auth, call_status, voice, webhook, worker
from function.sender import Sender
from function.sweep import sweep_once
from function.twilio_form import read_attempt, read_event, read_voice_request
from function.worker import READ_SECONDS, SWEEPS
from shared.conversation.library import ScriptError, Scripts
from shared.conversation.turns import apology_turn
from shared.conversation.twiml import render_twiml
from shared.jobs import Jobs, JobsUnavailable
from shared.logs import bind_trace, clear, configure_logs
from shared.models import FINAL_CALL_STATUSES
from shared.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from shared.dispatcher import Dispatcher

MAX_BODY_BYTES = 64 * 1024
UNREAD = (404, 405, 408, 413)  # answered before the body is read

log = structlog.get_logger()

try:
    settings = load_settings()
    scripts = Scripts(settings=settings)
except (SettingsError, ScriptError) as error:
    raise SystemExit(str(error)) from None
configure_logs(secrets=settings.secrets)

_parts: "tuple[Jobs, Dispatcher, Sender] | None" = None
_wiring = threading.Lock()


def parts() -> "tuple[Jobs, Dispatcher, Sender]":
    """Wired at the first request: gunicorn imports this module in its master process and forks its workers afterwards."""
    global _parts
    with _wiring:
        if _parts is None:
            from shared.dispatcher import wire  # with all that dials: listening does not wait for it

            jobs, dispatcher = wire(settings)
            sender = Sender(settings, jobs)
            _parts = jobs, dispatcher, sender
            sender.wake()  # events are written from now on, before this process's first call can end
        return _parts


def dispatch(request: flask.Request) -> flask.Response:
    """Answer every request, and every error."""
    clear()
    bind_trace(request.headers)
    path = auth.own_path(settings, request.path)
    if path not in ROUTES:
        return problem(404, "not_found", "there is nothing at this path")
    methods, handle = ROUTES[path]
    if request.method not in methods:
        allowed = ", ".join(methods)
        return problem(405, "method_not_allowed", f"only {allowed} is answered here", Allow=allowed)
    if refusal := read_body(request):
        return refusal
    try:
        return handle(request)
    except auth.AuthenticationError as error:
        return problem(401, "unauthorized", "no valid authentication", str(error))
    except webhook.BadPayload as error:
        return problem(400, "bad_request", str(error))
    except HTTPException as error:  # werkzeug's own, for example for a form with too many fields
        return problem(error.code or 400, "bad_request", error.name)
    except (JobsUnavailable, auth.KeysUnavailable) as error:
        log.error("a dependency is down", path=request.path, reason=str(error))
        return problem(503, "unavailable", "a dependency is down; the sweep will look again", **{"Retry-After": "30"})
    except Exception:
        log.exception("internal error", path=request.path)
        return problem(500, "internal", "internal error; it has been logged")


def read_body(request: flask.Request) -> flask.Response | None:
    """Read the whole body, of a known length or in chunks, into the request. -> a refusal, if it is too large or slow."""
    length = request.content_length
    is_chunked = request.headers.get("Transfer-Encoding", "").lower() == "chunked"
    too_large = f"the body must have at most {MAX_BODY_BYTES} bytes"
    if length and length > MAX_BODY_BYTES:
        return problem(413, "too_large", too_large)
    try:
        body = request.environ["wsgi.input"].read(MAX_BODY_BYTES + 1 if is_chunked else length or 0)
        is_whole = length is None or len(body) == length
    except ParseException as error:
        return problem(400, "bad_request", f"the body has an invalid chunk ({type(error).__name__})")
    except OSError:
        is_whole = False
    if not is_whole:
        return problem(408, "timeout", f"the whole request must arrive within {READ_SECONDS:g} seconds")
    if len(body) > MAX_BODY_BYTES:
        return problem(413, "too_large", too_large)
    request.environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    request.environ.pop("HTTP_TRANSFER_ENCODING", None)
    return None


def on_webhook(request: flask.Request) -> flask.Response:
    body = request.get_data()
    auth.authenticate_webhook(settings, request.headers, body)
    _, dispatcher, sender = parts()
    answer = webhook.handle(body, dispatcher)
    if answer.get("did") == "refused":
        sender.wake()
    return reply(answer)


def on_sweep(request: flask.Request) -> flask.Response:
    auth.authenticate_sweep(settings, request.headers)
    jobs, dispatcher, sender = parts()
    return reply(sender.tell_beside(partial(_sweep, jobs, dispatcher)))


def _sweep(jobs: Jobs, dispatcher: "Dispatcher") -> dict[str, Any]:
    if not SWEEPS.acquire(blocking=False):
        return {"ignored": "enough sweeps are running"}
    try:
        return sweep_once(settings, jobs, dispatcher)
    finally:
        SWEEPS.release()


def on_voice(request: flask.Request) -> flask.Response:
    authenticate_form(request)
    asked = read_voice_request(request.form, request.args, settings.voice_url)
    try:
        twiml = voice.handle(asked, parts()[1], scripts)
    except Exception:
        # A person is on the line. For an error page Twilio would read out its own apology, in English.
        about = {"attempt": str(asked.attempt), "place": asked.place, "digits": asked.digits}
        log.exception("internal error: the person hears the apology", **about)
        twiml = render_twiml(apology_turn(scripts.default), scripts.default, None)
    return flask.Response(twiml, content_type="text/xml; charset=utf-8")


def on_status(request: flask.Request) -> flask.Response:
    authenticate_form(request)
    attempt = read_attempt(request.args.get("attempt"))
    event = read_event(request.form)
    _, dispatcher, sender = parts()
    call_status.handle(attempt, event, dispatcher, scripts)
    if event.call_status in FINAL_CALL_STATUSES:
        sender.wake()
    return flask.Response(status=204)


def authenticate_form(request: flask.Request) -> None:
    """Twilio posts plain forms. Another type is refused unread: parsing a multipart body costs time."""
    if request.mimetype != "application/x-www-form-urlencoded":
        raise auth.AuthenticationError("not a form of Twilio's content type")
    auth.authenticate_twilio(settings, request.headers, request.path, request.query_string, request.form)


def on_health(_request: flask.Request) -> flask.Response:
    return reply({"status": "ok"})


ROUTES: dict[str, tuple[tuple[str, ...], Callable[[flask.Request], flask.Response]]] = {
    settings.voice_path: (("POST",), on_voice),
    settings.status_path: (("POST",), on_status),
    # These win over the paths of another voice service.
    "/": (("POST",), on_webhook),
    "/sweep": (("POST",), on_sweep),
    "/health": (("GET", "HEAD"), on_health),
}


def reply(body: dict[str, Any], status: int = 200, **headers: str) -> flask.Response:
    response = flask.jsonify(body)
    response.status_code = status
    response.headers.update(headers)
    return response


def problem(status: int, code: str, message: str, reason: str | None = None, **headers: str) -> flask.Response:
    """Answer an error and, for the client's own (4xx), log one line; `reason` is for the log alone."""
    response = reply({"error": {"code": code, "message": message}}, status, **headers)
    if status < 500:
        level = logging.INFO if status in (404, 405) else logging.WARNING
        about = {"status": status, "method": flask.request.method, "path": flask.request.path}
        log.log(level, "refused", kind=code, reason=reason or message, **about)
    if status in UNREAD:
        # functions-framework reads the rest of the body before any answer that is not streamed.
        response.response = iter([response.get_data()])
        worker.close_after(flask.request.environ)
    return response


def on_framework_error(error: HTTPException) -> flask.Response:
    """functions-framework answers /favicon.ico and /robots.txt itself, in HTML."""
    return problem(error.code or 500, "not_found" if error.code == 404 else "http_error", error.name)


worker.install()
if flask.has_app_context():  # as functions-framework loads this module
    flask.current_app.register_error_handler(HTTPException, on_framework_error)
