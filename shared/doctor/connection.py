"""Why the database gives no facts: its address, the key, a paused project, or a release that knows no doctor."""

import base64
import json
import time
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from postgrest.exceptions import APIError
from pydantic import ValidationError

from shared.doctor.findings import Finding, ok, why_no_answer, wrong
from shared.doctor.schema import PUSH
from shared.jobs import Jobs, JobsUnavailable
from shared.settings import Settings

KEY: Final = (
    "Supabase: Project Settings, API Keys: put a secret key (sb_secret_...) or the legacy service_role key of this very project"
    " into SUPABASE_SERVICE_KEY"
)
_URL: Final = (
    "Supabase: Project Settings, Data API: copy the project's URL (https://<ref>.supabase.co, nothing behind it) into"
    " SUPABASE_URL"
)
PROJECT: Final = (
    "Supabase dashboard: the project's page says whether it is paused (Restore project), starting or unhealthy"
)


def explain_silence(
    settings: Settings, jobs: Jobs, down: JobsUnavailable, response: httpx.Response | None
) -> list[Finding]:
    """`response` is what came, if anything did, when `down` was raised by check_setup."""
    error = down.__cause__
    code = error.code if isinstance(error, APIError) else None
    # 401: as PostgREST answers those whom it takes for the anon role, who may do nothing here.
    stranger = key_problem(settings) or (response is not None and response.status_code == 401)
    if code not in ("PGRST202", "42883", "42501") or stranger:
        return [wrong("database", *_no_answer(settings, error, response))]
    if code == "42501":
        return [
            ok("database", "answers"),
            wrong(
                "rights",
                f"the service may not call check_call_setup: {error.message if isinstance(error, APIError) else code}",
                "grant usage on schema public to service_role;"
                " grant execute on function public.check_call_setup(text) to service_role;",
            ),
        ]
    try:
        jobs.stats()
        found = "older than this code: check_call_setup is not there, or PostgREST has not noticed it yet"
    except JobsUnavailable:
        found = (
            "the call dispatcher's functions are not in this database: never pushed, or another project's URL and key"
        )
    advice = f"{PUSH}; if that finds nothing to do: notify pgrst, 'reload schema';"
    return [ok("database", "answers"), wrong("migrations", found, advice)]


def _no_answer(settings: Settings, error: BaseException | None, response: httpx.Response | None) -> tuple[str, str]:
    """-> what is the matter, and what to do."""
    if response is None or not isinstance(error, APIError | ValidationError):
        said = why_no_answer(error) if error else "no answer"
        if "resolve" in said:
            return said, f"{_URL}; a project that was paused for long, or deleted, has no name any more"
        return said, f"{_URL}; this container must be allowed to reach it; {PROJECT}"
    status = response.status_code
    message, code = (str(error.message)[:200], str(error.code)) if isinstance(error, APIError) else ("", "")
    if status == 540:
        return "the project is paused (HTTP 540)", PROJECT
    if "json" not in response.headers.get("content-type", ""):
        return f"a page instead of an answer (HTTP {status})", PROJECT if status >= 500 else _URL
    if key := key_problem(settings):
        return key, KEY
    if status == 401:
        return f"the key is refused: {message}", KEY
    if code == "57014":
        return (
            "answers too late: the statement timed out; the database is overloaded, or something holds locks",
            PROJECT,
        )
    if code.startswith("PGRST00") or status in (502, 503, 504, 544):
        return f"Supabase answers, its Postgres does not (HTTP {status}, {code})", PROJECT
    if code == "PGRST106":
        return (
            f"the schema public is not served: {message}",
            "Supabase: Project Settings, Data API: enable it, and expose public",
        )
    if code in ("3F000", "42P01", "42703", "42883"):
        return f"something of ours was dropped: {message}", f"{PUSH}; if that finds nothing to do, restore a backup"
    if isinstance(error, ValidationError):
        return "check_call_setup answers in another shape: code and database are of different releases", PUSH
    return f"HTTP {status}, {code}: {message}", _URL if status in (404, 405) else PROJECT


def key_problem(settings: Settings) -> str:
    """What is visibly wrong with the key, without asking anybody; empty when nothing is."""
    key = settings.supabase_service_key.get_secret_value()
    if key.startswith("sb_publishable_"):
        return "SUPABASE_SERVICE_KEY is the publishable key, which may do nothing here"
    claims = _claims(key)
    role, project = claims.get("role"), claims.get("ref")
    host = urlsplit(settings.supabase_url).hostname or ""
    if role is not None and role != "service_role":
        return f"SUPABASE_SERVICE_KEY is the {role} key, which may do nothing here"
    if project and host.endswith(".supabase.co") and host != f"{project}.supabase.co":
        return f"SUPABASE_SERVICE_KEY is of the project {project}, SUPABASE_URL of {host}"
    if isinstance(claims.get("exp"), int | float) and claims["exp"] < time.time():
        return "SUPABASE_SERVICE_KEY has expired"
    return ""


def _claims(key: str) -> dict[str, Any]:
    """What a legacy key says of itself; nothing for a key of another kind."""
    parts = key.split(".")
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return {}
    return claims if isinstance(claims, dict) else {}
