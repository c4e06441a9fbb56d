"""The requests the Twilio stand-in makes to the customer's application: signed, timed and retried as Twilio does.

Signature: www.twilio.com/docs/usage/webhooks/webhooks-security. Timeouts and retries: .../webhooks-connection-overrides;
by default one retry, on a failure to connect only. The stand-in sends the URL exactly as it was given: what is signed is
what goes over the wire.
"""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urldefrag, urlencode, urlsplit

import aiohttp
from twilio.request_validator import RequestValidator
from yarl import URL

from tests.sandbox.twilio.twiml import MAX_BYTES, ApplicationError

LONGEST_MS = 15_000  # no voice webhook waits longer, retries included


@dataclass(frozen=True)
class Overrides:
    """Milliseconds, but for `rc`, the number of retries, and `rp`, what is retried."""

    rc: int = 1
    rp: frozenset[str] = frozenset({"ct"})
    ct: int = 5_000
    rt: int = LONGEST_MS
    tt: int = LONGEST_MS

    @classmethod
    def of(cls, url: str) -> Overrides:
        """From the URL's fragment; what is unknown or out of bounds is left at its default."""
        given = dict(parse_qsl(urlsplit(url).fragment))
        bounds = {"rc": (0, 5), "ct": (100, 10_000), "rt": (100, LONGEST_MS), "tt": (100, LONGEST_MS)}
        numbers = {k: int(given[k]) for k in bounds if given.get(k, "").isdigit()}
        kept = {k: n for k, n in numbers.items() if bounds[k][0] <= n <= bounds[k][1]}
        policy = frozenset(given.get("rp", "ct").split(","))
        return cls(**kept, rp=policy)

    def again(self, failure: str) -> bool:
        return "all" in self.rp or failure in self.rp


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
        overrides = Overrides.of(hook.url)
        try:
            async with asyncio.timeout(overrides.tt / 1000):
                for retries_left in range(overrides.rc, -1, -1):
                    request = asyncio.create_task(self._once(hook, overrides))
                    self._sent.add(request)
                    request.add_done_callback(self._sent.discard)
                    kind, outcome = await asyncio.shield(request)
                    if isinstance(outcome, Reply):
                        return outcome
                    if not (retries_left and overrides.again(kind)):
                        raise outcome
        except TimeoutError:
            request.cancel()
        raise ApplicationError(11200, f"HTTP retrieval failure: no answer within {overrides.tt} ms")

    def sign(self, url: str, fields: Mapping[str, str]) -> str:
        return str(self._validator.compute_signature(url, dict(fields)))

    async def _once(self, hook: Hook, overrides: Overrides) -> tuple[str, Reply | ApplicationError]:
        assert self._session is not None, "open() comes first"
        url = urldefrag(hook.url).url
        body: str | None = None
        if hook.method == "GET":
            url += ("&" if urlsplit(url).query else "?") + urlencode(hook.fields)
        else:
            body = urlencode(hook.fields)
        headers = {
            "X-Twilio-Signature": self.sign(url, {} if body is None else hook.fields),
            "I-Twilio-Idempotency-Token": hook.token,
            "User-Agent": "TwilioProxy/1.1",
            "Accept": "*/*",
        }
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded; charset=UTF-8"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=overrides.ct / 1000, sock_read=overrides.rt / 1000)
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
            return f"{response.status // 100}xx", ApplicationError(
                11200, f"HTTP retrieval failure: answered {response.status}"
            )
        seconds = asyncio.get_running_loop().time() - started
        kind = response.content_type if "Content-Type" in response.headers else ""
        return "", Reply(response.status, kind, content, seconds)


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    content = b""
    while len(content) < limit and (chunk := await response.content.read(limit - len(content))):
        content += chunk
    return content


def snake(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`CallSid` -> `call_sid`, as parameters are spelled in Events.json."""
    return {"".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_"): v for name, v in fields.items()}
