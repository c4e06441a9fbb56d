"""python -m tests.sandbox: all of it, until SIGINT, SIGTERM or the death of the parent."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from shared.settings import SettingsError
from tests.sandbox.function_process import FunctionFailed
from tests.sandbox.postgres import PostgresError
from tests.sandbox.sandbox import EASY_SETTINGS, SWEEP_EVERY_S, PortTaken, Sandbox

PARENT_POLL_S = 0.5
STARTUP_ERRORS = (FunctionFailed, PortTaken, PostgresError, SettingsError)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.sandbox", description="A Supabase, a Twilio and the function.")
    parser.add_argument("--ready-file", type=Path, metavar="PATH", help="JSON, written when all of it answers")
    parser.add_argument("--no-function", action="store_true", help="start it yourself; the settings are printed")
    parser.add_argument("--no-scheduler", action="store_true", help="no sweeps but your own")
    parser.add_argument("--no-webhooks", action="store_true", help="requests of net.http_post are never sent")
    parser.add_argument("--port", type=int, default=0, help="of the function")
    parser.add_argument("--write", action="store_true", help="let the page write the scripts that are edited there")
    options = parser.parse_args()

    parent = os.getppid()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A thread sets it: the signal may have come inside stop.wait(), which holds the lock that set() needs.
        signal.signal(number, lambda *_: threading.Thread(target=stop.set).start())

    try:
        with Sandbox(
            function=not options.no_function, scheduler=not options.no_scheduler, webhooks=not options.no_webhooks,
            port=options.port, ready_file=options.ready_file, page=True, write=options.write, results=True,
        ) as sandbox:  # fmt: skip
            print(describe(sandbox), flush=True)
            while not stop.wait(PARENT_POLL_S) and os.getppid() == parent:
                pass
    except STARTUP_ERRORS as error:
        print(f"The sandbox did not start: {error}", file=sys.stderr)
        return 1
    return 0


def describe(sandbox: Sandbox) -> str:
    ready, given = sandbox.ready, sandbox.honoured
    easy = {name: sandbox.settings[name] for name in EASY_SETTINGS if name not in given}
    page = [f"the page      {ready.page_url}  (see it ring, pick it up, break it)"] if ready.page_url else []
    server = sandbox.receiver_server
    receiver = [f"a receiver    {server.url}/_sandbox/results  (results are told to it)"] if server else []
    lines = [
        *page,
        f"Postgres {sandbox.postgres.version}   {ready.database_url}",
        f"Supabase      {ready.supabase_url}  (stand-in)",
        f"Twilio        {ready.twilio_url}  (stand-in; calls: {ready.twilio_url}/_sandbox/calls)",
        *receiver,
        f"the function  {ready.function_url}  (log: {sandbox.function_log})",
        f"set here, so that you see calls at any hour and soon, with a sweep every {SWEEP_EVERY_S:g} s:",
        "  " + "  ".join(f"{name}={value}" for name, value in easy.items()),
    ]
    if given:
        lines += ["from your environment:", "  " + "  ".join(_shown(name, value) for name, value in given.items())]
    if sandbox.function is None:
        lines += [
            "start the function yourself, with:",
            *(f"  {name}={value!r}" for name, value in sandbox.settings.items()),
        ]
    return "\n".join([*lines, "Ctrl-C ends it."])


def _shown(name: str, value: str) -> str:
    return f"{name}=..." if name in ("DISPATCH_SECRET", "RESULT_SECRET", "RESULT_URL") else f"{name}={value}"


if __name__ == "__main__":
    sys.exit(main())
