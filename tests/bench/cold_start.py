"""How long a new instance takes to answer, beside a bare hello on the same framework.

python -m tests.bench.cold_start [--rounds 9]
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.sandbox.serve import free_port
from tests.unit.examples import ENVIRON

ROOT = Path(__file__).parents[2]
HELLO = "def dispatch(request):\n    return 'hello'\n"
START_SECONDS = 30.0


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def start(source: Path) -> tuple[float, float]:
    """-> milliseconds until the first answer; MB of resident memory of all its processes by then."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("functions-framework")), "--target=dispatch", f"--port={port}"]
    with tempfile.TemporaryDirectory() as scratch:
        env = {**ENVIRON, "PATH": os.environ["PATH"], "FUNCTION_SOURCE": str(source), "XDG_RUNTIME_DIR": scratch}
        began = time.monotonic()
        process = psutil.Popen(command, cwd=ROOT, env={**env, "HOST": "127.0.0.1"})
        try:
            while not answers(port):
                if process.poll() is not None or time.monotonic() - began > START_SECONDS:
                    raise SystemExit(f"{source} did not start")
                time.sleep(0.002)
            took_ms = (time.monotonic() - began) * 1000
            memory = max(each.memory_info().rss for each in process.children())
        finally:
            process.terminate()
            process.wait(10)
    return took_ms, memory / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cold_start")
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        hello = Path(folder) / "main.py"
        hello.write_text(HELLO)
        sources = {"hello": hello, "this product": ROOT / "function/main.py"}
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
        for _ in range(rounds):
            for name, source in sources.items():
                seen[name].append(start(source))
    medians = {}
    for name, starts in seen.items():
        times = [took for took, _ in starts]
        medians[name] = statistics.median(times)
        memory = statistics.median(mb for _, mb in starts)
        print(f"{name:14} {medians[name]:6.0f} ms ({min(times):.0f} to {max(times):.0f}), {memory:.0f} MB")
    print(f"ratio          {medians['this product'] / medians['hello']:6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
