"""The keys that a browser holds read and call nothing of ours; what each role may do is tested with the database."""

from __future__ import annotations

import uuid
from typing import Any

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
    client = create_client(quiet.sandbox.ready.supabase_url, quiet.sandbox.ready.supabase_anon_key)
    if who != "anon":
        client.postgrest.auth(user_key(quiet.sandbox.jwt_secret, str(uuid.uuid4()), "ada@example.com"))
    row = {"user_id": str(uuid.uuid4()), "phone_number": "+14155550100"}
    functions = quiet.rows(FUNCTIONS_QUERY)
    assert len(functions) >= 16
    requests: dict[str, Any] = {
        **{f"read {table}": client.table(table).select("*") for table in TABLES},
        **{f"write {table}": client.table(table).insert(row) for table in TABLES},
        **{f["name"]: client.rpc(f["name"], dict.fromkeys(f["needed"] or [])) for f in functions},
    }
    for what, request in requests.items():
        with pytest.raises(APIError) as error:
            request.execute()
        assert error.value.code == "42501" or (what.startswith("write ") and what != "write outbound_call_jobs"), what
    assert quiet.rows("select from public.outbound_call_jobs") == []
