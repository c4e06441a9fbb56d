"""Callers: who proves what, and that nothing a stranger sends is anything but unproved."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook
from twilio.request_validator import RequestValidator
from werkzeug.datastructures import Headers, MultiDict

from function import auth
from function.auth import (
    AuthenticationError,
    KeysUnavailable,
    authenticate_sweep,
    authenticate_twilio,
    authenticate_webhook,
    own_path,
)
from tests.unit.examples import SECRET, settings

OTHER = "whsec_" + base64.b64encode(b"another secret, for the rotation").decode()
BODY = b'{"type": "INSERT", "record": {"id": 1}}'
ACCOUNT, AUDIENCE = "sweeper@a-project.example", "https://calls.example.com"
BY_SECRET = settings()
BY_GOOGLE = settings(SWEEP_SERVICE_ACCOUNT=ACCOUNT)
ROTATING = settings(DISPATCH_SECRET=f"{OTHER} {SECRET}", TWILIO_AUTH_TOKEN=f"{'a' * 32} {'f' * 32}")
FORM = {"CallSid": "CA" + "0" * 32, "CallStatus": "completed", "AnsweredBy": "", "To": "+14155550123"}

# What a server hands on as a header: text of one byte a character; and what only a caller in Python could.
header_text = st.text(st.characters(max_codepoint=0xFF)) | st.text()


# --- Supabase


def signed(secret: str = SECRET, body: bytes = BODY, age_s: float = 0) -> dict[str, str]:
    at = int(time.time() - age_s)
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(_hmac_sha256(key, f"msg_1.{at}.".encode() + body)).decode()
    return {"Webhook-Id": "msg_1", "Webhook-Timestamp": str(at), "Webhook-Signature": f"v1,{signature}"}


def _hmac_sha256(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.mark.parametrize("as_headers", [dict, Headers], ids=["dict", "werkzeug"])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_a_signed_webhook_is_proved_whatever_the_case_of_its_headers(
    case: Callable[[str], str], as_headers: Callable[[dict[str, str]], Any]
) -> None:
    authenticate_webhook(BY_SECRET, as_headers({case(name): value for name, value in signed().items()}), BODY)


@pytest.mark.parametrize("secret", [SECRET, OTHER])
def test_while_rotating_either_secret_proves_a_webhook(secret: str) -> None:
    authenticate_webhook(ROTATING, signed(secret), BODY)
    authenticate_webhook(ROTATING, bearer(secret), BODY)


def test_one_good_signature_among_several_is_enough() -> None:
    headers = signed()
    headers["Webhook-Signature"] = f"{signed(OTHER)['Webhook-Signature']} v1a,eA== {headers['Webhook-Signature']}"
    authenticate_webhook(BY_SECRET, headers, BODY)


def test_a_signature_proves_a_webhook_that_bears_another_authorization_too() -> None:
    authenticate_webhook(BY_SECRET, {**signed(), "Authorization": "Bearer of-a-gateway"}, BODY)


@pytest.mark.parametrize("body", [b"", b"no json", b"[" * 50_000])
def test_a_signed_body_is_proved_even_if_it_is_not_json(body: bytes) -> None:
    authenticate_webhook(BY_SECRET, signed(body=body), body)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_dashboards_webhook_is_proved_by_the_bearer_secret(scheme: str) -> None:
    authenticate_webhook(BY_SECRET, {"authorization": f"{scheme} {SECRET}"}, BODY)


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        SECRET,
        f"Basic {SECRET}",
        f"Bearer {OTHER}",
        f"Bearer {SECRET} {OTHER}",
        f"Bearer {SECRET}=",
        f"Bearer {SECRET.removeprefix('whsec_')}",
        f"Bearer {SECRET.lower()}",
    ],
)
def test_any_other_authorization_is_unproved(authorization: str) -> None:
    with pytest.raises(AuthenticationError):
        authenticate_webhook(BY_SECRET, {"Authorization": authorization}, BODY)


@pytest.mark.parametrize("missing", [*signed()])
def test_a_signature_without_one_of_its_headers_is_unproved(missing: str) -> None:
    with pytest.raises(AuthenticationError):
        authenticate_webhook(BY_SECRET, {name: value for name, value in signed().items() if name != missing}, BODY)


@pytest.mark.parametrize("age_s", [310, -310])
def test_an_old_or_future_signature_is_unproved(age_s: float) -> None:
    with pytest.raises(AuthenticationError):
        authenticate_webhook(BY_SECRET, signed(age_s=age_s), BODY)


@pytest.mark.parametrize("age_s", [280, -280])
def test_five_minutes_of_the_queue_or_of_another_clock_are_allowed(age_s: float) -> None:
    authenticate_webhook(BY_SECRET, signed(age_s=age_s), BODY)


def test_a_webhook_signed_with_another_secret_is_unproved() -> None:
    with pytest.raises(AuthenticationError):
        authenticate_webhook(BY_SECRET, signed(OTHER), BODY)


@given(st.integers(0, len(BODY) - 1))
def test_a_body_changed_by_one_character_is_unproved(at: int) -> None:
    with pytest.raises(AuthenticationError):
        authenticate_webhook(BY_SECRET, signed(), BODY[:at] + bytes([BODY[at] ^ 1]) + BODY[at + 1 :])


# The last character before the padding bears two bits that base64 does not use.
@given(st.integers(0, 41), st.sampled_from("ABCxyz019+/"))
def test_a_signature_changed_by_one_character_is_unproved(at: int, other: str) -> None:
    headers = signed()
    signature = headers["Webhook-Signature"].removeprefix("v1,")
    if signature[at] == other:
        other = "D"
    headers["Webhook-Signature"] = f"v1,{signature[:at]}{other}{signature[at + 1 :]}"
    with pytest.raises(AuthenticationError):
        authenticate_webhook(BY_SECRET, headers, BODY)


@pytest.mark.parametrize("name", ["Webhook-Id", "Webhook-Timestamp"])
def test_what_is_signed_beside_the_body_cannot_be_changed(name: str) -> None:
    headers = signed()
    headers[name] = headers[name][:-1] + ("2" if headers[name][-1] == "1" else "1")
    with pytest.raises(AuthenticationError):
        authenticate_webhook(BY_SECRET, headers, BODY)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "webhook-id": header_text,
            "webhook-timestamp": header_text | st.sampled_from([str(time.time()), "nan", "inf", "-1e400", "9" * 400]),
            "webhook-signature": header_text | header_text.map(lambda text: f"v1,{text}"),
            "authorization": header_text | header_text.map(lambda text: f"Bearer {text}"),
        },
    ),
    st.binary() | st.just(BODY),
)
def test_junk_is_an_unproved_webhook_and_nothing_else(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(AuthenticationError):
        authenticate_webhook(BY_SECRET, headers, body)
    if not headers.get("webhook-timestamp"):
        headers["webhook-timestamp"] = str(int(time.time()))
    with pytest.raises(AuthenticationError):
        authenticate_webhook(BY_SECRET, headers, body)


def test_without_a_secret_no_webhook_and_no_sweep_is_proved() -> None:
    bare = BY_SECRET.model_copy(update={"dispatch_secret": None})
    for headers in ({}, bearer(""), bearer("None"), signed()):
        with pytest.raises(AuthenticationError):
            authenticate_webhook(bare, headers, BODY)
        with pytest.raises(AuthenticationError):
            authenticate_sweep(bare, headers, NoKeys())


def test_a_secret_that_the_library_makes_is_one_of_ours() -> None:
    at = datetime.now(UTC)
    signature = Webhook(SECRET).sign("msg_1", at, BODY.decode())
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature}
    authenticate_webhook(BY_SECRET, headers, BODY)


# --- Cloud Scheduler and pg_cron


def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


KEY, STRANGERS_KEY = _key(), _key()
PUBLIC_PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


class LocalKeys:
    """A stand-in for Google's keys: one key, and a count of how often it was asked for one."""

    def __init__(self) -> None:
        self.asked = 0
        self._key = jwt.PyJWK(
            {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key())), "kid": "a", "alg": "RS256"}
        )

    def get_signing_key(self, kid: str) -> jwt.PyJWK:
        self.asked += 1
        if kid != "a":
            raise jwt.PyJWKClientError("no such key")
        return self._key


