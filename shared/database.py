"""Supabase's client for the database: `postgrest`, a part of supabase-py, over `shared.http`.

The transport adds a deadline and a limit. supabase-py's own, HTTP/2 over one connection, fails under threads: 13 to 80 of
3,000 calls (measured). The rest of supabase-py (auth, realtime, storage) is not imported: it costs 100 to 150 ms.
"""

import httpx
from postgrest import SyncPostgrestClient
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError
from urllib3.exceptions import TimeoutError as HttpTimeout

from shared.http import Http
from shared.settings import Settings

CONNECT_SECONDS = 2.5
# Supabase's statement_timeout for API roles is 8 s: no answer comes later.
ANSWER_SECONDS = 10.0
# A kept connection may be dead, so an idempotent call is made once more, on a new connection. Sum 13 s, below Twilio's
# 15 s limit for TwiML, so the person hears at least the apology.
FIRST_TRY_SECONDS = 5.0
SECOND_TRY_SECONDS = 8.0
REPEATABLE = ("record_call_status", "record_call_answer", "accept_call")


class Transport(httpx.BaseTransport):
    """Carries the client's requests. Each has a deadline; a repeatable one has a second try on a new connection."""

    def __init__(self, base_url: str) -> None:
        self._http = Http(base_url, kept=True)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith(REPEATABLE):
            return self._send(request, ANSWER_SECONDS)
        try:
            return self._send(request, FIRST_TRY_SECONDS)
        except httpx.TransportError:
            self._http.forget_connections()
            return self._send(request, SECOND_TRY_SECONDS)

    def _send(self, request: httpx.Request, total_s: float) -> httpx.Response:
        connect_s = min(CONNECT_SECONDS, total_s)
        url, body = str(request.url), request.read()
        try:
            answer = self._http.request(
                request.method, url, request.headers, body, connect_s=connect_s, total_s=total_s
            )
        except NewConnectionError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        except ConnectTimeoutError as error:
            raise httpx.ConnectTimeout(str(error), request=request) from error
        except HttpTimeout as error:
            raise httpx.ReadTimeout(str(error), request=request) from error
        except (HTTPError, OSError) as error:
            raise httpx.NetworkError(f"{type(error).__name__}: {error}", request=request) from error
        headers = [(name, value) for name, value in answer.headers.items() if name.lower() != "content-encoding"]
        return httpx.Response(answer.status, headers=headers, content=answer.body)


def connect(settings: Settings) -> SyncPostgrestClient:
    """Make a client with its own connection pool. `sb_` keys are not JWTs: Supabase wants them in `apikey` alone."""
    key = settings.supabase_service_key.get_secret_value()
    headers = {"apikey": key} | ({} if key.startswith("sb_") else {"Authorization": f"Bearer {key}"})
    http = httpx.Client(transport=Transport(settings.supabase_url))
    return SyncPostgrestClient(f"{settings.supabase_url}/rest/v1", headers=headers, http_client=http)
