"""API_BASE_URL: does it reach this function, and do the signatures of Supabase and Twilio arrive there intact?

Nothing that is sent here can dial, write or alert. The signed webhook has a type that is ignored before the database is
asked. The signed callback has an unknown status, and is dropped with a warning. Requests without a proof are refused.
"""

import ipaddress
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from standardwebhooks import Webhook
from twilio.request_validator import RequestValidator

from shared.doctor.findings import Clocks, Finding, note_clock, ok, shown_url, skipped, warning, why_no_answer, wrong
from shared.settings import Settings
from shared.setup_facts import SetupFacts

TIMEOUT: Final = httpx.Timeout(6, connect=4)
CHECKS: Final = ("public address", "unproved requests", "signed webhook", "Twilio's callbacks", "Twilio's questions")
HARMLESS: Final = json.dumps({"type": "DOCTOR", "schema": "public", "table": "outbound_call_jobs"}).encode()
IGNORED: Final = "DOCTOR on public.outbound_call_jobs"

_BASE: Final = "set API_BASE_URL, here and in the service, to the exact public address that answers Twilio"
_LOGS: Final = "read the service's log; at its start it names the settings that are wrong"
_IAM: Final = "gcloud run services update <service> --no-invoker-iam-check (Supabase and Twilio have no Google tokens)"
_REFUSED: Final = (
    "the DISPATCH_SECRET there is another (deploy the service again with this one), a proxy drops the webhook-* headers or"
    " changes the body, or a clock is more than 5 minutes off"
)
_UNHEARD: Final = (
    f"{_BASE}; there, the same TWILIO_AUTH_TOKEN; a proxy must leave path, query, form and X-Twilio-Signature unchanged"
)
_PROXY: Final = "a proxy or firewall treats this path or method differently from GET /health, or it is another release"


class _Answer:
    """A response, or the reason why there was none. `is_*`: the answer is this function's."""

    def __init__(self, response: httpx.Response | None, no_answer: str = "") -> None:
        self.no_answer = no_answer
        self.status = response.status_code if response else 0
        self.headers = response.headers if response else httpx.Headers()
        body = response.text[:4000] if response else ""
        self.is_health = self.status == 200 and '"ok"' in body
        self.is_unauthorized = self.status == 401 and '"unauthorized"' in body
        self.is_ignored = self.status == 200 and IGNORED in body


def check_public_url(settings: Settings, clocks: Clocks) -> Iterator[Finding]:
    """Requests from outside. Of another service at API_BASE_URL, only whether it answers."""
    base, is_ours = settings.api_base_url, settings.api_base_url_is_this_function
    with httpx.Client(timeout=TIMEOUT) as http:
        if is_ours and settings.twilio_api_base_url is None and _is_private(base):
            found = f"{shown_url(base)} is an address of this machine or network: Twilio cannot reach it"
            first = wrong(CHECKS[0], found, _BASE)
        else:
            answer = _send(http, "GET", f"{base}/health" if is_ours else base, clocks)
            first = _reached(CHECKS[0], settings, answer)
        yield first
        if first.state != "ok" or not is_ours:
            why = "the public address does not reach this function" if is_ours else "another service answers there"
            yield from (skipped(check, why) for check in CHECKS[1:])
            return
        answers = [_send(http, "POST", f"{base}{path}", clocks, content=HARMLESS) for path in ("/", "/sweep")]
        answer = next((answer for answer in answers if not answer.is_unauthorized), answers[0])
        said = "a webhook and a sweep without a proof are refused"
        yield _judge("unproved requests", answer, answer.is_unauthorized, said)
        if settings.dispatch_secrets:
            yield _signed_webhook("signed webhook", http, settings, f"{base}/", clocks)
        else:
            yield skipped("signed webhook", "there is no DISPATCH_SECRET here to sign with")
        answer = _post_callback(http, settings, clocks)
        voice, status = settings.voice_path, settings.status_path
        silent = f"{status} refuses Twilio's signature: so would {voice}, and the person would hear an error"
        said = f"{status} accepts Twilio's signature"
        yield _judge("Twilio's callbacks", answer, answer.status == 204, said, (silent, _UNHEARD))
        answer = _send(http, "POST", f"{settings.voice_url}?attempt={uuid.uuid4()}", clocks, data={"CallSid": "none"})
        said = f"{voice} is reached, and refuses a request without Twilio's signature"
        yield _judge("Twilio's questions", answer, answer.is_unauthorized, said)


