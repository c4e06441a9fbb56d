"""The way in: does API_BASE_URL reach this function, and do the proofs of Supabase and Twilio arrive there whole?

Nothing that is sent here can dial, write or wake anybody. The signed webhook is of a type that is ignored before the
database is asked. As Twilio a callback is posted whose status nobody knows: it is proved, and dropped with a warning. (A
signed /voice for an unknown attempt would be a call of no attempt of ours, which is CRITICAL.) What is posted without a
proof is refused.
"""

import ipaddress
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from standardwebhooks import Webhook
from twilio.request_validator import RequestValidator

from shared.doctor.findings import (
    NO_WEBHOOKS,
    Clocks,
    Finding,
    note_clock,
    ok,
    shown_url,
    skipped,
    warning,
    why_no_answer,
    wrong,
)
from shared.settings import Settings
from shared.setup_facts import SetupFacts

TIMEOUT: Final = httpx.Timeout(6, connect=4)
CHECKS: Final = ("public address", "unproved requests", "signed webhook", "Twilio's callbacks", "Twilio's questions")
HARMLESS: Final = json.dumps({"type": "DOCTOR", "schema": "public", "table": "outbound_call_jobs"}).encode()
IGNORED: Final = "DOCTOR on public.outbound_call_jobs"

_BASE: Final = (
    "set API_BASE_URL, here and in the service, to the address at which the world reaches this function, to the letter"
)
_LOGS: Final = "read the service's log; it says at its start which settings are wrong"


@dataclass(frozen=True)
class _Answer:
    """`no_answer` says why there was none; then the rest is empty."""

    status: int = 0
    text: str = ""
    type: str = ""
    location: str = ""
    no_answer: str = ""

    @property
    def json(self) -> dict[str, Any]:
        try:
            body = json.loads(self.text)
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}

    @property
    def is_our_401(self) -> bool:
        error = self.json.get("error")
        return self.status == 401 and isinstance(error, dict) and error.get("code") == "unauthorized"


def check_public_url(settings: Settings, clocks: Clocks) -> Iterator[Finding]:
    """From outside, at API_BASE_URL; when it is not ours, only whether anything is there."""
    reached, *rest = CHECKS
    base = settings.api_base_url
    with httpx.Client(timeout=TIMEOUT) as http:
        if not settings.api_base_url_is_this_function:
            answer = _send(http, "GET", base, clocks)
            yield _foreign(reached, base, answer)
            yield from (
                skipped(check, "API_BASE_URL_IS_THIS_FUNCTION=false: another service answers there") for check in rest
            )
            return
        if settings.twilio_api_base_url is None and _is_of_no_use_to_twilio(base):
            yield wrong(
                reached, f"{shown_url(base)} is an address of this machine or network: Twilio cannot reach it", _BASE
            )
            yield from (skipped(check, "the public address is none") for check in rest)
            return
        health = _send(http, "GET", f"{base}/health", clocks)
        if (trouble := _unhealthy(base, health)) is not None:
            yield wrong(reached, *trouble)
            yield from (skipped(check, "the public address does not reach this function") for check in rest)
            return
        yield ok(reached, f"{shown_url(base)} reaches this function")
        yield _unproved(*(_send(http, "POST", f"{base}{path}", clocks, content=HARMLESS) for path in ("/", "/sweep")))
        if settings.dispatch_secrets:
            yield _signed_webhook("signed webhook", base, _post_webhook(http, settings, f"{base}/", clocks))
        else:
            yield skipped("signed webhook", "there is no DISPATCH_SECRET here to sign with")
        yield _callbacks(_post_callback(http, settings, clocks))
        yield _questions(_send(http, "POST", f"{base}/voice?attempt={uuid.uuid4()}", clocks, data={"CallSid": "none"}))


