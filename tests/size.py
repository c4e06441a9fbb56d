"""make size: how much there is to read, beside the goals."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lines(files: Iterable[Path]) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def shipped(pattern: str) -> list[Path]:
    return [file for folder in ("function", "shared") for file in sorted((ROOT / folder).rglob(pattern))]


def written_twice() -> list[str]:
    """SQL functions that more than one migration creates."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in migrations())
    names = Counter(re.findall(r"^create (?:or replace )?function ([a-z_.]+)", text, re.MULTILINE))
    return [name for name, times in names.items() if times > 1]


def migrations() -> list[Path]:
    return sorted((ROOT / "shared/supabase/migrations").glob("*.sql"))


def imports_up() -> str:
    """The verdict of import-linter, whose contracts in pyproject.toml forbid circles and imports that point up."""
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        return "import-linter is not installed"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    return "0" if done.returncode == 0 else "broken contracts: run .venv/bin/lint-imports"


def main() -> int:
    long = [file for file in shipped("*.py") if lines([file]) > 300]
    up = imports_up()
    numbers = [
        ("Python that ships, lines", lines(shipped("*.py")), 4_200),
        ("SQL migrations, lines", lines(migrations()), 1_900),
        ("README.md, lines", lines([ROOT / "README.md"]), 250),
        ("Python that ships, files over 300 lines", len(long), 2),
        ("SQL functions written twice", len(written_twice()), 0),
        ("tests, lines of Python", lines((ROOT / "tests").rglob("*.py")), 19_000),
    ]
    for what, now, most in numbers:
        print(f"{what:42} {now:7,}  of {most:6,}  {'ok' if now <= most else 'OVER'}")
    print(f"{'imports that point up, circles':42} {up:>7}")
    for file in long:
        print(f"  {file.relative_to(ROOT)}: {lines([file])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
