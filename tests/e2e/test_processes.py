"""The commands: how the function is started, and that the sandbox leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.conftest import ROOT, World
from tests.sandbox.serve import free_port

FUNCTION = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": "/tmp"}


def framework(port: int) -> list[str]:
    return [str(Path(sys.executable).with_name("functions-framework")), "--target=dispatch", f"--port={port}"]


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def await_(look: Callable[[], object], timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.1)


def are_gone(family: list[psutil.Process]) -> bool:
    return not any(map(is_alive, family))


def is_alive(child: psutil.Process) -> bool:
    try:
        return child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # gone between the two
        return False


def test_functions_framework_serves_the_function_as_it_stands(quiet: World) -> None:
    """In function/; the sandbox's own function is started from the root, with FUNCTION_SOURCE."""
    port = free_port()
    process = subprocess.Popen(framework(port), cwd=ROOT / "function", env={**FUNCTION, **quiet.sandbox.settings})
    try:
        quiet.until(lambda: answers(f"http://127.0.0.1:{port}"))
    finally:
        process.terminate()
        assert process.wait(15) == 0


def test_missing_setting_stops_the_start_and_is_named() -> None:
    command, folder = framework(free_port()), ROOT / "function"
    started = subprocess.run(command, cwd=folder, env=FUNCTION, capture_output=True, text=True, timeout=30)
    assert started.returncode != 0
    for name in ("SUPABASE_URL", "TWILIO_ACCOUNT_SID", "DISPATCH_SECRET"):
        assert name in started.stderr + started.stdout
    assert "Traceback" not in started.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["told to stop", "killed"])
def test_sandbox_is_ready_and_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    ready_file = tmp_path / "ready.json"
    command = [sys.executable, "-m", "tests.sandbox", "--ready-file", str(ready_file)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        await_(ready_file.exists, 60)
        ready = json.loads(ready_file.read_text())
        assert set(ready) == {
            "function_url", "function_pid", "supabase_url", "supabase_anon_key", "supabase_service_key", "database_url",
            "twilio_url", "twilio_account_sid", "twilio_auth_token", "twilio_phone_number", "dispatch_secret",
            "page_url",
        }  # fmt: skip
        assert answers(ready["function_url"])
        first = ready["function_pid"]
        assert os.getpgid(first) == first
        os.killpg(first, signal.SIGKILL)
        await_(lambda: json.loads(ready_file.read_text())["function_pid"] != first, 30)
        await_(lambda: answers(ready["function_url"]), 30)
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("postgres" in child.name() for child in family)
        process.send_signal(number)
        process.wait(30)
        await_(lambda: are_gone(family), 20)
    finally:
        process.kill()
        process.wait()


def test_sandbox_ends_with_its_parent(tmp_path: Path) -> None:
    ready_file = tmp_path / "ready.json"
    code = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-m', 'tests.sandbox', '--no-function',"
        " '--ready-file', sys.argv[1]], stdout=subprocess.DEVNULL).wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(ready_file)], cwd=ROOT)
    await_(ready_file.exists, 60)
    family = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    await_(lambda: are_gone(family), 30)
