"""The sandbox's RPC gateway answers as a real PostgREST does, and fails as a real one can.

The first test compares it with answers recorded from PostgREST 14 and 16. They are kept outside this repository; without
them that test is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import psycopg
import pytest
from postgrest.exceptions import APIError
from supabase import Client, ClientOptions, create_client

from tests.sandbox.postgres import Postgres
from tests.sandbox.serve import Server
from tests.sandbox.supabase import database
from tests.sandbox.supabase.gateway import Gateway, anon_key, publishable_key, secret_key, service_key, user_key

SECRET = "a-signing-key-for-tests-that-is-long-enough"
RECORDED = Path(__file__).parents[3] / "shared" / "postgrest"
# Answered with 501, because no client here sends it. PostgREST 14 and 16 differ in the first.
NOT_DONE = set(
    "prefer_timezone_bad overload_ambiguous body_array_of_two get_query_arguments get_writing_function max_rows"
    " single_0_rows single_1_row single_3_rows single_scalar single_mismatch_rolls_back prefer_count_exact"
    " filter_limit_count raise_pt409".split()
)

SCHEMA = """
create table public.parcels (id bigint generated always as identity primary key, note text not null);
create table public.secrets (id bigint);
alter table public.secrets enable row level security;
grant select, insert on public.parcels to service_role;

create function public.whoami() returns text language sql stable as 'select current_user::text';
create function public.add_parcel(p_note text, p_seconds float8 default 0) returns bigint language plpgsql as $$
declare
  v_id bigint;
begin
  perform pg_sleep(p_seconds);
  insert into public.parcels (note) values (p_note) returning id into v_id;
  perform pg_notify('parcels', p_note);
  return v_id;
end
$$;
create function public.count_up(p_to int) returns setof int language sql stable as 'select generate_series(1, p_to)';
create function public.die() returns void language sql security definer
  as 'select pg_terminate_backend(pg_backend_pid())::text';
create function public.lie() returns void language plpgsql as $$
begin
  raise exception using errcode = 'PT409', message = 'told by the function';
end
$$;
grant execute on all functions in schema public to anon, authenticated, service_role;
"""


@pytest.fixture(scope="module")
def api_url(postgres: Postgres) -> Iterator[str]:
    """The superuser's URL of a database with the functions above."""
    database.create_database(postgres, "gateway")
    database.bootstrap(postgres, "gateway")
    with psycopg.connect(postgres.url(database="gateway"), autocommit=True) as connection:
        connection.execute(SCHEMA)
    yield postgres.url(database="gateway")
    database.drop_database(postgres, "gateway")


