"""Twilio, looked at and never used: the account, its token, our number, the countries. Four GETs; nothing here can dial."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from twilio.base.exceptions import TwilioRestException
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client

from shared.doctor.findings import Clocks, Finding, note_clock, ok, skipped, warning, wrong
from shared.logs import mask_phone
from shared.screening import called_countries
from shared.settings import Settings
from shared.telephony import verdict_on

CONNECT_SECONDS: Final = 3.0
READ_SECONDS: Final = 5.0
MOST_PAGES: Final = 10

_CREDENTIALS: Final = (
    "Twilio console, Account Info: copy Account SID and the primary auth token into TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN;"
    " an API key's secret, another account's token or test credentials do not do"
)
_ADVICE: Final = {
    "20003": _CREDENTIALS + ". If they are right, the account is suspended: the console's banner says why",
    "20008": _CREDENTIALS + ": these are the test credentials, take the live ones",
    "20404": _CREDENTIALS + ": this account does not exist",
    "not_connected": "let the container reach api.twilio.com and voice.twilio.com on port 443: DNS, egress rules, HTTPS_PROXY;"
    " take TWILIO_API_BASE_URL out if it is set: it names a stand-in",
    "certificate": "something between here and Twilio shows a certificate of its own: take the proxy out, or add its authority",
}
_GEO: Final = "Twilio console: Voice, Settings, Geo permissions"


def check_twilio(settings: Settings, clocks: Clocks) -> Iterator[Finding]:
    """Account, token, number and countries, in that order; the last two also when one of them cannot be read."""
    twilio = _Twilio(settings, clocks)
    try:
        account = twilio.get(twilio.account + ".json")
    except Exception as error:  # noqa: BLE001 - every failure is a finding, and verdict_on knows them all
        yield _cannot("Twilio account", error)
        for check in ("Twilio auth token", "Twilio number", "Twilio countries"):
            yield skipped(check, "the account cannot be read")
        return
    yield _account(settings, account)
    yield _auth_token(settings, account)
    for check, look in (("Twilio number", _number), ("Twilio countries", _countries)):
        try:
            yield look(check, settings, twilio)
        except Exception as error:  # noqa: BLE001 - as above
            found = _cannot(check, error)
            # Dialing permissions are readable to most accounts, not to all; the calls themselves will tell.
            yield found if look is _number else warning(check, found.found, f"look yourself: {_GEO}")


class _Twilio:
    def __init__(self, settings: Settings, clocks: Clocks) -> None:
        http = TwilioHttpClient(pool_connections=False, max_retries=None)
        http.timeout = (CONNECT_SECONDS, READ_SECONDS)
        self._client = Client(settings.twilio_account_sid, settings.twilio_auth_tokens[0], http_client=http)
        self._clocks = clocks
        self.voice = settings.twilio_api_base_url or "https://voice.twilio.com"
        api = settings.twilio_api_base_url or "https://api.twilio.com"
        self.account = f"{api}/2010-04-01/Accounts/{settings.twilio_account_sid}"

    def get(self, url: str, params: Mapping[str, object] | None = None) -> dict[str, Any]:
        """-> what the answer holds. Raises TwilioRestException, requests' exceptions, ValueError."""
        response = self._client.request("GET", url, params=params)
        note_clock(self._clocks, "Twilio", (response.headers or {}).get("Date"))
        try:
            body = json.loads(response.text)
        except ValueError:
            body = None
        body = body if isinstance(body, dict) else {}
        if response.status_code != 200:
            code, message = body.get("code", response.status_code), body.get("message", "")
            raise TwilioRestException(response.status_code, url, str(message), code)
        if not body:
            raise ValueError("an answer that is not Twilio's")
        return body

    def countries(self) -> Iterator[dict[str, Any]]:
        url: str | None = f"{self.voice}/v1/DialingPermissions/Countries?PageSize=1000"
        for _ in range(MOST_PAGES):
            if not url or not url.startswith(self.voice):  # the credentials go nowhere else
                return
            page = self.get(url)
            yield from page["content"]
            url = page.get("meta", {}).get("next_page_url")


