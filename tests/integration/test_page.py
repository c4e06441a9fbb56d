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


def test_page_answers_its_own_address_origin_and_token_only(page: Browser) -> None:
    own, port = page.url, page.url.rpartition(":")[2]
    token = {"X-Sandbox-Token": page.token}
    expected = {
        ("GET", "/", ()): 200,
        ("GET", "/page.js", ()): 200,
        ("GET", "/", (("Host", f"localhost:{port}"),)): 200,
        ("GET", "/", (("Host", "rebound.example.com"),)): 403,
        ("GET", "/", (("Host", f"rebound.example.com:{port}"),)): 403,
        ("GET", "/", (("Host", "127.0.0.1:1"),)): 403,
        ("GET", "/server.py", ()): 404,
        ("GET", "/..%2fserver.py", ()): 404,
        ("GET", "/api/scripts", ()): 403,
        ("GET", "/api/scripts", (("X-Sandbox-Token", "wrong"),)): 403,
        ("GET", "/api/scripts", (("X-Sandbox-Token", "\u00e9"),)): 403,
        ("GET", "/api/scripts", tuple(token.items())): 200,
        ("GET", f"/api/scripts?token={page.token}", ()): 200,
        ("GET", "/api/events", ()): 403,
        ("GET", "/api/story/1", ()): 403,
        ("GET", "/api/story/x", tuple(token.items())): 404,
        ("POST", "/api/act", ()): 403,
        ("POST", "/api/switch", ()): 403,
        ("POST", "/api/phone", ()): 403,
        ("PUT", "/api/scripts", ()): 403,
        ("POST", "/auth/v1/signup", ()): 403,
        ("DELETE", "/auth/v1/admin/users/x", ()): 403,
        ("POST", "/api/act", (*token.items(), ("Origin", "https://evil.example.com"))): 403,
        ("POST", "/api/act", (*token.items(), ("Origin", "null"))): 403,
        ("POST", "/api/act", (*token.items(), ("Origin", own), ("Host", "rebound.example.com"))): 403,
        ("POST", "/api/act", (*token.items(), ("Origin", own))): 400,  # it passed, and lacks its body
        ("OPTIONS", "/api/act", (("Origin", "https://evil.example.com"),)): 403,
    }
    stranger = httpx.Client()
    answers = {
        asked: stranger.request(
            asked[0], own + asked[1], headers=[(n.encode(), v.encode("latin-1")) for n, v in asked[2]]
        )
        for asked in expected
    }
    assert {asked: answer.status_code for asked, answer in answers.items()} == expected
    assert not [a for a in answers.values() if any("access-control" in name for name in a.headers)]
    policies = {answer.headers.get("content-security-policy", "") for answer in answers.values()}
    assert [re.findall(r"default-src 'none'|unsafe|\*|https?:", policy) for policy in policies] == [
        ["default-src 'none'"]
    ]


def test_page_listens_on_loopback_only(page: Browser) -> None:
    port = int(page.url.rpartition(":")[2])
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)}
    for address in addresses - {"127.0.0.1", "127.0.1.1"}:
        with socket.socket() as client:
            client.settimeout(2)
            assert client.connect_ex((str(address), port)) != 0


def test_phone_on_the_page_is_answered_and_opts_out(page: Browser) -> None:
    with page.events() as events:
        hello = until(events, kind="hello")
        assert (hello["counts"].get("twice"), hello["counts"].get("lost")) == (0, 0)
        said = page.http.post("/auth/v1/signup", json=SIGN_UP, headers={"X-Words-Per-Second": "1000"})
        assert said.json()["user"]["phone"] == ADA.removeprefix("+")
        assert page.ask("/api/phone", number=ADA, do="press", keys="2").status_code >= 400
        until(events, kind="call", to=ADA, status="ringing")
        assert page.ask("/api/phone", number=ADA, do="answer").status_code == 200
        until(events, kind="gather", listens=True)
        assert "thanks for asking for a demo" in until(events, kind="say", to=ADA)["text"]
        page.ask("/api/phone", number=ADA, do="press", keys="2")
        until(events, kind="gather", listens=True)
        page.ask("/api/phone", number=ADA, do="press", keys="9")
        assert until(events, kind="opt-out")["row"]["phone_e164"] == ADA
        job = next(e for e in events if e["kind"] == "job" and e["row"]["finished_at"])
        learned = job["row"]["qualification"]
        assert (learned["answers"], learned["opted_out"]) == ({"team_size": "2_to_10"}, True)


