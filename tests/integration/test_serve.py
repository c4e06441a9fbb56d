"""The stand-ins' server: it answers once started, says why when it cannot, and may come back on the same port."""

from __future__ import annotations

import socket
import ssl
import threading

import httpx
import pytest
import trustme
from aiohttp import web

from tests.sandbox.serve import Server


def application() -> web.Application:
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    return app


def test_server_answers_when_started_and_keeps_its_port() -> None:
    server = Server(application)
    with server:
        url = server.url
        assert httpx.get(url).text == "hello"
        with pytest.raises(OSError, match="address already in use"):
            Server(application, port=server.port).start()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    with server:
        assert (server.url, httpx.get(url).text) == (url, "hello")


def test_application_that_cannot_start_is_an_error() -> None:
    async def fail(app: web.Application) -> None:
        raise RuntimeError("no database")

    app = application()
    app.on_startup.append(fail)
    with pytest.raises(RuntimeError, match="no database"):
        Server(app).start()


@pytest.mark.parametrize("hangs_up", [True, False])
def test_client_that_hangs_up_leaves_no_traceback(caplog: pytest.LogCaptureFixture, hangs_up: bool) -> None:
    reads, ended = threading.Event(), threading.Event()

    async def read(request: web.Request) -> web.Response:
        reads.set()
        try:
            return web.Response(body=await request.read())
        finally:
            ended.set()
            if not hangs_up:
                raise ConnectionError("to another service")

    app = web.Application()
    app.router.add_post("/", read)
    with Server(app) as server, socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 8\r\n\r\nhalf")
        assert reads.wait(20)
        client.close() if hangs_up else client.sendall(b"rest")
        assert ended.wait(20)
        assert hangs_up or client.recv(12) == b"HTTP/1.1 500"
    assert (
        [record.message for record in caplog.records] == [] if hangs_up else ["Error handling request from 127.0.0.1"]
    )


def test_tls_server_is_trusted_by_its_authority_alone() -> None:
    authority, certificate = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(certificate)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with Server(application, tls=certificate) as server:
        assert httpx.get(server.url, verify=trusting).text == "hello"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(server.url)
