"""A sandbox with its page, and a browser. Each test has a fresh window, an emptied sandbox, and no error on the console."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.page_check.browser import chromium, missing
from tests.sandbox.sandbox import Sandbox


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if reason := missing():
        pytest.skip(reason)
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def sandbox(browser: Any) -> Iterator[Sandbox]:
    with Sandbox(environ={}, page=True) as sandbox:
        yield sandbox


@pytest.fixture
def window(browser: Any, sandbox: Sandbox, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of Playwright's, opened at the page's address. Parametrized indirectly: options of the browser's context."""
    sandbox.reset()
    context = browser.new_context(**{"viewport": {"width": 1600, "height": 1000}, **getattr(request, "param", {})})
    window = context.new_page()
    window.set_default_timeout(15_000)
    errors: list[str] = []
    window.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    window.on("pageerror", lambda error: errors.append(str(error)))
    window.goto(sandbox.ready.page_url)
    window.wait_for_selector("body[data-ready]")
    yield window
    context.close()
    assert errors == []
