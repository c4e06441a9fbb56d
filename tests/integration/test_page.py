"""The telephone page without a browser: who may ask it, what it tells, and that the phone on it is the one at Twilio."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.conversation.library import FOLDER
from tests.e2e.test_transfer import COLLEAGUE, SCRIPT
from tests.sandbox.page import author
from tests.sandbox.page.watch import is_lost
from tests.sandbox.sandbox import Sandbox

ADA = "+14155550100"
SIGN_UP = {"phone": ADA, "password": "correct horse", "data": {"first_name": "Ada", "signup_mode": "demo"}}
Event = dict[str, Any]


class Browser:
    """What the page's script does: it asks with the token, and hears the events."""

    def __init__(self, sandbox: Sandbox) -> None:
        assert sandbox.ready.page_url is not None
        self.url, self.token = sandbox.ready.page_url.split("/?token=")
        self.http = httpx.Client(base_url=self.url, headers={"X-Sandbox-Token": self.token}, timeout=30)

    def ask(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def sign_up(self, mode: str = "demo") -> httpx.Response:
        """The call speaks fast."""
        data = {"first_name": "Ada", "signup_mode": mode}
        return self.http.post("/auth/v1/signup", json=SIGN_UP | {"data": data}, headers={"X-Words-Per-Second": "1000"})

    def phone(self, do: str, number: str = ADA, **more: str) -> httpx.Response:
        """The person with this phone does so."""
        return self.ask("/api/phone", number=number, do=do, **more)

    @contextmanager
    def events(self) -> Iterator[Iterator[Event]]:
        """`hello` first, as an event of that kind."""
        with self.http.stream("GET", "/api/events", timeout=30) as answer:
            yield (
                json.loads(line.removeprefix("data: ")) | ({"kind": "hello"} if "anon_key" in line[:100_000] else {})
                for line in answer.iter_lines()
                if line.startswith("data: ")
            )


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    scripts = tmp_path_factory.mktemp("page") / "scripts"
    shutil.copytree(FOLDER, scripts)
    (scripts / "transfer.toml").write_text(SCRIPT)
    # A call in doubt is settled within seconds.
    short = {"CALL_SETTLING_SECONDS": "3", "TWILIO_TIMEOUT_SECONDS": "1", "REQUEST_TIMEOUT_SECONDS": "5.1"}
    with Sandbox(environ=short, page=True, scripts=scripts, results=True) as sandbox:
        yield sandbox


@pytest.fixture
def page(sandbox: Sandbox) -> Iterator[Browser]:
    sandbox.reset()
    browser = Browser(sandbox)
    with browser.http:
        yield browser


def until(events: Iterator[Event], **facts: Any) -> Event:
    return next(event for event in events if facts.items() <= event.items())


def finished(events: Iterator[Event]) -> dict[str, Any]:
    """The job's row, when it is over."""
    return next(event["row"] for event in events if event["kind"] == "job" and event["row"]["finished_at"])


def counts(events: Iterator[Event], name: str = "ended") -> tuple[int, int, int]:
    """Called twice, lost, calls: as soon as there is one of this name."""
    told = next(event["counts"] for event in events if event["kind"] == "counts" and event["counts"][name])
    return told["twice"], told["lost"], told["calls"]


def test_page_answers_its_own_address_origin_and_token_only(page: Browser) -> None:
    own, port, origin = page.url, page.url.rpartition(":")[2], "https://evil.example.com"
    token = ("X-Sandbox-Token", page.token)
    guarded = ["GET /api/scripts", "GET /api/events", "GET /api/story/1", "POST /api/act", "POST /api/switch"]
    guarded += ["POST /api/phone", "PUT /api/scripts", "POST /auth/v1/signup", "DELETE /auth/v1/admin/users/x"]
    expected: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {
        ("GET /", ()): 200, ("GET /page.js", ()): 200, ("GET /", (("Host", f"localhost:{port}"),)): 200,
        ("GET /", (("Host", "rebound.example.com"),)): 403, ("GET /", (("Host", f"rebound.example.com:{port}"),)): 403,
        ("GET /", (("Host", "127.0.0.1:1"),)): 403, ("GET /server.py", ()): 404, ("GET /..%2fserver.py", ()): 404,
        **{(asked, ()): 403 for asked in guarded},
        ("GET /api/scripts", (("X-Sandbox-Token", "wrong"),)): 403,
        ("GET /api/scripts", (("X-Sandbox-Token", "\u00e9"),)): 403,
        ("GET /api/scripts", (token,)): 200, (f"GET /api/scripts?token={page.token}", ()): 200,
        ("GET /api/story/x", (token,)): 404,
        ("POST /api/act", (token, ("Origin", origin))): 403, ("POST /api/act", (token, ("Origin", "null"))): 403,
        ("POST /api/act", (token, ("Origin", own), ("Host", "rebound.example.com"))): 403,
        ("POST /api/act", (token, ("Origin", own))): 400,  # it passed, and lacks its body
        ("OPTIONS /api/act", (("Origin", origin),)): 403,
    }  # fmt: skip
    stranger = httpx.Client()
    answers = {}
    for asked, sent in expected:
        (method, path), headers = asked.split(), [(name.encode(), value.encode("latin-1")) for name, value in sent]
        answers[asked, sent] = stranger.request(method, own + path, headers=headers)
    assert {asked: answer.status_code for asked, answer in answers.items()} == expected
    assert not [a for a in answers.values() if any("access-control" in name for name in a.headers)]
    policies = {answer.headers.get("content-security-policy", "") for answer in answers.values()}
    found = [re.findall(r"default-src 'none'|unsafe|\*|https?:", policy) for policy in policies]
    assert found == [["default-src 'none'"]]


def test_page_listens_on_loopback_only(page: Browser) -> None:
    port = int(page.url.rpartition(":")[2])
    addresses = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)}
    for address in addresses - {"127.0.0.1", "127.0.1.1"}:
        with socket.socket() as client:
            client.settimeout(2)
            assert client.connect_ex((address, port)) != 0


