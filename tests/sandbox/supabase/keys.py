"""Supabase's keys: how the sandbox makes them, and what role a request's keys stand for.

Both forms are known: the legacy ones, which are JWTs, and `sb_publishable_...` / `sb_secret_...`, which Supabase's gateway
exchanges for one. They are made from the project's JWT secret, so that nothing has to be stored.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

import jwt
from aiohttp import web

from tests.sandbox.supabase.errors import ANON, unauthorized

CLOCK_SKEW_SECONDS = 30
LONG_EXPIRY = 4102444800  # 2100-01-01, as Unix time


def mint(secret: str, claims: dict[str, Any]) -> str:
    """A JWT signed as Supabase signs its own: HS256 with the project's secret."""
    return jwt.encode({"iss": "supabase", "iat": 1700000000, "exp": LONG_EXPIRY, **claims}, secret, algorithm="HS256")


def anon_key(secret: str) -> str:
    """The legacy anon key: a JWT of role `anon`."""
    return mint(secret, {"role": ANON})


def service_key(secret: str) -> str:
    """The legacy service_role key: a JWT of role `service_role`."""
    return mint(secret, {"role": "service_role"})


def user_key(secret: str, user_id: str, email: str) -> str:
    """A signed-in user's access token: a JWT of role `authenticated`."""
    return mint(secret, {"role": "authenticated", "aud": "authenticated", "sub": user_id, "email": email})


def publishable_key(secret: str) -> str:
    """An `sb_publishable_...` key; no JWT, the gateway turns it into one of role `anon`."""
    return f"sb_publishable_{_opaque(secret, 'publishable')}"


def secret_key(secret: str) -> str:
    """An `sb_secret_...` key; no JWT, the gateway turns it into one of role `service_role`."""
    return f"sb_secret_{_opaque(secret, 'secret')}"


def _opaque(secret: str, kind: str) -> str:
    return hmac.new(secret.encode(), kind.encode(), hashlib.sha256).hexdigest()[:31]


@dataclass(frozen=True)
class Caller:
    """Who is calling: the database role, and the claims that SQL may read."""

    role: str
    claims: dict[str, Any]


def authenticate(request: web.Request, secret: str) -> Caller:
    """Supabase's gateway puts the key in place, then PostgREST reads the token. No token is the anon role."""
    header = request.headers.get("Authorization")
    if header is None or header.startswith("Bearer sb_"):
        api_key = request.headers.get("apikey")
        known = {
            secret_key(secret): f"Bearer {service_key(secret)}",
            publishable_key(secret): f"Bearer {anon_key(secret)}",
        }
        # Any other key goes on as it is: a lone JWT without "Bearer" means nothing to PostgREST.
        header = known.get(api_key, api_key) if api_key is not None else header
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer":
        return Caller(ANON, {"role": ANON})
    claims = _claims(token.strip(), secret)
    role = claims.setdefault("role", ANON)
    return Caller(str(role), claims)


def _claims(token: str, secret: str) -> dict[str, Any]:
    if not token:
        raise unauthorized("PGRST301", "Empty JWT is sent in Authorization header")
    if (parts := token.count(".") + 1) != 3:
        raise unauthorized("PGRST301", f"Expected 3 parts in JWT; got {parts}")
    try:
        # An audience or a subject is nothing that PostgREST checks unless told to.
        return jwt.decode(
            token, secret, algorithms=["HS256"], leeway=CLOCK_SKEW_SECONDS,
            options={"verify_aud": False, "verify_sub": False, "verify_jti": False},
        )  # fmt: skip
    except jwt.ExpiredSignatureError:
        raise unauthorized("PGRST303", "JWT expired") from None
    except jwt.ImmatureSignatureError as error:
        message = "JWT issued at future" if "iat" in str(error) else "JWT not yet valid"
        raise unauthorized("PGRST303", message) from None
    except jwt.PyJWTError:
        raise unauthorized(
            "PGRST301", "No suitable key or wrong key type", "None of the keys was able to decode the JWT"
        ) from None
