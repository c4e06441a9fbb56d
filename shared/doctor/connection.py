"""Why the database gives no facts: its address, the key, a paused project, or migrations that were not pushed."""

import base64
import json
import time
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from postgrest.exceptions import APIError
from pydantic import ValidationError

from shared.doctor.findings import Finding, ok, why_no_answer, wrong
from shared.jobs import JobsUnavailable
from shared.settings import Settings

PUSH: Final = "supabase link --workdir shared, then: supabase db push --remote --workdir shared"
KEY: Final = (
    "Supabase: Project Settings, API Keys: set SUPABASE_SERVICE_KEY to a secret key (sb_secret_...) or the legacy service_role"
    " key of this very project"
)
PROJECT: Final = (
    "Supabase dashboard: the project's page says whether it is paused (Restore project), starting or unhealthy"
)
_URL: Final = "Supabase: Project Settings, Data API: copy the project's URL, nothing behind it, into SUPABASE_URL"
_GRANT: Final = "grant execute on function public.check_call_setup(text) to service_role;"


def explain_silence(settings: Settings, down: JobsUnavailable, response: httpx.Response | None) -> list[Finding]:
    """`response`: the HTTP response, if one came, when check_setup raised `down`."""
    error = down.__cause__
    code = error.code if isinstance(error, APIError) else None
    # PostgREST answers 401 to the anon role, which may do nothing here.
    is_refused = key_problem(settings) or (response is not None and response.status_code == 401)
    if code == "42501" and not is_refused:
        return [ok("database", "answers"), wrong("rights", "the service may not call check_call_setup", _GRANT)]
    if code in ("PGRST202", "42883") and not is_refused:
        found = "the dispatcher's functions are missing: never pushed, or URL and key of another project"
        advice = f"{PUSH}; if that finds nothing to do: notify pgrst, 'reload schema';"
        return [ok("database", "answers"), wrong("functions", found, advice)]
    return [wrong("database", *_no_facts(settings, error, response))]


def _no_facts(settings: Settings, error: BaseException | None, response: httpx.Response | None) -> tuple[str, str]:
    """-> what was found, and the advice."""
    if response is None or not isinstance(error, APIError | ValidationError):
        said = why_no_answer(error) if error else "no answer"
        gone = "a project that was paused for long, or deleted, has no name any more"
        return (
            said,
            f"{_URL}; {gone if 'resolve' in said else f'this container must be allowed to reach it; {PROJECT}'}",
        )
    status = response.status_code
    code, message = (str(error.code), str(error.message)[:200]) if isinstance(error, APIError) else ("", "")
    if status == 540:
        return "the project is paused (HTTP 540)", PROJECT
    if "json" not in response.headers.get("content-type", ""):
        return f"a page instead of an answer (HTTP {status})", PROJECT if status >= 500 else _URL
    if status == 401 or key_problem(settings):
        return key_problem(settings) or f"the key is refused: {message}", KEY
    if isinstance(error, ValidationError):
        return "check_call_setup answers in another shape: code and database are of different releases", PUSH
    if code == "PGRST106":
        return f"the schema public is not served: {message}", "Supabase: Project Settings, Data API: expose public"
    if code in ("3F000", "42P01", "42703", "42883"):
        return f"an object of ours was dropped: {message}", f"{PUSH}; if that finds nothing to do, restore a backup"
    where = "Supabase answers, its Postgres does not: " if code.startswith("PGRST00") else ""
    return f"{where}HTTP {status}, {code}: {message}", _URL if status in (404, 405) else PROJECT


def key_problem(settings: Settings) -> str:
    """The fault that the key itself shows, without asking anybody; empty when it shows none."""
    key = settings.supabase_service_key.get_secret_value()
    claims = _claims(key)
    role = "publishable" if key.startswith("sb_publishable_") else claims.get("role", "service_role")
    if role != "service_role":
        return f"SUPABASE_SERVICE_KEY is the {role} key, which may do nothing here"
    project, host = claims.get("ref"), urlsplit(settings.supabase_url).hostname or ""
    if project and host.endswith(".supabase.co") and host != f"{project}.supabase.co":
        return f"SUPABASE_SERVICE_KEY is of the project {project}, SUPABASE_URL of {host}"
    expires = claims.get("exp")
    return "SUPABASE_SERVICE_KEY has expired" if isinstance(expires, int | float) and expires < time.time() else ""


def _claims(key: str) -> dict[str, Any]:
    """The claims of a legacy key; empty for a key of another kind."""
    try:
        body = key.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}
