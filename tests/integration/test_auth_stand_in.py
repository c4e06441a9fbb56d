"""The sandbox's Auth writes what a real sign-up writes, as the role that does it, and supabase-py understands it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest
from aiohttp import web
from supabase import Client, ClientOptions, create_client
from supabase_auth.errors import AuthApiError

from tests.sandbox.postgres import Postgres
from tests.sandbox.serve import Server
from tests.sandbox.supabase import database
from tests.sandbox.supabase.auth import Auth
from tests.sandbox.supabase.gateway import Gateway, anon_key, secret_key, service_key

SECRET = "a-signing-key-for-tests-that-is-long-enough"
EMAIL, PHONE, PASSWORD = "someone@example.com", "+12125550123", "correct horse"

# Notes, as a sign-up trigger of the product's would see it: who writes the row, and what is in it then.
WITNESS = """
create table public.seen (what text, by text, phone text, confirmed boolean, metadata jsonb, xact text);
create function public.see() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  if new.email = 'refused@example.com' then
    raise exception 'the trigger is broken';
  end if;
  insert into public.seen values (tg_op, session_user, new.phone, new.confirmed_at is not null,
                                  new.raw_user_meta_data, pg_current_xact_id()::text);
  return null;
end
$$;
create trigger see after insert or update of email_confirmed_at, phone_confirmed_at on auth.users
  for each row execute function public.see();
create function public.whoami() returns uuid language sql stable as 'select auth.uid()';
grant execute on function public.whoami() to authenticated;
"""


@pytest.fixture(scope="module")
def auth_url(postgres: Postgres) -> Iterator[str]:
    """The superuser's URL of a database like a project without our migrations, but with a witness."""
    database.create_database(postgres, "auth")
    database.bootstrap(postgres, "auth")
    with psycopg.connect(postgres.url(database="auth"), autocommit=True) as connection:
        connection.execute(WITNESS)
    yield postgres.url(database="auth")
    database.drop_database(postgres, "auth")


@pytest.fixture
def connection(auth_url: str) -> Iterator[psycopg.Connection[Any]]:
    """The superuser's, where nobody has signed up yet."""
    with psycopg.connect(auth_url, autocommit=True) as connection:
        connection.execute("delete from auth.users; truncate public.seen")
        yield connection


@pytest.fixture(scope="module")
def server(postgres: Postgres, auth_url: str) -> Iterator[Server]:
    """Both halves of the stand-in on one port, as the sandbox serves them."""

    def app() -> web.Application:
        app = Gateway(postgres.url("authenticator", "auth"), jwt_secret=SECRET, pool_size=2).app()
        Auth(postgres.url("supabase_auth_admin", "auth"), jwt_secret=SECRET).routes(app)
        return app

    with Server(app) as server:
        yield server


def client_with(key: str, server: Server) -> Client:
    options = ClientOptions(httpx_client=httpx.Client(timeout=30), auto_refresh_token=False)
    return create_client(server.url, key, options)


@pytest.fixture
def anyone(server: Server, connection: psycopg.Connection[Any]) -> Client:
    """With the anonymous key, where nobody has signed up yet."""
    return client_with(anon_key(SECRET), server)


def users(connection: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return connection.execute("select email, phone, raw_user_meta_data from auth.users order by created_at").fetchall()


def test_sign_up_by_email_writes_user_and_metadata(anyone: Client, connection: psycopg.Connection[Any]) -> None:
    answer = anyone.auth.sign_up(
        {"email": "Someone@Example.com", "password": PASSWORD, "options": {"data": {"phone_number": PHONE}}}
    )
    assert users(connection) == [(EMAIL, None, {"phone_number": PHONE})]
    assert answer.user is not None
    assert (answer.user.email, answer.user.user_metadata) == (EMAIL, {"phone_number": PHONE})
    assert anyone.rpc("whoami").execute().data == answer.user.id  # the session is known to SQL


def test_trigger_sees_insert_and_confirmation_in_one_transaction(
    anyone: Client, connection: psycopg.Connection[Any]
) -> None:
    anyone.auth.sign_up({"phone": PHONE, "password": PASSWORD, "options": {"data": {"mode": "phone"}}})
    seen = connection.execute("select what, by, phone, confirmed, metadata from public.seen").fetchall()
    told = ("supabase_auth_admin", PHONE.removeprefix("+"))
    assert users(connection) == [(None, PHONE.removeprefix("+"), {"mode": "phone"})]
    assert seen == [("INSERT", *told, False, {"mode": "phone"}), ("UPDATE", *told, True, {"mode": "phone"})]
    assert connection.execute("select count(distinct xact) from public.seen").fetchone() == (1,)


def test_sign_ups_are_refused_as_auth_refuses_them(
    anyone: Client, server: Server, connection: psycopg.Connection[Any]
) -> None:
    anyone.auth.sign_up({"email": EMAIL, "password": PASSWORD})
    with pytest.raises(AuthApiError, match="User already registered") as error:
        anyone.auth.sign_up({"email": EMAIL, "password": PASSWORD})
    assert (error.value.status, error.value.code) == (422, "user_already_exists")
    table: list[tuple[dict[str, str], int, str]] = [
        ({"email": "refused@example.com", "password": PASSWORD}, 500, "unexpected_failure"),  # by the trigger
        ({"email": "other@example.com", "password": "12345"}, 422, "weak_password"),
        ({"email": "other", "password": PASSWORD}, 400, "validation_failed"),
        ({"phone": "0123", "password": PASSWORD}, 400, "validation_failed"),
        ({"password": PASSWORD}, 422, "anonymous_provider_disabled"),
    ]
    answers = [httpx.post(f"{server.url}/auth/v1/signup", json=body) for body, _, _ in table]
    assert [(answer.status_code, answer.json()["error_code"]) for answer in answers] == [row[1:] for row in table]
    assert answers[0].json()["msg"] == "Database error saving new user"
    assert len(users(connection)) == 1


def test_users_are_deleted_by_an_administrator_alone(
    anyone: Client, connection: psycopg.Connection[Any], server: Server
) -> None:
    user = anyone.auth.sign_up({"phone": PHONE, "password": PASSWORD}).user
    assert user is not None
    with pytest.raises(AuthApiError, match="User not allowed"):
        client_with(anon_key(SECRET), server).auth.admin.delete_user(user.id)
    assert len(users(connection)) == 1
    client_with(secret_key(SECRET), server).auth.admin.delete_user(user.id)
    assert users(connection) == []
    with pytest.raises(AuthApiError, match="User not found"):
        client_with(service_key(SECRET), server).auth.admin.delete_user(user.id)


def test_requests_that_auth_does_not_know_are_501(anyone: Client) -> None:
    with pytest.raises(AuthApiError, match="does not do POST /auth/v1/otp") as error:
        anyone.auth.sign_in_with_otp({"phone": PHONE})
    assert error.value.status == 501
