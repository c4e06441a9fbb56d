"""One Postgres for the whole run, and a fresh, migrated database for each test that wants one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from hypothesis import settings

from tests.sandbox import database as sandbox_database
from tests.sandbox.postgres import SUPERUSER, Postgres

TEMPLATE = "template_sandbox"
_numbers = itertools.count(1)

settings.register_profile("here", deadline=None)  # two cores, and others at work on them
settings.load_profile("here")

# A proxy between a test and loopback would be the network.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def template_database(postgres: Postgres) -> str:
    sandbox_database.create_database(postgres, TEMPLATE)
    sandbox_database.bootstrap(postgres, TEMPLATE)
    sandbox_database.migrate(postgres, TEMPLATE)
    sandbox_database.install_clock(postgres, TEMPLATE)
    return TEMPLATE


@pytest.fixture
def database_name(postgres: Postgres, template_database: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    sandbox_database.create_database(postgres, name, template_database)
    yield name
    sandbox_database.drop_database(postgres, name)


@pytest.fixture
def database_url(postgres: Postgres, database_name: str) -> str:
    """As the superuser."""
    return postgres.url(database=database_name)


Connect = Callable[..., psycopg.Connection[Any]]


@pytest.fixture
def connect(postgres: Postgres, database_name: str) -> Iterator[Connect]:
    """connect(user=..., autocommit=True): as many connections to this test's database as it wants."""
    with ExitStack() as opened:

        def connect(user: str = SUPERUSER, *, autocommit: bool = True) -> psycopg.Connection[Any]:
            return opened.enter_context(psycopg.connect(postgres.url(user, database_name), autocommit=autocommit))

        yield connect


@pytest.fixture
def connection(connect: Connect) -> psycopg.Connection[Any]:
    """Autocommit, as the superuser."""
    return connect()


@pytest.fixture
def set_clock(database_url: str) -> Callable[[float], None]:
    """set_clock(seconds): private.clock() is that far ahead."""
    return lambda offset_s: sandbox_database.set_clock(database_url, offset_s)
