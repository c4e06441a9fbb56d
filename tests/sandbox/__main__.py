"""python -m tests.sandbox: all of it, until SIGINT, SIGTERM or the death of the parent."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from tests.sandbox.sandbox import EASY_SETTINGS, SWEEP_EVERY_S, Sandbox

PARENT_POLL_S = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sandbox", description="A Supabase, a Twilio and the function."
    )
    parser.add_argument("--ready-file", type=Path, metavar="PATH", help="JSON, written when all of it answers")
    parser.add_argument("--no-function", action="store_true", help="start it yourself; the settings are printed")
    parser.add_argument("--no-scheduler", action="store_true", help="no sweeps but those that you ask for")
    parser.add_argument("--no-webhooks", action="store_true", help="what net.http_post queues is never sent")
    parser.add_argument("--port", type=int, default=0, help="of the function")
    options = parser.parse_args()

    parent = os.getppid()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Not set here: the signal may have come inside stop.wait(), with the lock that set() needs.
        signal.signal(number, lambda *_: threading.Thread(target=stop.set).start())

    with Sandbox(
        function=not options.no_function,
        scheduler=not options.no_scheduler,
        webhooks=not options.no_webhooks,
        port=options.port,
        ready_file=options.ready_file,
    ) as sandbox:
        print(describe(sandbox), flush=True)
        while not stop.wait(PARENT_POLL_S) and os.getppid() == parent:
            pass
    return 0


def describe(sandbox: Sandbox) -> str:
    ready, easy = sandbox.ready, {name: value for name, value in sandbox.settings.items() if name in EASY_SETTINGS}
    lines = [
        f"Postgres {sandbox.postgres.version}   {ready.database_url}",
        f"Supabase      {ready.supabase_url}  (stand-in)",
        f"Twilio        {ready.twilio_url}  (stand-in; calls: {ready.twilio_url}/_sandbox/calls)",
        f"the function  {ready.function_url}  (log: {sandbox.function_log})",
        f"set here, so that you see calls at any hour and soon, with a sweep every {SWEEP_EVERY_S:g} s:",
        "  " + "  ".join(f"{name}={value}" for name, value in easy.items()),
    ]
    if sandbox.function is None:
        lines += [
            "start the function yourself, with:",
            *(f"  {name}={value!r}" for name, value in sandbox.settings.items()),
        ]
    return "\n".join([*lines, "Ctrl-C ends it."])


if __name__ == "__main__":
    sys.exit(main())
