"""Every shell block of the README and the guide, pasted into zsh and bash as a person pastes it.

The shells are interactive, on a terminal of their own. That is where they differ from scripts: zsh takes a `#` behind a command
for an argument, and a prompt reads the next pasted line. Stand-ins play gcloud, supabase, make and the like.
"""

from __future__ import annotations

import importlib.util
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.deployment import ROOT, code_blocks, make_stand_ins, recorded
from tests.unit.test_docs import PAGES, TEXT

STAND_INS = "apt-get curl docker functions-framework gcloud git make npm openssl psql python sudo supabase".split()
REAL = "awk basename cat cp cut grep sed xargs".split()
ANSWERS = {
    "gcloud projects describe": "123456789012\n",
    "gcloud secrets versions access": "whsec_new whsec_old\n",
    "gcloud monitoring policies list": "policies/1\tCall dispatcher: a call is in doubt\n",
    "gcloud beta monitoring channels list": "channels/1\n",
    "openssl rand": "c2VjcmV0\n",
    "python -m function.doctor --json": '"check": "Twilio account"\n',
}
SHELLS = {
    "zsh": ["zsh", "-f", "-i", "-o", "no_zle", "-o", "no_prompt_sp"],
    "bash": ["bash", "--norc", "--noprofile", "--noediting", "-i"],
}
QUIET = "PS1= PS2= PROMPT= PROMPT2=; set -u; echo READ''Y"
TROUBLE = re.compile(
    r".*(command not found|no such file|not set|unbound variable|syntax error|parse error|no matches found"
    r"|no coprocess|bad option|bad pattern|event not found|not a valid identifier|permission denied).*",
    re.IGNORECASE,
)
PROMPT = re.compile(r"printf '([^']+)'; read")
TYPED = "typed-secret"


