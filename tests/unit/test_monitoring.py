"""Metrics, alerts and runbook: gcloud accepts the files, and they agree with each other and with the code."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from function import sweep
from shared.stats import Stats
from tests.sandbox.cloud_logging import BadFilter, entry_of, extract, matches

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "shared" / "monitoring"
METRICS = sorted((MONITORING / "metrics").iterdir())
ALERTS = sorted((MONITORING / "alerts").iterdir())
README = (MONITORING / "README.md").read_text()
RUNBOOK = dict(re.findall(r"^### (.+?)\n\n(.*?)(?=\n### |\Z)", README, re.MULTILINE | re.DOTALL))


Duration = Annotated[str, Field(pattern=r"^\d+s$")]
Bounds = Annotated[list[Annotated[float, Field(strict=False)]], Field(min_length=1)]
Only = Field(min_length=1)  # the one key is there


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Label(_Message):
    key: str
    valueType: Literal["STRING", "BOOL", "INT64"]
    description: str


class MetricDescriptor(_Message):
    metricKind: Literal["DELTA"]
    valueType: Literal["INT64", "DISTRIBUTION"]
    unit: Literal["1", "s"]
    labels: list[Label] = []


class LogMetric(_Message):
    description: str
    filter: str = Field(max_length=20_000)
    metricDescriptor: MetricDescriptor
    valueExtractor: str | None = Field(default=None, pattern=r"^EXTRACT\(jsonPayload\.[a-z0-9_.]+\)$")
    labelExtractors: dict[str, str] = {}
    bucketOptions: Annotated[dict[Literal["explicitBuckets"], dict[Literal["bounds"], Bounds]], Only] | None = None


class Aggregation(_Message):
    alignmentPeriod: Duration
    perSeriesAligner: Literal["ALIGN_DELTA", "ALIGN_PERCENTILE_99"]
    crossSeriesReducer: Literal["REDUCE_SUM", "REDUCE_MAX"]


class MetricAbsence(_Message):
    filter: str = Field(max_length=2048)
    aggregations: list[Aggregation]
    duration: Duration
    trigger: Annotated[dict[Literal["count"], Literal[1]], Only]


class MetricThreshold(MetricAbsence):
    comparison: Literal["COMPARISON_GT", "COMPARISON_LT"]
    thresholdValue: float = Field(strict=False)


class Condition(_Message):
    displayName: str
    conditionAbsent: MetricAbsence | None = None
    conditionThreshold: MetricThreshold | None = None


class Documentation(_Message):
    content: str = Field(max_length=8192)
    mimeType: Literal["text/markdown"]


class AlertPolicy(_Message):
    displayName: str
    severity: Literal["CRITICAL", "ERROR", "WARNING"]
    combiner: Literal["OR"]
    conditions: list[Condition] = Field(min_length=1, max_length=6)
    documentation: Documentation
    alertStrategy: Annotated[dict[Literal["autoClose"], Duration], Only]


def metric(file: Path) -> LogMetric:
    return LogMetric.model_validate_json(file.read_bytes())


def alert(file: Path) -> AlertPolicy:
    return AlertPolicy.model_validate_json(file.read_bytes())


def conditions(file: Path) -> list[MetricAbsence]:
    return [
        c for each in alert(file).conditions for c in (each.conditionAbsent, each.conditionThreshold) if c is not None
    ]


def counted(condition: MetricAbsence) -> str:
    (type_,) = re.findall(r'metric\.type="([^"]+)"', condition.filter)
    return str(type_)


ALL_CONDITIONS = [condition for file in ALERTS for condition in conditions(file)]


def test_metrics_count_lines_or_are_complete_distributions() -> None:
    for file in METRICS:
        described = metric(file)
        distribution = described.metricDescriptor.valueType == "DISTRIBUTION"
        assert (described.valueExtractor is not None) == (described.bucketOptions is not None) == distribution, file
        assert {label.key for label in described.metricDescriptor.labels} == set(described.labelExtractors), file
        assert re.fullmatch(r"call_dispatcher_[a-z_]+\.json", file.name)
        if described.valueExtractor:  # its filter checks the number that it extracts
            assert f"{described.valueExtractor[8:-1]}>=0" in described.filter, file
    fields = set(re.findall(r"jsonPayload\.stats\.(\w+)", "".join(file.read_text() for file in METRICS)))
    assert fields
    assert fields <= set(Stats.model_fields)


def test_alerts_aggregate_every_metric_as_its_type_allows() -> None:
    watched = {counted(condition).rpartition("/")[2] for condition in ALL_CONDITIONS}
    assert {file.stem for file in METRICS} == watched - {"request_count"}
    for condition in ALL_CONDITIONS:
        (aggregation,) = condition.aggregations
        type_ = counted(condition)
        assert condition.filter.count("resource.type=") == 1
        duration, period = (int(text[:-1]) for text in (condition.duration, aggregation.alignmentPeriod))
        assert (duration % 60, period % 60, period >= 60) == (0, 0, True)
        assert isinstance(condition, MetricThreshold) or duration >= 120
        if not type_.startswith("logging.googleapis.com/user/"):
            assert type_ == "run.googleapis.com/request_count"
            continue
        described = metric(MONITORING / "metrics" / f"{type_.rpartition('/')[2]}.json")
        distribution = described.metricDescriptor.valueType == "DISTRIBUTION"
        assert (aggregation.perSeriesAligner == "ALIGN_PERCENTILE_99") == distribution
        assert (aggregation.crossSeriesReducer == "REDUCE_MAX") == distribution
        if distribution and described.bucketOptions and isinstance(condition, MetricThreshold):
            # Otherwise a value just below the threshold could count as one above it, or the reverse.
            assert condition.thresholdValue in described.bucketOptions["explicitBuckets"]["bounds"]


def test_alerts_and_sweep_severity_have_the_same_thresholds() -> None:
    ours = {
        "job_late": sweep.LATE_SECONDS,
        "long_in_doubt": sweep.DOUBT_SECONDS,
        "ceiling_near": sweep.NEAR_THE_CEILING,
    }
    assert ours == {"job_late": 300, "long_in_doubt": 900, "ceiling_near": 0.8}
    for name, value in ours.items():
        (condition,) = conditions(MONITORING / "alerts" / f"{name}.json")
        assert isinstance(condition, MetricThreshold)
        assert condition.thresholdValue == value
    absent, none_in_them = conditions(MONITORING / "alerts" / "no_sweep.json")
    assert (absent.duration, none_in_them.aggregations[0].alignmentPeriod) == ("300s", "300s")


def test_alerts_contain_the_entries_of_the_runbook() -> None:
    """Where they differ: copy the entry from README.md to documentation.content."""
    entries = {f"call dispatcher: {title}".lower(): text.strip() for title, text in RUNBOOK.items()}
    policies = [alert(file) for file in ALERTS]
    assert {policy.displayName.lower(): policy.documentation.content for policy in policies} == entries
    assert "${" not in "".join(entries.values())  # it would be replaced
    referred = set(re.findall(r'see "([^"]+)"', README))
    assert set() != referred <= set(RUNBOOK)
    numbers = f"shows {len(METRICS)} names that begin with `call_dispatcher_`, and the second shows {len(ALERTS)}:"
    assert numbers in " ".join(README.split())


def test_table_of_kinds_holds_each_logged_kind() -> None:
    sources = [file for folder in ("function", "shared") for file in (ROOT / folder).rglob("*.py")]
    code = "".join(file.read_text() for file in sources if file.parent.name != "conversation")  # kinds of placeholders
    logged = set()
    for text in re.findall(r"\bkind ?= ?([^\n]+)", code):
        logged |= {*re.findall(r'"([a-z_]+)"(?=,|\)|\}| if |$)', text.split(", code=")[0])}
    for refusal in re.findall(r"\bproblem\((?!5)([^\n]+)", code):  # a 4xx is logged with its code as kind
        logged |= {*re.findall(r'"([a-z_]+)"(?=,| if )', refusal)}
    assert set(re.findall(r"^\| `([a-z_]+)` \|", README, re.MULTILINE)) - {"kind"} == logged


def test_the_image_holds_neither_monitoring_nor_the_guide() -> None:
    assert {"shared/monitoring", "shared/docs"} <= {*(ROOT / ".dockerignore").read_text().split()}


CALM: dict[str, Any] = {name: None if "pause" in name else 0 for name in Stats.model_fields} | {
    "failures_24h": {}, "held_by_rule": {}, "paused": False,
}  # fmt: skip


def test_severity_of_a_sweep_follows_from_its_findings() -> None:
    table: list[tuple[dict[str, Any], float | None, str]] = [
        ({}, None, "INFO"),
        ({"queued": 9, "due": 9, "oldest_due_s": 300, "failed_24h": 5, "failures_24h": {"busy": 5}}, 0.79, "INFO"),
        ({"in_doubt": 1, "oldest_doubt_s": 900}, None, "WARNING"), ({"held_by_prefix": 1}, None, "ERROR"),
        ({"missed_signups": 1}, None, "WARNING"), ({"halts": 1}, None, "WARNING"),
        ({"failed_24h": 1, "failures_24h": {"area_code_unknown": 1}}, None, "WARNING"),
        ({"paused": True, "paused_by": "hand", "oldest_due_s": 9000}, None, "WARNING"), ({}, 0.8, "WARNING"),
        ({"due": 1, "oldest_due_s": 301}, None, "ERROR"), ({"in_doubt": 1, "oldest_doubt_s": 901}, None, "ERROR"),
        ({"live_duplicates": 1}, None, "ERROR"), ({"results_due": 9, "results_oldest_s": 3600}, None, "INFO"),
        ({"results_due": 1, "results_oldest_s": 3601}, None, "WARNING"), ({"results_gave_up": 1}, None, "WARNING"),
        ({"paused": True, "paused_by": "halt", "halts": 1}, None, "ERROR"),
    ]  # fmt: skip
    seen = [(now, used, logging.getLevelName(sweep.severity(Stats(**CALM | now), used))) for now, used, _ in table]
    assert [(row, right) for row, right in zip(seen, table, strict=True) if row != right] == []


LINE = entry_of('{"severity": "INFO", "message": "m", "time": "t", "kind": "a", "n": 1, "b": false, "none": null}')


def test_stand_in_of_cloud_logging_reads_filters() -> None:
    table = {
        'resource.type="cloud_run_revision" AND jsonPayload.kind="a"': True,
        'resource.type="cloud_run_revision" AND jsonPayload.kind="b"': False,
        "jsonPayload.n>=1": True, "jsonPayload.n>=1.5": False, "jsonPayload.none>=0": False, "jsonPayload.other>=0": False,
        "jsonPayload.b=false": True, "jsonPayload.n=true": False, 'severity="INFO"': True, 'jsonPayload.severity="INFO"': False,
    }  # fmt: skip
    assert {filter_: matches(LINE, filter_) for filter_ in table} == table
    for unknown in ("", 'jsonPayload.kind="a" OR x=1', "jsonPayload.kind=a", "kind", 'x>="a"'):
        with pytest.raises(BadFilter):
            matches(LINE, unknown)
    assert extract(LINE, "jsonPayload.kind.of") is None  # missing


GCLOUD_READS_THEM = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1] + "/lib/third_party", sys.argv[1] + "/lib"]
from apitools.base.py import encoding
from googlecloudsdk.generated_clients.apis.logging.v2 import logging_v2_messages as logging
from googlecloudsdk.generated_clients.apis.monitoring.v3 import monitoring_v3_messages as monitoring

def unknown(message):
    yield from message.all_unrecognized_fields()
    for field in message.all_fields():
        value = getattr(message, field.name)
        for part in value if isinstance(value, list) else [value]:
            if hasattr(part, "all_fields"):
                yield from unknown(part)

for file in map(Path, sys.argv[2:]):
    given = json.loads(file.read_text())
    if file.parent.name == "metrics":
        read = encoding.DictToMessage(given, logging.LogMetric)
    else:
        read = encoding.PyValueToMessage(monitoring.AlertPolicy, given)
    assert not list(unknown(read)), (file, list(unknown(read)))
    assert encoding.MessageToPyValue(read) == given, file
print("read", len(sys.argv) - 2)
"""


def test_message_classes_of_gcloud_read_each_file_whole() -> None:
    sdk = Path(shutil.which("gcloud") or "/").resolve().parent.parent
    if not (sdk / "lib" / "googlecloudsdk" / "generated_clients").is_dir():
        pytest.skip("gcloud is not installed here, or does not show its message classes")
    files = [str(file) for file in (*METRICS, *ALERTS)]
    command = [sys.executable, "-I", "-c", GCLOUD_READS_THEM, str(sdk), *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"read {len(files)}\n", done.stderr


def test_files_are_json_in_one_format() -> None:
    for file in (*METRICS, *ALERTS):
        assert file.read_text() == json.dumps(json.loads(file.read_text()), indent=2, ensure_ascii=False) + "\n"
