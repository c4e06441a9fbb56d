"""Why the database gives no facts: its address, the key, a paused project, or migrations that were not pushed."""

import time
from typing import Final
from urllib.parse import urlsplit

import httpx
import jwt
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
    error, answers = down.__cause__, ok("database", "answers")
    if response is None or not isinstance(error, APIError | ValidationError):
        said = why_no_answer(error) if error else "no answer"
        gone = "a project that was paused for long, or deleted, has no name any more"
        mend = gone if "resolve" in said else f"this container must be allowed to reach it; {PROJECT}"
        return [wrong("database", said, f"{_URL}; {mend}")]
    status = response.status_code
    code, message = (str(error.code), str(error.message)[:200]) if isinstance(error, APIError) else ("", "")
    found, advice = f"HTTP {status}, {code}: {message}", _URL if status in (404, 405) else PROJECT
    if status == 540:
        found = "the project is paused (HTTP 540)"
    elif "json" not in response.headers.get("content-type", ""):
        found, advice = f"a page instead of an answer (HTTP {status})", PROJECT if status >= 500 else _URL
    elif status == 401 or key_problem(settings):
        # PostgREST answers 401 to the anon role, which has no rights here.
        found, advice = key_problem(settings) or f"the key is refused: {message}", KEY
    elif code == "42501":
        return [answers, wrong("rights", "the service may not call check_call_setup", _GRANT)]
    elif code in ("PGRST202", "42883"):
        found = "the dispatcher's functions are missing: never pushed, or URL and key of another project"
        return [
            answers,
            wrong("functions", found, f"{PUSH}; if that finds nothing to do: notify pgrst, 'reload schema';"),
        ]
    elif isinstance(error, ValidationError):
        found, advice = "check_call_setup answers in another shape: code and database are of different releases", PUSH
    elif code == "PGRST106":
        found, advice = (
            f"the schema public is not served: {message}",
            "Supabase: Project Settings, Data API: expose public",
        )
    elif code in ("3F000", "42P01", "42703"):
        found, advice = (
            f"an object of ours was dropped: {message}",
            f"{PUSH}; if that finds nothing to do, restore a backup",
        )
    elif code.startswith("PGRST00"):
        found = f"Supabase answers, its Postgres does not: {found}"
    return [wrong("database", found, advice)]


def key_problem(settings: Settings) -> str:
    """The fault that the key itself shows, without a request; empty when it shows none."""
    key = settings.supabase_service_key.get_secret_value()
    try:
        claims = jwt.decode(key, options={"verify_signature": False})
    except jwt.InvalidTokenError:
        claims = {}
    role = "publishable" if key.startswith("sb_publishable_") else claims.get("role", "service_role")
    if role != "service_role":
        return f"SUPABASE_SERVICE_KEY is the {role} key, which has no rights here"
    project, host = claims.get("ref"), urlsplit(settings.supabase_url).hostname or ""
    if project and host.endswith(".supabase.co") and host != f"{project}.supabase.co":
        return f"SUPABASE_SERVICE_KEY is of the project {project}, SUPABASE_URL of {host}"
    expires = claims.get("exp")
    return "SUPABASE_SERVICE_KEY has expired" if isinstance(expires, int | float) and expires < time.time() else ""
