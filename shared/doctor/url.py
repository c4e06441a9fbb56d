"""API_BASE_URL and Vault's URL: do they reach this function, and do the signatures of Twilio and Supabase arrive intact?

Nothing that is sent here can dial, write or alert. The signed webhook has a type that is ignored before the database is
asked. The signed callback has an unknown status, and is dropped with a warning. Requests without a proof are refused.
"""

import ipaddress
import json
import uuid
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from twilio.request_validator import RequestValidator

from shared.doctor.findings import Clocks, Finding, note_clock, ok, shown_url, skipped, warning, wrong
from shared.settings import Settings
from shared.setup_facts import SetupFacts
from shared.signing import sign

TIMEOUT: Final = httpx.Timeout(6, connect=4)
CHECKS: Final = ("public address", "Twilio's callbacks", "unproved requests")
HARMLESS: Final = json.dumps({"type": "DOCTOR", "schema": "public", "table": "outbound_call_jobs"}).encode()
IGNORED: Final = "DOCTOR on public.outbound_call_jobs"

_BASE: Final = "set API_BASE_URL, here and in the service, to the exact public address that answers Twilio"
_LOGS: Final = "read the service's log; at its start it names the settings that are wrong"
_IAM: Final = (
    "an IAM check or a firewall demands a login: gcloud run services update <service> --no-invoker-iam-check (Supabase and"
    " Twilio have no Google tokens); elsewhere: exempt our paths"
)
_ELSEWHERE: Final = {
    0: f"{_BASE}; its service must run, and this container must reach it",
    2: f"something else answers: deploy this image there, or {_BASE}",
    3: f"{_BASE}; the final address, without a redirect: Twilio would turn each POST into a GET",
    4: f"another service answers, or a proxy changes the path: {_BASE}, with the path before /health, if any; forward paths"
    " unchanged; on Cloud Run: --ingress all",
    **dict.fromkeys((401, 403), _IAM),
    **dict.fromkeys((429, 5), f"{_LOGS}; on Cloud Run, 429 and 503 also mean that no instance could start"),
}
"""Advice by HTTP status, or by its first digit."""
_REFUSED: Final = (
    "the DISPATCH_SECRET there is another (deploy the service again with this one), a proxy drops the webhook-* headers or"
    " changes the body, or a clock is more than 5 minutes off"
)
_UNHEARD: Final = (
    f"{_BASE}; there, the same TWILIO_AUTH_TOKEN; a proxy must leave path, query, form and X-Twilio-Signature unchanged"
)
_PROXY: Final = (
    "a proxy or firewall treats this path or method differently from GET /health, or answers for the function: take it away;"
    " VOICE_PATH and STATUS_PATH must be the same here and there;"
    f" {_LOGS}"
)


def check_public_url(settings: Settings, clocks: Clocks) -> Iterator[Finding]:
    """Requests from outside. Of another service at API_BASE_URL, only whether it answers."""
    base, is_ours = settings.api_base_url, settings.api_base_url_is_this_function
    with httpx.Client(timeout=TIMEOUT) as http:
        if is_ours and settings.twilio_api_base_url is None and _is_private(base):
            found = f"{base} is an address of this machine or network: Twilio cannot reach it"
            first = wrong(CHECKS[0], found, _BASE)
        else:
            first = _reached(settings, _send(http, "GET", f"{base}/health" if is_ours else base, clocks))
        yield first
        if first.state != "ok" or not is_ours:
            why = "the public address does not reach this function" if is_ours else "another service answers there"
            yield from (skipped(check, why) for check in CHECKS[1:])
            return
        yield _callbacks(settings, http, clocks)
        paths = ("/", "/sweep", settings.voice_path)
        sent = {path: _send(http, "POST", f"{base}{path}", clocks, data={}) for path in paths}
        odd = [f"{path}: {_described(answer)}" for path, answer in sent.items() if answer.status_code != 401]
        if odd:
            yield wrong(CHECKS[2], f"are not refused by this function: {'; '.join(odd)}", _PROXY)
        else:
            yield ok(CHECKS[2], "are refused: a webhook, a sweep, and a question of Twilio's")


