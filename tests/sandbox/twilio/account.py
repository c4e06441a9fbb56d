"""What the Twilio stand-in says of the account: its state, its numbers, the countries it may call. Read, never written to.

Shapes: www.twilio.com/docs/iam/api/account, .../phone-numbers/api/incomingphonenumber-resource,
.../voice/api/outgoing-caller-ids, .../voice/api/dialingpermissions-country-resource (of voice.twilio.com; here one host is
both). Only what somebody here asks for is filled in, and a list is one page.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from aiohttp import web

from tests.sandbox.twilio.call_simulator import API, number_sid, rfc2822
from tests.sandbox.twilio.create_call_validation import Refusal

COUNTRIES = ("US", "CA", "GB", "DE")


class Account:
    """Tests set the public names, from any thread; `polite()` sets them back.

    status: active | suspended | closed. type: Full | Trial. primary_token: what the account says is its auth token, with
    which Twilio signs; None: the one that it takes. voice: whether the number can call. numbers and caller_ids: what the
    account has. countries: those where low-risk numbers may be called; high_risk: where all may. refuse: a code of
    Twilio's for all that is asked here under a path that holds the word.
    """

    def __init__(self, sid: str, auth_token: str, phone_number: str, now: Callable[[], datetime]) -> None:
        self._sid, self._auth_token, self._phone_number, self._now = sid, auth_token, phone_number, now
        self.polite()

    def polite(self) -> None:
        self.status, self.type = "active", "Full"
        self.primary_token: str | None = None
        self.voice = True
        self.numbers = [self._phone_number]
        self.caller_ids: list[str] = []
        self.countries = {"US", "CA", "GB"}
        self.high_risk: set[str] = set()
        self.refuse: dict[str, int] = {}

    def routes(self) -> list[web.RouteDef]:
        account = f"/{API}/Accounts/{{account}}"
        return [
            web.get(f"{account}.json", self._account),
            web.get(f"{account}/IncomingPhoneNumbers.json", self._incoming_numbers),
            web.get(f"{account}/OutgoingCallerIds.json", self._outgoing_caller_ids),
            web.get("/v1/DialingPermissions/Countries", self._countries),
        ]

    def _answer(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        for word, code in self.refuse.items():
            if word in request.path:
                raise Refusal(code, request.path)
        return web.json_response(body)

    async def _account(self, request: web.Request) -> web.Response:
        body = {
            "sid": self._sid, "owner_account_sid": self._sid, "friendly_name": "Twilio stand-in", "status": self.status,
            "type": self.type, "auth_token": self.primary_token or self._auth_token,
            "date_created": rfc2822(self._now()), "date_updated": rfc2822(self._now()), "uri": request.path,
            "subresource_uris": {"calls": f"/{API}/Accounts/{self._sid}/Calls.json"},
        }  # fmt: skip
        return self._answer(request, body)

    async def _incoming_numbers(self, request: web.Request) -> web.Response:
        def show(number: str) -> dict[str, Any]:
            return {
                **self._own(number), "capabilities": {"voice": self.voice, "sms": False, "mms": False, "fax": False},
                "api_version": API, "beta": False, "status": "in-use",
                "uri": f"/{API}/Accounts/{self._sid}/IncomingPhoneNumbers/{number_sid(number)}.json",
            }  # fmt: skip

        return self._answer(request, self._page(request, "incoming_phone_numbers", [*map(show, self.numbers)]))

    async def _outgoing_caller_ids(self, request: web.Request) -> web.Response:
        shown = [self._own(number) for number in self.caller_ids]
        return self._answer(request, self._page(request, "outgoing_caller_ids", shown))

    def _own(self, number: str) -> dict[str, Any]:
        return {
            "sid": number_sid(number), "account_sid": self._sid, "phone_number": number, "friendly_name": number,
            "date_created": rfc2822(self._now()), "date_updated": rfc2822(self._now()),
        }  # fmt: skip

    @staticmethod
    def _page(request: web.Request, key: str, numbers: list[dict[str, Any]]) -> dict[str, Any]:
        """PhoneNumber filters by part of the number, as Twilio's does."""
        found = [number for number in numbers if request.query.get("PhoneNumber", "") in number["phone_number"]]
        uri = request.path_qs
        paging = {"page": 0, "page_size": 50, "start": 0, "end": max(0, len(found) - 1), "next_page_uri": None}
        return {key: found, **paging, "previous_page_uri": None, "first_page_uri": uri, "uri": uri}

    async def _countries(self, request: web.Request) -> web.Response:
        def show(iso_code: str) -> dict[str, Any]:
            url = f"{request.url.origin()}{request.path}/{iso_code}"
            return {
                "iso_code": iso_code, "name": iso_code, "continent": "", "country_codes": [],
                "low_risk_numbers_enabled": iso_code in self.countries,
                "high_risk_special_numbers_enabled": iso_code in self.high_risk,
                "high_risk_tollfraud_numbers_enabled": iso_code in self.high_risk, "url": url,
                "links": {"highrisk_special_prefixes": f"{url}/HighRiskSpecialPrefixes"},
            }  # fmt: skip

        url = str(request.url)
        paging = {"page": 0, "page_size": 50, "first_page_url": url, "previous_page_url": None, "next_page_url": None}
        body = {"content": [*map(show, COUNTRIES)], "meta": {"key": "content", "url": url, **paging}}
        return self._answer(request, body)
