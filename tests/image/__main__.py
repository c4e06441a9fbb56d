"""python -m tests.image: lint the Dockerfile, build it, try the image, run the tests on its Python, print the figures.

Ends with 0 when all of it passed, with 1 when something did not, and with 2 when this machine cannot do it, which
--if-possible takes for a reason to skip.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.image.build import ROOT, Image, Storage, index_access
from tests.image.container import running
from tests.image.machine import CACHE, Broken, Unable, alone, prepare, run

CHECKS = Path(__file__).with_name("checks.py")
NOBODY = "65534:65534"  # initdb wants a user that has a name
NAMES = {"/etc/resolv.conf": "/etc/resolv.conf"}  # pip asks for the index by name
COPY = """
rm -rf "$2" && mkdir "$2"
tar -C "$1" --exclude-vcs --exclude=.venv --exclude=__pycache__ --exclude=.env -cf - . | tar -C "$2" --no-same-owner -xf -
chown -R "$3" "$2"
"""
DEV_LOCK = ROOT / "tests" / "requirements.txt"


class Given:
    """Fixtures of the checks: the image, and the figures that they measure."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.measured: list[str] = []

    @pytest.fixture
    def image(self) -> Image:
        return self._image

    @pytest.fixture
    def figures(self) -> list[str]:
        return self.measured


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.image", description="Build the image, and try it.")
    parser.add_argument("--if-possible", action="store_true", help="skip, with the reason, where it cannot be done")
    parser.add_argument("--no-suite", action="store_true", help="do not run the tests on the image's Python")
    parser.add_argument("tests", nargs="*", help="of the suite; all, unless some are named")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that what was started ends
    try:
        prepare()
        print(f"image-check: what it leaves behind is in {CACHE}", flush=True)
        with alone():
            return check(None if options.no_suite else options.tests)
    except Unable as unable:
        print(f"image-check: {'skipped' if options.if_possible else 'impossible here'}: {unable}", flush=True)
        return 0 if options.if_possible else 2
    except Broken as broken:
        print(f"image-check: failed: {broken}", flush=True)
        return 1


def check(suite: Sequence[str] | None) -> int:
    took: list[str] = []

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        print(f"-- {part}", flush=True)
        began = time.monotonic()
        yield
        took.append(f"{part} {time.monotonic() - began:.0f} s")

    with timed("lint"):
        lint()
    storage = Storage()
    with timed("base"):
        base = storage.base()
    with timed("build"):
        name = storage.build(base)
    with storage.mounted(name, base) as image:
        given = Given(image)
        with timed("checks"):
            failed = pytest.main(["--rootdir", str(ROOT), "-p", "no:cacheprovider", str(CHECKS)], plugins=[given])
        if suite is not None:
            with timed("suite"):
                failed = run_suite(image, suite) or failed
    print("\n".join([*given.measured, f"time: {'  '.join(took)} (storage: {storage.driver})"]), flush=True)
    return 1 if failed else 0


def lint() -> None:
    """hadolint, from a locked package that only this command needs. Raises Broken with what it found."""
    lock = Path(__file__).with_name("requirements.txt")
    venv = CACHE / f"lint-{_digest(lock)}"
    if not (venv / "ready").exists():
        run([sys.executable, "-m", "venv", "--clear", venv])
        run([venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "-r", lock])
        (venv / "ready").touch()
    run([venv / "bin" / "hadolint", ROOT / "Dockerfile"])


def run_suite(image: Image, tests: Sequence[str]) -> int:
    """The tests, on the base's Python 3.13, as nobody, from a copy of the checkout. -> pytest's exit code"""
    venv = CACHE / f"suite-{_digest(DEV_LOCK)}"
    sources = CACHE / "sources"
    base = replace(image, root=image.base_root)
    if not (venv / "ready").exists():
        venv.mkdir(exist_ok=True)
        install = (
            "python -m venv --clear /opt && /opt/bin/pip install --quiet --no-cache-dir --disable-pip-version-check"
            " --require-hashes -r /srv/tests/requirements.txt && touch /opt/ready"
        )
        _in_base(base, ["sh", "-c", install], "0:0", {str(venv): "/opt", str(ROOT): "/srv", **NAMES, **index_access()})
        if not (venv / "ready").exists():
            raise Broken("the development lock could not be installed on the image's Python")
    run(["sh", "-c", COPY, "copy", ROOT, sources, NOBODY])
    version = "import platform; print(platform.python_version())"
    python = run(["chroot", base.root, "/usr/local/bin/python", "-c", version]).strip()
    print(f"the tests, on Python {python}, as nobody: {' '.join(tests) or 'all'}", flush=True)
    binds = {str(venv): "/opt", str(sources): "/srv"}
    return _in_base(base, ["/opt/bin/python", "-m", "pytest", *tests], NOBODY, binds)


def _in_base(base: Image, command: list[str], user: str, binds: dict[str, str]) -> int:
    environ = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "PYTHONPATH": "/srv", "LANG": "C.UTF-8"}
    output = sys.stdout.fileno()
    with running(base.root, command, environ, user=user, folder="/srv", binds=binds, output=output) as container:
        return container.process.wait()


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