def check_vault_url(settings: Settings, facts: SetupFacts) -> Finding:
    """Where the database posts its webhooks: at API_BASE_URL, or at an address that is proved to be this function, too."""
    check, url = "Vault's URL", facts.vault.url
    base = settings.api_base_url if settings.api_base_url_is_this_function else "https://<this function>"
    row = "(select id from vault.secrets where name = 'call_dispatcher_url')"
    update = f"select vault.update_secret({row}, '{base}/');"
    if facts.vault.error:
        return skipped(check, "Vault cannot be read")
    if not settings.dispatch_secrets:
        return skipped(check, NO_WEBHOOKS)
    if not url:
        return wrong(
            check, "is not there: no webhook is sent", f"select vault.create_secret('{base}/', 'call_dispatcher_url');"
        )
    if url != url.strip():
        return wrong(check, "begins or ends with white space", update)
    if settings.api_base_url_is_this_function and _same(url, f"{base}/"):
        return ok(check, f"is {shown_url(url)}")
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        return wrong(check, f"is {shown_url(url)}, which is not https", update)
    with httpx.Client(timeout=TIMEOUT) as http:
        found = _signed_webhook(check, url, _post_webhook(http, settings, url, {}))
    if found.state != "ok":
        return wrong(check, f"is {shown_url(url)}, and a webhook to it fails: {found.found}", update)
    if not settings.api_base_url_is_this_function:
        return ok(check, f"is {shown_url(url)}, which takes a signed webhook")
    return warning(
        check,
        f"is {shown_url(url)}, not API_BASE_URL, and takes signed webhooks all the same: an old revision?",
        update,
    )


# --- what is sent -------------------------------------------------------------------------------------------------------


def _send(http: httpx.Client, method: str, url: str, clocks: Clocks, **request: Any) -> _Answer:
    try:
        response = http.request(method, url, **request)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return _Answer(no_answer=why_no_answer(error))
    note_clock(clocks, "API_BASE_URL", response.headers.get("date"))
    headers = response.headers
    return _Answer(
        response.status_code, response.text[:4000], headers.get("content-type", ""), headers.get("location", "")
    )


