"""A receiver of results: shows what it was told, and refuses, hangs or hangs up on demand.

    GET  /_sandbox/results     every POST that arrived whole: id, type, event, verified, answer, at
    PUT  /_sandbox/behaviour   {"do": "refuse", "status": 503, "headers": {"Retry-After": "2"}, "times": 3}

`do`: take (200), refuse (`status`, by default 500), hang (for `seconds`), close (the event was read, and no answer comes).
`times`: so many POSTs; then it takes again.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from tests.sandbox.events import Events


class Behaviour(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    do: Literal["take", "refuse", "hang", "close"] = "take"
    status: int = Field(default=500, ge=200, le=599)
    headers: dict[str, str] = {}
    seconds: float = Field(default=30.0, ge=0)
    times: int | None = Field(default=None, ge=1)


class Receiver:
    """`told`: each event that was taken (2xx), in order. `posts`: every POST. Both from any thread."""

    def __init__(self, secret: str, events: Events) -> None:
        self.posts: list[dict[str, Any]] = []
        self._webhook = Webhook(secret.split()[0])
        self._events = events
        self._lock = threading.Lock()
        self._behaviour = Behaviour()
        self._left: int | None = None

    @property
    def told(self) -> list[dict[str, Any]]:
        return [post for post in list(self.posts) if isinstance(post["answer"], int) and post["answer"] < 300]

    def behave(self, **behaviour: object) -> None:
        with self._lock:
            self._behaviour = Behaviour.model_validate(behaviour)
            self._left = self._behaviour.times

    def reset(self) -> None:
        self.behave()
        self.posts.clear()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/results", self._take)
        app.router.add_get("/_sandbox/results", self._show)
        app.router.add_put("/_sandbox/behaviour", self._set)
        return app

    def _next(self) -> Behaviour:
        with self._lock:
            behaviour = self._behaviour
            if self._left is not None:
                self._left -= 1
                if self._left == 0:
                    self._behaviour, self._left = Behaviour(), None
            return behaviour

    async def _take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        behaviour = self._next()
        answer: int | str = {"take": 200, "refuse": behaviour.status}.get(behaviour.do, behaviour.do)
        event = json.loads(body)
        post = {
            "id": request.headers["webhook-id"], "type": event["type"], "event": event, "body": body.decode(),
            "verified": self._is_signed(request.headers, body), "answer": answer, "at": time.time(),
        }  # fmt: skip
        self.posts.append(post)
        job = (event.get("data") or {}).get("job_id")
        self._events.tell("told", job=job, type=event["type"], id=post["id"], answer=answer, verified=post["verified"])
        if behaviour.do == "hang":
            await asyncio.sleep(behaviour.seconds)
            if request.transport and not request.transport.is_closing():  # the sender still waits
                post["answer"] = 200
        if behaviour.do == "close" and request.transport:
            request.transport.close()
        return web.Response(status=behaviour.status if behaviour.do == "refuse" else 200, headers=behaviour.headers)

    def _is_signed(self, headers: Mapping[str, str], body: bytes) -> bool:
        try:
            self._webhook.verify(body, {name.lower(): value for name, value in headers.items()})
        except WebhookVerificationError:
            return False
        return True

    async def _show(self, _: web.Request) -> web.Response:
        return web.json_response({"results": [{k: v for k, v in post.items() if k != "body"} for post in self.posts]})

    async def _set(self, request: web.Request) -> web.Response:
        try:
            self.behave(**await request.json())
        except (ValidationError, ValueError, TypeError) as error:
            return web.json_response({"error": {"message": str(error)}}, status=400)
        return web.Response(status=204)