def _cannot(check: str, error: BaseException) -> Finding:
    verdict = verdict_on(error)
    code = verdict.code.removeprefix("twilio_")
    return wrong(check, f"cannot be read: {verdict.reason}", _ADVICE.get(code, "try again; then: status.twilio.com"))


def _account(settings: Settings, account: dict[str, Any]) -> Finding:
    check, status = "Twilio account", account.get("status")
    if status != "active":
        return wrong(
            check,
            f"the account is {status}",
            "Twilio console: its banner says what is asked of you (funds, terms, review)",
        )
    if account.get("type") == "Trial":
        return warning(
            check, "a trial account: it calls verified numbers only, in its own country", "Twilio console: Upgrade"
        )
    sub = account.get("owner_account_sid") not in (None, account.get("sid"))
    kind = ", a subaccount: numbers and permissions of its own" if sub else ""
    return ok(check, f"active{kind}{'; a stand-in (TWILIO_API_BASE_URL)' if settings.twilio_api_base_url else ''}")


def _auth_token(settings: Settings, account: dict[str, Any]) -> Finding:
    """Both tokens answer requests, and Twilio signs with the primary one alone, which the account tells to its owner."""
    check, primary = "Twilio auth token", str(account.get("auth_token") or "")
    if len(primary) != 32 or primary in settings.twilio_auth_tokens:
        return ok(check, "accepted" + (", and callbacks are signed with it" if len(primary) == 32 else ""))
    return wrong(
        check,
        "it answers requests, but is not the primary one: every callback of Twilio's would be refused with 401",
        "put the primary auth token (Twilio console, Account Info) into TWILIO_AUTH_TOKEN; both, by a space, while you rotate",
    )


def _number(check: str, settings: Settings, twilio: _Twilio) -> Finding:
    ours, shown = settings.twilio_phone_number, mask_phone(settings.twilio_phone_number)
    owned = twilio.get(f"{twilio.account}/IncomingPhoneNumbers.json", {"PhoneNumber": ours})["incoming_phone_numbers"]
    for number in owned:
        if number.get("phone_number") == ours:
            if number.get("capabilities", {}).get("voice"):
                return ok(check, f"{shown} belongs to the account and can make calls")
            return wrong(
                check,
                f"{shown} belongs to the account and has no voice",
                "Twilio console: Phone Numbers, Buy a number, tick Voice; then set TWILIO_PHONE_NUMBER",
            )
    verified = twilio.get(f"{twilio.account}/OutgoingCallerIds.json", {"PhoneNumber": ours})["outgoing_caller_ids"]
    if any(number.get("phone_number") == ours for number in verified):
        return ok(check, f"{shown} is a verified caller ID of the account")
    return wrong(
        check,
        f"{shown} is no number of this account (each call would be refused with 21210)",
        "set TWILIO_PHONE_NUMBER to one under Phone Numbers, Active numbers, of this very account: a subaccount does not see its"
        " owner's, nor the owner a subaccount's",
    )


def _countries(check: str, settings: Settings, twilio: _Twilio) -> Finding:
    permissions = {country["iso_code"]: country for country in twilio.countries()}
    called = called_countries(settings)
    unknown = [region for region in called if region not in permissions]
    closed = [
        region for region in called if region not in unknown and not permissions[region]["low_risk_numbers_enabled"]
    ]
    risky = [
        region
        for region in called
        if region in permissions
        and (
            permissions[region].get("high_risk_special_numbers_enabled")
            or permissions[region].get("high_risk_tollfraud_numbers_enabled")
        )
    ]
    if closed:
        return wrong(
            check,
            f"calls to {', '.join(closed)} are not allowed (they would be refused with 21215)",
            f"{_GEO}: tick {', '.join(closed)}, low-risk numbers only; or take it out of CALL_COUNTRIES",
        )
    if unknown:
        return warning(check, f"Twilio says nothing about {', '.join(unknown)}", f"look yourself: {_GEO}")
    if risky:
        return warning(
            check,
            f"high-risk numbers are allowed in {', '.join(risky)}: this is how toll fraud is paid for",
            f"{_GEO}: untick the high-risk numbers",
        )
    return ok(check, f"calls to {', '.join(called)} are allowed, high-risk numbers are not")
