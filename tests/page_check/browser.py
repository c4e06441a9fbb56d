"""Debian's Chromium, driven by Playwright; `make page-check` installs both. What is missing is told as the reason of a skip."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

PACKAGES = Path(sys.prefix) / "page-check" / "node_modules"
AXE = PACKAGES / "axe-core" / "axe.min.js"
TWILIO_NODE = PACKAGES / "twilio"
# Chromium as root in a sandbox of its own needs --no-sandbox; the others keep it from asking the internet for anything.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


def missing() -> str | None:
    """Why no browser can be driven here; None where one can."""
    if which("chromium") is None:
        return "there is no Chromium on this machine: `make page-check` installs it as root on Debian"
    if importlib.util.find_spec("playwright") is None:
        return "Playwright is not installed: `make page-check` installs it"
    return None


@contextmanager
def chromium() -> Iterator[Any]:
    """playwright.sync_api.Browser"""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=which("chromium"), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
