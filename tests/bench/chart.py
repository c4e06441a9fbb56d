"""The chart of `make bench`, in its own virtual environment: python -m tests.bench.chart RESULTS PICTURE"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

OURS, OTHERS = "#1f6feb", "#9aa4b2"
RATE = "50"


def main(results: Path, picture: Path) -> None:
    found = json.loads(results.read_text())["results"]
    names = list(found["promises"])

    def medians(kind: str, key: str) -> list[float]:
        rounds = ((one[RATE] if kind == "costs" else one for one in found[kind][name]) for name in names)
        return [statistics.median(float(one[key]) for one in each) for each in rounds]

    cpu = [
        sum(pair) for pair in zip(medians("costs", "worker_cpu_ms"), medians("costs", "postgres_cpu_ms"), strict=True)
    ]
    panels = (
        ("People called twice, of 400", medians("promises", "twice"), "{:.0f}"),
        ("People never called", medians("promises", "never"), "{:.0f}"),
        ("Commit to Twilio, p50, ms, at 50 a second", medians("costs", "p50_ms"), "{:.1f}"),
        ("CPU of a call, ms, at 50 a second", cpu, "{:.1f}"),
    )
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 5.2), sharey=True)
    for axis, (title, values, form) in zip(axes.flat, panels, strict=True):
        bars = axis.barh(names, values, color=[OURS, *[OTHERS] * (len(names) - 1)])
        axis.bar_label(bars, [form.format(value) for value in values], padding=3)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlim(0, max(*values, 1) * 1.18)
        axis.xaxis.set_visible(False)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
