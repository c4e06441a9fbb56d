"""Why the database gives no facts: its address, the key, a paused project, or migrations that were not pushed."""

from typing import Final

import httpx
from postgrest.exceptions import APIError
from pydantic import ValidationError

from shared.doctor.findings import Finding, wrong
from shared.jobs import JobsUnavailable

PUSH: Final = "supabase link --workdir shared, then: supabase db push --remote --workdir shared"
_KEY: Final = (
    "Supabase: Project Settings, API Keys: set SUPABASE_SERVICE_KEY to a secret key (sb_secret_...) or the legacy service_role"
    " key of this very project"
)
_PROJECT: Final = (
    "Supabase dashboard: the project's page says whether it is paused (Restore project), starting or unhealthy"
)
_URL: Final = "Supabase: Project Settings, Data API: copy the project's URL, nothing behind it, into SUPABASE_URL"
_GRANT: Final = f"{_KEY}; if it is one: grant execute on function public.check_call_setup(text) to service_role;"
_DROPPED: Final = ("an object of ours was dropped", f"{PUSH}; if that finds nothing to do, restore a backup")
_MISSING: Final = (
    "the dispatcher's functions are missing: never pushed, or URL and key of another project",
    f"{PUSH}; if that finds nothing to do: notify pgrst, 'reload schema';",
)
_BY_CODE: Final = {
    "42501": ("the key may not call check_call_setup", _GRANT),
    **dict.fromkeys(("PGRST202", "42883"), _MISSING),
    **dict.fromkeys(("3F000", "42P01", "42703"), _DROPPED),
    "PGRST106": ("the schema public is not served", "Supabase: Project Settings, Data API: expose public"),
}
"""By the code of Postgres or PostgREST: the failure and the advice."""


def explain_silence(down: JobsUnavailable, response: httpx.Response | None) -> Finding:
    """`response`: the HTTP response, if one came, when check_setup raised `down`."""
    error = down.__cause__
    if response is None or not isinstance(error, APIError | ValidationError):
        gone = "a project that was deleted, or paused for long, has no name any more"
        return wrong("database", f"no answer: {down}", f"{_URL}; this container must reach it; {gone}; {_PROJECT}")
    status = response.status_code
    message = str(error.message)[:200] if isinstance(error, APIError) else ""
    if status == 540:
        return wrong("database", "the project is paused (HTTP 540)", _PROJECT)
    if "json" not in response.headers.get("content-type", ""):
        return wrong("database", f"a page instead of an answer (HTTP {status})", _PROJECT if status >= 500 else _URL)
    if isinstance(error, ValidationError):
        found = "check_call_setup answers in another shape: code and database are of different releases"
        return wrong("database", found, PUSH)
    if status == 401:  # also PostgREST's answer to the anon role, which has no rights here
        return wrong("database", f"the key is refused: {message}", _KEY)
    found, advice = _BY_CODE.get(str(error.code), ("it fails", _URL if status in (404, 405) else _PROJECT))
    code = f", {error.code}" if error.code else ""
    return wrong("database", f"{found} (HTTP {status}{code}): {message}", advice)
