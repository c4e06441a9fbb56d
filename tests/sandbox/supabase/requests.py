"""Reads a request to the gateway as PostgREST would: body, preferences, profile, media type, limit.

What PostgREST would honour and the gateway does not is refused here, each by its name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from aiohttp import web

from tests.sandbox.supabase.errors import JSON, ApiError, not_done
from tests.sandbox.supabase.gateway_database import SCHEMA

SINGLE = "application/vnd.pgrst.object+json"


@dataclass(frozen=True)
class Payload:
    """A JSON body as it came, and the keys of its object. `many`: it is an array of objects, and these are the first's."""

    text: str
    keys: frozenset[str]
    many: bool


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


async def read_payload(request: web.Request, *, same_keys: bool = True) -> Payload:
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
    if isinstance(body, dict):
        return Payload(text, frozenset(body), many=False)
    if not isinstance(body, list):
        return Payload("{}", frozenset(), many=False)
    if not all(isinstance(item, dict) for item in body):
        raise not_done("arrays of anything but objects")
    key_sets = {frozenset(item) for item in body}
    if same_keys and len(key_sets) > 1:
        raise ApiError(400, "PGRST102", "All object keys must match")
    return Payload(text, frozenset(body[0]) if body else frozenset(), many=True)


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
    header = "Accept-Profile" if request.method in ("GET", "HEAD") else "Content-Profile"
    asked = request.headers.get(header)
    if asked is None:
        return {}
    if asked != SCHEMA:
        raise ApiError(
            406, "PGRST106", f"Invalid schema: {asked}", hint=f"Only the following schemas are exposed: {SCHEMA}"
        )
    return {"Content-Profile": SCHEMA}


def read_media_type(request: web.Request) -> str:
    """`JSON` or `SINGLE`, whichever the caller wants first."""
    wanted = [part.strip() for part in request.headers.get("Accept", "*/*").split(",")]
    known = {"*/*": JSON, JSON: JSON, SINGLE: SINGLE}
    for part in wanted:
        name, _, parameters = part.partition(";")
        if name.strip().lower() in known and not parameters:
            return known[name.strip().lower()]
        if parameters or "*" in name or name.startswith(("text/", "application/")):
            raise not_done(f"Accept: {part}")
    raise ApiError(406, "PGRST107", f"None of these media types are available: {', '.join(wanted)}")


def read_limit(request: web.Request) -> int | None:
    values = request.query.getall("limit", [])
    if not values:
        return None
    if len(values) > 1 or not re.fullmatch("[1-9][0-9]{0,8}", values[0]):
        raise not_done(f"limit={','.join(values)}")
    return int(values[0])


def refuse_other_parameters(request: web.Request, *done: str) -> None:
    for name in request.query:
        if name not in done:
            raise not_done(f"the query parameter {name!r}")
