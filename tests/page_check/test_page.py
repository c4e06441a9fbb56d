"""The telephone page in a real browser, as a person uses it: with mouse, with keys alone, and on a small screen."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from tests.page_check.browser import AXE, press, sign_up
from tests.sandbox.page import author
from tests.sandbox.sandbox import Sandbox

ADA, BOB = "+14155550100", "+14155550101"
THEMES = ("light", "dark")
LARGE: list[dict[str, Any]] = [{"viewport": {"width": 1600, "height": 900}, "color_scheme": theme} for theme in THEMES]
SIZES = [*LARGE, *({**size, "viewport": {"width": 380, "height": 800}} for size in LARGE)]


def verdict(window: Any) -> str:
    return str(window.locator("#verdict").inner_text())


def rows(sandbox: Sandbox, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(sandbox.ready.database_url, autocommit=True) as database:
        return database.execute(query.encode()).fetchall()


def test_phone_is_answered_and_its_keys_are_stored(window: Any, sandbox: Sandbox) -> None:
    phone = sign_up(window)
    assert "Ringing" in phone.inner_text()
    press(phone, "Answer", hear="Hi Ada, thanks for asking for a demo")
    phone.get_by_text("How many people").wait_for()
    press(phone, "2", hear="Do your people sign in")
    window.get_by_text("stored: team_size = 2_to_10").wait_for()
    press(phone, "9", hear="This number is off our list for good")
    window.get_by_text(f"stored: {ADA} is never called again").wait_for()
    window.get_by_text("job 1 is completed").or_(window.locator("#jobs .completed")).first.wait_for()
    assert rows(sandbox, "select phone_e164 from call_opt_outs") == [(ADA,)]
    assert rows(sandbox, "select question, digits from outbound_call_answers") == [("team_size", "2")]
    assert verdict(window) == "called twice: 0 · lost: 0"


def test_three_faults_at_once_still_end_with_one_call(window: Any, sandbox: Sandbox) -> None:
    switches = ("the answer is lost", "Webhooks are lost", "Callbacks are lost")
    for name in switches:
        window.get_by_role("switch", name=name).check()
    phone = sign_up(window)
    press(phone, "Answer")
    window.get_by_text("webhook: lost").wait_for()
    window.get_by_text("POST Calls.json: no answer").wait_for()
    press(phone, "Hang up")
    window.locator("#jobs .completed").wait_for()
    for name in switches:
        window.get_by_role("switch", name=name).uncheck()
    assert (len(sandbox.twilio.calls), verdict(window)) == (1, "called twice: 0 · lost: 0")


def test_killed_function_calls_nobody_twice(window: Any, sandbox: Sandbox) -> None:
    press(window, "Kill the function")
    phone = sign_up(window)
    press(phone, "Decline")
    window.get_by_text("attempt 1 is ended (busy)").wait_for()
    press(phone, "Answer", hear="Hi Ada", timeout=20_000)  # it rings again
    press(phone, "Hang up")
    window.locator("#jobs .completed").wait_for()
    assert verdict(window) == "called twice: 0 · lost: 0"


def test_two_phones_ring_and_talk_at_once(window: Any, sandbox: Sandbox) -> None:
    ada, bob = sign_up(window, "Ada"), sign_up(window, "Bob")
    for phone in (ada, bob):
        press(phone, "Answer")
    for phone, key in ((ada, "1"), (bob, "3")):
        phone.get_by_text("How many people").wait_for()
        phone.focus()
        window.keyboard.press(key)
        phone.get_by_text(f"pressed {key}").wait_for()
    window.get_by_text("stored: team_size").wait_for()
    for phone in (ada, bob):
        press(phone, "Hang up")
    window.locator("#jobs .completed").nth(1).wait_for()
    query = "select j.first_name, a.digits from outbound_call_answers a join outbound_call_jobs j on j.id = a.job_id order by 1"
    assert rows(sandbox, query) == [("Ada", "1"), ("Bob", "3")]


def test_keyboard_alone_signs_up_answers_presses_and_hangs_up(window: Any) -> None:
    def tab_to(name: str) -> None:
        for _ in range(60):
            window.keyboard.press("Tab")
            focused = window.evaluate("document.activeElement.textContent.trim() || document.activeElement.name")
            if focused.startswith(name):
                return
        raise AssertionError(f"no way by Tab to {name}")

    tab_to("Sign up")
    window.keyboard.press("Enter")
    window.get_by_role("button", name="Answer").wait_for()
    window.wait_for_function("document.activeElement.textContent === 'Answer'")
    assert window.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    window.keyboard.press("Enter")
    phone = window.get_by_role("article", name="of Ada")
    phone.get_by_text("Hi Ada").wait_for()
    window.keyboard.press("2")
    phone.get_by_text("Do your people sign in").wait_for()
    tab_to("Hang up")
    window.keyboard.press("Enter")
    window.locator("#jobs .completed").wait_for()


def test_ringing_is_announced_and_survives_a_reload(window: Any) -> None:
    sign_up(window)
    assert "Ada's phone is ringing" in window.locator("[aria-live=assertive]").inner_text()
    window.reload()
    phone = window.get_by_role("article", name="of Ada")
    press(phone, "Answer", hear="Hi Ada")
    window.reload()
    press(phone, "Hang up")
    window.locator("#jobs .completed").wait_for()


def test_deleted_user_is_not_called(window: Any) -> None:
    window.get_by_role("switch", name="Calls are paused").check()
    press(window, "Sign up")
    window.locator("#jobs .queued").wait_for()
    press(window, "Delete this user", hear="the user was deleted: 200")
    window.get_by_role("switch", name="Calls are paused").uncheck()
    window.locator("#jobs .canceled").wait_for()
    press(window, "Tell the story of this job")
    window.locator("#story").get_by_text("now: canceled: the user was deleted").wait_for()


def test_script_shows_problems_and_is_walked_by_keys(window: Any) -> None:
    before = author.files()
    window.get_by_role("link", name="Script").click()
    text = window.get_by_label("Text (TOML)")
    text.fill(text.input_value().replace('key = "9"', 'key = "#"'))
    window.locator("#problems code", has_text="opt_out.key").wait_for()
    assert window.get_by_role("button", name="Start the call").is_disabled()
    press(window, "Undo my changes")
    press(window, "Start the call")
    press(window, "2: ")
    press(window, "1: ")
    press(window, "1: ", hear="the call ends")
    assert window.locator("#walked").inner_text() == "3 of 9"
    assert window.get_by_role("button", name="Save to disk").is_hidden()
    assert author.files() == before


@pytest.mark.parametrize("window", LARGE, indirect=True)
def test_axe_finds_nothing_serious_on_the_page(window: Any) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed: `make page-check` installs it")

    def findings() -> list[str]:
        window.evaluate(AXE.read_text(encoding="utf-8"))
        found = window.evaluate("axe.run().then((result) => JSON.stringify(result.violations))")
        return [f"{each['id']}: {each['nodes'][0]['html'][:120]}" for each in json.loads(found)]

    seen = {"empty": findings()}
    phone = sign_up(window)
    seen["ringing"] = findings()
    press(phone, "Answer", hear="How many people")
    press(phone, "2", hear="Do your people sign in")
    seen["talking"] = findings()
    window.get_by_role("link", name="Script").click()
    press(window, "Start the call")
    seen["script"] = findings()
    assert seen == {"empty": [], "ringing": [], "talking": [], "script": []}


@pytest.mark.parametrize("window", SIZES, indirect=True)
def test_nothing_is_cut_off_at_either_width(window: Any) -> None:
    press(sign_up(window), "Answer", hear="Hi Ada")
    for view in ("Telephone", "Script"):
        window.get_by_role("link", name=view).click()
        assert window.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.timeout(400)
def test_worst_hour_ends_with_nobody_called_twice_or_lost(window: Any, sandbox: Sandbox) -> None:
    press(window, "Replay the worst hour")
    said = window.locator("#worst-said", has_text="60 people in")
    said.wait_for(timeout=300_000)
    assert "called twice: 0 · lost: 0 · still open: 0" in said.inner_text()
    assert verdict(window) == "called twice: 0 · lost: 0"
    assert len({call.to for call in sandbox.twilio.calls}) == 60


def test_address_without_token_says_so(browser: Any, sandbox: Sandbox) -> None:
    window = browser.new_page()
    window.goto(str(sandbox.ready.page_url).partition("?")[0])
    assert "lacks its token" in window.get_by_role("alert").inner_text()
    window.close()