@pytest.mark.parametrize(
    ("do", "status"), [("decline", "busy"), ("busy", "busy"), ("voice-mail", "completed"), ("hang-up", "completed")]
)
def test_person_ends_the_ringing_as_the_button_says(page: Browser, do: str, status: str) -> None:
    with page.events() as events:
        page.http.post("/auth/v1/signup", json=SIGN_UP, headers={"X-Words-Per-Second": "1000"})
        until(events, kind="call", status="ringing")
        if do == "hang-up":
            page.ask("/api/phone", number=ADA, do="answer")
            until(events, kind="call", status="in-progress")
        page.ask("/api/phone", number=ADA, do=do)
        assert (
            next(e for e in events if e["kind"] == "call" and e["status"] not in ("ringing", "in-progress"))["status"]
            == status
        )


def test_colleague_of_a_transfer_answers_on_the_page(page: Browser, sandbox: Sandbox) -> None:
    with page.events() as events:
        transfer = SIGN_UP | {"data": {"first_name": "Ada", "signup_mode": "transfer"}}
        page.http.post("/auth/v1/signup", json=transfer, headers={"X-Words-Per-Second": "1000"})
        until(events, kind="call", to=ADA, status="ringing")
        page.ask("/api/phone", number=ADA, do="answer")
        until(events, kind="gather", listens=True)
        page.ask("/api/phone", number=ADA, do="press", keys="1")
        assert until(events, kind="call", to=COLLEAGUE, status="ringing")["colleague"] is True
        page.ask("/api/phone", number=COLLEAGUE, do="answer")
        assert until(events, kind="say", to=COLLEAGUE)["text"].startswith("A lead, Ada")
        page.ask("/api/phone", number=COLLEAGUE, do="press", keys="5")
        until(events, kind="bridged", to=ADA)
        page.ask("/api/phone", number=COLLEAGUE, do="hang-up")
        until(events, kind="say", to=ADA, text="Goodbye.")
        job = next(e for e in events if e["kind"] == "job" and e["row"]["finished_at"])["row"]
        assert (job["status"], job["qualification"]["answers"]) == ("completed", {"talk": "now"})
        counts = next(e for e in events if e["kind"] == "counts" and e["counts"]["ended"])["counts"]
        assert (counts["twice"], counts["lost"], counts["calls"]) == (0, 0, 1)


def test_timeline_shows_what_the_receiver_was_told(page: Browser) -> None:
    assert page.ask("/api/switch", name="receiver_refuses", on=True).status_code == 200
    with page.events() as events:
        page.http.post("/auth/v1/signup", json=SIGN_UP)
        until(events, kind="call", status="ringing")
        page.ask("/api/phone", number=ADA, do="decline")
        until(events, kind="call", status="ringing")  # the redial
        page.ask("/api/act", name="opt_out", number=ADA)
        told = until(events, kind="told", answer=500)
        page.ask("/api/switch", name="receiver_refuses", on=False)
        assert until(events, kind="told", answer=200, id=told["id"])["verified"]


