"""What the RPC gateway answers when it cannot do what was asked: PostgREST's error bodies, and SQLSTATE -> HTTP status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg
from aiohttp import web

JSON = "application/json"
ANON = "anon"


def json_response(body: str, status: int, headers: Mapping[str, str]) -> web.Response:
    headers = {"Content-Type": f"{JSON}; charset=utf-8", **headers}
    return web.Response(body=body.encode(), status=status, headers=headers)


@dataclass
class ApiError(Exception):
    """An error that the caller is told: HTTP status, and the four keys that PostgREST's error bodies always have."""

    status: int
    code: str
    message: str
    details: str | None = None
    hint: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> web.Response:
        headers = {"Proxy-Status": f"PostgREST; error={self.code}", **self.headers}
        if self.status == 401:
            headers.setdefault("WWW-Authenticate", "Bearer")
        if self.status == 503:
            headers.setdefault("Retry-After", "0")
        body = {"code": self.code, "details": self.details, "hint": self.hint, "message": self.message}
        return json_response(json.dumps(body, ensure_ascii=False), self.status, headers)


def not_done(what: str) -> ApiError:
    """Real Supabase answers this and the stand-in does not: 501, and no guess."""
    return ApiError(501, "SANDBOX", f"the sandbox's gateway does not do {what}")


def unavailable() -> ApiError:
    """Postgres is down."""
    return ApiError(503, "PGRST000", "Database connection error. Retrying the connection.")


def unauthorized(code: str, message: str, details: str | None = None) -> ApiError:
    header = f'Bearer error="invalid_token", error_description="{message}"'
    return ApiError(401, code, message, details, headers={"WWW-Authenticate": header})


# By SQLSTATE or the longest beginning of it; what is not listed, our own codes too, is 400.
# Source: PostgREST's Error.hs, measured on 14.17 and 16.2. (40001 and 40P01: 14 runs the call again and again.)
STATUS_OF_SQLSTATE = {
    "08": 503, "09": 500, "0L": 403, "0P": 403, "21": 500, "23503": 409, "23505": 409, "25": 500, "25006": 405,
    "28": 403, "2D": 500, "38": 500, "39": 500, "3B": 500, "40": 500, "42883": 404, "42P01": 404, "42P17": 500,
    "42501": 403, "53": 503, "53400": 500, "54": 500, "55": 500, "57": 500, "57P01": 503, "58": 500, "F0": 500,
    "HV": 500, "P0": 500, "P0001": 400, "XX": 500,
}  # fmt: skip


def _status_of(sqlstate: str) -> int:
    return next((STATUS_OF_SQLSTATE[sqlstate[:n]] for n in range(5, 1, -1) if sqlstate[:n] in STATUS_OF_SQLSTATE), 400)


def database_error(error: psycopg.Error, role: str) -> ApiError:
    """What became of the statement, as PostgREST tells it."""
    sqlstate, said = error.sqlstate, error.diag
    if sqlstate == "57P01" or (sqlstate is None and isinstance(error, psycopg.OperationalError)):
        return ApiError(503, "PGRST001", "Database client error. Retrying the connection.", str(error))
    if sqlstate is None:
        return not_done(f"this request: {error}")
    message = said.message_primary or str(error)
    if sqlstate.startswith("PT") or sqlstate == "PGRST":
        return not_done(f"raise sqlstate '{sqlstate}'")
    if (sqlstate, role) == ("42501", ANON) or (sqlstate, message) == ("22023", f'role "{role}" does not exist'):
        status = 401
    else:
        status = _status_of(sqlstate)
    return ApiError(status, sqlstate, message, said.message_detail, said.message_hint)
