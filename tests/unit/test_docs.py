"""The README and the guide: every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.deployment import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "shared").rglob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)


def without_code(text: str) -> str:
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#{1,6} (.+)$", without_code(page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The relative links of a page whose file or anchor does not exist."""
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if not re.match(r"https?://", link):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                wrong.append(f"{page.relative_to(ROOT)}: {link}")
    return wrong


def test_relative_links_lead_to_files_and_headings() -> None:
    assert [link for page in PAGES for link in broken(page)] == []


def test_pages_of_the_guide_are_linked_from_readme() -> None:
    linked = set(re.findall(r"\]\(shared/docs/([\w-]+\.md)", (ROOT / "README.md").read_text()))
    assert linked == {page.name for page in (ROOT / "shared" / "docs").glob("*.md")}


def test_readme_and_pages_keep_to_their_length() -> None:
    lines = {page: len(page.read_text().splitlines()) for page in PAGES}
    assert {page: count for page, count in lines.items() if count > (250 if page.name == "README.md" else 200)} == {}


def test_files_named_by_the_guide_exist() -> None:
    """Paths from the root, in `code`; those that a command makes, such as shared/supabase/.temp/, are not there yet."""
    named = set(re.findall(r"`((?:function|shared|tests)/[\w./-]+)`", TEXT)) - {"shared/supabase/.temp/"}
    assert len(named) > 10
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_settings_named_by_the_guide_exist() -> None:
    ours = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    prefixes = "|".join(sorted({name.partition("_")[0] for name in ours}))
    named = {name for name in re.findall(rf"`((?:{prefixes})_[A-Z_]+)[=`]", TEXT) if not name.endswith("_VERSION")}
    assert len(named) > 20
    # Refused, refused, and an example of a mistyped one.
    assert named - {"TWILIO_REGION", "TWILIO_EDGE", "CALL_HOUR"} <= ours


def test_upgrade_names_the_newest_migration_as_version() -> None:
    newest = max(file.name for file in (ROOT / "shared" / "supabase" / "migrations").glob("*.sql"))
    text = (ROOT / "shared" / "docs" / "upgrade.md").read_text()
    assert re.findall(r"VERSION=(\d+)", text) == [newest.partition("_")[0]]
