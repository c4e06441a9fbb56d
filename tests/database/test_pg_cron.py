"""The README's sweep by pg_cron: what it would run each minute, run once."""

from __future__ import annotations

import json

from function.callers import prove_sweep
from tests.conftest import Connection
from tests.unit.deployment import code_blocks, readme_section
from tests.unit.examples import SECRET, settings


def test_pg_cron_asks_for_a_sweep_that_the_function_takes(connection: Connection) -> None:
    (block,) = [block for block in code_blocks(readme_section("Deploy to Cloud Run")) if "cron.schedule" in block]
    _, command, _ = block.split("$$")
    connection.execute("select vault.create_secret('https://calls.example.com/', 'call_dispatcher_url')")
    connection.execute("select vault.create_secret(%s, 'call_dispatcher_secret')", (f"{SECRET} whsec_older",))
    connection.execute(command.encode())
    row = connection.execute("select url, headers, body, method from net.http_request_queue").fetchone()
    assert row is not None
    url, headers, body, method = row
    assert (method, url, json.loads(bytes(body))) == ("POST", "https://calls.example.com/sweep", {})
    prove_sweep(settings(), headers, keys=None)  # type: ignore[arg-type]