def check_vault_url(settings: Settings, facts: SetupFacts) -> Finding:
    """The database posts its webhooks there."""
    check, url, is_ours = "Vault's URL", facts.vault.url, settings.api_base_url_is_this_function
    if facts.vault.error or not settings.dispatch_secrets:
        return skipped(check, "Vault cannot be read" if facts.vault.error else "no DISPATCH_SECRET, no webhooks")
    if url and is_ours and _same(url, f"{settings.api_base_url}/"):
        return ok(check, f"is {shown_url(url)}")
    row = "(select id from vault.secrets where name = 'call_dispatcher_url')"
    advice = f"select vault.update_secret({row}, 'https://<this function>/');"
    if not url:
        create = "select vault.create_secret('https://<this function>/', 'call_dispatcher_url');"
        return wrong(check, "is missing: no webhook is sent", create)
    with httpx.Client(timeout=TIMEOUT) as http:
        sent = _signed_webhook(check, http, settings, url, {})
    if sent.state != "ok" or url != url.strip():
        failure = sent.found if sent.state != "ok" else "it begins or ends with white space"
        return wrong(check, f"is {shown_url(url)}, and a webhook to it fails: {failure}", advice)
    if not is_ours:
        return ok(check, f"is {shown_url(url)}, which accepts a signed webhook")
    other = f"is {shown_url(url)}, which accepts signed webhooks and is not API_BASE_URL: an old revision?"
    return warning(check, other, f"if so: {advice} Otherwise {_BASE}")


def _send(http: httpx.Client, method: str, url: str, clocks: Clocks, **request: Any) -> _Answer:
    try:
        response = http.request(method, url, **request)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return _Answer(None, why_no_answer(error))
    note_clock(clocks, "API_BASE_URL", response.headers.get("date"))
    return _Answer(response)


def _signed_webhook(check: str, http: httpx.Client, settings: Settings, url: str, clocks: Clocks) -> Finding:
    id_, now = f"doctor_{uuid.uuid4()}", datetime.now(UTC)
    signature = Webhook(settings.dispatch_secrets[0]).sign(id_, now, HARMLESS.decode())
    proof = {"webhook-id": id_, "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}
    answer = _send(http, "POST", url, clocks, content=HARMLESS, headers={"content-type": "application/json", **proof})
    refused = (f"{shown_url(url)} refuses our signature", _REFUSED)
    return _judge(check, answer, answer.is_ignored, "the signature is accepted", refused)


def _post_callback(http: httpx.Client, settings: Settings, clocks: Clocks) -> _Answer:
    url = f"{settings.status_url}?attempt={uuid.uuid4()}"
    # The empty field is signed, too. Some proxies drop it.
    form = {"CallSid": "none", "CallStatus": "doctor", "AnsweredBy": ""}
    signature = RequestValidator(settings.twilio_auth_tokens[0]).compute_signature(url, form)
    return _send(http, "POST", url, clocks, data=form, headers={"X-Twilio-Signature": signature})


def _reached(check: str, settings: Settings, answer: _Answer) -> Finding:
    base, is_ours = settings.api_base_url, settings.api_base_url_is_this_function
    where, status = shown_url(base), answer.status
    if answer.is_health and is_ours:
        return ok(check, f"{where} reaches this function")
    if 0 < status < 500 and not is_ours:
        ask = f"a first call shows whether its {settings.voice_path} and {settings.status_path} do"
        return ok(check, f"{where} answers (HTTP {status}); {ask}")
    if answer.no_answer:
        found, advice = answer.no_answer, f"{_BASE}; its service must run, and this container must reach it"
    elif 300 <= status < 400:
        found = f"redirects to {shown_url(answer.headers.get('location', ''))}: Twilio would turn each POST into a GET"
        advice = f"{_BASE}; the final address, without a redirect"
    elif status in (401, 403):
        found, advice = "an IAM check or a firewall demands a login", f"{_IAM}; elsewhere: exempt our paths"
    elif status in (404, 405):
        found = "another service, or a proxy that changes the path"
        advice = f"{_BASE}, with the path before /health, if any; forward paths unchanged; on Cloud Run: --ingress all"
    elif status == 429 or status >= 500:
        found, advice = "fails", f"{_LOGS}; on Cloud Run, 429 and 503 also mean that no instance could start"
    else:
        found, advice = "something else answers", f"deploy this image there, or {_BASE}"
    return wrong(check, f"{where}: {found}" + (f" (HTTP {status})" if status else ""), advice)


def _judge(check: str, answer: _Answer, is_right: bool, said: str, refused: tuple[str, str] | None = None) -> Finding:
    """`said` when the answer is right, `refused` (found, advice) when it is our 401."""
    if is_right:
        return ok(check, said)
    if answer.is_unauthorized and refused:
        return wrong(check, *refused)
    if 0 < answer.status < 300:
        found = f"a request without a valid proof was accepted (HTTP {answer.status}): anybody could have people called"
        return wrong(check, found, "something in front answers for the function, or signs for others: take it away")
    if answer.no_answer:
        return wrong(check, answer.no_answer, f"/health was reached before: {_LOGS}")
    return wrong(check, f"HTTP {answer.status}, {answer.headers.get('content-type', 'no type')}", f"{_PROXY}; {_LOGS}")


def _is_private(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return host == "localhost" or "." not in host


def _same(url: str, other: str) -> bool:
    """The same address. Without a path, the last slash makes no difference."""
    try:
        return httpx.URL(url if urlsplit(url).path else f"{url}/") == httpx.URL(other)
    except (httpx.InvalidURL, ValueError):
        return False
