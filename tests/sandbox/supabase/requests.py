"""Reads a request to the gateway as PostgREST would. What PostgREST honours and the gateway does not is refused by its name."""

from __future__ import annotations

import json

from aiohttp import web

from tests.sandbox.supabase.errors import JSON, ApiError, not_done
from tests.sandbox.supabase.gateway_database import SCHEMA


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


async def read_payload(request: web.Request) -> tuple[str, frozenset[str]]:
    """A JSON object as it came, and its keys. Any other JSON but an array stands for an empty object."""
    content_type = request.headers.get("Content-Type", JSON).split(";")[0].strip().lower()
    if content_type in ("application/x-www-form-urlencoded", "text/csv", "application/octet-stream", "text/plain"):
        raise not_done(f"bodies of type {content_type}")
    if content_type != JSON:
        raise ApiError(400, "PGRST102", f"Content-Type not acceptable: {content_type}")
    try:
        text = (await request.read()).decode()
        body = json.loads(text, parse_constant=_reject_constant, parse_int=str, parse_float=str) if text else None
    except (ValueError, RecursionError):
        raise ApiError(400, "PGRST102", "Empty or invalid json") from None
    if isinstance(body, list):
        raise not_done("arrays")
    return (text, frozenset(body)) if isinstance(body, dict) else ("{}", frozenset())


def read_preferences(request: web.Request, *done: str) -> set[str]:
    """What the caller prefers; anything that begins with none of `done` is refused."""
    lines = request.headers.getall("Prefer", [])
    preferences = {part.strip() for line in lines for part in line.split(",") if part.strip()}
    for preference in preferences:
        if not preference.startswith(done):
            raise not_done(f"Prefer: {preference}")
    return preferences


def check_profile(request: web.Request) -> dict[str, str]:
    """The schema asked for must be ours. Returns the header that the answer has when one was asked for."""
    asked = request.headers.get("Accept-Profile" if request.method == "GET" else "Content-Profile")
    if asked is None:
        return {}
    if asked != SCHEMA:
        hint = f"Only the following schemas are exposed: {SCHEMA}"
        raise ApiError(406, "PGRST106", f"Invalid schema: {asked}", hint=hint)
    return {"Content-Profile": SCHEMA}


def check_accept(request: web.Request) -> None:
    """JSON must be the first media type that PostgREST knows."""
    wanted = [part.strip() for part in request.headers.get("Accept", "*/*").split(",")]
    for part in wanted:
        if part.lower() in ("*/*", JSON):
            return
        if ";" in part or "*" in part or part.startswith(("text/", "application/")):
            raise not_done(f"Accept: {part}")
    raise ApiError(406, "PGRST107", f"None of these media types are available: {', '.join(wanted)}")
