"""Callers: who proves what, and that nothing a stranger sends is anything but unproved."""

import base64
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
from function.auth import AuthenticationError, authenticate_sweep, authenticate_twilio, authenticate_webhook
from shared.settings import Settings
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


def signed(secret: str = SECRET, body: bytes = BODY, age_s: float = 0) -> dict[str, str]:
    at = int(time.time() - age_s)
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = hmac.digest(key, f"msg_1.{at}.".encode() + body, "sha256")
    encoded = base64.b64encode(signature).decode()
    return {"Webhook-Id": "msg_1", "Webhook-Timestamp": str(at), "Webhook-Signature": f"v1,{encoded}"}


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def unproved(authenticate: Callable[..., None], *request: object) -> bool:
    """Whether the request is refused. Any other error is the test's."""
    try:
        authenticate(*request)
    except AuthenticationError:
        return True
    return False


def test_webhooks_of_supabase_are_proved() -> None:
    several = signed()
    several["Webhook-Signature"] = f"{signed(OTHER)['Webhook-Signature']} v1a,eA== {several['Webhook-Signature']}"
    library = datetime.now(UTC)
    by_the_library = {
        "webhook-id": "msg_1", "webhook-timestamp": str(int(library.timestamp())),
        "webhook-signature": Webhook(SECRET).sign("msg_1", library, BODY.decode()),
    }  # fmt: skip
    cases: list[Callable[[str], str]] = [str.lower, str.upper, str.title]
    table: list[tuple[Settings, Any, bytes]] = [
        *((BY_SECRET, kind({case(n): v for n, v in signed().items()}), BODY) for kind in (dict, Headers) for case in cases),
        *((ROTATING, headers, BODY) for secret in (SECRET, OTHER) for headers in (signed(secret), bearer(secret))),
        *((BY_SECRET, {"authorization": f"{scheme} {SECRET}"}, BODY) for scheme in ("Bearer", "bearer", "BEARER")),
        *((BY_SECRET, signed(body=body), body) for body in (b"", b"no json", b"[" * 50_000)),
        *((BY_SECRET, signed(age_s=age_s), BODY) for age_s in (280, -280)),
        (BY_SECRET, several, BODY),
        (BY_SECRET, by_the_library, BODY),
        (BY_SECRET, signed() | {"Authorization": "Bearer of-a-gateway"}, BODY),
    ]  # fmt: skip
    assert [request for request in table if unproved(authenticate_webhook, *request)] == []


def test_webhooks_of_strangers_are_unproved() -> None:
    whole = signed()
    other_end = {name: value[:-1] + ("2" if value.endswith("1") else "1") for name, value in whole.items()}
    table = [
        *({"Authorization": text} for text in (
            "", "Bearer", "Bearer ", SECRET, f"Basic {SECRET}", f"Bearer {OTHER}", f"Bearer {SECRET} {OTHER}", f"Bearer {SECRET}=",
            f"Bearer {SECRET.removeprefix('whsec_')}", f"Bearer {SECRET.lower()}",
        )),
        *({name: value for name, value in whole.items() if name != missing} for missing in whole),
        *(whole | {name: other_end[name]} for name in ("Webhook-Id", "Webhook-Timestamp")),
        signed(age_s=310), signed(age_s=-310), signed(OTHER),
    ]  # fmt: skip
    assert [headers for headers in table if not unproved(authenticate_webhook, BY_SECRET, headers, BODY)] == []


def test_webhook_changed_by_one_character_is_unproved() -> None:
    headers = signed()
    bodies = [BODY[:at] + bytes([byte ^ 1]) + BODY[at + 1 :] for at, byte in enumerate(BODY)]
    # The last character before the padding bears two bits that base64 does not use.
    signatures = changed_by_one(headers["Webhook-Signature"], range(3, 45))
    table = [(headers, body) for body in bodies] + [
        (headers | {"Webhook-Signature": text}, BODY) for text in signatures
    ]
    assert [row for row in table if not unproved(authenticate_webhook, BY_SECRET, *row)] == []


def changed_by_one(text: str, places: range) -> list[str]:
    return [text[:at] + new + text[at + 1 :] for at in places for new in "ABCDxyz019+/" if new != text[at]]


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
def test_junk_is_an_unproved_webhook_without_a_crash(headers: dict[str, str], body: bytes) -> None:
    assert unproved(authenticate_webhook, BY_SECRET, headers, body)
    if not headers.get("webhook-timestamp"):
        headers["webhook-timestamp"] = str(int(time.time()))
    assert unproved(authenticate_webhook, BY_SECRET, headers, body)


