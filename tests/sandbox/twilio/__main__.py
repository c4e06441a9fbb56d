"""python -m tests.sandbox.twilio --port 4010: the Twilio stand-in alone, for any project's tests, until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys

from tests.sandbox.serve import Server
from tests.sandbox.twilio.server import Twilio


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sandbox.twilio", description="A Twilio for one machine.")
    parser.add_argument("--port", type=int, default=0, help="0, the default: any free one")
    parser.add_argument("--account-sid", default="AC" + "0" * 32)
    parser.add_argument("--auth-token", default="sandbox-token")
    parser.add_argument("--phone-number", default="+15005550006", help="the account's own, from which calls are made")
    parser.add_argument("--person", action="store_true", help="phones ring until somebody answers them on the page")
    options = parser.parse_args()
    twilio = Twilio(
        account_sid=options.account_sid, auth_token=options.auth_token, phone_number=options.phone_number
    )  # fmt: skip
    if options.person:
        twilio.behave(outcome="person")
    try:
        server = Server(twilio.app, port=options.port).start()
    except (OSError, OverflowError) as error:
        print(f"The stand-in did not start: {error}", file=sys.stderr)
        return 1
    with contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        print(
            f"Twilio (stand-in)  {server.url}  (its state and its phones: open this in a browser)\n"
            f"account SID        {options.account_sid}\n"
            f"auth token         {options.auth_token}\n"
            f"twilio-python      client.api.base_url = {server.url!r}\n"
            f'twilio-node        client.api.baseUrl = "{server.url}"\n'
            "Ctrl-C ends it.",
            flush=True,
        )
        signal.pause()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
