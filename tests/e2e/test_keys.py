"""What the keys that a browser holds can do with our tables and functions: nothing."""

from __future__ import annotations

import uuid

import pytest
from postgrest.exceptions import APIError
from supabase import create_client

from tests.e2e.conftest import World
from tests.sandbox.supabase.gateway import user_key

FUNCTIONS_QUERY = """
select p.proname as name, p.proargnames[1:p.pronargs - p.pronargdefaults] as needed
from pg_proc p where p.pronamespace = 'public'::regnamespace
"""
TABLES = ("outbound_call_jobs", "outbound_call_attempts", "outbound_call_answers", "outbound_call_overview")


@pytest.mark.parametrize("who", ["anon", "a signed-in user"])
def test_browser_reads_and_calls_nothing_of_ours(quiet: World, who: str) -> None:
    ready = quiet.sandbox.ready
    client = create_client(ready.supabase_url, ready.supabase_anon_key)
    if who != "anon":
        secret = quiet.sandbox.jwt_secret
        client.postgrest.auth(user_key(secret, str(uuid.uuid4()), "ada@example.com"))
    before = quiet.rows("select count(*) as n from public.outbound_call_jobs")
    for table in TABLES:
        with pytest.raises(APIError) as error:
            client.table(table).select("*").execute()
        assert error.value.code == "42501"
        with pytest.raises(APIError):
            client.table(table).insert({"user_id": str(uuid.uuid4()), "phone_number": "+14155550100"}).execute()
    assert quiet.rows("select count(*) as n from public.outbound_call_jobs") == before
    functions = quiet.rows(FUNCTIONS_QUERY)
    assert len(functions) >= 16
    for function in functions:
        arguments = dict.fromkeys(function["needed"] or [])
        with pytest.raises(APIError) as error:
            client.rpc(function["name"], arguments).execute()
        assert error.value.code == "42501", function["name"]


def test_service_key_inserts_a_job_and_no_status(quiet: World) -> None:
    ready = quiet.sandbox.ready
    client = create_client(ready.supabase_url, ready.supabase_service_key)
    row = {"user_id": str(uuid.uuid4()), "phone_number": quiet.number()}
    assert client.table("outbound_call_jobs").insert(row).execute().data
    with pytest.raises(APIError) as error:
        client.table("outbound_call_jobs").insert({**row, "status": "completed"}).execute()
    assert error.value.code == "42501"
