"""One real Postgres for the whole run; one fresh database, with the product's migrations, for each test that asks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import TypeAlias

import hypothesis.core
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database

Connection: TypeAlias = psycopg.Connection[TupleRow]
Connect: TypeAlias = Callable[..., Connection]
SetClock: TypeAlias = Callable[[float], None]

# Times say nothing here: two cores, others at work on them, and tables that hypothesis makes on its first run.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_xdist_auto_num_workers() -> int:
    """Two workers for each processor: a worker waits for processes and deadlines half of its time."""
    return 2 * (os.cpu_count() or 1)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """One seed for the order of the tests, for `random` and for hypothesis: pytest-randomly has chosen it by now."""
    hypothesis.core.global_force_seed = config.getoption("randomly_seed", None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folders with the longest files first: no worker of xdist waits at the end for another's. Else random."""
    items.sort(key=lambda item: item.path.parent.name not in ("chaos", "e2e"))


def pytest_sessionstart(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:  # a worker of xdist has none
        pytest_terminal_summary(reporter, session.config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    seed = config.getoption("randomly_seed", None)  # None with `-p no:randomly`: the order of the files
    if seed is not None:
        terminalreporter.write_line(f"Random order: SEED={seed} (`make test SEED={seed}` repeats it)")


_TEMPLATE = "template_sandbox"
_numbers = count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A started server, shared by all tests: do not crash it."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def template_database(postgres: Postgres) -> str:
    """Name of a database like a Supabase project with our migrations and a clock that can be set. Copied, never used."""
    database.create_database(postgres, _TEMPLATE)
    database.bootstrap(postgres, _TEMPLATE)
    database.migrate(postgres, _TEMPLATE)
    database.install_clock(postgres, _TEMPLATE)
    return _TEMPLATE


@pytest.fixture
def database_url(postgres: Postgres, template_database: str) -> Iterator[str]:
    """The superuser's URL of a database of this test's own."""
    name = f"test_{next(_numbers)}"
    database.create_database(postgres, name, template_database)
    yield postgres.url(database=name)
    database.drop_database(postgres, name)


@pytest.fixture
def connect(database_url: str) -> Iterator[Connect]:
    """Opens autocommit connections to the test's database, as the superuser or as `user=`; closes them afterwards."""
    with ExitStack() as opened:

        def connect(user: str | None = None) -> Connection:
            # Every role that may log in has the server's one password.
            connection = psycopg.connect(make_conninfo(database_url, user=user), autocommit=True)
            opened.callback(connection.close)
            return connection

        yield connect


@pytest.fixture
def connection(connect: Connect) -> Connection:
    """An autocommit connection to the test's database, as the superuser."""
    return connect()


@pytest.fixture
def set_clock(database_url: str) -> SetClock:
    """Sets the database's clock so many seconds ahead of the machine's (or, below zero, behind)."""
    return partial(database.set_clock, database_url)
