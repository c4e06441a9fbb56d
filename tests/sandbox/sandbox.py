"""A Supabase, a Twilio, a scheduler and the function itself, on loopback and free ports; the demo and the tests use it.

Real: Postgres with the real migrations, supabase-py, twilio-python, functions-framework. Stand-ins: Supabase's HTTP face,
Vault and pg_net, Cloud Scheduler, Twilio.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import trustme
from aiohttp import web

from shared.settings import load_settings
from tests.sandbox.environment import honoured
from tests.sandbox.events import Events
from tests.sandbox.function_process import ROOT, FunctionProcess
from tests.sandbox.page.server import Page
from tests.sandbox.postgres import Postgres
from tests.sandbox.receiver import Receiver
from tests.sandbox.scheduler import Scheduler
from tests.sandbox.serve import Server, free_port
from tests.sandbox.supabase import database
from tests.sandbox.supabase.auth import Auth
from tests.sandbox.supabase.gateway import Gateway, anon_key, service_key, tell_steps
from tests.sandbox.supabase.pg_net import PgNetWorker
from tests.sandbox.twilio.server import Twilio

OUR_NUMBER = "+15005550006"  # Twilio's own magic From

# With these, calls are made at any hour, and a failure is settled within seconds.
EASY_SETTINGS: Mapping[str, str] = {
    "CALL_HOURS": "always", "CALLS_PER_SECOND": "100", "CALLS_PER_DAY": "off", "CALLS_PER_NUMBER_PER_DAY": "1000000",
    "CALLS_PER_PREFIX_PER_HOUR": "0", "TWILIO_TIMEOUT_SECONDS": "2", "REQUEST_TIMEOUT_SECONDS": "7.4",
    "CALL_SETTLING_SECONDS": "8", "CALL_ASK_SECONDS": "3", "CALL_RETRY_SECONDS": "1", "CALL_REDIAL_SECONDS": "2",
    "CALL_RING_SECONDS": "5", "CALL_TIME_LIMIT_SECONDS": "60", "RESULT_RETRY_SECONDS": "1,2,4",
}  # fmt: skip
SWEEP_EVERY_S = 1.0
# With the page, people pick up, listen and press keys.
PEOPLE_SETTINGS: Mapping[str, str] = {
    "CALL_RING_SECONDS": "25", "CALL_TIME_LIMIT_SECONDS": "600", "CALL_MACHINES": "reached",
}  # fmt: skip


@dataclass(frozen=True)
class Ready:
    """What the ready file holds. `function_pid` leads a process group; None with --no-function. `page_url`: with its token."""

    function_url: str
    function_pid: int | None
    supabase_url: str
    supabase_anon_key: str
    supabase_service_key: str
    database_url: str
    twilio_url: str
    twilio_account_sid: str
    twilio_auth_token: str
    twilio_phone_number: str
    dispatch_secret: str
    page_url: str | None


class PortTaken(Exception):
    """The function cannot listen on the port that was asked for."""


class Sandbox:
    """Started and stopped as a whole; a context manager. `honoured`: the settings of `environ`, which replace EASY_SETTINGS.

    `tls`: the Twilio stand-in speaks https, and the function alone trusts its certificate. `page`: the telephone page is
    served, and phones ring as long as people need. `write`: the page may write scripts to disk.
    `scripts`: a folder of scripts that the function speaks, in place of the ones that ship.
    `results`: they are told to a receiver of the sandbox's own, unless `environ` has a RESULT_URL.
    """

    def __init__(
        self, *, function: bool = True, scheduler: bool = True, webhooks: bool = True, port: int = 0,
        ready_file: Path | None = None, environ: Mapping[str, str] | None = None, tls: bool = False,
        twilio_calls_per_second: float = 100.0, words_per_second: float = 2000.0, prepares: bool = False,
        page: bool = False, write: bool = False, scripts: Path | None = None, results: bool = False,
    ) -> None:  # fmt: skip
        self._with_function, self._with_scheduler, self._with_webhooks = function, scheduler, webhooks
        self._ready_file = ready_file
        self.honoured = honoured(os.environ if environ is None else environ)
        # Only a service on this machine may take the place of the function's /voice and /status.
        if urlsplit(self.honoured.get("API_BASE_URL", "")).hostname not in ("127.0.0.1", "localhost", "::1"):
            self.honoured.pop("API_BASE_URL", None)
        self._port = port
        self._folder = Path(tempfile.gettempdir(), f"sandbox-{secrets.token_hex(8)}")  # made by start()
        self._parts = contextlib.ExitStack()
        self.jwt_secret = secrets.token_hex(32)
        self._account_sid = "AC" + secrets.token_hex(16)
        self._auth_token = secrets.token_hex(16)
        self.function_log = self._folder / "function.log"
        self._authority_file = self._folder / "authority.pem"
        # Two secrets, separated by a space, while they are rotated: the callers then use the first.
        self._dispatch_secrets = self.honoured.get("DISPATCH_SECRET") or _new_secret()
        self.dispatch_secret = self._dispatch_secrets.split()[0]
        self._phone_number = self.honoured.get("TWILIO_PHONE_NUMBER") or OUR_NUMBER
        self._tls, self._prepares = tls, prepares
        self._with_page, self._write, self._scripts = page, write, scripts
        self._page: Page | None = None
        self.events = Events()
        self._result_secret = self.honoured.get("RESULT_SECRET") or _new_secret()
        has_receiver = results and "RESULT_URL" not in self.honoured
        self.receiver = Receiver(self._result_secret, self.events) if has_receiver else None
        self.receiver_server: Server | None = None
        self.webhooks: PgNetWorker | None = None
        self.settings: dict[str, str] = {}
        self.postgres = Postgres()
        self.twilio = Twilio(
            account_sid=self._account_sid, auth_token=self._auth_token, phone_number=self._phone_number,
            calls_per_second=twilio_calls_per_second, words_per_second=words_per_second, on_clock=self._set_clock,
            events=self.events,
        )  # fmt: skip
        self.function: FunctionProcess | None = None
        self.scheduler: Scheduler | None = None
        self.gateway: Gateway
        self.ready: Ready

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Sandbox:
        """Returns when every part answers. If one fails, the parts started before it are stopped."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """In the reverse order of starting. Nothing is left behind."""
        self._parts.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._ready_file:
            self._ready_file.unlink(missing_ok=True)

    def reset(self) -> None:
        """As freshly started: sweeps, webhooks and calls under way are awaited or ended, then all is forgotten.

        The function goes on; nothing is asked of it meanwhile.
        """
        self.twilio.rules.clear()  # so that no call under way is delayed
        self.gateway.reset()
        with self.scheduler.held if self.scheduler else contextlib.nullcontext():
            database.drain_webhooks(self.ready.database_url)
            self.twilio.reset()
            database.empty(self.ready.database_url)
            self._fill_vault()
            self.gateway.reset()
            if self.receiver:
                self.receiver.reset()
            if self._page:
                self._page.reset()
            self.events.clear()
            if self.function_log.exists():
                os.truncate(self.function_log, 0)

    def _start(self) -> None:
        self._folder.mkdir(mode=0o700)
        if self._port:
            _check_free(self._port)
        self.postgres.start()
        self._parts.callback(self.postgres.stop)
        database.bootstrap(self.postgres)
        database.migrate(self.postgres)
        database.install_clock(self.postgres)
        database.lift_rule_of_keys(self.postgres)

        pool_size = 10 if self._prepares else 20  # PostgREST's default, and room for a test's burst
        url = self.postgres.url("authenticator")
        self.gateway = Gateway(url, jwt_secret=self.jwt_secret, pool_size=pool_size, prepares=self._prepares)
        supabase = self._serve(self._supabase_app)
        twilio = self._serve(self.twilio.app, self._twilio_certificate() if self._tls else None)
        self.receiver_server = self._serve(self.receiver.app) if self.receiver else None

        port = self._port or free_port()
        function_url = f"http://127.0.0.1:{port}"
        self.ready = Ready(
            function_url=function_url, function_pid=None, supabase_url=supabase.url,
            supabase_anon_key=anon_key(self.jwt_secret), supabase_service_key=service_key(self.jwt_secret),
            database_url=self.postgres.url(), twilio_url=twilio.url, twilio_account_sid=self._account_sid,
            twilio_auth_token=self._auth_token, twilio_phone_number=self._phone_number,
            dispatch_secret=self.dispatch_secret, page_url=None,
        )  # fmt: skip
        self.settings = self._settings()
        load_settings(environ=self.settings)
        self._fill_vault()
        if self._with_function:
            root = ROOT if self._scripts is None else self._code_with(self._scripts)
            self.function = FunctionProcess(port, self.settings, self.function_log, self._on_function_start, root)
            self._parts.callback(self.function.stop)
            self.function.start()
        if self._with_webhooks:
            self.webhooks = PgNetWorker(self.postgres.url(), self.events)
            self.webhooks.start()
            self._parts.callback(self.webhooks.stop)
        if self._with_scheduler:
            self.scheduler = Scheduler(function_url, self.dispatch_secret, SWEEP_EVERY_S)
            self.scheduler.start()
            self._parts.callback(self.scheduler.stop)
        if self._with_page:
            self._page = Page(self, write=self._write)
            server = self._serve(self._page.app)
            self._page.origin = server.url
            self.ready = replace(self.ready, page_url=f"{server.url}/?token={self._page.token}")
        self._write_ready_file()

    def _serve(self, app: Callable[[], web.Application], tls: ssl.SSLContext | None = None) -> Server:
        server = Server(app, tls=tls).start()
        self._parts.callback(server.stop)
        return server

    def _twilio_certificate(self) -> ssl.SSLContext:
        """A certificate for loopback, signed by an authority of this sandbox's own, which `settings` name."""
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.cert_pem.write_to_path(str(self._authority_file))
        return context

    def _supabase_app(self) -> web.Application:
        app = self.gateway.app()
        app.middlewares.append(tell_steps(self.events))
        Auth(self.postgres.url("supabase_auth_admin"), jwt_secret=self.jwt_secret).routes(app)
        return app

    def _settings(self) -> dict[str, str]:
        """The function's environment: the easy settings, those honoured, and the sandbox's own."""
        results = {}
        if self.receiver_server:
            results = {"RESULT_URL": f"{self.receiver_server.url}/results", "RESULT_SECRET": self._result_secret}
        # httpx and ssl read the first of the two, requests the second.
        trusted = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(self._authority_file)) if self._tls else {}
        return {
            **EASY_SETTINGS, **(PEOPLE_SETTINGS if self._with_page else {}), **trusted,
            "TWILIO_PHONE_NUMBER": self._phone_number, "API_BASE_URL": self.ready.function_url,
            "DISPATCH_SECRET": self._dispatch_secrets, **results, **self.honoured,
            "SUPABASE_URL": self.ready.supabase_url, "SUPABASE_SERVICE_KEY": self.ready.supabase_service_key,
            "TWILIO_ACCOUNT_SID": self._account_sid, "TWILIO_AUTH_TOKEN": self._auth_token,
            "TWILIO_API_BASE_URL": self.ready.twilio_url,
        }  # fmt: skip

    def _fill_vault(self) -> None:
        with psycopg.connect(self.postgres.url(), autocommit=True) as connection:
            url = f"{self.ready.function_url}/"
            connection.execute("select vault.create_secret(%s, 'call_dispatcher_url')", (url,))
            connection.execute("select vault.create_secret(%s, 'call_dispatcher_secret')", (self.dispatch_secret,))

    def _code_with(self, scripts: Path) -> Path:
        """A copy of the code that ships, with these scripts."""
        code = self._folder / "code"
        for name in ("function", "shared"):
            shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__", "scripts"))
        shutil.copytree(scripts, code / "shared" / "scripts")
        return code

    def _on_function_start(self, pid: int) -> None:
        self.ready = replace(self.ready, function_pid=pid)
        if self._ready_file and self._ready_file.exists():
            self._write_ready_file()

    def _write_ready_file(self) -> None:
        if self._ready_file:
            half = self._ready_file.with_name(self._ready_file.name + ".half")
            half.write_text(json.dumps(asdict(self.ready), indent=2) + "\n")
            half.chmod(0o600)
            half.replace(self._ready_file)

    async def _set_clock(self, offset_s: float) -> None:
        await asyncio.to_thread(database.set_clock, self.postgres.url(), offset_s)


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _check_free(port: int) -> None:
    """Raises PortTaken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise PortTaken(f"port {port} of 127.0.0.1 cannot be used: {error}") from None