def _post_webhook(http: httpx.Client, settings: Settings, url: str, clocks: Clocks) -> _Answer:
    id_, now = f"doctor_{uuid.uuid4()}", datetime.now(UTC)
    signature = Webhook(settings.dispatch_secrets[0]).sign(id_, now, HARMLESS.decode())
    proof = {"webhook-id": id_, "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}
    return _send(http, "POST", url, clocks, content=HARMLESS, headers={"content-type": "application/json", **proof})


def _post_callback(http: httpx.Client, settings: Settings, clocks: Clocks) -> _Answer:
    url = f"{settings.api_base_url}/status?attempt={uuid.uuid4()}"
    form = {
        "CallSid": "none",
        "CallStatus": "doctor",
        "AnsweredBy": "",
    }  # a blank field is signed, and some proxies drop it
    signature = RequestValidator(settings.twilio_auth_tokens[0]).compute_signature(url, form)
    return _send(http, "POST", url, clocks, data=form, headers={"X-Twilio-Signature": signature})


# --- what the answers mean ----------------------------------------------------------------------------------------------


def _unhealthy(base: str, answer: _Answer) -> tuple[str, str] | None:
    """What is the matter with the answer to /health, and what to do; None when it is ours."""
    where, status = shown_url(base), answer.status
    if answer.no_answer:
        return (
            f"{where}: {answer.no_answer}",
            f"{_BASE}; its service must be up, and this container allowed to reach it",
        )
    if status == 200 and answer.json.get("status") == "ok":
        return None
    error = answer.json.get("error")
    if isinstance(error, dict) and error.get("code") in ("not_found", "method_not_allowed"):
        return (
            f"{where}/health reaches this function under another path (HTTP {status})",
            "a proxy changes paths: let it pass on what stands behind API_BASE_URL as it is, with API_BASE_URL's path or without;"
            " or that path is not in the service's own API_BASE_URL",
        )
    if 300 <= status < 400:
        return (
            f"{where} redirects to {shown_url(answer.location)}: Twilio would turn each POST into a GET",
            f"{_BASE}; the final address, without a redirect",
        )
    if status in (401, 403):
        return (
            f"{where} asks for proof before we are asked (HTTP {status}): an IAM check, a login page or a firewall",
            "gcloud run services update <service> --no-invoker-iam-check (Supabase and Twilio cannot mint Google's tokens);"
            " elsewhere: take /, /sweep, /voice, /status and /health out of what asks",
        )
    if status == 404:
        return (
            f"{where}/health is not there (HTTP 404): another service, or a path that a proxy changes",
            f"{_BASE}, with the path that stands before /health, if any; on Cloud Run: --ingress all",
        )
    if status == 429 or status >= 500:
        return (
            f"{where} fails (HTTP {status})",
            f"{_LOGS}; on Cloud Run: 429 and 503 also mean that no instance could start",
        )
    return (
        f"something else answers at {where} (HTTP {status}, {answer.type or 'no type'}): a placeholder page, another service",
        f"deploy this image there, or {_BASE}",
    )


def _foreign(check: str, base: str, answer: _Answer) -> Finding:
    where = shown_url(base)
    if answer.no_answer:
        return wrong(
            check, f"{where}: {answer.no_answer}", "set API_BASE_URL to the web service that answers /voice and /status"
        )
    if answer.status >= 500:
        return warning(
            check, f"{where} fails (HTTP {answer.status})", "see to the web service that answers /voice and /status"
        )
    return ok(
        check, f"{where} answers (HTTP {answer.status}); whether its /voice and /status do, a first call will show"
    )


def _unproved(*answers: _Answer) -> Finding:
    check = "unproved requests"
    odd = [answer for answer in answers if not answer.is_our_401]
    if not odd:
        return ok(check, "a webhook and a sweep without a proof are refused")
    if odd[0].status and odd[0].status < 300:
        return wrong(
            check,
            f"a request without a proof was taken (HTTP {odd[0].status}): anybody could have people called",
            "something in front answers in our name, or adds a proof of its own: take it away",
        )
    return _odd(check, odd[0])


def _signed_webhook(check: str, url: str, answer: _Answer) -> Finding:
    if answer.status == 200 and answer.json.get("ignored") == IGNORED:
        return ok(check, "is taken as proved, and ignored as it should be")
    if answer.is_our_401:
        return wrong(
            check,
            f"{shown_url(url)} refuses our signature",
            "the DISPATCH_SECRET there is another (deploy the service anew with this one: an old revision?), a proxy drops the"
            " webhook-* headers or changes the body, or a clock is more than 5 minutes off",
        )
    return _odd(check, answer)


def _callbacks(answer: _Answer) -> Finding:
    check = "Twilio's callbacks"
    if answer.status == 204:
        return ok(check, "/status takes what is signed as Twilio signs it")
    if answer.is_our_401:
        return wrong(
            check,
            "/status refuses Twilio's signature, and so would each answered call be: nobody would hear a word",
            f"{_BASE}; there, the same TWILIO_AUTH_TOKEN; a proxy must leave path, query, form and X-Twilio-Signature alone",
        )
    return _odd(check, answer)


def _questions(answer: _Answer) -> Finding:
    check = "Twilio's questions"
    if answer.is_our_401:
        return ok(check, "/voice is reached, and refuses what Twilio did not sign")
    if answer.status == 200:
        return wrong(
            check,
            "/voice answered a request that Twilio did not sign",
            "something in front answers in our name: take it away",
        )
    return _odd(check, answer)


def _odd(check: str, answer: _Answer) -> Finding:
    if answer.no_answer:
        return wrong(check, answer.no_answer, f"/health was reached before: {_LOGS}")
    path = "a proxy or firewall treats this path or method otherwise than GET /health, or the service is of another release"
    return wrong(check, f"HTTP {answer.status}, {answer.type or 'no type'}", f"{path}; {_LOGS}")


def _is_of_no_use_to_twilio(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return host == "localhost" or "." not in host


def _same(url: str, other: str) -> bool:
    """The same address; without a path, the last slash is nothing."""
    ours, theirs = urlsplit(url), urlsplit(other)
    return (
        (ours.scheme.lower(), ours.netloc.lower()) == (theirs.scheme.lower(), theirs.netloc.lower())
        and (ours.path or "/") == (theirs.path or "/")
        and not ours.query
    )
