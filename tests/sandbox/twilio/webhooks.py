"""The requests the Twilio stand-in makes to the customer's application: signed, timed and retried as Twilio does.

Signature: www.twilio.com/docs/usage/webhooks/webhooks-security. Timeouts and retries: .../webhooks-connection-overrides;
by default one retry, on a failure to connect only. The stand-in sends the URL exactly as it was given, so the signature
is of the URL on the wire.
"""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urldefrag, urlencode, urlsplit

import aiohttp
from twilio.request_validator import RequestValidator
from yarl import URL

from tests.sandbox.twilio.twiml import MAX_BYTES, ApplicationError

CONNECT_S, READ_S = 5.0, 15.0  # no voice webhook waits longer, retries included


def _overrides(url: str) -> tuple[int, set[str]]:
    """`#rc=5&rp=4xx,rt`: how often a request is repeated, and after which failures. Other overrides are not done here."""
    given = dict(parse_qsl(urlsplit(url).fragment))
    retries = given.get("rc", "1")
    return int(retries) if retries in set("012345") else 1, set(given.get("rp", "ct").split(","))


@dataclass(frozen=True)
class Hook:
    """One request to make. The token is the same for every repetition: that is what it is for."""

    method: str
    url: str
    fields: Mapping[str, str]
    token: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(frozen=True)
class Reply:
    status: int
    content_type: str
    body: bytes  # at most one byte more than Twilio would read
    seconds: float


class Webhooks:
    """Must be opened inside the event loop that is to use it."""

    def __init__(self, account_sid: str, auth_token: str) -> None:
        self._account_sid = account_sid
        self._validator = RequestValidator(auth_token)
        self._session: aiohttp.ClientSession | None = None
        self._sent: set[asyncio.Task[tuple[str, Reply | ApplicationError]]] = set()

    async def open(self) -> None:
        # No limit: a function that hangs must not keep the callbacks of other calls waiting here. No keep-alive: a server
        # that closes an idle connection just as a POST leaves would look like a callback lost, and none of it Twilio's doing.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, trust_env=False)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def idle(self) -> None:
        """Returns when every request that was sent has its answer, or is given up."""
        while self._sent:
            await asyncio.wait(self._sent)

    async def send(self, hook: Hook) -> Reply:
        """The answer, if it is 2xx. Raises ApplicationError after the last retry: 11200, 11205, 11210 or 11220.

        Cancelled, as when the person hangs up, it lets a request go on that was sent.
        """
        retries, repeated = _overrides(hook.url)
        try:
            async with asyncio.timeout(READ_S):
                for retries_left in range(retries, -1, -1):
                    request = asyncio.create_task(self._once(hook))
                    self._sent.add(request)
                    request.add_done_callback(self._sent.discard)
                    kind, outcome = await asyncio.shield(request)
                    if isinstance(outcome, Reply):
                        return outcome
                    if not (retries_left and {"all", kind} & repeated):
                        raise outcome
        except TimeoutError:
            request.cancel()
        raise ApplicationError(11200, f"HTTP retrieval failure: no answer within {READ_S:g} s")

    def sign(self, url: str, fields: Mapping[str, str]) -> str:
        return str(self._validator.compute_signature(url, dict(fields)))

    async def _once(self, hook: Hook) -> tuple[str, Reply | ApplicationError]:
        assert self._session is not None, "open() comes first"
        url, body = urldefrag(hook.url).url, None if hook.method == "GET" else urlencode(hook.fields)
        if body is None:
            url += ("&" if urlsplit(url).query else "?") + urlencode(hook.fields)
        headers = {
            "X-Twilio-Signature": self.sign(url, {} if body is None else hook.fields),
            "I-Twilio-Idempotency-Token": hook.token, "User-Agent": "TwilioProxy/1.1", "Accept": "*/*",
        }  # fmt: skip
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded; charset=UTF-8"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        started = asyncio.get_running_loop().time()
        try:
            async with self._session.request(
                hook.method, URL(url, encoded=True), data=body, headers=headers, timeout=timeout
            ) as response:
                content = await _read(response, MAX_BYTES + 1)
        except aiohttp.ClientConnectorDNSError as error:
            return "ct", ApplicationError(11210, f"HTTP bad host name: {error}")
        except (aiohttp.ClientConnectorSSLError, aiohttp.ClientConnectorCertificateError) as error:
            return "ct", ApplicationError(11220, f"SSL/TLS handshake error: {error}")
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, socket.gaierror) as error:
            return "ct", ApplicationError(11205, f"HTTP connection failure: {error}")
        except aiohttp.InvalidURL as error:
            return "", ApplicationError(11100, f"Invalid URL format: {error}")
        except (aiohttp.ClientError, TimeoutError) as error:
            return "rt", ApplicationError(11200, f"HTTP retrieval failure: {error!r}")
        if not 200 <= response.status < 300:
            wrong = ApplicationError(11200, f"HTTP retrieval failure: answered {response.status}")
            return f"{response.status // 100}xx", wrong
        seconds = asyncio.get_running_loop().time() - started
        kind = response.content_type if "Content-Type" in response.headers else ""
        return "", Reply(response.status, kind, content, seconds)


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    content = b""
    while len(content) < limit and (chunk := await response.content.read(limit - len(content))):
        content += chunk
    return content
