"""This product beside procrastinate, pgqueuer, pgmq and a polling loop, in one run: promises, and what a call costs.

    make bench [ROUNDS=3] [ARGS="--page"]

All have the same Postgres, the same Twilio over TLS, and take turns, so that a busy moment of the machine meets all of them.
`--page` writes the tables and the chart into shared/docs. The results also go to .venv/bench/results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.contenders import CONTENDERS, OURS, PYTHON, ROOT, Contender
from tests.sandbox.postgres import find_binaries

PAGE = ROOT / "shared/docs/bench.md"
PICTURE = ROOT / "shared/docs/pictures/bench.png"
RESULTS = ROOT / ".venv/bench/results.json"
WORKERS = (1, 4, 16)
SECONDS = {"promises": 100, "costs": 22, "drain": 10, "cold": 4, "claims": 30}  # of one measurement, for the bar

Result = dict[str, Any]
Results = dict[str, dict[str, list[Result]]]  # kind -> contender -> one for each round


class MeasurementFailed(Exception):
    """A measurement ended with an error. The message holds its last lines."""


class Bar:
    """One line that is written over again; on what is not a terminal, a line for each step."""

    def __init__(self, steps: Sequence[tuple[str, str]]) -> None:
        self._total = sum(SECONDS[kind] for kind, _ in steps)
        self._done, self._began = 0, time.monotonic()

    def show(self, kind: str, what: str) -> None:
        share = self._done / self._total
        passed = time.monotonic() - self._began
        left = f", {passed / share * (1 - share) / 60:.0f} min left" if share > 0.1 else ""
        line = f"[{'#' * int(share * 30):-<30}] {share:4.0%} {kind}: {what}{left}"
        print(f"\r\x1b[K{line}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)

    def advance(self, kind: str) -> None:
        self._done += SECONDS[kind]


def measure(kind: str, options: Sequence[str], contender: Contender) -> Result:
    """Raises MeasurementFailed."""
    command = [sys.executable, "-m", "tests.bench.measure", kind, contender.module, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MeasurementFailed(f"{kind} of {contender}:\n{done.stderr[-2000:]}")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def run(rounds: int, jobs: int, seed: int) -> Results:
    """Whole rounds, one after the other. What was found so far is in RESULTS after each step."""
    everybody = {contender.name: contender for contender in CONTENDERS}
    turns: list[tuple[str, str, dict[str, Contender], Sequence[str]]] = []
    for n in range(rounds):
        crashes = ("--jobs", str(jobs), "--seed", str(seed + n))
        turns.append(("promises", f"all at once, seed {seed + n}", everybody, crashes))
        for kind in ("costs", "drain", "cold"):
            turns += [(kind, f"{name}, round {n + 1} of {rounds}", {name: one}, ()) for name, one in everybody.items()]
        if n == 0:
            turns += [("claims", f"{k} sweep workers", {str(k): OURS}, ("--workers", str(k))) for k in WORKERS]
    bar = Bar([(kind, what) for kind, what, _, _ in turns])
    results: Results = {}
    for kind, what, named, options in turns:
        bar.show(kind, what)
        with ThreadPoolExecutor(len(named)) as threads:
            found = threads.map(partial(measure, kind, options), named.values())
            for name, result in zip(named, found, strict=True):
                results.setdefault(kind, {}).setdefault(name, []).append(result)
        RESULTS.write_text(json.dumps({"told": machine(rounds, seed), "results": results}, indent=1))
        bar.advance(kind)
    bar.show("done", datetime.now(UTC).strftime("%H:%M UTC"))
    print()
    return results


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, and in brackets the least and the most."""
    told = f"{statistics.median(values):,.{digits}f}"
    least, most = f"{min(values):,.{digits}f}", f"{max(values):,.{digits}f}"
    return told if least == most else f"{told} ({least} to {most})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def column(found: Sequence[Result], key: str, digits: int = 1) -> str:
    return spread([one[key] for one in found], digits)


def promises_table(results: Results) -> str:
    jobs = {result["jobs"] for found in results["promises"].values() for result in found}
    head = [f"of {max(jobs)} people", "called twice or more", "never called", "rows stuck at the end", "calls placed"]
    keys = ("twice", "never", "stuck", "calls")
    rows = [[name, *(column(found, key, 0) for key in keys)] for name, found in results["promises"].items()]
    return table(head, rows)