def test_service_without_a_secret_proves_nobody() -> None:
    bare = BY_SECRET.model_copy(update={"dispatch_secret": None})
    for headers in ({}, bearer(""), bearer("None"), signed()):
        assert unproved(authenticate_webhook, bare, headers, BODY)
        assert unproved(authenticate_sweep, bare, headers, Keys(UNASKED))


KEY, STRANGERS_KEY = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
PUBLIC_PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


PUBLIC_JWK = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key())) | {"kid": "a", "alg": "RS256"}
UNASKED = AssertionError("Google was asked for a key")


class Keys:
    """A stand-in for Google's keys: one key, or an error when it is asked; and a count of how often that was."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked, self._error = 0, error

    def get_signing_key(self, kid: str) -> jwt.PyJWK:
        self.asked += 1
        if self._error or kid != "a":
            raise self._error or jwt.PyJWKClientError("no such key")
        return jwt.PyJWK(PUBLIC_JWK)


def claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    given = {
        "iss": "https://accounts.google.com", "aud": AUDIENCE, "email": ACCOUNT, "email_verified": True, "sub": "1", "iat": now,
        "exp": now + 3600, **changed,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not ...}


def token(key: Any = KEY, alg: str = "RS256", kid: str | None = "a", **changed: Any) -> dict[str, str]:
    return bearer(jwt.encode(claims(**changed), key, alg, headers={"kid": kid} if kid else {}))


def forged(payload: bytes, head: bytes = b'{"alg":"RS256","kid":"a"}', signature: bytes = b"x") -> dict[str, str]:
    parts = (base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (head, payload, signature))
    return bearer(".".join(parts))


def test_tokens_of_the_configured_account_may_sweep() -> None:
    now = int(time.time())  # a clock may be some seconds off
    for changed in ({}, {"iss": "accounts.google.com"}, {"exp": now - 5}, {"iat": now + 5}):
        assert not unproved(authenticate_sweep, BY_GOOGLE, token(**changed), Keys()), changed


def test_bearer_secrets_may_sweep_without_asking_google() -> None:
    both = ROTATING.model_copy(update=BY_GOOGLE.model_dump(include={"sweep_service_account"}))
    for secret in (SECRET, OTHER):
        for given_settings in (ROTATING, both):
            authenticate_sweep(given_settings, bearer(secret), Keys(UNASKED))


def test_tokens_that_cannot_pass_are_not_looked_up() -> None:
    now = int(time.time())
    wrong: list[dict[str, Any]] = [
        {"aud": "https://another.example"}, {"aud": ...}, {"aud": []}, {"iss": "https://issuer.example"}, {"iss": ...},
        {"email": "someone@a-project.example"}, {"email": ...}, {"email_verified": False}, {"email_verified": "true"},
        {"email_verified": 1}, {"email_verified": ...}, {"exp": now - 30}, {"exp": ...}, {"iat": ...}, {"iat": now + 86_400},
        {"nbf": now + 86_400}, {"kid": None}, {"key": "", "alg": "none"},
        {"key": b"a shared key of at least 32 bytes", "alg": "HS256"},
    ]  # fmt: skip
    texts = ("", "one.two", "a.b.c", "a.b.c.d", OTHER, "a" * 9000 + ".b.c")
    basic = {"Authorization": token()["Authorization"].replace("Bearer", "Basic")}
    table: list[dict[str, str]] = [{}, basic, signed(), *map(bearer, texts), *(token(**changed) for changed in wrong)]
    assert [headers for headers in table if not unproved(authenticate_sweep, BY_GOOGLE, headers, Keys(UNASKED))] == []
    assert unproved(authenticate_sweep, BY_SECRET, token(), Keys(UNASKED))  # where no account may sweep


def test_tokens_that_google_did_not_sign_are_unproved() -> None:
    for headers in (token(STRANGERS_KEY), token(kid="b"), forged(json.dumps(claims()).encode())):
        keys = Keys()
        assert unproved(authenticate_sweep, BY_GOOGLE, headers, keys)
        assert keys.asked == 1


def test_googles_public_key_is_no_shared_secret() -> None:
    head, payload = b'{"alg":"HS256","kid":"a"}', json.dumps(claims()).encode()
    text, _, _ = forged(payload, head)["Authorization"].removeprefix("Bearer ").rpartition(".")
    signature = hmac.digest(PUBLIC_PEM, text.encode(), "sha256")
    assert unproved(authenticate_sweep, BY_GOOGLE, forged(payload, head, signature), Keys())


@given(st.data())
def test_token_changed_by_one_character_is_unproved(data: st.DataObject) -> None:
    text = token()["Authorization"].removeprefix("Bearer ")
    # The last character of each part bears bits that base64 does not use.
    at = data.draw(st.sampled_from([at for at, (here, after) in enumerate(pairwise(text)) if "." not in (here, after)]))
    other = "B" if text[at] == "A" else "A"
    assert unproved(authenticate_sweep, BY_GOOGLE, bearer(text[:at] + other + text[at + 1 :]), Keys())


def test_keys_that_cannot_be_asked_for_are_unavailable() -> None:
    portal = json.JSONDecodeError("a captive portal", "<html>", 0)
    errors = (jwt.PyJWKClientConnectionError("timed out"), ConnectionResetError(), TimeoutError(), portal)
    no_answer: list[auth.SigningKeys] = [*map(Keys, errors), jwt.PyJWKClient("http://127.0.0.1:9/certs", timeout=1)]
    for keys in no_answer:
        with pytest.raises(auth.KeysUnavailable):
            authenticate_sweep(BY_GOOGLE, token(), keys)
    assert auth.google_keys() is auth.google_keys()  # kept for the process


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
def test_forged_token_is_unproved_for_any_claims(
    odd: dict[str, Any], base: dict[str, Any], head: dict[str, Any]
) -> None:
    headers = forged(json.dumps(base | odd).encode(), json.dumps(head).encode())
    assert unproved(authenticate_sweep, BY_GOOGLE, headers, Keys())


@given(header_text, st.integers(0, 3), st.tuples(st.binary(), st.binary(), st.binary()))
def test_authorization_of_junk_starts_no_sweep(text: str, dots: int, parts: tuple[bytes, bytes, bytes]) -> None:
    for headers in ({"Authorization": text}, bearer(text), bearer(".".join([text] * dots)), forged(*parts)):
        assert unproved(authenticate_sweep, BY_GOOGLE, headers, Keys(UNASKED))


def test_tokens_with_impossible_times_are_unproved() -> None:
    impossible: list[object] = [float("inf"), float("nan"), 10**400, [1], {}, "soon", None, True]
    payloads = [json.dumps(claims() | {name: odd}).encode() for name in ("exp", "iat", "nbf") for odd in impossible]
    payloads.append(b'{"a":' + b"[" * 5000)  # nested without an end
    assert [text for text in payloads if not unproved(authenticate_sweep, BY_GOOGLE, forged(text), Keys())] == []


QUERY = "attempt=d9428888-122b-11e1-b85c-61cd3cbb3210"
FORGED_HOST = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"}


def by_twilio(
    url: str, form: dict[str, str] | MultiDict[str, str] = FORM, auth_token: str = "f" * 32
) -> dict[str, str]:
    return {"X-Twilio-Signature": RequestValidator(auth_token).compute_signature(url, form)}


def test_requests_that_twilio_signed_are_proved() -> None:
    twice = MultiDict([*FORM.items(), ("CallStatus", "busy")])
    behind = settings(API_BASE_URL="https://x.example/calls")  # a proxy may keep this path, or take it away
    own = settings(API_BASE_URL="https://x.example/calls", VOICE_PATH="/twilio/say/")
    voice, status = by_twilio(f"{AUDIENCE}/voice"), by_twilio(f"{AUDIENCE}/status?{QUERY}")
    table: list[tuple[Any, ...]] = [
        (BY_SECRET, status, "/status", QUERY, FORM),
        (BY_SECRET, status, "/status", QUERY.encode(), FORM),
        (BY_SECRET, voice, "/voice", b"", FORM),
        (BY_SECRET, {name.lower(): value for name, value in voice.items()}, "/voice", b"", FORM),
        (BY_SECRET, voice | FORGED_HOST, "/voice", b"", FORM),
        (BY_SECRET, by_twilio(f"{AUDIENCE}/status", twice), "/status", b"", twice),
        *((ROTATING, by_twilio(f"{AUDIENCE}/voice", auth_token=key * 32), "/voice", b"", FORM) for key in "af"),
        *((behind, by_twilio(f"https://x.example/calls/voice?{QUERY}"), path, QUERY, FORM) for path in ("/calls/voice", "/voice")),
        (own, by_twilio(f"https://x.example/calls/twilio/say/?{QUERY}"), "/twilio/say/", QUERY, FORM),
    ]  # fmt: skip
    assert [row for row in table if unproved(authenticate_twilio, *row[:4], MultiDict(row[4]))] == []


def test_own_path_leaves_out_that_of_the_base_url() -> None:
    table = [
        ("https://x.example", "/voice", "/voice"), ("https://x.example/calls", "/calls/voice", "/voice"),
        ("https://x.example/calls", "/voice", "/voice"), ("https://x.example/calls", "/callsvoice", "/callsvoice"),
        ("https://x.example/voice", "/voice", "/voice"), ("https://x.example/voice", "/voice/voice", "/voice"),
        ("https://x.example/calls", "/calls/", "/"),
    ]  # fmt: skip
    assert [(base, path, auth.own_path(settings(API_BASE_URL=base), path)) for base, path, _ in table] == table


def test_requests_that_twilio_did_not_sign_are_unproved() -> None:
    twice = MultiDict([*FORM.items(), ("CallStatus", "busy")])
    behind = settings(API_BASE_URL="https://x.example/calls")
    status, voice = by_twilio(f"{AUDIENCE}/status?{QUERY}"), by_twilio(f"{AUDIENCE}/voice")
    shared_key = {"X-Twilio-Webhooks-Signature-Settings": "key=webhooks_sharedkey_1,algorithm=HMAC_SHA1"}
    json_hash = "bodySHA256=" + "0" * 64
    table: list[tuple[Any, ...]] = [
        *((BY_SECRET, status, *request) for request in (
            ("/voice", QUERY, FORM), ("/status/", QUERY, FORM), ("/status", "", FORM), ("/status", QUERY + "&a=", FORM),
            ("/status", QUERY[:-1] + "1", FORM), ("/status", QUERY, {}), ("/status", QUERY, FORM | {"CallStatus": "busy"}),
            ("/status", QUERY, FORM | {"More": "x"}), ("/status", QUERY, {name: value for name, value in FORM.items() if value}),
        )),
        (BY_SECRET, by_twilio(f"{AUDIENCE}/status", twice), "/status", b"", FORM),
        (BY_SECRET, by_twilio("https://evil.example/voice") | FORGED_HOST, "/voice", b"", FORM),
        *((behind, by_twilio(f"https://x.example/voice?{QUERY}"), path, QUERY, FORM) for path in ("/calls/voice", "/voice")),
        (BY_SECRET, {}, "/voice", b"", FORM),
        (BY_SECRET, {"X-Twilio-Signature": ""}, "/voice", b"", FORM),
        (BY_SECRET, by_twilio(f"{AUDIENCE}/voice", auth_token="b" * 32), "/voice", b"", FORM),
        (BY_SECRET, voice | shared_key, "/voice", b"", FORM),
        (BY_SECRET, by_twilio(f"{AUDIENCE}/status?{json_hash}", {}), "/status", json_hash, FORM),
    ]  # fmt: skip
    changed = changed_by_one(voice["X-Twilio-Signature"], range(26))
    table += [(BY_SECRET, {"X-Twilio-Signature": text}, "/voice", b"", FORM) for text in changed]
    assert [row for row in table if not unproved(authenticate_twilio, *row[:4], MultiDict(row[4]))] == []


@given(header_text, st.text(), st.binary() | st.text(), st.dictionaries(st.text(), st.text(), max_size=3))
def test_junk_is_unproved_as_twilios_without_a_crash(
    signature: str, path: str, query: bytes | str, form: dict[str, str]
) -> None:
    headers = {"X-Twilio-Signature": signature}
    for fields in (form, {"\ud800": "\udfff"}):  # and a lone surrogate
        assert unproved(authenticate_twilio, BY_SECRET, headers, f"/{path}", query, MultiDict(fields))


def test_reason_does_not_repeat_what_a_stranger_sent() -> None:
    sent = "hunter2-hunter2"
    with pytest.raises(AuthenticationError) as webhook:
        authenticate_webhook(BY_SECRET, {**bearer(sent), "webhook-signature": sent}, sent.encode())
    with pytest.raises(AuthenticationError) as sweep:
        authenticate_sweep(BY_GOOGLE, token(email=sent, kid=sent, aud=[AUDIENCE, sent]), Keys(UNASKED))
    with pytest.raises(AuthenticationError) as twilio:
        authenticate_twilio(BY_SECRET, {"X-Twilio-Signature": sent}, f"/{sent}", sent, MultiDict({sent: sent}))
    assert all(str(refused.value) and "hunter2" not in str(refused.value) for refused in (webhook, sweep, twilio))