@pytest.fixture(autouse=True)
def connection(api_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The superuser's, with no parcels yet."""
    with psycopg.connect(api_url, autocommit=True) as connection:
        connection.execute("truncate public.parcels restart identity; drop function if exists public.fresh()")
        yield connection


@pytest.fixture
def gateway(postgres: Postgres, api_url: str) -> Gateway:
    return Gateway(postgres.url("authenticator", "gateway"), jwt_secret=SECRET, pool_size=2)


@pytest.fixture
def server(gateway: Gateway) -> Iterator[Server]:
    with Server(gateway.app) as server:
        yield server


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """Speaks to `/rest/v1` with the service key."""
    headers = {"apikey": service_key(SECRET), "Authorization": f"Bearer {service_key(SECRET)}"}
    with httpx.Client(base_url=f"{server.url}/rest/v1", headers=headers) as client:
        yield client


@pytest.fixture
def supabase(server: Server) -> Client:
    return client_with(service_key(SECRET), server)


def client_with(key: str, server: Server) -> Client:
    return create_client(server.url, key, ClientOptions(httpx_client=httpx.Client(timeout=30)))


def notes(connection: psycopg.Connection[Any]) -> list[str]:
    return [note for (note,) in connection.execute("select note from public.parcels order by id")]


def recorded_deviations(client: httpx.Client, recordings: dict[str, Any]) -> dict[str, Any]:
    """The steps of the recorded cases that are answered differently, compared as the recordings' README says."""
    meta = recordings["meta"]

    def send(step: dict[str, Any]) -> httpx.Response:
        request, key = step["request"], meta["jwt"]["kinds"][step["jwt"]]
        headers = dict(request["headers"])
        if key is not None:
            secret = meta["jwt"][key.get("signed_with", "secret")]
            headers["Authorization"] = f"Bearer {key.get('token') or jwt.encode(key['claims'], secret, 'HS256')}"
        content = request["body"].encode() if request["body"] is not None else None
        return client.request(request["method"], request["path"], headers=headers, content=content)

    def compared(step: dict[str, Any]) -> tuple[object, object]:
        answer, expected = send(step), step["response"]
        headers = {name: answer.headers[name] for name in meta["headers_compared"] if name in answer.headers}
        body: Any = answer.json() if expected["body_is"] == "json" else answer.text
        if expected["body_is"] == "json":
            for path in step.get("normalise", []):  # what differs from run to run, such as a time
                name = path.removeprefix("$").removeprefix(".")
                if not name:
                    body = expected["body"]
                elif name in body:
                    body[name] = expected["body"][name]
        right = "" if expected["body_is"] == "empty" else expected["body"]
        # As text, because in Python 1 == True and 1 == 1.0.
        seen = (answer.status_code, headers, json.dumps(body, sort_keys=True))
        return seen, (expected["status"], expected["headers"], json.dumps(right, sort_keys=True))

    deviations: dict[str, Any] = {}
    for case in recordings["cases"]:
        name = f"{case['group']}-{case['name']}"
        if not all(send(step).is_success for step in case.get("setup", [])):
            deviations[name] = "its setup failed"
        if case["name"] in NOT_DONE:
            if (status := send(case).status_code) != 501:
                deviations[name] = {"answered": status, "expected": 501}
            continue
        for number, step in enumerate((case, *case.get("then", []))):
            seen, right = compared(step)
            if seen != right:
                deviations[f"{name}, step {number}"] = {"answered": seen, "recorded": right}
    return deviations


def test_gateway_answers_as_recorded_from_real_postgrest(postgres: Postgres) -> None:
    if not RECORDED.exists():
        pytest.skip("the recorded answers are not on this machine")
    recordings = json.loads((RECORDED / "cases.json").read_text())
    assert {case["name"] for case in recordings["cases"]} > NOT_DONE
    database.create_database(postgres, "conformance")
    database.bootstrap(postgres, "conformance")
    with psycopg.connect(postgres.url(database="conformance"), autocommit=True) as connection:
        connection.execute((RECORDED / "schema.sql").read_bytes())
    secret = recordings["meta"]["jwt"]["secret"]
    gateway = Gateway(postgres.url("authenticator", "conformance"), jwt_secret=secret, pool_size=2)
    with Server(gateway.app) as server, httpx.Client(base_url=f"{server.url}/rest/v1") as client:
        assert recorded_deviations(client, recordings) == {}
    database.drop_database(postgres, "conformance")


def test_requests_that_it_does_not_know_are_501(http: httpx.Client, connection: psycopg.Connection[Any]) -> None:
    note = {"json": {"note": "b"}}
    table: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/rpc/whoami?order=id", {}), ("HEAD", "/rpc/whoami", {}), ("GET", "/", {}),
        ("POST", "/rpc/whoami", {"headers": {"Prefer": "count=planned"}}),
        ("POST", "/rpc/whoami", {"headers": {"Accept": "text/csv"}}),
        ("POST", "/rpc/add_parcel", {"data": {"p_note": "a"}}), ("POST", "/rpc/add_parcel", {"json": [1, 2]}),
        ("POST", "/rpc/lie", {}), ("GET", "/parcels?note=eq.a", {}),
        ("GET", "/parcels?select=id", {}), ("GET", "/parcels", {"headers": {"Range": "0-1"}}),
        ("PATCH", "/parcels?id=eq.1", note), ("POST", "/parcels?on_conflict=id", note), ("POST", "/parcels", {"json": {}}),
        ("POST", "/parcels", note | {"headers": {"Prefer": "resolution=merge-duplicates"}}),
    ]  # fmt: skip
    answers = [(row, http.request(row[0], row[1], **row[2])) for row in table]
    assert [row for row, answer in answers if answer.status_code != 501] == []
    assert {answer.json()["code"] for row, answer in answers if row[0] != "HEAD"} == {"SANDBOX"}
    assert notes(connection) == []


def test_new_function_is_found_at_its_first_call(supabase: Client, connection: psycopg.Connection[Any]) -> None:
    connection.execute("create function public.fresh() returns int language sql as 'select 7'")
    connection.execute("grant execute on function public.fresh() to service_role")
    assert supabase.rpc("fresh").execute().data == 7


def test_long_sets_are_cut_as_supabase_cuts_them(supabase: Client) -> None:
    assert supabase.rpc("count_up", {"p_to": 1001}).execute().data == [*range(1, 1001)]


