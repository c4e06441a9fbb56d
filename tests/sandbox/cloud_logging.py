"""A stand-in for Cloud Logging: a line of our output as a log entry, and the part of its filter language that our metrics use.

    field=value AND field>=number ...; a value is "text", a number, true or false. A comparison with a field that is not there,
    or that is of another kind, is false.

https://cloud.google.com/logging/docs/view/logging-query-language
"""

from __future__ import annotations

import json
import re
from typing import Any

Entry = dict[str, Any]

_LIFTED = ("severity", "time", "logging.googleapis.com/labels", "logging.googleapis.com/trace")
_COMPARISON = re.compile(r"(?P<field>[a-zA-Z_][\w.]*)(?P<operator>>=|=)(?P<value>\"[^\"]*\"|-?\d+(\.\d+)?|true|false)")


class BadFilter(Exception):
    """What is no comparison that this stand-in knows."""


def entry_of(line: str) -> Entry:
    """A line on standard output, as Cloud Run hands it on."""
    payload = json.loads(line)
    lifted = {name: payload.pop(name) for name in _LIFTED if name in payload}
    return {"severity": lifted["severity"], "resource": {"type": "cloud_run_revision"}, "jsonPayload": payload}


def extract(entry: Entry, field: str) -> Any:
    """The value of a field; None where there is none."""
    value: Any = entry
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def matches(entry: Entry, filter_: str) -> bool:
    """Whether the filter takes this entry. Raises BadFilter."""
    held = [_holds(entry, part) for part in filter_.split(" AND ")]  # all are read, so that none is odd
    return all(held)


def _holds(entry: Entry, comparison: str) -> bool:
    found = _COMPARISON.fullmatch(comparison)
    if found is None:
        raise BadFilter(comparison)
    wanted = json.loads(found["value"])
    value = extract(entry, found["field"])
    if found["operator"] == "=":
        return type(value) is type(wanted) and bool(value == wanted)
    if isinstance(wanted, str | bool):
        raise BadFilter(comparison)
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= wanted
