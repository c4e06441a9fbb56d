"""A person on the line gets their words in time, whatever slow clients and a slow Twilio do."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from function.worker import READ_SECONDS
from tests.e2e.conftest import World
from tests.e2e.test_failures import hook
from tests.e2e.test_requests import signed

IN_TIME_SECONDS = 10.0  # Twilio waits 15 s; 200 clients that each hold one of 16 threads for 5 s would take 60 s
STARTS = {
    "nothing": b"",
    "half a header": b"POST /voice HTTP/1.1\r\nHost: x\r\nX-Half: ",
    "no body": b"POST /voice HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
    "half a body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    "a body for nobody": b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
    "a body too large": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{",
    "half a chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{",
}


def address(world: World) -> tuple[str, int]:
    host, port = world.sandbox.ready.function_url.removeprefix("http://").split(":")
    return host, int(port)


@contextmanager
def slow_clients(world: World, start: bytes, count: int) -> Iterator[None]:
    with ExitStack() as open_:
        for _ in range(count):
            client = open_.enter_context(socket.create_connection(address(world), timeout=10))
            client.sendall(start)
        yield


def voice_takes_s(world: World) -> float:
    form = {"CallSid": "CA" + "1" * 32, "CallStatus": "in-progress"}
    path = "/voice?attempt=x"
    began = time.monotonic()
    assert world.post(path, data=form, headers=signed(world, path, form)).status_code == 200
    return time.monotonic() - began


def test_voice_answers_beside_two_hundred_slow_clients(quiet: World) -> None:
    late = {}
    for name, start in STARTS.items():
        with slow_clients(quiet, start, 200):
            if (took := voice_takes_s(quiet)) > IN_TIME_SECONDS:
                late[name] = took
    assert late == {}


def test_slow_body_is_a_408(quiet: World) -> None:
    with socket.create_connection(address(quiet), timeout=20) as client:
        client.sendall(STARTS["no body"])
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < READ_SECONDS - 1:  # one byte a second is too slow, too
                client.sendall(b"x")
                time.sleep(1)
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < READ_SECONDS + 2


def test_voice_answers_beside_a_slow_twilio(quiet: World) -> None:
    jobs = [quiet.insert_job(quiet.number()) for _ in range(40)]
    quiet.behave(create="hang")
    with ThreadPoolExecutor(len(jobs)) as webhooks:
        answers = [webhooks.submit(quiet.webhook, hook(job_id)) for job_id in jobs]
        time.sleep(0.3)
        assert voice_takes_s(quiet) < 1.0
        said = [answer.result().json()["did"] for answer in answers]
    assert set(said) == {"in_doubt", "waiting"}