def test_keys_and_headers_mean_their_roles(server: Server) -> None:
    someone = user_key(SECRET, "5b0c6f0e-0c1d-4e52-8f0a-6f1f6d0b0001", "someone@example.com")
    keys = {
        anon_key(SECRET): "anon", publishable_key(SECRET): "anon", service_key(SECRET): "service_role",
        secret_key(SECRET): "service_role", someone: "authenticated",
    }  # fmt: skip
    assert {key: client_with(key, server).rpc("whoami").execute().data for key in keys} == keys
    table: list[tuple[dict[str, str], str]] = [
        ({}, "anon"),
        ({"apikey": secret_key(SECRET)}, "service_role"),
        ({"apikey": service_key(SECRET)}, "anon"),  # sent on as it is, and "Bearer" is missing
        ({"apikey": anon_key(SECRET), "Authorization": f"Bearer {service_key(SECRET)}"}, "service_role"),
    ]
    url = f"{server.url}/rest/v1/rpc/whoami"
    assert [httpx.post(url, headers=headers).json() for headers, _ in table] == [role for _, role in table]


def test_tables_take_and_list_rows_for_the_service(supabase: Client, server: Server, http: httpx.Client) -> None:
    one, two = {"id": 1, "note": "one"}, {"id": 2, "note": "two"}
    assert supabase.table("parcels").insert({"note": "one"}).execute().data == [one]
    plain = http.post("/parcels", json={"note": "two"})
    assert (plain.status_code, plain.content) == (201, b"")
    assert supabase.table("parcels").select("*").execute().data == [one, two]
    assert http.get("/nowhere").json()["code"] == "PGRST205"
    assert http.post("/parcels", json={"colour": "red"}).json()["code"] == "PGRST204"
    closed = client_with(anon_key(SECRET), server).table("secrets")
    for request in (closed.select("*"), closed.insert({"id": 1})):
        with pytest.raises(APIError, match="permission denied"):
            request.execute()


def test_faults_break_the_calls_they_are_set_for(
    gateway: Gateway, http: httpx.Client, supabase: Client, connection: psycopg.Connection[Any]
) -> None:
    gateway.fault_on, gateway.fault_times, gateway.fault = {"whoami"}, 2, "503"
    assert http.post("/rpc/add_parcel", json={"p_note": "other"}).status_code == 200
    answers = [http.post("/rpc/whoami") for _ in range(3)]
    assert [(answer.status_code, answer.headers.get("Retry-After")) for answer in answers] == [
        (503, "0"), (503, "0"), (200, None),
    ]  # fmt: skip
    assert answers[0].json()["code"] == "PGRST000"
    assert gateway.requests == {"add_parcel": 1, "whoami": 3}
    gateway.reset()
    gateway.fault = "html"
    with pytest.raises(APIError) as error:
        supabase.rpc("add_parcel", {"p_note": "html"}).execute()
    assert error.value.code == "502"
    gateway.fault = "lose_response"
    with pytest.raises(httpx.RemoteProtocolError):
        supabase.rpc("add_parcel", {"p_note": "lost"}).execute()
    assert notes(connection) == ["other", "lost"]  # the answer alone is lost


def test_call_whose_caller_has_gone_still_commits(http: httpx.Client, connection: psycopg.Connection[Any]) -> None:
    connection.execute("listen parcels")
    with pytest.raises(httpx.ReadTimeout):
        http.post("/rpc/add_parcel", json={"p_note": "late", "p_seconds": 3}, timeout=0.5)
    assert notes(connection) == []
    assert [notice.payload for notice in connection.notifies(timeout=30, stop_after=1)] == ["late"]
    assert notes(connection) == ["late"]


def test_backend_that_dies_costs_its_call_alone(http: httpx.Client) -> None:
    answer = http.post("/rpc/die")
    assert (answer.status_code, answer.json()["code"]) == (503, "PGRST001")
    assert [http.post("/rpc/whoami").status_code for _ in range(4)] == [200] * 4


def test_calls_succeed_again_once_postgres_is_back() -> None:
    with Postgres() as own:
        database.bootstrap(own)
        with psycopg.connect(own.url(), autocommit=True) as connection:
            connection.execute(SCHEMA)
        gateway = Gateway(own.url("authenticator"), jwt_secret=SECRET, pool_size=3)
        with Server(gateway.app) as server, httpx.Client(base_url=f"{server.url}/rest/v1", timeout=30) as client:
            assert client.post("/rpc/whoami").json() == "anon"
            own.kill()
            answer = client.post("/rpc/whoami")
            assert (answer.status_code, answer.json()["code"]) == (503, "PGRST000")
            own.restart()
            assert client.post("/rpc/whoami").json() == "anon"
            own.restart()  # behind its back: all connections are dead when the next call comes
            assert client.post("/rpc/whoami").json() == "anon"
