"""The sandbox's RPC gateway answers as a real PostgREST does, and fails as a real one can.

The first test holds it to answers recorded from PostgREST 14 and 16. They are kept outside this repository; without them
it is skipped, and the others still run.
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
RECORDINGS: dict[str, Any] = (
    json.loads((RECORDED / "cases.json").read_text()) if RECORDED.exists() else {"meta": {}, "cases": []}
)
NOT_DONE = {
    "prefer_timezone_bad": "answered 501: PostgREST 14 ignores Prefer: timezone, 16 honours it, nobody here sends it"
}

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


@pytest.fixture
def api_url(postgres: Postgres) -> Iterator[str]:
    """The superuser's URL of a database with the functions above."""
    database.create_database(postgres, "gateway")
    database.bootstrap(postgres, "gateway")
    with psycopg.connect(postgres.url(database="gateway"), autocommit=True) as connection:
        connection.execute(SCHEMA)
    yield postgres.url(database="gateway")
    database.drop_database(postgres, "gateway")


@pytest.fixture
def connection(api_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(api_url, autocommit=True) as connection:
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


# ---------------------------------------------------------------- as a real one


class Recorded:
    """Sends recorded requests and holds the answers against the recorded ones, as the recordings' README says."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def send(self, step: dict[str, Any]) -> httpx.Response:
        request = step["request"]
        headers = {**request["headers"], **self._authorization(step["jwt"])}
        content = request["body"].encode() if request["body"] is not None else None
        return self._client.request(request["method"], request["path"], headers=headers, content=content)

    def hold(self, step: dict[str, Any]) -> None:
        answer, expected = self.send(step), step["response"]
        compared: list[str] = RECORDINGS["meta"]["headers_compared"]
        headers = {name: answer.headers[name] for name in compared if name in answer.headers}
        assert (answer.status_code, headers) == (expected["status"], expected["headers"]), answer.text
        if expected["body_is"] == "empty":
            assert answer.content == b""
        elif expected["body_is"] == "json":
            body = answer.json()
            for path in step.get("normalise", []):
                if path == "$":
                    body = expected["body"]
                else:
                    assert path.removeprefix("$.") in body
                    body[path.removeprefix("$.")] = expected["body"][path.removeprefix("$.")]
            # By way of text, for in Python 1 == True and 1 == 1.0.
            assert json.dumps(body, sort_keys=True) == json.dumps(expected["body"], sort_keys=True)
        else:
            assert answer.text == expected["body"]

    def _authorization(self, kind: str) -> dict[str, str]:
        recorded = RECORDINGS["meta"]["jwt"]
        key = recorded["kinds"][kind]
        if key is None:
            return {}
        token = key.get("token") or jwt.encode(
            key["claims"], recorded[key.get("signed_with", "secret")], algorithm="HS256"
        )
        return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def recorded(postgres: Postgres) -> Iterator[Recorded]:
    if not RECORDED.exists():
        pytest.skip("the recorded answers are not on this machine")
    database.create_database(postgres, "conformance")
    database.bootstrap(postgres, "conformance")
    with psycopg.connect(postgres.url(database="conformance"), autocommit=True) as connection:
        connection.execute((RECORDED / "schema.sql").read_bytes())
    gateway = Gateway(
        postgres.url("authenticator", "conformance"), jwt_secret=RECORDINGS["meta"]["jwt"]["secret"], pool_size=2
    )
    with Server(gateway.app) as server, httpx.Client(base_url=f"{server.url}/rest/v1") as client:
        yield Recorded(client)
    database.drop_database(postgres, "conformance")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=f"{case['group']}-{case['name']}",
            marks=[pytest.mark.skip(reason=NOT_DONE[case["name"]])] if case["name"] in NOT_DONE else [],
        )
        for case in RECORDINGS["cases"]
    ]
    or [pytest.param({}, id="none")],
)
def test_the_gateway_answers_as_postgrest_did(recorded: Recorded, case: dict[str, Any]) -> None:
    for step in case.get("setup", []):
        assert recorded.send(step).is_success
    recorded.hold(case)
    for step in case.get("then", []):
        recorded.hold(step)


@pytest.mark.parametrize(
    ("method", "path", "extra"),
    [
        ("POST", "/rpc/list_parcels?order=id", {}),
        ("POST", "/rpc/list_parcels?note=eq.a", {}),
        ("POST", "/rpc/list_parcels?limit=0", {}),
        ("GET", "/rpc/list_parcels?note=eq.a", {}),
        ("GET", "/rpc/list_parcels", {"headers": {"Range": "0-1"}}),
        ("POST", "/rpc/list_parcels", {"headers": {"Prefer": "count=planned"}}),
        ("POST", "/rpc/list_parcels", {"headers": {"Prefer": "handling=strict"}}),
        ("POST", "/rpc/list_parcels", {"headers": {"Accept": "text/csv"}}),
        ("POST", "/rpc/add_parcel", {"data": {"p_note": "a"}}),
        ("POST", "/rpc/add_parcel", {"json": [1, 2]}),
        ("POST", "/rpc/lie", {"json": {"p_status": "PGRST"}}),
        ("GET", "/parcels?note=eq.a", {}),
        ("GET", "/parcels?select=id::text", {}),
        ("PATCH", "/parcels?id=eq.1", {"json": {"note": "b"}}),
        ("DELETE", "/parcels?id=eq.1", {}),
        ("POST", "/parcels?on_conflict=id", {"json": {"note": "b"}}),
        ("POST", "/parcels", {"json": {"note": "b"}, "headers": {"Prefer": "resolution=merge-duplicates"}}),
    ],
)
def test_what_the_gateway_does_not_do_is_501_and_named(
    http: httpx.Client, connection: psycopg.Connection[Any], method: str, path: str, extra: dict[str, Any]
) -> None:
    answer = http.request(method, path, **extra)
    assert (answer.status_code, answer.json()["code"]) == (501, "SANDBOX")
    assert answer.json()["message"].startswith("the sandbox's gateway does not do ")
    assert notes(connection) == []


def test_a_function_that_was_just_made_is_found(supabase: Client, connection: psycopg.Connection[Any]) -> None:
    connection.execute("create function public.fresh() returns int language sql as 'select 7'")
    connection.execute("grant execute on function public.fresh() to service_role")
    assert supabase.rpc("fresh").execute().data == 7


def test_a_newline_in_an_error_does_not_become_a_header(http: httpx.Client) -> None:
    answer = http.post("/rpc/lie", json={"p_status": "PT409"})
    assert (answer.status_code, answer.reason_phrase) == (409, "first X-Second: line")
    assert "X-Second" not in answer.headers


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("key", "role"),
    [
        (anon_key(SECRET), "anon"),
        (publishable_key(SECRET), "anon"),
        (service_key(SECRET), "service_role"),
        (secret_key(SECRET), "service_role"),
        (user_key(SECRET, "5b0c6f0e-0c1d-4e52-8f0a-6f1f6d0b0001", "someone@example.com"), "authenticated"),
    ],
    ids=["anon", "publishable", "service", "secret", "user"],
)
def test_a_key_means_its_role(server: Server, key: str, role: str) -> None:
    assert client_with(key, server).rpc("whoami").execute().data == role


@pytest.mark.parametrize(
    ("headers", "role"),
    [
        ({}, "anon"),
        ({"apikey": secret_key(SECRET)}, "service_role"),
        ({"apikey": service_key(SECRET)}, "anon"),  # sent on as it is, and "Bearer" is missing
        ({"apikey": anon_key(SECRET), "Authorization": f"Bearer {service_key(SECRET)}"}, "service_role"),
    ],
    ids=["no key", "secret key", "bare token", "both"],
)
def test_the_apikey_header_counts_only_where_no_token_is_given(
    server: Server, headers: dict[str, str], role: str
) -> None:
    assert httpx.post(f"{server.url}/rest/v1/rpc/whoami", headers=headers).json() == role


# ---------------------------------------------------------------- tables


def test_rows_are_inserted_and_listed_through_supabase_py(supabase: Client) -> None:
    assert supabase.table("parcels").insert({"note": "one"}).execute().data == [{"id": 1, "note": "one"}]
    supabase.table("parcels").insert([{"note": "two"}, {"note": "three"}]).execute()
    assert supabase.table("parcels").select("note").limit(2).execute().data == [{"note": "one"}, {"note": "two"}]


def test_a_plain_insert_answers_nothing(http: httpx.Client, connection: psycopg.Connection[Any]) -> None:
    answer = http.post("/parcels", json={"note": "one"})
    assert (answer.status_code, answer.content) == (201, b"")
    assert notes(connection) == ["one"]


def test_a_table_without_a_grant_can_be_neither_read_nor_written(server: Server) -> None:
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


# ---------------------------------------------------------------- what goes wrong


def test_calls_are_counted_by_name(gateway: Gateway, supabase: Client) -> None:
    supabase.rpc("add_parcel", {"p_note": "a"}).execute()
    supabase.rpc("add_parcel", {"p_note": "b"}).execute()
    supabase.rpc("whoami").execute()
    assert gateway.requests == {"add_parcel": 2, "whoami": 1}


def test_the_gateway_can_pretend_that_postgres_is_down(
    gateway: Gateway, http: httpx.Client, connection: psycopg.Connection[Any]
) -> None:
    gateway.fault = "503"
    answer = http.post("/rpc/add_parcel", json={"p_note": "a"})
    assert (answer.status_code, answer.json()["code"], answer.headers["Retry-After"]) == (503, "PGRST000", "0")
    assert notes(connection) == []


def test_the_gateway_can_answer_with_a_page_of_html(gateway: Gateway, supabase: Client) -> None:
    gateway.fault = "html"
    with pytest.raises(APIError) as error:
        supabase.rpc("add_parcel", {"p_note": "a"}).execute()
    assert error.value.code == "502"


def test_the_gateway_can_lose_the_answer_to_a_call_that_was_done(
    gateway: Gateway, supabase: Client, connection: psycopg.Connection[Any]
) -> None:
    gateway.fault = "lose_response"
    with pytest.raises(httpx.RemoteProtocolError):
        supabase.rpc("add_parcel", {"p_note": "a"}).execute()
    assert notes(connection) == ["a"]


def test_a_fault_can_be_limited_to_a_function_and_to_a_number_of_times(gateway: Gateway, http: httpx.Client) -> None:
    gateway.fault_on, gateway.fault_times, gateway.fault = {"whoami"}, 2, "503"
    assert http.post("/rpc/add_parcel", json={"p_note": "a"}).status_code == 200
    assert [http.post("/rpc/whoami").status_code for _ in range(3)] == [503, 503, 200]


def test_a_call_runs_on_and_commits_when_its_caller_has_gone(
    http: httpx.Client, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("listen parcels")
    with pytest.raises(httpx.ReadTimeout):
        http.post("/rpc/add_parcel", json={"p_note": "late", "p_seconds": 0.5}, timeout=0.1)
    assert notes(connection) == []
    assert [notice.payload for notice in connection.notifies(timeout=30, stop_after=1)] == ["late"]
    assert notes(connection) == ["late"]


def test_a_backend_that_dies_during_a_call_costs_that_call_alone(http: httpx.Client) -> None:
    answer = http.post("/rpc/die")
    assert (answer.status_code, answer.json()["code"]) == (503, "PGRST001")
    assert [http.post("/rpc/whoami").status_code for _ in range(4)] == [200] * 4


def test_calls_fail_while_postgres_is_down_and_succeed_as_soon_as_it_is_back() -> None:
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
