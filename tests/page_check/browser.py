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


def sign_up(window: Any, name: str = "Ada", *, pace: str | None = "12", mode: str | None = None) -> Any:
    """-> the phone of the person, which rings"""
    window.get_by_label("First name").first.fill(name)
    if pace and not window.get_by_label("Speed of the voice").is_visible():
        window.get_by_text("More", exact=True).click()
    if pace:
        window.get_by_label("Speed of the voice").select_option(pace)
    if mode:
        window.get_by_label("Mode").select_option(mode)
    press(window, "Sign up")
    phone = window.get_by_role("article", name=f"of {name}")
    phone.get_by_role("button", name="Answer").wait_for()
    return phone


def press(where: Any, button: str, *, hear: str | None = None, **options: Any) -> None:
    """A button, or a key of one digit; and waits until these words stand there."""
    where.get_by_role("button", name=button, exact=len(button) == 1).click(**options)
    if hear:
        where.get_by_text(hear).last.wait_for()
