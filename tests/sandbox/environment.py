"""The process's environment, as far as it concerns the sandbox."""

from __future__ import annotations

import os
from collections.abc import Mapping

from shared.settings import Settings

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
OWN = frozenset(
    {"SUPABASE_URL", "SUPABASE_SERVICE_KEY", "TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "TWILIO_API_BASE_URL"}
)
"""Settings that the sandbox always makes itself: others would reach a real Supabase or Twilio."""


def isolate() -> None:
    """Drop variables that send connections on loopback elsewhere: a proxy's, and libpq's (PGHOST, PGSSLMODE, PGSERVICE, ...)."""
    for name in list(os.environ):
        if name.upper() in PROXIES or (name.startswith("PG") and not name.startswith("PG_")):
            del os.environ[name]


def honoured(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings of the product that the sandbox takes from `environ`. Empty ones count as not set."""
    names = {field.upper() for field in Settings.model_fields} - OWN
    return {name: environ[name] for name in sorted(names) if environ.get(name, "").strip()}