def costs_table(results: Results, rate: int) -> str:
    rows = []
    for name, rounds in results["costs"].items():
        found = [one[str(rate)] for one in rounds]
        worker, postgres = ([one[key] for one in found] for key in ("worker_cpu_ms", "postgres_cpu_ms"))
        rows.append([
            name, column(found, "p50_ms"), column(found, "p99_ms"), spread([*map(sum, zip(worker, postgres, strict=True))]),
            f"{statistics.median(worker):.1f} + {statistics.median(postgres):.1f}", column(found, "wal", 0),
        ])  # fmt: skip
    head = [f"at {rate} a second", "p50 ms", "p99 ms", "CPU ms a call", "worker + Postgres", "WAL bytes a call"]
    return table(head, rows)


def other_table(results: Results) -> str:
    shown = (("drain", "ideal", 2), ("cold", "ms", 0), ("costs", "memory_mb", 0))
    rows = [
        [name, *(column(results[kind][name], key, digits) for kind, key, digits in shown)] for name in results["costs"]
    ]
    return table(["", "drain, over the ideal", "cold start, ms", "memory, MB"], rows)


def claims_table(results: Results) -> str:
    head = ["sweep workers, at 1 call a second", "claims a call", "CPU ms a call", "WAL bytes a call"]
    shown = (("claims", 1), ("cpu_ms", 0), ("wal", 0))
    rows = [[workers, *(column(found, *one) for one in shown)] for workers, found in results["claims"].items()]
    return table(head, rows)


def machine(rounds: int, seed: int) -> str:
    """When, on what, and with which versions."""
    code = (
        "import sys; from importlib.metadata import version as v; print(', '.join(f'{n} {v(n)}' for n in sys.argv[1:]))"
    )
    packages = sorted({contender.package for contender in CONTENDERS if contender.package} | {"aiohttp"})
    versions = subprocess.check_output([PYTHON, "-c", code, *packages], text=True).strip()
    postgres = subprocess.check_output([find_binaries() / "postgres", "--version"], text=True).strip()
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    system = f"{platform.system()} {platform.release().partition('-')[0]}, Python {platform.python_version()}"
    return (
        f"{datetime.now(UTC):%d %b %Y, %H:%M} UTC; {os.cpu_count()} cores ({model[1] if model else platform.processor()}), "
        f"load {os.getloadavg()[1]:.1f} at the end; {system}, {postgres.replace('postgres (PostgreSQL)', 'Postgres')}; "
        f"{versions}; rounds: {rounds}, first seed: {seed}"
    )


def report(results: Results, told: str) -> str:
    left = [one[rate]["left_to_sweep"] for one in results["costs"][OURS.name] for rate in ("20", "50")]
    parts = [
        told + ".", "Medians, and in brackets the least and the most of all rounds.", promises_table(results),
        costs_table(results, 20), costs_table(results, 50), other_table(results), claims_table(results),
    ]  # fmt: skip
    if sum(left):
        parts.append(f"Jobs of this product that a webhook left to the sweep: {', '.join(map(str, left))}.")
    return "\n\n".join(parts)


def write_page(tables: str) -> None:
    """Between the page's two marks."""
    begin, end = "<!-- results -->", "<!-- end of results -->"
    before, _, rest = PAGE.read_text().partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n{tables}\n{end}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=400, help="of the rounds with crashes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", action="store_true", help="write the tables and the chart into shared/docs")
    options = parser.parse_args()
    if min(options.rounds, options.jobs) < 1:
        parser.error("--rounds and --jobs must be at least 1")
    try:
        results = run(options.rounds, options.jobs, options.seed)
    except MeasurementFailed as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    tables = report(results, machine(options.rounds, options.seed))
    print(f"\n{tables}\n")
    picture = PICTURE if options.page else RESULTS.with_name("bench.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([PYTHON, "-m", "tests.bench.chart", RESULTS, picture], cwd=ROOT, check=True)
    if options.page:
        write_page(tables)
    print(f"chart: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
