"""A stand-in for Supabase Auth: signs people up by writing `auth.users`, as the real one does.

It exists because a sign-up is where the product starts: the row must be written by `supabase_auth_admin`, in one
transaction with our trigger, from the request that supabase-py really sends. It covers sign-up by email or phone and
password, with nothing to confirm ("autoconfirm"), and deleting users with a service key; all else is answered 501.

A stand-in: no mail or text message is sent, nobody signs in again, and the stored password is a hash that is good for nothing.

Source of shapes and texts: supabase/auth (internal/api/signup.go, admin.go, phone.go, errors.go) as supabase_auth 2.34.1
parses them.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from aiohttp import web

from tests.sandbox.supabase.errors import ApiError
from tests.sandbox.supabase.gateway_database import Connections
from tests.sandbox.supabase.keys import authenticate, mint

SESSION_SECONDS = 3600
MIN_PASSWORD = 6  # characters

# Supabase Auth writes the user first and confirms it in the same transaction: triggers see an INSERT, then an UPDATE.
INSERT = """
insert into auth.users (instance_id, id, aud, role, email, phone, encrypted_password, raw_app_meta_data,
                        raw_user_meta_data, created_at, updated_at)
values ('00000000-0000-0000-0000-000000000000', %(id)s, 'authenticated', 'authenticated', %(email)s, %(phone)s,
        %(password)s, %(app_metadata)s, %(user_metadata)s, now(), now())
"""
CONFIRM = """
update auth.users
set email_confirmed_at = case when email is not null then now() end,
    phone_confirmed_at = case when phone is not null then now() end, last_sign_in_at = now(), updated_at = now()
