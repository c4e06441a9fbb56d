"""make demo: it owns its world, whatever the environment holds, and it ends without a trace."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.sandbox.play import ACTIONS

ROOT = Path(__file__).parents[2]
EXAMPLE = dict(
    line.split("=", 1)
    for line in (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)
HOSTILE = {
    **EXAMPLE, "CALL_ONLY_TO": "+14155550199", "CALL_HOURS": "03:00-03:01", "CALL_COUNTRIES": "DE",
    "CALLS_PER_DAY": "1", "CALLS_PER_SECOND": "0.01", "TWILIO_PHONE_NUMBER": "+4915123456789", "TWILIO_REGION": "ie1",
    "DISPATCH_SECRET": "wrong", "PORT": "1", "K_SERVICE": "service",
    **dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9"),
    **dict.fromkeys(("ALL_PROXY", "all_proxy"), "socks5://127.0.0.1:9"), "PGSSLMODE": "require", "PGSERVICE": "nowhere",
    "PGHOST": "192.0.2.1", "LC_ALL": "C", "PYTHONUTF8": "0",
}  # fmt: skip


def run(module: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip


@contextmanager
def running(module: str, *arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, env={**os.environ, **environ}, text=True, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """The output up to the line that matches."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if re.search(pattern, line):
            return said
    raise AssertionError(f"no line matches {pattern!r} in:\n{said}")


def end(process: subprocess.Popen[str]) -> str:
    """Ctrl-C, again and again, as an impatient person does. -> the rest of the output"""
    until = time.monotonic() + 30
    while True:
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=0.1)[0]
        except subprocess.TimeoutExpired:
            assert time.monotonic() < until


def test_demo_ignores_the_environment_and_can_be_played_with(tmp_path: Path) -> None:
    spaced = tmp_path / "a folder"
    spaced.mkdir()
    environ = {**HOSTILE, "TMPDIR": str(spaced), "SANDBOX_READY_FILE": str(tmp_path / "ready.json")}

    def play(*arguments: str) -> str:
        done = run("tests.sandbox.play", *arguments, **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with running("tests.sandbox.demo", "--text", **environ) as process:
        shown = read_until(process, "^Ctrl-C ends it")
        assert shown.count("job completed") == 2
        assert "from your environment" not in shown
        events = [float(at) for at in re.findall(r"^ +(\d+) ms  s?(?:igns up|job \d+ queued)", shown, re.MULTILINE)]
        assert events == sorted(events[:2]) + sorted(events[2:])

        play("person", "+14155550150")
        assert "said: " in read_until(process, "job completed")
        assert "+14155550150" in play("calls")
        # The rest needs no process of its own.
        ready = json.loads((tmp_path / "ready.json").read_text())
        acted = {name: ACTIONS[name][1](ready, "") for name in ("kill", "jobs", "fail")}
        assert ("comes back" in acted["kill"], "completed" in acted["jobs"]) == (True, True)
        ACTIONS["person"][1](ready, "+14155550151")
        assert "said: " in read_until(process, "job completed")
        assert "paused" in ACTIONS["pause"][1](ready, "")
        assert "1" in ACTIONS["sql"][1](ready, "select 1 as one")

        assert end(process).endswith("\nStopped; nothing is left behind.\n")
        assert process.returncode == 0
    assert list(spaced.iterdir()) == []
    nobody = run("tests.sandbox.play", "jobs", **environ)
    assert (nobody.returncode, nobody.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("line", ["^Starting", "^1. Ada", "^the page +http"])
def test_interrupted_demo_ends_in_one_line(tmp_path: Path, line: str) -> None:
    environ = {"SANDBOX_READY_FILE": str(tmp_path / "ready.json"), "TMPDIR": str(tmp_path)}
    with running("tests.sandbox.demo", *([] if "page" in line else ["--text"]), **environ) as process:
        read_until(process, line)
        rest = end(process)
    assert "Traceback" not in rest
    assert rest.endswith("\nStopped; nothing is left behind.\n")
    assert list(tmp_path.glob("*sandbox*")) == []


@pytest.mark.parametrize("module", ["tests.sandbox.demo", "tests.sandbox"])
def test_taken_port_is_told_in_one_line(module: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        began = time.monotonic()
        done = run(module, "--port", str(port))
    assert done.returncode == 1
    assert [f"port {port} of 127.0.0.1 cannot be used" in line for line in done.stderr.split("\n") if line] == [True]
    assert time.monotonic() - began < 30  # before Postgres is started


def test_wrong_setting_is_named_by_the_sandbox() -> None:
    done = run("tests.sandbox", CALL_HOURS="9-5", DISPATCH_SECRET="wrong")
    assert (done.returncode, "CALL_HOURS must be" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


def test_sandbox_names_each_setting_that_it_honours() -> None:
    environ = {"CALL_MAX_ATTEMPTS": "2", "CALL_ONLY_TO": "", "API_BASE_URL": "https://calls.example.com"}
    with running("tests.sandbox", **environ) as process:
        said = read_until(process, "^Ctrl-C ends it")
        end(process)
    assert said.split("from your environment:\n")[1].splitlines()[0] == "  CALL_MAX_ATTEMPTS=2"
