"""The commands: how the function is started, and that the sandbox leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.conftest import World
from tests.sandbox.serve import free_port

ROOT = Path(__file__).parents[2]
FRAMEWORK = str(Path(sys.executable).with_name("functions-framework"))


@pytest.mark.parametrize(
    ("folder", "source"),
    [("function", {}), (".", {"FUNCTION_SOURCE": "function/main.py"})],
    ids=["in function/", "from the root"],
)
def test_functions_framework_serves_the_function_anywhere(quiet: World, folder: str, source: dict[str, str]) -> None:
    port = free_port()
    process = subprocess.Popen(
        [FRAMEWORK, "--target=dispatch", f"--port={port}"], cwd=ROOT / folder,
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": "/tmp", **quiet.sandbox.settings, **source},
    )  # fmt: skip
    try:
        quiet.until(lambda: _answers(f"http://127.0.0.1:{port}/health"))
    finally:
        process.terminate()
        assert process.wait(15) == 0


def test_missing_setting_stops_the_start_and_is_named() -> None:
    started = subprocess.run(
        [FRAMEWORK, "--target=dispatch", f"--port={free_port()}"], cwd=ROOT / "function",
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": "/tmp"}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert started.returncode != 0
    for name in ("SUPABASE_URL", "TWILIO_ACCOUNT_SID", "DISPATCH_SECRET"):
        assert name in started.stderr + started.stdout
    assert "Traceback" not in started.stderr


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["told to stop", "killed"])
def test_sandbox_is_ready_and_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    ready_file = tmp_path / "ready.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.sandbox", "--ready-file", str(ready_file)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    try:
        _await(ready_file.exists, 60)
        ready = json.loads(ready_file.read_text())
        assert set(ready) == {
            "function_url", "function_pid", "supabase_url", "supabase_anon_key", "supabase_service_key", "database_url",
            "twilio_url", "twilio_account_sid", "twilio_auth_token", "twilio_phone_number", "dispatch_secret",
            "page_url",
        }  # fmt: skip
        assert _answers(f"{ready['function_url']}/health")
        first = ready["function_pid"]
        assert os.getpgid(first) == first
        os.killpg(first, signal.SIGKILL)
        _await(lambda: json.loads(ready_file.read_text())["function_pid"] != first, 30)
        _await(lambda: _answers(f"{ready['function_url']}/health"), 30)
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("postgres" in child.name() for child in family)
        process.send_signal(number)
        process.wait(30)
        _await(lambda: not [child for child in family if child.is_running() and child.status() != "zombie"], 20)
    finally:
        process.kill()
        process.wait()


def test_sandbox_ends_with_its_parent(tmp_path: Path) -> None:
    ready_file = tmp_path / "ready.json"
    parent = subprocess.Popen(
        [sys.executable, "-c",
         "import subprocess, sys; subprocess.Popen([sys.executable, '-m', 'tests.sandbox', '--no-function', '--ready-file',"
         " sys.argv[1]], stdout=subprocess.DEVNULL).wait()", str(ready_file)],
        cwd=ROOT,
    )  # fmt: skip
    _await(ready_file.exists, 60)
    family = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    _await(lambda: not [child for child in family if child.is_running() and child.status() != "zombie"], 30)


def _await(look: object, timeout_s: float) -> None:
    assert callable(look)
    until = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.1)
