"""The real Supabase CLI, and Debian's linters and pgTAP, against the sandbox's Postgres: `make database-check` installs them.

What is not on this machine is skipped, with the reason. The CLI works in a folder of its own, so that it neither sees a project
that this checkout is linked to nor writes here, and with a home of its own.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from shutil import copytree, ignore_patterns, which

import psycopg
import pytest

from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database

ROOT = Path(__file__).parents[2]
CLI = ROOT / ".venv" / "supabase-cli" / "node_modules" / "@supabase" / "cli-linux-x64" / "bin" / "supabase"
EXTENSIONS = ("plpgsql_check", "pgtap", "pg_cron")
INSTALLS = "`make database-check` installs it"
TIMEOUT_S = 90  # of one command, which takes 1 s on an idle machine

_numbers = count(1)


def debian_binaries() -> Path | None:
    """The newest Postgres of Debian's that has all three extensions."""
    for share in sorted(Path("/usr/share/postgresql").glob("[0-9]*"), key=lambda folder: -float(folder.name)):
        bin_dir = Path("/usr/lib/postgresql") / share.name / "bin"
        if all((share / "extension" / f"{name}.control").exists() for name in EXTENSIONS) and bin_dir.is_dir():
            return bin_dir
    return None


@dataclass(frozen=True)
class Project:
    """A database as Supabase makes it, and a folder `shared/supabase` to push from."""

    server: Postgres
    database: str
    folder: Path

    @property
    def url(self) -> str:
        """Of role `postgres`, who is no superuser. The sandbox's server knows no TLS, and the CLI wants to be told."""
        return f"{self.server.url('postgres', self.database)}?sslmode=disable"

    def supabase(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`supabase <command>` as the README says it, with this database for the linked project."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        environment = {"PATH": os.defpath, "HOME": str(home), "DO_NOT_TRACK": "1", "SUPABASE_TELEMETRY_DISABLED": "1"}
        return subprocess.run(
            [CLI, *command, f"--remote={self.url}", "--workdir", "shared"], cwd=self.folder, env=environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip

    def push(self) -> subprocess.CompletedProcess[str]:
        return self.supabase("db", "push", "--yes")

    @property
    def migrations(self) -> Path:
        return self.folder / "shared" / "supabase" / "migrations"

    def connect(self, user: str = "supabase_admin") -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.server.url(user, self.database), autocommit=True)


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """Debian's Postgres, if it has the extensions, else whichever there is."""
    with Postgres(debian_binaries()) as server:
        yield server


@pytest.fixture(scope="session")
def supabase_cli() -> Path:
    if not CLI.exists():
        pytest.skip(f"no Supabase CLI: {INSTALLS}, by npm, on Linux on x86-64")
    return CLI


@pytest.fixture(scope="session")
def extensions(server: Postgres) -> None:
    if server.bin_dir != debian_binaries():
        pytest.skip(f"no Postgres with {', '.join(EXTENSIONS)}: {INSTALLS}, as root on Debian")


@pytest.fixture(scope="session")
def pg_prove() -> str:
    found = which("pg_prove")
    if found is None:
        pytest.skip(f"no pg_prove: {INSTALLS}, as root on Debian")
    return found


MakeProject = Callable[[], Project]


@pytest.fixture(scope="session")
def new_project(server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> MakeProject:
    """new_project(): one without migrations."""

    def make() -> Project:
        project = Project(server, f"project_{next(_numbers)}", tmp_path_factory.mktemp("project"))
        database.create_database(server, project.database)
        database.bootstrap(server, project.database)
        copytree(ROOT / "shared/supabase", project.folder / "shared/supabase", ignore=ignore_patterns(".temp"))
        with project.connect() as connection:
            # Which schemas the API shows: as the platform says it, for the advisors.
            connection.execute(f"alter database {project.database} set pgrst.db_schemas = 'public'".encode())
            if server.bin_dir == debian_binaries():  # the CLI would create the first, and is no superuser here
                connection.execute("create extension plpgsql_check with schema extensions")
                connection.execute("create extension pgtap with schema extensions")
        return project

    return make


@pytest.fixture(scope="session")
def pushed(supabase_cli: Path, new_project: MakeProject) -> Project:
    """A project with everything pushed, by the CLI. Not to be changed."""
    project = new_project()
    said = project.push()
    assert said.returncode == 0, said.stderr
    return project