where id = %s
returning to_jsonb(users)
"""
TAKEN = "select true from auth.users where email = %s or phone = %s"

Handler = Callable[[web.Request], Awaitable[web.Response]]


class AuthError(Exception):
    """An error in the shape that Supabase Auth has for one."""

    def __init__(self, status: int, error_code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": status, "error_code": error_code, "msg": message, **more}


class Auth:
    """`/auth/v1` over one database; `database_url` logs in as `supabase_auth_admin`."""

    def __init__(self, database_url: str, *, jwt_secret: str) -> None:
        self._connections = Connections(database_url, 4)
        self._secret = jwt_secret

    def routes(self, app: web.Application) -> None:
        """Serve `/auth/v1` from `app`, which then connects and disconnects this too. Postgres must be up."""
        app.router.add_post("/auth/v1/signup", _answering(self._sign_up))
        app.router.add_delete("/auth/v1/admin/users/{id}", _answering(self._delete_user))
        app.router.add_route("*", "/auth/v1/{path:.*}", _answering(_not_done))
        app.cleanup_ctx.append(self._connections.running)

    async def _sign_up(self, request: web.Request) -> web.Response:
        body = await _body(request)
        email, phone = _identifiers(body)
        providers = [name for name, value in (("email", email), ("phone", phone)) if value]
        user = {
            "id": str(uuid.uuid4()), "email": email, "phone": phone, "password": _hashed_password(body),
            "app_metadata": json.dumps({"provider": providers[0], "providers": providers}),
            "user_metadata": json.dumps(body.get("data") or {}),
        }  # fmt: skip
        async with self._connections.transaction() as connection:
            if await (await connection.execute(TAKEN, (email, phone))).fetchone():
                raise AuthError(422, "user_already_exists", "User already registered")
            await connection.execute(INSERT, user)
            row = await (await connection.execute(CONFIRM, (user["id"],))).fetchone()
        assert row is not None  # it was inserted in this transaction
        return web.json_response(self._session(_shown(row[0])))

    async def _delete_user(self, request: web.Request) -> web.Response:
        if "Authorization" not in request.headers:
            raise AuthError(401, "no_authorization", "This endpoint requires a valid Bearer token")
        try:
            caller = authenticate(request, self._secret)
        except ApiError as error:
            raise AuthError(403, "bad_jwt", f"invalid JWT: {error.message}") from error
        if caller.role != "service_role":
            raise AuthError(403, "not_admin", "User not allowed")
        body = await _body(request) if request.can_read_body else {}
        if body.get("should_soft_delete"):
            return await _not_done(request)
        async with self._connections.transaction() as connection:
            deleted = await connection.execute("delete from auth.users where id = %s", [request.match_info["id"]])
        if deleted.rowcount == 0:
            raise AuthError(404, "user_not_found", "User not found")
        return web.json_response({})

    def _session(self, user: dict[str, Any]) -> dict[str, Any]:
        now = int(time.time())
        claims = {
            "sub": user["id"], "role": user["role"], "iat": now, "exp": now + SESSION_SECONDS,
            "session_id": str(uuid.uuid4()), "aal": "aal1", "amr": [{"method": "password", "timestamp": now}],
            **{name: user[name] for name in ("aud", "email", "phone", "app_metadata", "user_metadata", "is_anonymous")},
        }  # fmt: skip
        return {
            "access_token": mint(self._secret, claims), "token_type": "bearer", "expires_in": SESSION_SECONDS,
            "expires_at": claims["exp"], "refresh_token": "stand-in", "user": user,
        }  # fmt: skip


def _answering(handler: Handler) -> Handler:
    """Errors as Supabase Auth tells them; whatever the database refused is one and the same to the caller."""

    async def answer(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except AuthError as error:
            failure = error
        except (psycopg.Error, ApiError):
            doing = "saving new user" if request.method == "POST" else "deleting user"
            failure = AuthError(500, "unexpected_failure", f"Database error {doing}")
        headers = {"x-sb-error-code": failure.body["error_code"]}
        return web.json_response(failure.body, status=failure.status, headers=headers)

    return answer


async def _not_done(request: web.Request) -> web.Response:
    raise AuthError(501, "sandbox", f"the sandbox's Auth does not do {request.method} {request.path_qs}")


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise AuthError(400, "bad_json", "Could not parse request body as JSON")
    return body


def _identifiers(body: dict[str, Any]) -> tuple[str | None, str | None]:
    """Email and phone as `auth.users` holds them: in lower case; without the plus. One of the two is there."""
    email, phone = body.get("email") or None, body.get("phone") or None
    if email is not None:
        email = str(email).strip().lower()
        if not re.fullmatch(r"[^@\s]+@[^@\s]+", email):
            raise AuthError(400, "validation_failed", "Unable to validate email address: invalid format")
    if phone is not None:
        phone = str(phone).removeprefix("+").replace(" ", "")
        if not re.fullmatch("[1-9][0-9]{1,14}", phone):
            raise AuthError(400, "validation_failed", "Invalid phone number format (E.164 required)")
    if email is None and phone is None:
        raise AuthError(422, "anonymous_provider_disabled", "Anonymous sign-ins are disabled")
    return email, phone


def _hashed_password(body: dict[str, Any]) -> str:
    password = str(body.get("password") or "")
    if len(password) < MIN_PASSWORD:
        message = f"Password should be at least {MIN_PASSWORD} characters."
        raise AuthError(422, "weak_password", message, weak_password={"reasons": ["length"]})
    return "stand-in:" + hashlib.sha256(password.encode()).hexdigest()


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """The user as the API tells it, from its row."""
    times = ("email_confirmed_at", "phone_confirmed_at", "confirmed_at", "last_sign_in_at", "created_at", "updated_at")
    return {
        "id": row["id"], "aud": row["aud"], "role": row["role"], "email": row["email"] or "",
        "phone": row["phone"] or "", "app_metadata": row["raw_app_meta_data"],
        "user_metadata": row["raw_user_meta_data"], "identities": [], "is_anonymous": False,
        **{name: row[name] for name in times if row.get(name) is not None},
    }  # fmt: skip
