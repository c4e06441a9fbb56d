"""Supabase's client for the database: `postgrest`, a part of supabase-py, over `shared.http`.

The transport adds a deadline and a limit. supabase-py's own, HTTP/2 over one connection, fails under threads: 13 to 80 of
3,000 calls (measured). The rest of supabase-py (auth, realtime, storage) is not imported: it costs 100 to 150 ms.
"""

from functools import partial
from typing import Any

import httpx
from postgrest import SyncPostgrestClient

from shared.http import Http, HttpError
from shared.settings import Settings

CONNECT_SECONDS = 2.5
# Supabase's statement_timeout for API roles is 8 s: no answer comes later.
ANSWER_SECONDS = 10.0
# A kept connection may be dead, so an idempotent call is made once more, on a new connection. Sum 13 s, below Twilio's
# 15 s limit for TwiML, so the person hears at least the apology.
FIRST_TRY_SECONDS = 5.0
SECOND_TRY_SECONDS = 8.0
REPEATABLE = ("record_call_status", "record_call_answer", "accept_call")


class Session(httpx.Client):
    """The HTTP client of `postgrest`. Each request has a deadline; a repeatable one has a second try.

    httpx's own way from a call to the socket and back takes 1 ms of CPU for the two calls that a phone call needs (measured).
    """

    def __init__(self, base_url: str) -> None:
        super().__init__(transport=httpx.BaseTransport())
        self._http = Http(base_url, kept=True)
        self._request = httpx.Request("POST", base_url)  # postgrest asks each response for it

    def request(self, method: str, url: httpx.URL | str, **given: Any) -> httpx.Response:
        send = partial(self._send, method, str(url), dict(given["headers"].items()), given["content"])
        if not str(url).endswith(REPEATABLE):
            return send(ANSWER_SECONDS)
        try:
            return send(FIRST_TRY_SECONDS)
        except HttpError:
            self._http.forget_connections()
            return send(SECOND_TRY_SECONDS)

    def _send(self, method: str, url: str, headers: dict[str, str], body: bytes, total_s: float) -> httpx.Response:
        connect_s = min(CONNECT_SECONDS, total_s)
        answer = self._http.request(method, url, headers, body, connect_s=connect_s, total_s=total_s)
        kept = [(name, value) for name, value in answer.headers.items() if name.lower() != "content-encoding"]
        response = httpx.Response(answer.status, headers=kept, content=answer.body, request=self._request)
        for hook in self.event_hooks["response"]:
            hook(response)
        return response


def connect(settings: Settings) -> SyncPostgrestClient:
    """Make a client with its own connection pool. `sb_` keys are not JWTs: Supabase wants them in `apikey` alone."""
    key = settings.supabase_service_key.get_secret_value()
    headers = {"apikey": key} | ({} if key.startswith("sb_") else {"Authorization": f"Bearer {key}"})
    session = Session(settings.supabase_url)
    headers["User-Agent"] = session.headers["User-Agent"]
    return SyncPostgrestClient(f"{settings.supabase_url}/rest/v1", headers=headers, http_client=session)
