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
NOT_DONE = {"prefer_timezone_bad"}  # 501: PostgREST 14 ignores Prefer: timezone, 16 honours it, no client here sends it

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
create function public.list_parcels() returns setof public.parcels language sql stable
  as 'select p.* from public.parcels p order by p.id';
create function public.die() returns void language sql security definer
  as 'select pg_terminate_backend(pg_backend_pid())::text';
create function public.lie(p_status text) returns void language plpgsql as $$
begin
  raise exception using errcode = p_status, message = E'first\r\nX-Second: line';
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
    for case in (case for case in recordings["cases"] if case["name"] not in NOT_DONE):
        name = f"{case['group']}-{case['name']}"
        if not all(send(step).is_success for step in case.get("setup", [])):
            deviations[name] = "its setup failed"
        for number, step in enumerate((case, *case.get("then", []))):
            seen, right = compared(step)
            if seen != right:
                deviations[f"{name}, step {number}"] = {"answered": seen, "recorded": right}
    return deviations


def test_gateway_answers_as_recorded_from_real_postgrest(postgres: Postgres) -> None:
    if not RECORDED.exists():
        pytest.skip("the recorded answers are not on this machine")
    recordings = json.loads((RECORDED / "cases.json").read_text())
    assert len(recordings["cases"]) > 60
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
    table: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/rpc/list_parcels?order=id", {}), ("POST", "/rpc/list_parcels?note=eq.a", {}),
        ("POST", "/rpc/list_parcels?limit=0", {}), ("GET", "/rpc/list_parcels?note=eq.a", {}),
        ("GET", "/rpc/list_parcels", {"headers": {"Range": "0-1"}}),
        ("POST", "/rpc/list_parcels", {"headers": {"Prefer": "count=planned"}}),
        ("POST", "/rpc/list_parcels", {"headers": {"Prefer": "handling=strict"}}),
        ("POST", "/rpc/list_parcels", {"headers": {"Accept": "text/csv"}}),
        ("POST", "/rpc/add_parcel", {"data": {"p_note": "a"}}), ("POST", "/rpc/add_parcel", {"json": [1, 2]}),
        ("POST", "/rpc/lie", {"json": {"p_status": "PGRST"}}), ("GET", "/parcels?note=eq.a", {}),
        ("GET", "/parcels?select=id::text", {}), ("PATCH", "/parcels?id=eq.1", {"json": {"note": "b"}}),
        ("DELETE", "/parcels?id=eq.1", {}), ("POST", "/parcels?on_conflict=id", {"json": {"note": "b"}}),
        ("POST", "/parcels", {"json": {"note": "b"}, "headers": {"Prefer": "resolution=merge-duplicates"}}),
    ]  # fmt: skip
    for method, path, extra in table:
        answer = http.request(method, path, **extra)
        assert (answer.status_code, answer.json()["code"]) == (501, "SANDBOX"), (method, path)
        assert answer.json()["message"].startswith("the sandbox's gateway does not do ")
    assert notes(connection) == []


def test_new_function_is_found_at_its_first_call(supabase: Client, connection: psycopg.Connection[Any]) -> None:
    connection.execute("create function public.fresh() returns int language sql as 'select 7'")
    connection.execute("grant execute on function public.fresh() to service_role")
    assert supabase.rpc("fresh").execute().data == 7


def test_newline_in_an_error_becomes_no_header(http: httpx.Client) -> None:
    answer = http.post("/rpc/lie", json={"p_status": "PT409"})
    assert (answer.status_code, answer.reason_phrase) == (409, "first X-Second: line")
    assert "X-Second" not in answer.headers


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


def test_rows_are_inserted_and_listed_through_supabase_py(supabase: Client) -> None:
    assert supabase.table("parcels").insert({"note": "one"}).execute().data == [{"id": 1, "note": "one"}]
    supabase.table("parcels").insert([{"note": "two"}, {"note": "three"}]).execute()
    assert supabase.table("parcels").select("note").limit(2).execute().data == [{"note": "one"}, {"note": "two"}]


def test_plain_insert_is_answered_with_nothing(http: httpx.Client, connection: psycopg.Connection[Any]) -> None:
    answer = http.post("/parcels", json={"note": "one"})
    assert (answer.status_code, answer.content) == (201, b"")
    assert notes(connection) == ["one"]


def test_table_without_a_grant_is_closed_to_all(server: Server) -> None:
    anyone = client_with(anon_key(SECRET), server)
    with pytest.raises(APIError) as read:
        anyone.table("secrets").select("*").execute()
    with pytest.raises(APIError) as written:
        anyone.table("secrets").insert({"id": 1}).execute()
    assert (read.value.code, written.value.code) == ("42501", "42501")


def test_unknown_tables_and_columns_are_named(http: httpx.Client) -> None:
    assert http.get("/nowhere").json()["code"] == "PGRST205"
    assert http.post("/parcels", json={"colour": "red"}).json()["code"] == "PGRST204"
    assert http.get("/parcels?select=colour").json()["message"] == "column parcels.colour does not exist"


def test_calls_are_counted_by_name(gateway: Gateway, supabase: Client) -> None:
    supabase.rpc("add_parcel", {"p_note": "a"}).execute()
    supabase.rpc("add_parcel", {"p_note": "b"}).execute()
    supabase.rpc("whoami").execute()
    assert gateway.requests == {"add_parcel": 2, "whoami": 1}


def test_fault_503_is_an_answer_without_postgres(
    gateway: Gateway, http: httpx.Client, connection: psycopg.Connection[Any]
) -> None:
    gateway.fault = "503"
    answer = http.post("/rpc/add_parcel", json={"p_note": "a"})
    assert (answer.status_code, answer.json()["code"], answer.headers["Retry-After"]) == (503, "PGRST000", "0")
    assert notes(connection) == []


def test_fault_html_is_the_page_of_a_proxy(gateway: Gateway, supabase: Client) -> None:
    gateway.fault = "html"
    with pytest.raises(APIError) as error:
        supabase.rpc("add_parcel", {"p_note": "a"}).execute()
    assert error.value.code == "502"


def test_fault_lose_response_loses_the_answer_alone(
    gateway: Gateway, supabase: Client, connection: psycopg.Connection[Any]
) -> None:
    gateway.fault = "lose_response"
    with pytest.raises(httpx.RemoteProtocolError):
        supabase.rpc("add_parcel", {"p_note": "a"}).execute()
    assert notes(connection) == ["a"]


def test_fault_may_be_limited_by_function_and_number(gateway: Gateway, http: httpx.Client) -> None:
    gateway.fault_on, gateway.fault_times, gateway.fault = {"whoami"}, 2, "503"
    assert http.post("/rpc/add_parcel", json={"p_note": "a"}).status_code == 200
    assert [http.post("/rpc/whoami").status_code for _ in range(3)] == [503, 503, 200]


def test_call_whose_caller_has_gone_still_commits(http: httpx.Client, connection: psycopg.Connection[Any]) -> None:
    connection.execute("listen parcels")
    with pytest.raises(httpx.ReadTimeout):
        http.post("/rpc/add_parcel", json={"p_note": "late", "p_seconds": 0.5}, timeout=0.1)
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
            assert (answer.status_code, answer.json()["code"], "Retry-After" in answer.headers) == (
                503,
                "PGRST000",
                True,
            )
            own.restart()
            assert client.post("/rpc/whoami").json() == "anon"
            own.restart()  # behind its back: all connections are dead when the next call comes
            assert client.post("/rpc/whoami").json() == "anon"