class Terminal:
    """An interactive shell on a pseudo-terminal without echo, so all that is read comes from the programs."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._master, slave = os.openpty()
        environ = {"PATH": str(folder / "bin"), "HOME": str(folder), "TERM": "dumb", "LANG": "C.UTF-8"}
        command = [shutil.which(command[0]) or command[0], *command[1:]]
        self._process = subprocess.Popen(command, cwd=folder, env=environ, preexec_fn=lambda: os.login_tty(slave))
        subprocess.run(["stty", "-echo"], stdin=slave, check=True)
        os.close(slave)
        self.output = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode() + b"\n")

    def wait_for(self, pattern: str, seconds: float) -> re.Match[str] | None:
        """Read until `pattern` has come since the last wait; None when time is up or the shell has ended."""
        seen, until = "", time.monotonic() + seconds
        while not (found := re.search(pattern, seen)):
            ready, _, _ = select.select([self._master], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            try:
                read = os.read(self._master, 65536).decode(errors="replace")
            except OSError:  # Linux says EIO when the shell has closed its side
                return None
            seen += read
            self.output += read
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)


@contextmanager
def terminal(shell: str, folder: Path) -> Iterator[Terminal]:
    """In `folder`: what a checkout has at the places that the pages name."""
    make_stand_ins(folder, STAND_INS, ANSWERS)
    for name in REAL:
        (folder / "bin" / name).symlink_to(shutil.which(name) or name)
    for name in ("function", "shared"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".env.example").write_text((ROOT / ".env.example").read_text())
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    (folder / "qualification-call-dispatcher").mkdir()  # made by `git clone`
    opened = Terminal(SHELLS[shell], folder)
    try:
        opened.type(QUIET)
        assert opened.wait_for("READY", 10), opened.output
        yield opened
    finally:
        opened.close()


def problems(shell: str, blocks: list[str], folder: Path, seconds: float) -> list[str]:
    """What goes wrong when the blocks are pasted one after the other into one shell. `seconds`: the longest wait."""
    folder.mkdir()
    wrong, typed = [], 0
    with terminal(shell, folder) as pasted:
        for number, block in enumerate(blocks):
            before = len(pasted.output)
            pasted.type(block)
            for prompt in PROMPT.findall(block):
                if pasted.wait_for(re.escape(prompt), seconds):
                    typed += 1
                    pasted.type(TYPED)
            pasted.type(f"echo END-'{number}'=$?.")
            end = pasted.wait_for(rf"END-{number}=(\d+)\.", seconds)
            wrong += [f"{block}: {line.group().strip()}" for line in TROUBLE.finditer(pasted.output[before:])]
            if end is None:
                return [*wrong, f"{block}: the shell waits, or a prompt took the next line"]
            if end[1] != "0":
                wrong.append(f"{block}: exit code {end[1]}")
    words = [word for command in recorded(folder) for word in command]
    wrong += [f"{word!r} was passed on as an argument" for word in words if word == "#"]
    secrets = (folder / "secrets").read_text().splitlines()
    if sum(TYPED in secret for secret in secrets) != typed:
        wrong.append(f"typed {typed} secrets, and stored {secrets}")
    return wrong


@pytest.mark.parametrize("shell", SHELLS)
def test_pasted_blocks_run_in_an_interactive_shell(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    pages = {page: blocks for page in PAGES if (blocks := code_blocks(page.read_text(), "sh"))}
    folders = {page: tmp_path / f"{page.parent.name}-{page.stem}" for page in pages}
    wrong = {page: problems(shell, blocks, folders[page], 30) for page, blocks in pages.items()}
    assert {page: list_ for page, list_ in wrong.items() if list_} == {}
    assert sum(map(len, pages.values())) > 40


STORE = 'printf %s "$KEY" | gcloud secrets create x --data-file=-'
BAD = {
    "a comment behind a command": ("make demo   # the demo", ["zsh"]),
    "a comment with a semicolon": ("make demo   # the demo; then (yours)", ["zsh"]),
    "a comment line": ("# the demo\nmake demo", ["zsh"]),
    "read -p": (f"read -rs -p 'Key: ' KEY; {STORE}", ["zsh", "bash"]),
    "an unset variable": ('gcloud run services list --region="$REGOIN"', ["zsh", "bash"]),
    "a parse error": ("for secret in a b; do gcloud secrets delete $secret; done; done", ["zsh", "bash"]),
    "an open quote": ("echo 'it works", ["zsh", "bash"]),
    "a pattern": ("gcloud projects describe x --format=value(projectNumber)", ["zsh", "bash"]),
    "a placeholder": ("supabase link --project-ref <reference> --workdir shared", ["zsh", "bash"]),
    "an unknown program": ("gclod projects list", ["zsh", "bash"]),
    "a prompt before the last line": (f"printf 'Key: '; read -rs KEY\n{STORE}", ["zsh", "bash"]),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_pasted_mistakes_are_all_noticed(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    bad = {name: block for name, (block, shells) in BAD.items() if shell in shells}
    assert [name for name in bad if not problems(shell, [bad[name]], tmp_path / name.replace(" ", "-"), 1)] == []


def test_shell_blocks_hold_no_comment() -> None:
    lines = [line for page in PAGES for block in code_blocks(page.read_text(), "sh") for line in block.splitlines()]
    assert [line for line in lines if re.search(r"(^|\s)#", line)] == []


def test_code_blocks_all_name_their_language() -> None:
    opened = [fence for page in PAGES for fence in re.findall(r"^ *```(.*)$", page.read_text(), flags=re.MULTILINE)]
    assert {*opened[::2]} <= {"sh", "sql", "text", "json", "toml", "yaml", "mermaid", "python", "ts"}
    assert {*opened[1::2]} == {""}


def test_commands_of_the_guide_exist() -> None:
    targets = {*re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)}
    blocks = [block for page in PAGES for block in code_blocks(page.read_text(), "sh")]
    text = "\n".join([*re.findall(r"`([^`\n]+)`", TEXT), *blocks])
    named = {*re.findall(r"^\W*make ([a-z-]+)", text, flags=re.MULTILINE)}
    assert named <= targets
    assert targets - {"help", "setup"} <= named
    modules = {*re.findall(r"python -m ([\w.]+)", text)} - {"workers.call_dispatcher"}  # the polling worker's
    assert {module for module in modules if importlib.util.find_spec(module) is None} == set()
