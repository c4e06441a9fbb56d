"""A person on the line gets their words in time, whatever slow clients and a slow Twilio do."""

from __future__ import annotations

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from function.worker import READ_SECONDS
from tests.e2e.conftest import World

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


def connect(world: World) -> socket.socket:
    host, port = world.sandbox.ready.function_url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def voice_takes_s(world: World) -> float:
    began = time.monotonic()
    form = {"CallSid": "CA" + "1" * 32, "CallStatus": "in-progress"}
    assert world.twilio_posts("/voice?attempt=x", form).status_code == 200
    return time.monotonic() - began


def test_voice_answers_beside_two_hundred_slow_clients(quiet: World) -> None:
    late = {}
    for name, start in STARTS.items():
        with ExitStack() as clients:
            for _ in range(200):
                clients.enter_context(connect(quiet)).sendall(start)
            if (took := voice_takes_s(quiet)) > IN_TIME_SECONDS:
                late[name] = took
    assert late == {}


def test_slow_body_is_a_408(quiet: World) -> None:
    with connect(quiet) as client:
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
        answers = [webhooks.submit(quiet.dial, job) for job in jobs]
        time.sleep(0.3)
        assert voice_takes_s(quiet) < 1.5
        assert {answer.result()["did"] for answer in answers} == {"in_doubt", "waiting"}