def check_vault_url(settings: Settings, facts: SetupFacts, clocks: Clocks) -> Finding:
    """The database posts its webhooks there."""
    check, url = "Vault's URL", facts.vault.url
    if facts.vault.error or not settings.dispatch_secrets:
        return skipped(check, "Vault cannot be read" if facts.vault.error else "no DISPATCH_SECRET, no webhooks")
    if not url:
        create = "select vault.create_secret('https://<this function>/', 'call_dispatcher_url');"
        return wrong(check, "is missing: no webhook is sent", create)
    proof = sign(settings.dispatch_secrets[:1], f"doctor_{uuid.uuid4()}", HARMLESS.decode())
    with httpx.Client(timeout=TIMEOUT, headers={"content-type": "application/json", **proof}) as http:
        answer = _send(http, "POST", url, clocks, content=HARMLESS)
    row = "(select id from vault.secrets where name = 'call_dispatcher_url')"
    update = f"select vault.update_secret({row}, 'https://<this function>/');"
    if answer.status_code == 401:
        return wrong(check, f"{shown_url(url)} refuses our signature", _REFUSED)
    if answer.status_code != 200 or IGNORED not in answer.text:
        return wrong(check, f"is {shown_url(url)}, and a webhook to it fails: {_described(answer)}", update)
    if settings.api_base_url_is_this_function and url.rstrip("/").lower() != settings.api_base_url.lower():
        found = f"is {shown_url(url)}, which accepts a signed webhook and is not API_BASE_URL: an old revision, a copy?"
        return warning(check, found, f"if so: {update} Otherwise {_BASE}")
    return ok(check, f"{shown_url(url)} accepts a signed webhook")


def _send(http: httpx.Client, method: str, url: str, clocks: Clocks, **request: Any) -> httpx.Response:
    """The response; with the status 0 and the reason as its text if there was none."""
    try:
        response = http.request(method, url, **request)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return httpx.Response(0, text=f"no answer: {type(error).__name__}: {error}")
    note_clock(clocks, response.url.host, response.headers.get("date"))
    return response


def _described(answer: httpx.Response) -> str:
    if not answer.status_code:
        return answer.text
    location = f" to {shown_url(answer.headers['location'])}" if "location" in answer.headers else ""
    return f"HTTP {answer.status_code}{location}, {answer.headers.get('content-type', 'no type')}"


def _reached(settings: Settings, answer: httpx.Response) -> Finding:
    base, is_ours, status = settings.api_base_url, settings.api_base_url_is_this_function, answer.status_code
    if is_ours and status == 200 and '"ok"' in answer.text:
        return ok(CHECKS[0], f"{base} reaches this function")
    if not is_ours and 0 < status < 500:
        paths = f"{settings.voice_path} and {settings.status_path}"
        return ok(CHECKS[0], f"{base} answers (HTTP {status}); a first call shows whether its {paths} do")
    advice = _ELSEWHERE.get(status) or _ELSEWHERE.get(status // 100, _BASE)
    return wrong(CHECKS[0], f"{base}: {_described(answer)}", advice)


def _callbacks(settings: Settings, http: httpx.Client, clocks: Clocks) -> Finding:
    url, path = f"{settings.status_url}?attempt={uuid.uuid4()}", settings.status_path
    # The empty field is signed, too. Some proxies drop it.
    form = {"CallSid": "none", "CallStatus": "doctor", "AnsweredBy": ""}
    signature = RequestValidator(settings.twilio_auth_tokens[0]).compute_signature(url, form)
    answer = _send(http, "POST", url, clocks, data=form, headers={"X-Twilio-Signature": signature})
    if answer.status_code == 204:
        return ok(CHECKS[1], f"{path} accepts Twilio's signature")
    if answer.status_code == 401:
        found = f"{path} refuses Twilio's signature: so would {settings.voice_path}, and the person would hear an error"
        return wrong(CHECKS[1], found, _UNHEARD)
    return wrong(CHECKS[1], f"{path}: {_described(answer)}", _PROXY)


def _is_private(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return host == "localhost" or "." not in host