def test_phone_on_the_page_is_answered_and_opts_out(page: Browser) -> None:
    with page.events() as events:
        hello = until(events, kind="hello")
        assert (hello["counts"].get("twice"), hello["counts"].get("lost")) == (0, 0)
        assert page.sign_up().json()["user"]["phone"] == ADA.removeprefix("+")
        assert page.phone("press", keys="2").status_code >= 400
        until(events, kind="call", to=ADA, status="ringing")
        assert page.phone("answer").status_code == 200
        until(events, kind="gather", listens=True)
        assert "thanks for asking for a demo" in until(events, kind="say", to=ADA)["text"]
        page.phone("press", keys="2")
        until(events, kind="gather", listens=True)
        page.phone("press", keys="9")
        assert until(events, kind="opt-out")["row"]["phone_e164"] == ADA
        learned = finished(events)["qualification"]
        assert (learned["answers"], learned["opted_out"]) == ({"team_size": "2_to_10"}, True)


ENDS = {"decline": "busy", "busy": "busy", "voice-mail": "completed", "hang-up": "completed"}


def test_person_ends_the_ringing_as_the_button_says(page: Browser, sandbox: Sandbox) -> None:
    found = {}
    for do in ENDS:
        sandbox.reset()
        with page.events() as events:
            page.sign_up()
            until(events, kind="call", status="ringing")
            if do == "hang-up":
                page.phone("answer")
                until(events, kind="call", status="in-progress")
            page.phone(do)
            over = (e for e in events if e["kind"] == "call" and e["status"] not in ("ringing", "in-progress"))
            found[do] = next(over)["status"]
    assert found == ENDS


def test_colleague_of_a_transfer_answers_on_the_page(page: Browser) -> None:
    with page.events() as events:
        page.sign_up("transfer")
        until(events, kind="call", to=ADA, status="ringing")
        page.phone("answer")
        until(events, kind="gather", listens=True)
        page.phone("press", keys="1")
        assert until(events, kind="call", to=COLLEAGUE, status="ringing")["colleague"] is True
        page.phone("answer", COLLEAGUE)
        assert until(events, kind="say", to=COLLEAGUE)["text"].startswith("A lead, Ada")
        page.phone("press", COLLEAGUE, keys="5")
        until(events, kind="bridged", to=ADA)
        page.phone("hang-up", COLLEAGUE)
        until(events, kind="say", to=ADA, text="Goodbye.")
        job = finished(events)
        assert (job["status"], job["qualification"]["answers"]) == ("completed", {"talk": "now"})
        assert counts(events) == (0, 0, 1)


def test_timeline_shows_what_the_receiver_was_told(page: Browser) -> None:
    assert page.ask("/api/switch", name="receiver_refuses", on=True).status_code == 200
    with page.events() as events:
        page.sign_up()
        until(events, kind="call", status="ringing")
        page.phone("decline")
        until(events, kind="call", status="ringing")  # the redial
        page.ask("/api/act", name="opt_out", number=ADA)
        told = until(events, kind="told", answer=500)
        page.ask("/api/switch", name="receiver_refuses", on=False)
        assert until(events, kind="told", answer=200, id=told["id"])["verified"]


