"""Settings that are right, for tests that change one of them."""

from __future__ import annotations

import base64

from shared.settings import Settings, load_settings

SECRET = "whsec_" + base64.b64encode(b"a test's secret of 32 bytes, or so").decode()
ENVIRON = {
    "SUPABASE_URL": "http://127.0.0.1:54321", "SUPABASE_SERVICE_KEY": "service-key",
    "TWILIO_ACCOUNT_SID": "AC" + "0" * 32, "TWILIO_AUTH_TOKEN": "f" * 32, "TWILIO_PHONE_NUMBER": "+14155550199",
    "API_BASE_URL": "https://calls.example.com", "DISPATCH_SECRET": SECRET,
}  # fmt: skip


def settings(**changed: str) -> Settings:
    return load_settings(environ={**ENVIRON, **changed})
