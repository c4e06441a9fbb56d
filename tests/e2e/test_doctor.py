"""The doctor names each fault by one line, with advice. A healthy system is ok from top to bottom."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web

import function.doctor
from function.doctor import main
from shared import jobs
from shared.doctor import database as doctor_database
from shared.doctor import twilio as doctor_twilio
from shared.doctor import url as doctor_url
from shared.doctor.findings import wrong
from tests.e2e.doctor_cases import Clinic, Passing, Proxy, Visit, open_clinic, says
from tests.sandbox.serve import Server, free_port
from tests.sandbox.supabase.keys import mint, secret_key
from tests.unit.examples import settings


@pytest.fixture(scope="module")
def building() -> Iterator[Clinic]:
    with open_clinic() as clinic:
        yield clinic


@pytest.fixture
def clinic(building: Clinic) -> Clinic:
    building.reset()
    return building


# --- health -------------------------------------------------------------------------------------------------------------
def test_healthy_system_is_ok_from_top_to_bottom(clinic: Clinic) -> None:
    visit = clinic.visit()
    assert {found["check"]: found for found in visit.findings if found["state"] != "ok"} == {}
    assert len(visit.findings) == len(visit.checks("ok")) == 19


def test_doctor_neither_dials_nor_writes_nor_alerts(clinic: Clinic) -> None:
    def stored() -> dict[str, object]:  # xmin shows every write; Postgres' own counters come late
        tables = clinic.database.execute("select relid::regclass::text from pg_stat_user_tables").fetchall()
        query = "select xmin::text, t from {} t"
        return {name: clinic.database.execute(query.format(name).encode()).fetchall() for (name,) in tables}

    before = stored()
    clinic.visit()
    assert stored() == before
    assert clinic.sandbox.twilio.requests["create"] == 0
    log = clinic.sandbox.function_log.read_text()
    assert '"severity": "CRITICAL"' not in log
    assert '"severity": "ERROR"' not in log
    query = "select provolatile::text from pg_proc where proname = 'check_call_setup'"
    assert clinic.database.execute(query).fetchone() == ("s",)  # stable: Postgres lets it write nothing


def test_lines_are_for_people_and_give_advice(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.sandbox.twilio.account.type = "Trial"
    assert main([], clinic.sandbox.settings) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("WARNING  Twilio account"))
    assert lines[at + 1].split() == ["->", "Twilio", "console:", "Upgrade"]
    assert lines[-1] == "18 ok, 1 warning"


# --- settings -----------------------------------------------------------------------------------------------------------
def test_wrong_settings_are_all_named_with_exit_code_2(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {**clinic.sandbox.settings, "TWILIO_ACCOUNT_SID": "SK123", "TWILIO_REGION": "ie1"}
    assert main(["--json"], environ) == 2
    wrong = [found for found in json.loads(capsys.readouterr().out) if found["state"] == "wrong"]
    assert {found["found"].split()[0] for found in wrong} == {"TWILIO_ACCOUNT_SID", "TWILIO_REGION"}
    assert all(".env.example" in found["advice"] for found in wrong)


def test_lines_that_do_not_apply_are_skipped(clinic: Clinic) -> None:
    of_webhooks = {"pg_net", "webhook answers", "Vault's secret", "Vault's URL"}
    cases: list[
        tuple[dict[str, str], set[str], set[str]]
    ] = [  # a worker; another voice service; a database that is shut
        ({"DISPATCH_SECRET": ""}, {"webhook secret?"}, of_webhooks),
        ({"API_BASE_URL_IS_THIS_FUNCTION": "false"}, set(), set(doctor_url.CHECKS[1:])),
        ({"SUPABASE_SERVICE_KEY": clinic.sandbox.ready.supabase_anon_key}, {"database"}, set(doctor_database.CHECKS)),
    ]
    visits = [clinic.visit(**changed) for changed, _, _ in cases]
    assert [(visit.trouble, visit.checks("skipped")) for visit in visits] == [case[1:] for case in cases]
    worker, other, shut = visits
    assert "worker" in worker.told
    assert "Vault's URL" in other.checks("ok")
    assert "Supabase" in shut.findings[-1]["found"]  # its clock, from the refusal


def test_new_keys_and_rotating_secrets_are_healthy(clinic: Clinic) -> None:
    other = f"whsec_{'A' * 32}"
    assert clinic.visit(SUPABASE_SERVICE_KEY=secret_key(clinic.sandbox.jwt_secret)).trouble == set()
    assert clinic.visit(DISPATCH_SECRET=f"{clinic.sandbox.dispatch_secret} {other}").trouble == set()
    # The service itself does not know the first one yet.
    visit = clinic.visit(DISPATCH_SECRET=f"{other} {clinic.sandbox.dispatch_secret}")
    assert (visit.trouble, "Vault's secret" in visit.checks("ok")) == ({"Vault's URL"}, True)


def wrong_settings(clinic: Clinic) -> list[tuple[dict[str, str], str, str]]:
    sandbox = clinic.sandbox
    return [
        ({"SUPABASE_URL": f"http://127.0.0.1:{free_port()}"}, "database", "copy the project's URL"),
        ({"SUPABASE_URL": "http://project.invalid"}, "database", "has no name any more"),
        ({"SUPABASE_URL": f"{sandbox.ready.supabase_url}/rest/v1"}, "database", "nothing behind it"),
        ({"SUPABASE_SERVICE_KEY": sandbox.ready.supabase_anon_key}, "database", "service_role key"),
        ({"SUPABASE_SERVICE_KEY": mint("x" * 64, {"role": "service_role"})}, "database", "service_role key"),
        ({"TWILIO_AUTH_TOKEN": "0" * 32}, "Twilio account, Twilio's callbacks", "primary auth token"),
        ({"TWILIO_ACCOUNT_SID": "AC" + "0" * 32}, "Twilio account", "Account SID"),
        ({"TWILIO_PHONE_NUMBER": "+14155550199"}, "Twilio number", "Active numbers, of this very account"),
        ({"CALL_COUNTRIES": "US DE"}, "Twilio countries", "tick DE"),
        ({"CALL_COUNTRIES": "US FR"}, "Twilio countries?", "Geo permissions"),
        ({"API_BASE_URL": f"http://127.0.0.1:{free_port()}"}, "public address, Vault's URL?", "set API_BASE_URL"),
        ({"DISPATCH_SECRET": f"whsec_{'A' * 32}"}, "Vault's secret, Vault's URL", "vault.update_secret"),
        ({"CALL_ONLY_TO": "+14155550123"}, "CALL_ONLY_TO?", "take CALL_ONLY_TO out"),
        ({"CALL_ONLY_TO": "+14155550123 +442079460123"}, "CALL_ONLY_TO", "CALL_COUNTRIES"),
        ({"TWILIO_API_BASE_URL": f"http://127.0.0.1:{free_port()}"}, "Twilio account", "take TWILIO_API_BASE_URL out"),
        ({"CALL_HOUR": "09:00-17:00", "CALLS_PER_DAYS": "5"},
         "unknown settings?", "CALL_HOUR (do you mean CALL_HOURS?)"),
    ]  # fmt: skip


def test_wrong_settings_are_told_by_their_consequence(clinic: Clinic) -> None:
    assert clinic.deviations(wrong_settings(clinic)) == {}


# --- the database -------------------------------------------------------------------------------------------------------
SETUP = "function public.check_call_setup"
REPLACED = f"alter {SETUP} rename to gone; create {SETUP}(p_nonce text) returns jsonb"
PUT_BACK = f"drop {SETUP}; alter function public.gone rename to check_call_setup"
JOBS = "public.outbound_call_jobs"
OF_SECRET = "where name = 'call_dispatcher_secret'"
OF_URL = "where name = 'call_dispatcher_url'"
OF_KEY = "where indexrelid = 'public.one_job_per_key_and_hour'::regclass"
PAUSED = "update private.call_settings set paused_until = "
BREAKS: list[tuple[str, ...]] = [
    # the SQL that makes the fault; the line that is not ok, words of its advice; and the SQL that mends it, where
    # neither `mend` nor `reset` knows
    (f"alter {SETUP} rename to gone", "database", "supabase db push"),
    (f"revoke execute on {SETUP} from service_role", "database", f"grant execute on {SETUP}"),
    ("alter function public.settle_call rename to gone", "functions", "supabase db push"),
    ("revoke execute on function public.settle_call from service_role", "functions", "apply_rights"),
    ("grant execute on function public.pause_calls to anon", "rights", "revoke all on function public.pause_calls("),
    ("grant execute on function public.opt_out to public", "rights", "revoke all on function public.opt_out("),
    (f"grant select on {JOBS} to authenticated", "rights", f"revoke all on {JOBS}"),
    (f"grant insert (phone_number) on {JOBS} to anon", "rights", f"revoke all on {JOBS}"),
    ("alter index public.outbound_call_attempts_one_open_per_number rename to gone", "guards", "tables.sql"),
    (f"update pg_index set indisvalid = false {OF_KEY}",
     "guards", "select pause_calls(", f"update pg_index set indisvalid = true {OF_KEY}"),
    ("alter schema private rename to gone", "database", "restore a backup"),
    ("alter function net.http_post rename to gone", "pg_net", "create extension pg_net"),
    ("revoke execute on function net.http_post from public", "pg_net", "Extensions"),
    ("insert into net.http_request_queue (method, url, timeout_milliseconds) values ('POST', 'http://127.0.0.1:1/', 1)",
     "pg_net", "net.worker_restart()"),
    ("insert into net._http_response (id, status_code, created) values (1, 200, now() - interval '1 minute'), (2, 401, now())",
     "webhook answers?", "net._http_response"),
    ("insert into net._http_response (id, timed_out, error_msg) values (1, true, 'Timeout of 10000 ms reached')",
     "webhook answers?", "net._http_response"),
    (f"update vault.secrets set name = 'gone' {OF_SECRET}", "Vault's secret", "vault.create_secret"),
    (f"update vault.secrets set secret = substr(secret, 7) {OF_SECRET}", "Vault's secret", "vault.update_secret"),
    (f"update vault.secrets set secret = secret || '!' {OF_SECRET}", "Vault's secret", "vault.update_secret"),
    ("alter view vault.decrypted_secrets rename to gone", "Vault's secret", "supabase_vault"),
    (f"update vault.secrets set name = 'gone' {OF_URL}", "Vault's URL", "vault.create_secret"),
    (f"update vault.secrets set secret = secret || chr(10) {OF_URL}", "Vault's URL", "vault.update_secret"),
    (f"update vault.secrets set secret = secret || 'hook' {OF_URL}", "Vault's URL", "vault.update_secret"),
    ("select pause_calls('call +14155550100')", "calls", "resume_calls()"),
    (f"{PAUSED}now() + interval '1 hour', paused_by = 'halt'", "calls", "resume_calls()"),
    (f"{PAUSED}'infinity', paused_by = 'restore', pause_reason = 'x'", "calls", "confirm_restore()"),
    (f"{PAUSED}now() + interval '1 hour', paused_by = 'calls_per_day'", "calls", "raise CALLS_PER_DAY"),
    ("delete from private.call_settings", "calls", "insert into private.call_settings"),
    (f"insert into {JOBS} (user_id, phone_number, due_at) values (gen_random_uuid(), '+14155550100',"
     " now() - interval '1 hour'); truncate net.http_request_queue",
     "waiting calls?", "look at the sweep"),
    ("insert into private.missed_signups values (gen_random_uuid(), 'x', now())",
     "waiting calls?", "private.missed_signups"),
    (f"alter {SETUP} set default_transaction_read_only = on",
     "database", "disk", f"alter {SETUP} reset default_transaction_read_only"),
    (REPLACED + " language plpgsql as $$ begin raise exception 'canceling statement' using errcode = '57014'; end $$",
     "database", "Supabase dashboard", PUT_BACK),
    (REPLACED + " language sql as $$ select '{}'::jsonb $$", "database", "supabase db push", PUT_BACK),
]  # fmt: skip


def mend(sql: str) -> str:
    """The reverse of a rename, a grant or a revoke; "" for changed rows, which `reset` takes back."""
    if renamed := re.fullmatch(r"alter (\w+) (\w+\.)?(\w+) rename to gone", sql):
        kind, schema, name = renamed.groups("")
        return f"alter {kind} {schema}gone rename to {name}"
    for pattern, reverse in (
        (r"grant (.*) to (\w+)", "revoke {} from {}"),
        (r"revoke (.*) from (\w+)", "grant {} to {}"),
    ):
        if changed := re.fullmatch(pattern, sql):
            return reverse.format(*changed.groups())
    return ""


def test_broken_databases_are_named_by_one_line_each(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_database, "QUEUE_LOOK_SECONDS", 0.01)
    mends = {broken: "".join(mended) or mend(broken) for broken, _, _, *mended in BREAKS}

    def visit(broken: str) -> Visit:
        clinic.sql(broken)
        visit = clinic.visit()
        clinic.sql(mends[broken])
        return visit

    assert clinic.deviations((case[:3] for case in BREAKS), visit) == {}
    assert clinic.visit().trouble == set()  # all is mended


HARMLESS = [
    f"update vault.secrets set secret = secret || chr(10) {OF_SECRET}",
    "insert into net._http_response (id, status_code, created) values (1, 401, now() - interval '9 min'), (2, 200, now())",
    f"update vault.secrets set secret = replace(rtrim(secret, '/'), 'http', 'HTTP') {OF_URL}",
]


def test_harmless_states_of_the_database_are_ok(clinic: Clinic) -> None:
    trouble = {}
    for done in HARMLESS:
        clinic.sql(done)
        trouble[done] = clinic.visit().trouble
        clinic.reset()
    assert trouble == {done: set() for done in HARMLESS}


def test_other_address_in_vault_is_judged_by_answers(clinic: Clinic) -> None:
    clinic.sql(f"update vault.secrets set secret = '{clinic.sandbox.ready.function_url}/' {OF_URL}")
    visit = clinic.visit()
    assert (visit.trouble, "vault.update_secret" in visit.told) == ({"Vault's URL?"}, True)


SILENCES = [
    ((540, "Project paused", "text/plain"), "database", "paused", "Restore project"),
    ((502, "<html>Bad gateway</html>"), "database", "a page", "Restore project"),
    ((200, "<html>Supabase</html>"), "database", "a page", "copy the project's URL"),
    ((503, '{"code": "PGRST001", "message": "no connection"}', "application/json"),
     "database", "PGRST001): no connection", "paused"),
    ((401, '{"message": "Invalid API key"}', "application/json"), "database", "Invalid API key", "service_role key"),
    ((406, '{"code": "PGRST106", "message": "no"}', "application/json"),
     "database", "public is not served", "expose public"),
    ((404, '{"message": "no Route matched"}', "application/json"),
     "database", "(HTTP 404)", "copy the project's URL"),
]  # fmt: skip


def test_silences_of_supabase_are_told_apart(clinic: Clinic) -> None:
    host = Proxy()
    with Server(host.app) as server:

        def visit(answer: tuple[Any, ...]) -> Visit:
            host.answer = says(*answer)
            return clinic.visit(SUPABASE_URL=server.url)

        assert clinic.deviations(SILENCES, visit) == {}


# --- Twilio -------------------------------------------------------------------------------------------------------------
ACCOUNTS: list[tuple[dict[str, object], str, str]] = [
    ({"status": "suspended"}, "Twilio account", "banner"),
    ({"type": "Trial"}, "Twilio account?", "Upgrade"),
    ({"refuse": {".json": 20008}}, "Twilio account", "test credentials"),
    ({"refuse": {".json": 20003}}, "Twilio account", "primary auth token"),
    ({"refuse": {".json": 20503}}, "Twilio account", "try again"),
    ({"primary_token": "0" * 32}, "Twilio auth token", "TWILIO_AUTH_TOKEN"),
    ({"voice": False}, "Twilio number", "tick Voice"),
    ({"numbers": []}, "Twilio number", "Active numbers"),
    ({"refuse": {"IncomingPhoneNumbers": 20403}}, "Twilio number", "try again"),
    ({"countries": set()}, "Twilio countries", "tick US"),
    ({"high_risk": {"US"}}, "Twilio countries?", "untick"),
    ({"refuse": {"DialingPermissions": 20403}}, "Twilio countries?", "Geo permissions"),
]


def test_faults_of_the_account_are_named_alone(clinic: Clinic) -> None:
    def visit(state: dict[str, object]) -> Visit:
        vars(clinic.sandbox.twilio.account).update(state)
        return clinic.visit()

    assert clinic.deviations(ACCOUNTS, visit) == {}


def test_verified_caller_id_may_call(clinic: Clinic) -> None:
    account = clinic.sandbox.twilio.account
    account.numbers, account.caller_ids = [], [clinic.sandbox.settings["TWILIO_PHONE_NUMBER"]]
    assert clinic.visit().trouble == set()


def test_wrong_clock_is_a_warning(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: datetime.now(UTC).timestamp() - 120)
    visit = clinic.visit()
    assert "clock?" in visit.trouble
    assert "Postgres by +120 s" in visit.told
    assert "NTP" in visit.told


# --- the public address -------------------------------------------------------------------------------------------------
ELSEWHERE: list[tuple[tuple[Any, ...], str]] = [
    ((200, "<html>Congratulations</html>"), "deploy this image there"),
    ((403, "<html>Forbidden</html>"), "--no-invoker-iam-check"),
    ((405, '{"error": {"code": "method_not_allowed"}}', "application/json"), "forward paths unchanged"),
    ((302, "", "text/html", "https://calls.example.com/health"), "without a redirect"),
    ((503, "no instance", "text/plain"), "read the service's log"),
]


def test_other_answers_at_the_public_address_are_told_apart(clinic: Clinic) -> None:
    def visit(answer: tuple[Any, ...]) -> Visit:
        clinic.proxy.answer = says(*answer)
        return clinic.visit()

    cases = [(answer, "public address, Vault's URL", remedy) for answer, remedy in ELSEWHERE]
    assert clinic.deviations(cases, visit) == {}


SPOILERS: dict[str, tuple[Callable[[Passing], Passing], str]] = {
    "no webhook signature": (lambda passing: passing.without("webhook-signature"), "Vault's URL"),
    "JSON rewritten": (lambda passing: replace(passing, body=passing.body.replace(b'", "', b'","')), "Vault's URL"),
    "no Twilio signature": (lambda passing: passing.without("x-twilio-signature"), "Twilio's callbacks"),
    "no query": (lambda passing: replace(passing, query=""), "Twilio's callbacks"),
    "no blank fields": (
        lambda passing: replace(passing, body=passing.body.replace(b"&AnsweredBy=", b"")), "Twilio's callbacks"),
    "no /voice": (
        lambda passing: replace(passing, path=passing.path.replace("/voice", "/nowhere")), "unproved requests"),
}  # fmt: skip


def test_proxies_that_change_requests_are_named_by_one_line(clinic: Clinic) -> None:
    def visit(name: str) -> Visit:
        clinic.proxy.spoil = SPOILERS[name][0]
        return clinic.visit()

    assert clinic.deviations(((name, check, "proxy") for name, (_, check) in SPOILERS.items()), visit) == {}


def test_door_that_stands_open_is_wrong(clinic: Clinic) -> None:
    async def open_door(request: web.Request) -> web.StreamResponse:
        ours = {"status": "ok"} if request.path == "/health" else {"ignored": doctor_url.IGNORED}
        return web.json_response(ours, status=204 if request.path == "/status" else 200)

    clinic.proxy.answer = open_door
    visit = clinic.visit()
    assert (visit.trouble, "/sweep: HTTP 200" in visit.told) == ({"unproved requests"}, True)


# --- the doctor itself --------------------------------------------------------------------------------------------------
def test_hosts_that_hang_are_named_and_soon(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.database.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(doctor_twilio, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(doctor_url, "TIMEOUT", 0.2)

    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.wait_for(asyncio.Event().wait(), 0.8)
        raise AssertionError

    host = Proxy()
    host.answer = hang
    with Server(host.app) as server:
        began = time.monotonic()
        visit = clinic.visit(SUPABASE_URL=server.url, TWILIO_API_BASE_URL=server.url, API_BASE_URL=server.url)
    assert visit.trouble == {"database", "Twilio account", "public address"}
    assert all(re.search("in time|timed out|Timeout", line) for line in visit.told.splitlines())
    assert time.monotonic() - began < 10


def test_address_that_twilio_cannot_reach_is_wrong() -> None:
    for url in ("https://127.0.0.1:9", "https://10.0.0.1", "https://localhost", "https://function"):
        (finding, *rest) = doctor_url.check_public_url(settings(API_BASE_URL=url), {})
        assert (finding.state, {skipped.state for skipped in rest}) == ("wrong", {"skipped"}), url
        assert "Twilio cannot reach it" in finding.found, url


def test_address_with_a_long_number_stays_whole(capsys: pytest.CaptureFixture[str]) -> None:
    ours = settings(API_BASE_URL="https://calls-123456789012.us-east1.run.app")
    base, secret = ours.api_base_url, ours.dispatch_secrets[0]
    (line,) = function.doctor._print(
        [wrong("check", f"no {base}/ for +14155550100", f"{base}/, {secret}")], ours, False
    )
    assert (line["found"], line["advice"]) == (f"no {base}/ for +1*******00", f"{base}/, [secret]")
    assert secret not in capsys.readouterr().out


def test_doctor_knows_every_function_that_the_code_calls() -> None:
    called = re.findall(r'_call\(\s*"(\w+)"', inspect.getsource(jobs.Jobs))
    assert sorted(called) == sorted(jobs.RPCS)
