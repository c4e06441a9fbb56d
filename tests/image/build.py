"""A base image from Debian's packages, and ours from the Dockerfile on top of it, with buildah.

The real base (python:3.13-slim-trixie) comes from a registry and cannot be had everywhere. This one is the same Debian with
Debian's own Python 3.13: what it proves of the Dockerfile holds for the other, its size does not.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.image.machine import CACHE, SUITE, Broken, Unable, certificates, mirror, pip_settings, run

ROOT = Path(__file__).parents[2]
MOST_LAYERS = 60
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

# As in the official image: python and pip by those names in /usr/local/bin, and pip may install. And nothing of this machine.
RECIPE = """
set -eu
debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates "$2" "$1" "$3"
rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED
ln -s /usr/bin/python3 "$1/usr/local/bin/python"
ln -s /usr/bin/python3 "$1/usr/local/bin/python3"
ln -s /usr/bin/pip3 "$1/usr/local/bin/pip"
rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/* "$1"/var/log/* "$1"/usr/share/doc "$1"/usr/share/man
rm -f "$1/etc/apt/sources.list" "$1/etc/hostname"
: > "$1/etc/resolv.conf"
: > "$1/etc/pip.conf"
"""


@dataclass(frozen=True)
class Image:
    """A built image and, while `mounted`, its files. Sizes are in bytes, uncompressed."""

    name: str
    root: Path
    config: dict[str, object]
    base_root: Path
    size: int
    base_size: int

    @property
    def environ(self) -> dict[str, str]:
        variables = self.config.get("Env")
        assert isinstance(variables, list)
        return dict(variable.split("=", 1) for variable in variables)

    @property
    def command(self) -> list[str]:
        words = self.config.get("Cmd")
        assert isinstance(words, list)
        return words


class Storage:
    """buildah with a storage of its own in the cache folder: the machine's images are not touched."""

    def __init__(self) -> None:
        self.driver = "overlay"
        try:
            self("images")
        except Broken:  # no overlay on an overlay: slower, and as good
            self.driver = "vfs"
            self("images")

    def __call__(self, command: str, *arguments: str | Path) -> str:
        folder = CACHE / self.driver
        where: list[str | Path] = [
            "--root", folder / "root", "--runroot", folder / "run", "--storage-driver", self.driver,
        ]  # fmt: skip
        return run(["buildah", *where, command, *arguments]).strip()

    def base(self) -> str:
        """The name of the base image, made unless it is there."""
        name = f"localhost/call-dispatcher-base:{SUITE}-{hashlib.sha256(RECIPE.encode()).hexdigest()[:12]}"
        if name in self("images", "--format", "{{.Name}}:{{.Tag}}").split():
            return name
        print(f"making a base image of Debian {SUITE} (some minutes, once)", flush=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            root = Path(folder) / "root"
            try:
                run(["sh", "-c", RECIPE, "recipe", root, SUITE, mirror()])
            except Broken as broken:
                raise Unable(f"debootstrap could not make a base image: \n{broken}") from None
            root.chmod(0o755)
            container = self("from", "scratch")
            self("add", "--quiet", container, root, "/")
            self(
                "config", "--cmd", "python3", "--env",
                "PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin", container,
            )  # fmt: skip
            self("commit", "--quiet", "--rm", container, name)
        return name

    def build(self, base: str) -> str:
        """The Dockerfile, as it stands, on `base`. -> the name of the image"""
        name = "localhost/call-dispatcher:checked"
        if len(self("images", "--all", "--quiet").split()) > MOST_LAYERS:
            self("rmi", "--prune")  # of earlier checkouts; the next build starts from the base
        with tempfile.TemporaryDirectory() as folder:
            context = Path(folder) / "context"
            strict_copy(context)
            binds = [f"--volume={source}:{target}:ro" for source, target in index_access().items()]
            self(
                "bud", "--pull-never", "--layers", "--isolation=chroot", "--network=host", *binds,
                f"--build-arg=PYTHON_IMAGE={base}", f"--tag={name}", context,
            )  # fmt: skip
        return name

    @contextmanager
    def mounted(self, name: str, base: str) -> Iterator[Image]:
        self.clean()
        roots = [Path(self("mount", self("from", "--pull-never", image))) for image in (name, base)]
        shown = json.loads(self("inspect", "--type", "image", name))
        config = shown["OCIv1"]["config"]
        try:
            yield Image(name, roots[0], config, roots[1], size(roots[0]), size(roots[1]))
        finally:
            self.clean()

    def clean(self) -> None:
        """No container stays, also not of a check that was killed."""
        self("umount", "--all")
        self("rm", "--all")


def strict_copy(folder: Path) -> None:
    """The checkout as it would be under umask 077: the Dockerfile may not count on the modes of files."""
    skip = shutil.ignore_patterns(
        ".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", ".env", ".sandbox"
    )
    shutil.copytree(ROOT, folder, ignore=skip)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def index_access() -> dict[str, str]:
    """Files to bind into a build so that its pip reaches the index as this machine does. They are no part of the image."""
    bundle = certificates()
    settings = pip_settings() | ({"cert": BUNDLE} if bundle else {})
    conf = CACHE / "pip.conf"
    conf.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    return {str(conf): "/etc/pip.conf", **({str(bundle.resolve()): BUNDLE} if bundle else {})}


def size(root: Path) -> int:
    return int(subprocess.check_output(["du", "-sx", "--block-size=1", root], text=True).split()[0])
