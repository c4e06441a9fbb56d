"""Runs the scripts of cloudbuild.yaml and the commands of the guide in bash, with stand-ins for gcloud, docker and curl.

A stand-in records its arguments and prints the answer that the test gives it, so the tests check the real command lines.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
STAND_INS = ("gcloud", "docker", "curl", "supabase")
BUILT_IN = {"PROJECT_ID": "a-project", "PROJECT_NUMBER": "123456789012", "BUILD_ID": "b-1"}

# Of each call: how many words, and the words, each with a NUL behind it. The shell starts ten times as fast as Python.
STAND_IN = """#!/bin/sh
set -- "${{0##*/}}" "$@"
{{ printf '%s\\0' $# "$@"; }} >> {calls}
case " $* " in *" --data-file=- "*) {{ cat; echo; }} >> {secrets};; esac
case "$*" in
{answers}
esac
"""


@dataclass(frozen=True)
class Acted:
    """What a script did: the commands that it gave, its exit code, and what it printed."""

    commands: list[list[str]]
    code: int
    output: str

    def of(self, *start: str) -> list[str]:
        """The one command that begins with these words."""
        (found,) = [command for command in self.commands if command[: len(start)] == list(start)]
        return found


def cloudbuild() -> dict[str, Any]:
    build: dict[str, Any] = YAML(typ="safe").load(ROOT / "cloudbuild.yaml")
    return build


def substitutions(**changed: str) -> dict[str, str]:
    """As Cloud Build resolves them: `changed` is what `--substitutions` says."""
    values = {**cloudbuild()["substitutions"], **BUILT_IN, **changed}
    return {name: substitute(substitute(value, values), values) for name, value in values.items()}


def substitute(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda name: values[name[1]], text)


def scripts() -> dict[str, str]:
    """The shell of each step, by the step's id."""
    return {step["id"]: step["script"] for step in cloudbuild()["steps"] if "script" in step}


def make_stand_ins(folder: Path, names: Iterable[str], answers: Mapping[str, str]) -> None:
    """Programs in `folder`/bin that record their arguments in calls, and the secrets that they read in secrets."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "calls").write_text("")
    (folder / "secrets").write_text("")
    told = "\n".join(f"{quote(start)}*) printf %s {quote(answer)};;" for start, answer in answers.items())
    text = STAND_IN.format(calls=quote(f"{folder}/calls"), secrets=quote(f"{folder}/secrets"), answers=told)
    for name in names:
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(stat.S_IRWXU)


def recorded(folder: Path) -> list[list[str]]:
    """The command lines that the stand-ins were given, in order."""
    words, calls = iter((folder / "calls").read_text().split("\0")), []
    while count := next(words):
        calls.append([next(words) for _ in range(int(count))])
    return calls


def act(
    script: str, folder: Path, environ: Mapping[str, str] | None = None, answers: Mapping[str, str] | None = None
) -> Acted:
    """Run `script` in `folder`. `answers`: what a command that begins so prints; nothing, unless told."""
    make_stand_ins(folder, STAND_INS, answers or {})
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env={"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **(environ or {})},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return Acted(recorded(folder), done.returncode, done.stdout + done.stderr)


def page(name: str) -> str:
    """A page of the guide, by its path below the root or its name in shared/docs."""
    path = ROOT / name
    return (path if path.exists() else ROOT / "shared" / "docs" / name).read_text()


def code_blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of this language, in order, without the indentation of a list."""
    found = re.finditer(rf"^( *)```{language}\n(.*?)\n\1```$", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(f"^{block[1]}", "", block[2], flags=re.MULTILINE) for block in found]
