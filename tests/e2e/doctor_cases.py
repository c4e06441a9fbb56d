"""The doctor's test bench: a sandbox behind a proxy, and hosts with prepared answers."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import psycopg
import pytest
from aiohttp import web

from function.doctor import main
from shared.settings import load_settings
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.serve import Server

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
HOP_BY_HOP = {"host", "content-length", "transfer-encoding", "connection"}


@dataclass(frozen=True)
class Passing:
    """A request on its way through the proxy, for a test to spoil."""

    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    def without(self, header: str) -> Passing:
        kept = {name: value for name, value in self.headers.items() if name.lower() != header}
        return replace(self, headers=kept)


class Proxy:
    """In front of `target`. `spoil` changes requests; `answer`, if set, answers them instead."""

    def __init__(self) -> None:
        self.target = ""
        self.polite()

    def polite(self) -> None:
        self.spoil: Callable[[Passing], Passing] = lambda passing: passing
        self.answer: Answer | None = None

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass)
        return app

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        if self.answer is not None:
            return await self.answer(request)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        passing = self.spoil(Passing(request.path, request.query_string, headers, await request.read()))
        url = f"{self.target}{passing.path}" + (f"?{passing.query}" if passing.query else "")
        about: Any = {"headers": passing.headers, "data": passing.body, "allow_redirects": False}
        async with aiohttp.ClientSession() as session, session.request(request.method, url, **about) as answer:
            kind = {"Content-Type": answer.headers.get("Content-Type", "")}
            return web.Response(status=answer.status, body=await answer.read(), headers=kind)


def says(status: int, body: str, kind: str = "text/html", location: str = "") -> Answer:
    headers = {"Location": location} if location else {}

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=body, content_type=kind, headers=headers)

    return answer


@dataclass(frozen=True)
class Visit:
    """One report."""

    exit_code: int
    findings: list[dict[str, str]]

    def checks(self, *states: str) -> set[str]:
        return {found["check"] for found in self.findings if found["state"] in states}

    @property
    def trouble(self) -> set[str]:
        """The checks that are not ok; a warning's has a question mark."""
        return self.checks("wrong") | {f"{check}?" for check in self.checks("warning")}

    @property
    def told(self) -> str:
        """All that is said of them."""
        bad = [found for found in self.findings if found["state"] in ("warning", "wrong")]
        return "\n".join(f"{found['found']} {found['advice']}" for found in bad)


class Clinic:
    """Runs the doctor in the environment of a sandbox that is reached through a proxy."""

    def __init__(self, sandbox: Sandbox, proxy: Proxy, database: psycopg.Connection[Any]) -> None:
        self.sandbox, self.proxy, self.database = sandbox, proxy, database

    def visit(self, **changed: str) -> Visit:
        """With these settings changed. No secret may appear in the report."""
        environ = {**self.sandbox.settings, **changed}
        with contextlib.redirect_stdout(io.StringIO()) as output:
            code = main(["--json"], environ)
        said, settings = output.getvalue(), load_settings(http=False, environ=environ)
        for secret in (*settings.secrets, settings.twilio_phone_number, self.sandbox.dispatch_secret):
            assert secret.removeprefix("whsec_") not in said
        assert "+14155550100" not in said  # the number of the tests' jobs
        visit = Visit(code, json.loads(said))
        assert all(bool(found["advice"]) == (found["state"] in ("warning", "wrong")) for found in visit.findings)
        assert code == bool(visit.checks("wrong"))
        return visit

    def reset(self) -> None:
        """Take back all changes but those of the schema. Vault holds the proxy's address."""
        self.proxy.polite()
        self.sandbox.reset()
        url = self.sandbox.settings["API_BASE_URL"]
        self.sql(f"update vault.secrets set secret = '{url}/' where name = 'call_dispatcher_url'")

    def sql(self, statements: str) -> None:
        self.database.execute(statements.encode())

    def deviations(
        self, cases: Iterable[tuple[Any, ...]], visit: Callable[[Any], Visit] | None = None
    ) -> dict[str, object]:
        """Of cases (fault, checks that are not ok, words of what is told): where the report is another."""
        odd: dict[str, object] = {}
        for fault, checks, *words in cases:
            seen = visit(fault) if visit else self.visit(**fault)
            self.reset()
            if seen.trouble != set(checks.split(", ")) or any(word not in seen.told for word in words):
                odd[str(fault)] = (seen.trouble, seen.told)
        return odd


@contextmanager
def open_clinic() -> Iterator[Clinic]:
    proxy = Proxy()
    with (
        pytest.MonkeyPatch.context() as patch,
        Server(proxy.app) as front,
        Sandbox(
            scheduler=False, webhooks=False, environ={"API_BASE_URL": front.url, "VOICE_PATH": "/twilio/voice"}
        ) as sandbox,
        psycopg.connect(sandbox.ready.database_url, autocommit=True) as database,
    ):
        # To load the authorities' certificates takes most of a visit's time; here nobody shows one.
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        proxy.target = sandbox.ready.function_url
        yield Clinic(sandbox, proxy, database)
