"""The Makefile on a machine that has python3, make and git, and little else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def make(tmp_path: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """make, with nothing on PATH but the tools that every Debian has."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("make", "sh", "awk", "echo", "touch"):
        (tools / name).symlink_to(str(shutil.which(name)))
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env={"PATH": str(tools), **environ}, capture_output=True, text=True, timeout=60
    )


def make_setup(folder: Path, *, fails_at: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`make setup` with a stand-in for python3, which fails when one of its arguments holds `fails_at`."""
    folder.mkdir(exist_ok=True)
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\ncase "$*" in *{fails_at}*) exit 1;; esac\n')
    python.chmod(0o755)
    return make(folder, "setup", f"PYTHON={python}", f"VENV={folder}/venv", **environ)


def test_help_lists_every_target_and_needs_only_awk(tmp_path: Path) -> None:
    done = make(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    targets = re.findall(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE)[0].split()
    assert sorted(re.findall(r"^  make ([a-z-]+) ", done.stdout, re.MULTILINE)) == sorted(targets)


def test_old_python_and_missing_venv_are_named(tmp_path: Path) -> None:
    for fails_at, told in (
        ("version_info", "Python 3.11 or newer is needed"),
        ("ensurepip", "apt install python3-venv"),
    ):
        done = make_setup(tmp_path / fails_at, fails_at=fails_at, MAKEFLAGS="--silent")
        (said,) = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make: ***")]
        assert (done.returncode != 0, told in said) == (True, True)


def test_setup_says_that_it_installs_for_a_while(tmp_path: Path) -> None:
    done = make_setup(tmp_path, fails_at="--clear")
    assert ("half a minute" in done.stdout, done.stdout.count("\n")) == (True, 1)


def test_recipes_hold_no_bashism_and_no_column() -> None:
    recipes = "\n".join(line for line in MAKEFILE.splitlines() if line.startswith("\t"))
    assert not re.search(r"\bcolumn\b|\[\[|<\(|\bsource\b|&>", recipes)
    # GNU make 3.81, as macOS has it, knows none of these.
    assert not re.search(r"!=|\.ONESHELL|\$\(file |::=|private ", MAKEFILE.replace("version_info", ""))