def test_broken_answer_and_lost_webhook_end_with_one_call(page: Browser, sandbox: Sandbox) -> None:
    for name in ("answer_lost", "webhooks_lost", "callbacks_lost"):
        assert page.ask("/api/switch", name=name, on=True).status_code == 200
    with page.events() as events:
        page.http.post("/auth/v1/signup", json=SIGN_UP, headers={"X-Words-Per-Second": "1000"})
        assert until(events, kind="webhook")["error"] == "lost"
        assert until(events, kind="request", path="Calls.json", method="POST")["answer"] is None
        until(events, kind="call", status="ringing")
        page.ask("/api/phone", number=ADA, do="answer")
        until(events, kind="call", status="in-progress")
        page.ask("/api/phone", number=ADA, do="hang-up")
        assert next(e for e in events if e["kind"] == "job" and e["row"]["finished_at"])["row"]["status"] == "completed"
        counts = next(e for e in events if e["kind"] == "counts" and e["counts"]["ended"])["counts"]
        assert (counts["twice"], counts["lost"], counts["calls"]) == (0, 0, 1)
    for name in ("answer_lost", "webhooks_lost", "callbacks_lost"):
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
    assert (fine["problems"], [turn["learned"] for turn in fine["turns"]]) == (
        [],
        [None, "team_size = 2_to_10", "single_sign_on = yes", "timeline = this_month"],
    )
    assert fine["turns"][0]["says"][0].startswith("Hi Ada")
    bad = page.ask("/api/scripts/check", name="demo", text=text.replace('key = "9"', 'key = "#"')).json()
    assert [problem["key"] for problem in bad["problems"]][:1] == ["opt_out.key"]
    assert (
        "cannot be read"
        in page.ask("/api/scripts/check", name="demo", text="greeting = ").json()["problems"][0]["message"]
    )
    assert page.ask("/api/scripts/check", name="../demo", text=text).json()["problems"][0]["key"] == ""
    refused = page.http.put("/api/scripts", json={"name": "demo", "text": text})
    assert (refused.status_code, "--write" in refused.json()["error"]["message"]) == (409, True)
    assert author.files() == before


def test_script_is_written_to_disk_when_that_was_allowed(
    page: Browser, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in FOLDER.glob("*.toml"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(author, "FOLDER", tmp_path)
    monkeypatch.setattr(sandbox._page, "_write", True)
    text = (tmp_path / "demo.toml").read_text(encoding="utf-8")
    before = sandbox.ready.function_pid
    bad = page.http.put("/api/scripts", json={"name": "demo", "text": text.replace('key = "9"', 'key = "#"')})
    assert (bad.status_code, (tmp_path / "demo.toml").read_text(encoding="utf-8")) == (409, text)
    new = text.replace("thanks for asking", "many thanks for asking")
    assert page.http.put("/api/scripts", json={"name": "demo", "text": new}).status_code == 200
    assert (tmp_path / "demo.toml").read_text(encoding="utf-8") == new
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
        counts = next(e["counts"] for e in events if e["kind"] == "counts" and e["counts"]["twice"])
    assert (counts["twice"], counts["calls"]) == (1, 2)


def test_job_over_without_a_call_is_counted_as_lost() -> None:
    def job(status: str, attempts: int = 3) -> Event:
        return {"status": status, "attempts": attempts}

    absent = [{"id": str(n), "state": "absent", "call_status": None} for n in range(3)]
    refused = [{"id": "1", "state": "refused", "call_status": None}]
    cases = {
        "completed, and Twilio knows of no call": (job("completed"), absent[:1], True),
        "failed after two attempts": (job("failed", 2), absent[:2], True),
        "failed after three attempts in vain": (job("failed"), absent, False),
        "refused by Twilio": (job("failed", 1), refused, False),
        "refused by screening": (job("failed", 0), [], False),
        "still open": (job("in_doubt"), absent, False),
        "canceled": (job("canceled"), [], False),
    }
    assert {name: is_lost(each, attempts, []) for name, (each, attempts, _) in cases.items()} == {
        name: lost for name, (_, _, lost) in cases.items()
    }


def test_story_of_a_job_is_told_on_demand(page: Browser) -> None:
    with page.events() as events:
        page.ask("/auth/v1/signup", **SIGN_UP)
        job = until(events, kind="job")["row"]["id"]
    told = page.http.get(f"/api/story/{job}").json()
    assert "queued, signup mode demo, for +1*******00" in "\n".join(told[:4])
    assert ", now: " in told[-1]
    assert page.http.get("/api/story/0").json() == [f"There has never been a call job 0: the ids go up to {job}."]