def test_broken_answer_and_lost_webhook_end_with_one_call(page: Browser, sandbox: Sandbox) -> None:
    switches = ("answer_lost", "webhooks_lost", "callbacks_lost")
    for name in switches:
        assert page.ask("/api/switch", name=name, on=True).status_code == 200
    with page.events() as events:
        page.sign_up()
        assert until(events, kind="webhook")["error"] == "lost"
        assert until(events, kind="request", path="Calls.json", method="POST")["answer"] is None
        until(events, kind="call", status="ringing")
        page.phone("answer")
        until(events, kind="call", status="in-progress")
        page.phone("hang-up")
        assert finished(events)["status"] == "completed"
        assert counts(events) == (0, 0, 1)
    for name in switches:
        page.ask("/api/switch", name=name, on=False)
    assert len(sandbox.twilio.calls) == 1


def test_unknown_switch_and_action_are_refused_by_name(page: Browser) -> None:
    for path in ("/api/switch", "/api/act"):
        answer = page.ask(path, name="nonsense", on=True)
        assert (answer.status_code, "nonsense" in answer.json()["error"]["message"]) == (409, True)


def test_script_is_checked_and_walked_without_writing_it(page: Browser) -> None:
    before = author.files()
    text = next(file["text"] for file in before if file["name"] == "demo")
    fine = page.ask("/api/scripts/check", name="demo", text=text, keys=["2", "1", "1"], first_name="Ada").json()
    learned = [None, "team_size = 2_to_10", "single_sign_on = yes", "timeline = this_month"]
    assert (fine["problems"], [turn["learned"] for turn in fine["turns"]]) == ([], learned)
    assert fine["turns"][0]["says"][0].startswith("Hi Ada")
    wrong = [("demo", text.replace('key = "9"', 'key = "#"')), ("demo", "greeting = "), ("../demo", text)]
    bad = [page.ask("/api/scripts/check", name=name, text=text).json()["problems"][0] for name, text in wrong]
    assert [problem["key"] for problem in bad] == ["opt_out.key", "", ""]
    assert "cannot be read" in bad[1]["message"]
    refused = page.http.put("/api/scripts", json={"name": "demo", "text": text})
    assert (refused.status_code, "--write" in refused.json()["error"]["message"]) == (409, True)
    assert author.files() == before


def test_script_is_written_to_disk_when_that_was_allowed(
    page: Browser, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(author, "FOLDER", tmp_path)
    monkeypatch.setattr(sandbox._page, "_write", True)
    file = tmp_path / "demo.toml"
    text = file.read_text(encoding="utf-8")
    before = sandbox.ready.function_pid
    bad = page.http.put("/api/scripts", json={"name": "demo", "text": text.replace('key = "9"', 'key = "#"')})
    assert (bad.status_code, file.read_text(encoding="utf-8")) == (409, text)
    new = text.replace("thanks for asking", "many thanks for asking")
    assert page.http.put("/api/scripts", json={"name": "demo", "text": new}).status_code == 200
    assert file.read_text(encoding="utf-8") == new
    deadline = time.monotonic() + 30
    while sandbox.ready.function_pid == before:  # it starts again, and reads the new words
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


def test_second_ring_that_the_readme_concedes_is_counted(page: Browser, sandbox: Sandbox) -> None:
    sandbox.twilio.behave(callbacks="none", outcome="person")
    # Not listed by the end of the settling time, and no callback: the one repeat that remains possible.
    sandbox.twilio.behave(create="accept_then_drop", list_delay_s=60, times=1)
    ready = sandbox.ready
    with page.events() as events:
        httpx.post(
            f"{ready.supabase_url}/auth/v1/signup", json=SIGN_UP, headers={"apikey": ready.supabase_anon_key}
        ).raise_for_status()
        assert counts(events, "twice")[::2] == (1, 2)


def test_job_over_without_a_call_is_counted_as_lost() -> None:
    absent = [{"id": str(n), "state": "absent", "call_status": None} for n in range(3)]
    refused = [{"id": "1", "state": "refused", "call_status": None}]
    cases: dict[str, tuple[str, int, list[Event], bool]] = {
        "completed, and Twilio knows of no call": ("completed", 3, absent[:1], True),
        "failed after two attempts": ("failed", 2, absent[:2], True),
        "failed after three attempts in vain": ("failed", 3, absent, False),
        "refused by Twilio": ("failed", 1, refused, False),
        "refused by screening": ("failed", 0, [], False),
        "still open": ("in_doubt", 3, absent, False),
        "canceled": ("canceled", 3, [], False),
    }
    wrong = [
        name
        for name, (status, tried, attempts, lost) in cases.items()
        if is_lost({"status": status, "attempts": tried}, attempts, []) is not lost
    ]
    assert wrong == []


def test_story_of_a_job_is_told_on_demand(page: Browser) -> None:
    with page.events() as events:
        page.sign_up()
        job = until(events, kind="job")["row"]["id"]
    told = page.http.get(f"/api/story/{job}").json()
    assert "queued, signup mode demo, for +1*******00" in "\n".join(told[:4])
    assert ", now: " in told[-1]
    assert page.http.get("/api/story/0").json() == [f"There has never been a call job 0: the ids go up to {job}."]
