"""make pictures: the telephone page as it runs, light and dark, on a large screen and on a small one, into shared/docs/pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.page_check.browser import chromium, missing, press, sign_up
from tests.sandbox.sandbox import Sandbox

FOLDER = Path(__file__).parents[2] / "shared" / "docs" / "pictures"
SIZES = {"page": (1600, 1000), "small": (380, 820)}


def main() -> int:
    if reason := missing():
        print(f"No pictures: {reason}", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    with chromium() as browser, Sandbox(environ={}, page=True) as sandbox:
        for theme in ("light", "dark"):
            for name, (width, height) in SIZES.items():
                sandbox.reset()
                window = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
                window.goto(sandbox.ready.page_url)
                window.wait_for_selector("body[data-ready]")
                act(window)
                if name == "small":
                    window.evaluate("document.querySelector('.phones').scrollIntoView(); scrollBy(0, -90)")
                take(window, f"{name}-{theme}")
                if name == "page":
                    walk(window)
                    take(window, f"script-{theme}")
                window.close()
    return 0


def act(window: Any) -> None:
    """Ada's call was in doubt, is found, answered and under way; Bob's phone rings."""
    window.get_by_role("switch", name="the answer is lost").check()
    ada = sign_up(window, "Ada", pace=None, mode="demo")
    press(ada, "Answer", hear="thanks for asking for a demo")
    press(ada, "2", hear="Do your people sign in")
    sign_up(window, "Bob", pace=None, mode="waitlist")
    window.get_by_role("button", name="Timeline of job").last.click()
    ada.focus()
    window.mouse.move(0, 0)
    window.evaluate("scrollTo(0, 0)")


def walk(window: Any) -> None:
    window.get_by_role("link", name="Script").click()
    press(window, "Start the call")
    press(window, "2: ")
    press(window, "1: ", hear="And when would you like")


def take(window: Any, name: str) -> None:
    file = FOLDER / f"{name}.png"
    window.wait_for_timeout(400)
    window.screenshot(path=file, animations="disabled")
    print(f"{file.relative_to(FOLDER.parents[2])}  {file.stat().st_size // 1024} KB")


if __name__ == "__main__":
    sys.exit(main())
