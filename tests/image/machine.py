"""What the check needs of the machine: root on a Debian, buildah, debootstrap, and room in a cache folder."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "qualification-call-dispatcher-image"
"""All that a check leaves behind. It may be deleted at any time; the next check then takes a few minutes longer."""

TOOLS = ("buildah", "debootstrap")  # each is a package of the same name
SUITE = "trixie"  # the Debian below python:3.13-slim-trixie; its own Python is 3.13
DEBIAN = ["Created-By: Packages", "Origin: Debian", "Label: Debian"]


class Unable(Exception):
    """This machine cannot check an image. The message says what is missing, and what would help."""


class Broken(Exception):
    """A command failed that should not have. The message holds the command and what it printed."""


def run(command: Sequence[str | Path], *, env: dict[str, str] | None = None) -> str:
    """What the command printed. Raises Broken."""
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        words = " ".join(map(str, command))
        raise Broken(f"{words}\nended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def prepare() -> None:
    """Install what is missing. Raises Unable."""
    if platform.system() != "Linux":
        raise Unable(
            f"it needs Linux, and this is {platform.system()}; any Debian 12 or later will do, also a virtual one"
        )
    if os.geteuid() != 0:
        raise Unable("it needs root, because it mounts file systems and installs packages: sudo make image-check")
    try:
        run(["unshare", "--mount", "--pid", "--fork", "true"])
    except (Broken, FileNotFoundError):
        raise Unable("root may not mount file systems here (a container without CAP_SYS_ADMIN?)") from None
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing and shutil.which("apt-get") is None:
        raise Unable(f"{' and '.join(missing)} must be installed, and there is no apt-get to do it: this is no Debian")
    if missing:
        print(f"installing {' and '.join(missing)}", flush=True)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        try:
            run(["apt-get", "update", "-qq"], env=quiet)
            run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=quiet)
        except Broken as broken:
            raise Unable(f"{' and '.join(missing)} could not be installed:\n{broken}") from None
    mirror()


def mirror() -> str:
    """Where this machine gets Debian's packages from. Raises Unable."""
    listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", *DEBIAN]).split()
    if not listed:
        raise Unable("apt knows no archive of Debian's: have a look at /etc/apt, then apt-get update")
    return listed[0]


def pip_settings() -> dict[str, str]:
    """How this machine's pip finds the package index, less what names local paths. -> option and value"""
    lines = run([sys.executable, "-m", "pip", "config", "list"]).splitlines()
    found = {name.partition(".")[2]: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}
    options = ("index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout")
    return {name: found[name] for name in options if found.get(name) and "file:" not in found[name]}


def certificates() -> Path | None:
    """The bundle that this machine trusts, which may know more than Debian's own."""
    named = (os.environ.get(name, "") for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"))
    bundles = [Path(path) for path in (*named, "/etc/ssl/certs/ca-certificates.crt") if path]
    return next((bundle for bundle in bundles if bundle.is_file()), None)


@contextmanager
def alone() -> Iterator[None]:
    """One check at a time: they share the cache. Waits for another."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another check is running; waiting for its end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