class NoKeys:
    """A stand-in for Google's keys that must not be asked."""

    def get_signing_key(self, kid: str) -> jwt.PyJWK:
        pytest.fail(f"Google was asked for the key {kid!r}")


class BrokenKeys:
    """A stand-in for Google's keys while Google cannot be reached."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def get_signing_key(self, kid: str) -> jwt.PyJWK:
        raise self._error


def claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    given = {
        "iss": "https://accounts.google.com",
        "aud": AUDIENCE,
        "email": ACCOUNT,
        "email_verified": True,
        "sub": "1",
        "iat": now,
        "exp": now + 3600,
        **changed,
    }
    return {name: value for name, value in given.items() if value is not ...}


def token(key: Any = KEY, alg: str = "RS256", kid: str | None = "a", **changed: Any) -> dict[str, str]:
    return bearer(jwt.encode(claims(**changed), key, alg, headers={"kid": kid} if kid else {}))


def forged(
    payload: bytes, head: bytes = b'{"alg":"RS256","kid":"a","typ":"JWT"}', signature: bytes = b"x"
) -> dict[str, str]:
    parts = (base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (head, payload, signature))
    return bearer(".".join(parts))


@pytest.mark.parametrize("issuer", ["https://accounts.google.com", "accounts.google.com"])
def test_a_google_token_of_the_configured_account_may_sweep(issuer: str) -> None:
    authenticate_sweep(BY_GOOGLE, token(iss=issuer), LocalKeys())


def test_a_clock_that_is_some_seconds_off_does_no_harm() -> None:
    now = int(time.time())
    authenticate_sweep(BY_GOOGLE, token(exp=now - 5), LocalKeys())
    authenticate_sweep(BY_GOOGLE, token(iat=now + 5), LocalKeys())


@pytest.mark.parametrize("secret", [SECRET, OTHER])
def test_the_bearer_secret_may_sweep_and_google_is_not_asked(secret: str) -> None:
    authenticate_sweep(ROTATING, bearer(secret), NoKeys())
    authenticate_sweep(
        ROTATING.model_copy(update=BY_GOOGLE.model_dump(include={"sweep_service_account"})),
        bearer(secret),
        NoKeys(),
    )


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer("one.two"),
        bearer("a.b.c"),
        bearer("a.b.c.d"),
        bearer(OTHER),
        bearer("a" * 9000 + ".b.c"),
        token(aud="https://another.example"),
        token(aud=...),
        token(aud=[]),
        token(iss="https://issuer.example"),
        token(iss=...),
        token(email="someone@a-project.example"),
        token(email=...),
        token(email_verified=False),
        token(email_verified="true"),
        token(email_verified=1),
        token(email_verified=...),
        token(exp=int(time.time()) - 30),
        token(exp=...),
        token(iat=...),
        token(iat=int(time.time()) + 86_400),
        token(nbf=int(time.time()) + 86_400),
        token(kid=None),
        token("", "none"),
        token(b"a shared key of at least 32 bytes", "HS256"),
        {"Authorization": token()["Authorization"].replace("Bearer", "Basic")},
    ],
)
def test_google_is_not_asked_about_a_token_that_could_not_pass(headers: dict[str, str]) -> None:
    with pytest.raises(AuthenticationError):
        authenticate_sweep(BY_GOOGLE, headers, NoKeys())


@pytest.mark.parametrize("headers", [token(STRANGERS_KEY), token(kid="b"), forged(json.dumps(claims()).encode())])
def test_a_token_that_google_did_not_sign_is_unproved(headers: dict[str, str]) -> None:
    keys = LocalKeys()
    with pytest.raises(AuthenticationError):
        authenticate_sweep(BY_GOOGLE, headers, keys)
    assert keys.asked == 1


def test_googles_public_key_is_not_taken_for_a_shared_secret() -> None:
    head, payload = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "kid": "a"}, claims())
    )
    signature = base64.urlsafe_b64encode(_hmac_sha256(PUBLIC_PEM, head + b"." + payload)).rstrip(b"=")
    with pytest.raises(AuthenticationError):
        authenticate_sweep(BY_GOOGLE, bearer(b".".join((head, payload, signature)).decode()), LocalKeys())


@given(st.data())
def test_a_token_changed_by_one_character_is_unproved(data: st.DataObject) -> None:
    text = token()["Authorization"].removeprefix("Bearer ")
    # The last character of each part bears bits that base64 does not use.
    at = data.draw(st.sampled_from([at for at, (here, after) in enumerate(pairwise(text)) if "." not in (here, after)]))
    other = "B" if text[at] == "A" else "A"
    with pytest.raises(AuthenticationError):
        authenticate_sweep(BY_GOOGLE, bearer(text[:at] + other + text[at + 1 :]), LocalKeys())


def test_a_token_is_nothing_where_no_account_may_sweep() -> None:
    with pytest.raises(AuthenticationError):
        authenticate_sweep(BY_SECRET, token(), NoKeys())


def test_a_webhooks_signature_does_not_start_a_sweep() -> None:
    with pytest.raises(AuthenticationError):
        authenticate_sweep(BY_GOOGLE, signed(), NoKeys())


@pytest.mark.parametrize(
    "error",
    [
        jwt.PyJWKClientConnectionError("timed out"),
        ConnectionResetError(),
        TimeoutError(),
        json.JSONDecodeError("a captive portal", "<html>", 0),
    ],
)
def test_a_token_cannot_be_judged_while_google_cannot_be_asked(error: Exception) -> None:
    with pytest.raises(KeysUnavailable):
        authenticate_sweep(BY_GOOGLE, token(), BrokenKeys(error))


def test_a_refused_connection_to_googles_keys_is_a_proof_that_is_unavailable() -> None:
    with pytest.raises(KeysUnavailable):
        authenticate_sweep(BY_GOOGLE, token(), jwt.PyJWKClient("http://127.0.0.1:9/certs", timeout=1))


def test_googles_keys_are_kept_for_the_life_of_the_process() -> None:
    assert auth.google_keys() is auth.google_keys()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from([*claims(), "nbf", "jti"]), json_values),
    st.sampled_from([{}, claims()]),
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64"]), json_values)
    | st.just({"alg": "RS256", "kid": "a"}),
)
def test_a_forged_token_is_unproved_whatever_it_claims(
    odd: dict[str, Any], base: dict[str, Any], head: dict[str, Any]
) -> None:
    with pytest.raises(AuthenticationError):
        authenticate_sweep(BY_GOOGLE, forged(json.dumps(base | odd).encode(), json.dumps(head).encode()), LocalKeys())


@given(st.binary(), st.binary(), st.binary())
def test_a_token_of_junk_is_unproved(head: bytes, payload: bytes, signature: bytes) -> None:
    with pytest.raises(AuthenticationError):
        authenticate_sweep(BY_GOOGLE, forged(payload, head, signature), NoKeys())


@given(header_text, st.integers(0, 3))
def test_an_authorization_of_junk_does_not_start_a_sweep(text: str, dots: int) -> None:
    for authorization in (text, f"Bearer {text}", "Bearer " + ".".join([text] * dots)):
        with pytest.raises(AuthenticationError):
            authenticate_sweep(BY_GOOGLE, {"Authorization": authorization}, NoKeys())


@pytest.mark.parametrize("odd", [float("inf"), float("nan"), 10**400, [1], {}, "soon", None, True])
@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
def test_a_time_that_is_none_is_unproved(name: str, odd: object) -> None:
    with pytest.raises(AuthenticationError):
        authenticate_sweep(BY_GOOGLE, forged(json.dumps(claims() | {name: odd}).encode()), LocalKeys())


def test_a_token_nested_without_end_is_unproved() -> None:
    with pytest.raises(AuthenticationError):
        authenticate_sweep(BY_GOOGLE, forged(b'{"a":' + b"[" * 5000), NoKeys())


# --- Twilio

QUERY = "attempt=d9428888-122b-11e1-b85c-61cd3cbb3210"


def by_twilio(
    url: str, form: dict[str, str] | MultiDict[str, str] = FORM, auth_token: str = "f" * 32
) -> dict[str, str]:
    return {"X-Twilio-Signature": RequestValidator(auth_token).compute_signature(url, form)}


def twilio_signed(url: str) -> dict[str, str]:
    return by_twilio(f"https://calls.example.com{url}")


@pytest.mark.parametrize("query", [QUERY, QUERY.encode()])
def test_what_twilio_signed_is_proved_blank_fields_included(query: str | bytes) -> None:
    authenticate_twilio(BY_SECRET, twilio_signed(f"/status?{QUERY}"), "/status", query, MultiDict(FORM))


def test_a_url_without_a_query_is_proved() -> None:
    authenticate_twilio(BY_SECRET, twilio_signed("/voice"), "/voice", b"", MultiDict(FORM))


def test_a_field_that_comes_twice_is_part_of_the_proof() -> None:
    form = MultiDict([*FORM.items(), ("CallStatus", "busy")])
    headers = by_twilio("https://calls.example.com/status", form)
    authenticate_twilio(BY_SECRET, headers, "/status", b"", form)
    with pytest.raises(AuthenticationError):
        authenticate_twilio(BY_SECRET, headers, "/status", b"", MultiDict(FORM))


def test_the_proof_does_not_depend_on_the_case_of_the_header() -> None:
    headers = {name.lower(): value for name, value in twilio_signed("/voice").items()}
    authenticate_twilio(BY_SECRET, headers, "/voice", b"", MultiDict(FORM))


def test_the_host_that_a_request_names_does_not_count() -> None:
    forged_host = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"}
    authenticate_twilio(BY_SECRET, twilio_signed("/voice") | forged_host, "/voice", b"", MultiDict(FORM))
    with pytest.raises(AuthenticationError):
        authenticate_twilio(
            BY_SECRET, by_twilio("https://evil.example/voice") | forged_host, "/voice", b"", MultiDict(FORM)
        )


@pytest.mark.parametrize("auth_token", ["a" * 32, "f" * 32])
def test_while_rotating_either_auth_token_proves_twilio(auth_token: str) -> None:
    headers = by_twilio("https://calls.example.com/voice", auth_token=auth_token)
    authenticate_twilio(ROTATING, headers, "/voice", b"", MultiDict(FORM))


@pytest.mark.parametrize("path", ["/calls/voice", "/voice"], ids=["kept by the proxy", "taken away by the proxy"])
def test_a_base_url_with_a_path_is_proved_whether_or_not_the_proxy_takes_the_path_away(path: str) -> None:
    behind = settings(API_BASE_URL="https://x.example/calls")
    authenticate_twilio(behind, by_twilio(f"https://x.example/calls/voice?{QUERY}"), path, QUERY, MultiDict(FORM))
    with pytest.raises(AuthenticationError):
        authenticate_twilio(behind, by_twilio(f"https://x.example/voice?{QUERY}"), path, QUERY, MultiDict(FORM))


@pytest.mark.parametrize(
    ("base", "path", "own"),
    [
        ("https://x.example", "/voice", "/voice"),
        ("https://x.example/calls", "/calls/voice", "/voice"),
        ("https://x.example/calls", "/voice", "/voice"),
        ("https://x.example/calls", "/callsvoice", "/callsvoice"),
        ("https://x.example/voice", "/voice", "/voice"),
        ("https://x.example/voice", "/voice/voice", "/voice"),
        ("https://x.example/calls", "/calls/", "/"),
    ],
)
def test_the_path_of_the_base_url_is_not_part_of_our_own_path(base: str, path: str, own: str) -> None:
    assert own_path(settings(API_BASE_URL=base), path) == own


@pytest.mark.parametrize(
    ("path", "query", "form"),
    [
        ("/voice", QUERY, FORM),
        ("/status/", QUERY, FORM),
        ("/status", "", FORM),
        ("/status", QUERY + "&a=", FORM),
        ("/status", QUERY[:-1] + "1", FORM),
        ("/status", QUERY, {}),
        ("/status", QUERY, FORM | {"CallStatus": "busy"}),
        ("/status", QUERY, FORM | {"More": "x"}),
        ("/status", QUERY, {name: value for name, value in FORM.items() if value}),
    ],
)
def test_anything_changed_after_twilio_signed_it_is_unproved(path: str, query: str, form: dict[str, str]) -> None:
    with pytest.raises(AuthenticationError):
        authenticate_twilio(BY_SECRET, twilio_signed(f"/status?{QUERY}"), path, query, MultiDict(form))


@given(st.integers(0, 25), st.sampled_from("ABCxyz019+/"))
def test_a_twilio_signature_changed_by_one_character_is_unproved(at: int, other: str) -> None:
    signature = twilio_signed("/voice")["X-Twilio-Signature"]
    if signature[at] == other:
        other = "D"
    changed = {"X-Twilio-Signature": signature[:at] + other + signature[at + 1 :]}
    with pytest.raises(AuthenticationError):
        authenticate_twilio(BY_SECRET, changed, "/voice", b"", MultiDict(FORM))


@pytest.mark.parametrize(
    "headers", [{}, {"X-Twilio-Signature": ""}, by_twilio("https://calls.example.com/voice", auth_token="b" * 32)]
)
def test_a_missing_or_foreign_signature_is_unproved(headers: dict[str, str]) -> None:
    with pytest.raises(AuthenticationError):
        authenticate_twilio(BY_SECRET, headers, "/voice", b"", MultiDict(FORM))


def test_a_signature_with_a_shared_key_is_not_ours() -> None:
    shared = {"X-Twilio-Webhooks-Signature-Settings": "key=webhooks_sharedkey_1,algorithm=HMAC_SHA1"}
    with pytest.raises(AuthenticationError):
        authenticate_twilio(BY_SECRET, twilio_signed("/voice") | shared, "/voice", b"", MultiDict(FORM))


def test_the_hash_of_a_json_body_does_not_stand_in_for_the_form() -> None:
    url = "https://calls.example.com/status?bodySHA256=" + "0" * 64
    with pytest.raises(AuthenticationError):
        authenticate_twilio(BY_SECRET, by_twilio(url, {}), "/status", "bodySHA256=" + "0" * 64, MultiDict(FORM))


@given(
    header_text,
    st.text().map(lambda text: f"/{text}"),
    st.binary() | st.text(),
    st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_junk_is_an_unproved_request_of_twilio_and_nothing_else(
    signature: str, path: str, query: bytes | str, form: dict[str, str]
) -> None:
    with pytest.raises(AuthenticationError):
        authenticate_twilio(BY_SECRET, {"X-Twilio-Signature": signature}, path, query, MultiDict(form))
    lone_surrogate = MultiDict({"\ud800": "\udfff"})
    with pytest.raises(AuthenticationError):
        authenticate_twilio(BY_SECRET, {"X-Twilio-Signature": signature}, path, query, lone_surrogate)


def test_why_a_caller_is_unproved_is_told_without_what_they_sent() -> None:
    sent = "hunter2-hunter2"
    with pytest.raises(AuthenticationError) as webhook:
        authenticate_webhook(BY_SECRET, {**bearer(sent), "webhook-signature": sent}, sent.encode())
    with pytest.raises(AuthenticationError) as sweep:
        authenticate_sweep(BY_GOOGLE, token(email=sent, kid=sent, aud=[AUDIENCE, sent]), NoKeys())
    with pytest.raises(AuthenticationError) as twilio:
        authenticate_twilio(BY_SECRET, {"X-Twilio-Signature": sent}, f"/{sent}", sent, MultiDict({sent: sent}))
    assert all(str(refused.value) and "hunter2" not in str(refused.value) for refused in (webhook, sweep, twilio))
