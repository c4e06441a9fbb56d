"""One process from an image's files, much as a platform runs it: as PID 1, as the image's user, with nothing to write but /tmp.

Linux's own tools do it (unshare, mount, chroot): no container engine is needed. The network is the machine's, because the
sandbox is on loopback; there is no limit on memory or processors.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

# $1 the files, $2 where they are shown, $3 uid, $4 folder to start in, $5 pairs of what is bound where; then the command.
# The mounts are in a namespace of their own: they end with the process, and PID 1 ends with us (a change of user forgets whose
# death it dies with, so setpriv says it again).
ENTER = """
set -eu
files=$1 root=$2 user=$3 folder=$4 binds=$5
shift 5
mount --bind -o ro "$files" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"
mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
for node in null zero full random urandom; do : > "$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"; done
mkdir -m 1777 "$root/dev/shm"
for pair in $binds; do mount --bind "${pair%%:*}" "$root/${pair#*:}"; done
exec chroot "$root" /usr/bin/setpriv --reuid="${user%:*}" --regid="${user#*:}" --clear-groups --no-new-privs --pdeathsig=KILL \
    /usr/bin/env -i -C "$folder" "$@"
"""


@dataclass
class Container:
    """A running process. `output` is all that it printed so far."""

    log: Path
    process: subprocess.Popen[bytes]

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def inner(self) -> psutil.Process:
        """PID 1 of the container, as the machine sees it."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def terminate(self) -> None:
        """SIGTERM, which a platform sends before it takes an instance away."""
        self.inner.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> int:
        """-> the exit code of PID 1. Raises AssertionError with what it printed when it does not end in time."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {timeout_s:.0f} s; it said:\n{self.output[-3000:]}") from None

    def memory_bytes(self) -> int:
        """What its processes hold for themselves, shared pages once."""
        family = [self.inner, *self.inner.children(recursive=True)]
        return sum(int(process.memory_full_info().pss) for process in family)


@contextmanager
def running(
    root: Path, command: Sequence[str], environ: Mapping[str, str], *, user: str, folder: str,
    binds: Mapping[str, str] | None = None, output: int | None = None,
) -> Iterator[Container]:  # fmt: skip
    """Killed at the end, with all that it started. `output` None: into a log."""
    with tempfile.TemporaryDirectory(prefix="image-") as scratch:
        shown, log = Path(scratch) / "root", Path(scratch) / "log"
        shown.mkdir()
        pairs = " ".join(f"{source}:{target}" for source, target in (binds or {}).items())
        variables = [f"{name}={value}" for name, value in environ.items()]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child",
                 "--propagation=private", "sh", "-c", ENTER, "enter", root, shown, user, folder, pairs, *variables, *command],
                stdin=subprocess.DEVNULL, stdout=sink if output is None else output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            yield Container(log, process)
        finally:
            process.kill()
            process.wait()
