"""Between tests the sandbox forgets everything: the next test finds it as freshly started."""

from __future__ import annotations

from tests.e2e.conftest import World

TABLES = """
select c.oid::regclass::text as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and n.nspname in ('public', 'private', 'auth', 'net', 'vault', 'sandbox')
"""


def state(world: World) -> dict[str, object]:
    """All that a test can leave behind: rows, settings, clock, Twilio's calls, counts, rules and account, faults, the log."""
    sandbox = world.sandbox
    tables = [row["name"] for row in world.rows(TABLES)]
    return {
        **{table: len(world.rows(f"select from {table}")) for table in tables},
        "settings": world.rows("select to_jsonb(s) from private.call_settings s"),
        "clock": world.rows("select offset_by from sandbox.clock"),
        "account": {name: value for name, value in vars(sandbox.twilio.account).items() if not name.startswith("_")},
        "behaviour": sandbox.twilio.rules.draw("+1"),
        "calls": world.all_calls(),
        "requests": dict(sandbox.twilio.requests),
        "rpcs": dict(sandbox.gateway.requests),
        "fault": sandbox.gateway.fault,
        "log": sandbox.function_log.read_text(),
    }


def test_reset_sandbox_is_like_a_fresh_one(quiet: World) -> None:
    fresh = state(quiet)
    number = quiet.number()
    quiet.behave(talk_s=60, to=number)
    talking = quiet.insert_job(number)
    quiet.dial(talking)
    quiet.until(lambda: quiet.calls(number)[0]["status"] == "in-progress")
    quiet.rows("select opt_out(%s)", quiet.number())
    quiet.rows("select pause_calls('lunch')")
    quiet.rows("select vault.create_secret('x', 'another')")
    quiet.rows("select net.http_post('http://127.0.0.1:9')")
    quiet.set_clock(3600)
    quiet.behave(create="hang")
    quiet.sandbox.twilio.account.status = "suspended"
    quiet.sandbox.gateway.fault = "503"
    unlike = {name for name, value in state(quiet).items() if value != fresh[name]}
    assert unlike >= {"settings", "clock", "account", "calls", "requests", "behaviour", "rpcs", "fault", "log"}
    quiet.sandbox.reset()
    assert state(quiet) == fresh


def test_reset_ends_sweeps_and_webhooks_under_way(world: World) -> None:
    world.behave(create="hang")  # until the function gives up, after a second
    jobs = [world.insert_job(world.number()) for _ in range(20)]
    world.until(lambda: world.sandbox.twilio.requests["create"])
    world.sandbox.reset()
    assert world.rows("select from public.outbound_call_jobs where id = any(%s)", jobs) == []
    number = world.number()
    world.until_status(world.insert_job(number), "completed")
    assert [call["to"] for call in world.all_calls()] == [number]
    assert "CRITICAL" not in world.sandbox.function_log.read_text()
