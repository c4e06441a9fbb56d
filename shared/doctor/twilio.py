"""Twilio: the account, its token, our number, the countries. The doctor sends GETs only, so nothing is dialed."""

from collections.abc import Iterator
from typing import Any, Final

from twilio.rest import Client

from shared.doctor.findings import Finding, ok, skipped, warning, wrong
from shared.logs import mask_phone
from shared.screening import called_countries
from shared.settings import Settings
from shared.telephony import TwilioHttp, verdict_on

TIMEOUT_SECONDS: Final = 5.0

_KEYS: Final = (
    "Twilio console, Account Info: copy Account SID and the primary auth token (no API key, no test credentials) into"
    " TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN"
)
_ADVICE: Final = {
    "20003": f"{_KEYS}. If they are right, the account is suspended: the console's banner says why",
    "20008": f"{_KEYS}: these are the test credentials",
    "20404": f"{_KEYS}: this account does not exist",
    "not_connected": "let the container reach api.twilio.com and voice.twilio.com on port 443 (DNS, egress rules, HTTPS_PROXY);"
    " take TWILIO_API_BASE_URL out, which names a stand-in",
    "certificate": "a proxy shows a certificate of its own: take it out, or add its authority",
}
_GEO: Final = "Twilio console: Voice, Settings, Geo permissions"


def check_twilio(settings: Settings) -> Iterator[Finding]:
    http = TwilioHttp(None, connect_s=TIMEOUT_SECONDS, total_s=TIMEOUT_SECONDS)
    twilio = Client(settings.twilio_account_sid, settings.twilio_auth_tokens[0], http_client=http)
    if settings.twilio_api_base_url:
        twilio.api.base_url = twilio.voice.base_url = settings.twilio_api_base_url
    try:
        account = twilio.api.accounts(settings.twilio_account_sid).fetch()
    except Exception as error:  # noqa: BLE001 - every failure is a finding, and verdict_on knows them all
        yield _unreadable("Twilio account", error)
        rest = ("auth token", "number", "countries")
        yield from (skipped(f"Twilio {check}", "the account cannot be read") for check in rest)
        return
    yield _account(settings, account)
    yield _auth_token(settings, account)
    for check, look in (("Twilio number", _number), ("Twilio countries", _countries)):
        try:
            yield look(check, settings, twilio)
        except Exception as error:  # noqa: BLE001 - as above
            # Some accounts may not read the permissions, and still may call.
            finding = _unreadable(check, error)
            yield warning(check, finding.found, f"look yourself: {_GEO}") if look is _countries else finding


def _unreadable(check: str, error: BaseException) -> Finding:
    verdict = verdict_on(error)
    advice = _ADVICE.get(verdict.code.removeprefix("twilio_"), "try again; then: status.twilio.com")
    return wrong(check, f"cannot be read: {verdict.reason}", advice)


def _account(settings: Settings, account: Any) -> Finding:
    check, status = "Twilio account", account.status
    if status != "active":
        return wrong(check, f"the account is {status}", "Twilio console: its banner says why (funds, terms, review)")
    if account.type == "Trial":
        return warning(check, "a trial account calls only verified numbers", "Twilio console: Upgrade")
    return ok(check, "active" + ("; a stand-in (TWILIO_API_BASE_URL)" if settings.twilio_api_base_url else ""))


def _auth_token(settings: Settings, account: Any) -> Finding:
    """Twilio accepts both tokens, and signs with the primary one only. An account shows it to its owner."""
    check, primary = "Twilio auth token", account.auth_token or ""
    if len(primary) != 32 or primary in settings.twilio_auth_tokens:
        return ok(check, "accepted" + (", and callbacks are signed with it" if len(primary) == 32 else ""))
    found = "accepted, but not the primary one: every callback of Twilio's would be refused with 401"
    return wrong(check, found, f"{_KEYS}; both tokens, separated by a space, while you rotate")


def _number(check: str, settings: Settings, twilio: Client) -> Finding:
    ours, shown = settings.twilio_phone_number, mask_phone(settings.twilio_phone_number)
    for number in twilio.incoming_phone_numbers.list(phone_number=ours):
        if number.phone_number == ours and number.capabilities["voice"]:
            return ok(check, f"{shown} belongs to the account and can make calls")
        if number.phone_number == ours:
            buy = "Twilio console: Phone Numbers, Buy a number, tick Voice; then set TWILIO_PHONE_NUMBER"
            return wrong(check, f"{shown} belongs to the account and has no voice", buy)
    if any(number.phone_number == ours for number in twilio.outgoing_caller_ids.list(phone_number=ours)):
        return ok(check, f"{shown} is a verified caller ID of the account")
    active = "set TWILIO_PHONE_NUMBER to one under Phone Numbers, Active numbers, of this very account, not of its subaccount"
    return wrong(check, f"{shown} is not a number of this account (each call would be refused with 21210)", active)


def _countries(check: str, settings: Settings, twilio: Client) -> Finding:
    called, listed = called_countries(settings), twilio.voice.v1.dialing_permissions.countries.list(page_size=1000)
    known = {country.iso_code: country for country in listed if country.iso_code in called}
    closed = [region for region, country in known.items() if not country.low_risk_numbers_enabled]
    fraud = ("high_risk_special_numbers_enabled", "high_risk_tollfraud_numbers_enabled")
    risky = [region for region, country in known.items() if any(getattr(country, name) for name in fraud)]
    if closed:
        tick = f"{_GEO}: tick {', '.join(closed)}, low-risk numbers only; or take it out of CALL_COUNTRIES"
        return wrong(check, f"calls to {', '.join(closed)} are not allowed (they would be refused with 21215)", tick)
    if unknown := sorted(set(called) - set(known)):
        return warning(check, f"Twilio does not list {', '.join(unknown)}", f"look yourself: {_GEO}")
    if risky:
        found = f"high-risk numbers are allowed in {', '.join(risky)}, which invites toll fraud"
        return warning(check, found, f"{_GEO}: untick the high-risk numbers")
    return ok(check, f"calls to {', '.join(called)} are allowed, high-risk numbers are not")
