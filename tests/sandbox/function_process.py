"""The function itself, as Cloud Run would run it: functions-framework in a process group of its own, started again when it dies."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.sandbox.serve import join

ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0
STOP_SECONDS = 10.0  # as on Cloud Run, between SIGTERM and SIGKILL


class FunctionFailed(Exception):
    """The function did not start. The message holds the end of its output."""


class FunctionProcess:
    """`on_start` is told each new pid. The pid leads a process group: gunicorn's workers outlive a killed master.
    `root`: the folder of its code."""

    def __init__(
        self, port: int, settings: Mapping[str, str], log: Path, on_start: Callable[[int], None], root: Path = ROOT
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        framework = str(Path(sys.executable).with_name("functions-framework"))
        self._command = [framework, "--target=dispatch", f"--port={port}", "--host=127.0.0.1"]
        self._env = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "THREADS") if name in os.environ},
            "PYTHONPATH": str(root), "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "FUNCTION_SOURCE": "function/main.py",
            "XDG_RUNTIME_DIR": str(log.parent),  # gunicorn's control socket
            **settings,
        }  # fmt: skip
        self._log, self._root = log, root
        self._on_start = on_start
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._supervisor: threading.Thread | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when /health answers. Raises FunctionFailed."""
        self._launch()
        self._supervisor = threading.Thread(target=self._supervise, name="function", daemon=True)
        self._supervisor.start()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to the rest of the group."""
        self._stopping.set()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
            self._kill_group()
        if self._supervisor is not None:
            join(self._supervisor)

    def restart(self, settings: Mapping[str, str]) -> None:
        """Kill it; the supervisor starts it again, with these settings replaced."""
        self._env |= settings
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _launch(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._root, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        # Holds the read end of a pipe whose write end dies with us, however we die; then it kills the group and removes the log.
        self._guard = subprocess.Popen(
            ["sh", "-c", 'read _; kill -KILL -"$1"; rm -rf "$2"', "guard", str(self._process.pid), str(self._log.parent)],
            stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._await_health()
        self._on_start(self._process.pid)

    def _await_health(self) -> None:
        assert self._process is not None
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and not self._stopping.is_set():
            if self._process.poll() is not None:
                break
            # Not httpx.get(), which loads all certificates each time: 30 ms of CPU.
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=2)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.05)
        if not self._stopping.is_set():
            self._kill_group()
            raise FunctionFailed(f"the function did not start:\n{self._log.read_text(errors='replace')[-2000:]}")

    def _supervise(self) -> None:
        while True:
            assert self._process is not None
            self._process.wait()
            self._kill_group()
            if self._stopping.is_set():
                return
            try:
                self._launch()
            except FunctionFailed as failed:
                print(failed, file=sys.stderr)
                time.sleep(1)
            if self._stopping.is_set():  # stop() has ended the one before this
                self._kill_group()

    def _kill_group(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
            if self._guard.stdin:
                self._guard.stdin.close()
