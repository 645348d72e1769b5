"""What promtool would say of a page of metrics, by prometheus-client's own parsers and rules on top."""

from __future__ import annotations

import math
import re
from collections import Counter

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

UNITS = ("seconds", "bytes", "usd")
_META = re.compile(r"# (HELP|TYPE|UNIT) (\S+)")
_NOT_BASE = re.compile(r"_(milliseconds|ms|minutes|hours|kilobytes|megabytes|percent|cents)(_|$)")

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def check(text: str, *, openmetrics: bool) -> Values:
    """Parse a page strictly; gives every sample by its name and labels. Raises AssertionError or ValueError."""
    families = list(parse_open(text) if openmetrics else parse_text(text))
    told = Counter(_META.findall(text))
    assert [key for key, count in told.items() if count > 1] == []
    assert text.endswith("# EOF\n" if openmetrics else "\n")
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert [line for line, count in Counter(lines).items() if count > 1] == []
    values: Values = {}
    for family in families:
        assert family.documentation, family.name
        assert family.documentation[0].isupper(), family.name
        assert family.type != "unknown", family.name
        assert not _NOT_BASE.search(family.name), family.name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        _check_family(family, openmetrics)
        for sample in family.samples:
            assert all(re.fullmatch(r"[a-z][a-z_]*", label) for label in sample.labels), sample
            assert not math.isnan(sample.value)
            values[(sample.name, tuple(sorted(sample.labels.items())))] = sample.value
    return values


def _check_family(family: Metric, openmetrics: bool) -> None:
    if family.name.startswith("outpost_"):
        assert ("seconds" in family.name) == family.name.endswith("_seconds"), family.name
        if openmetrics and family.name.endswith(UNITS):
            assert family.unit == family.name.rpartition("_")[2], family.name
    for sample in family.samples:
        if family.type == "counter":
            assert sample.name in (family.name + "_total", family.name), sample
            assert sample.name.endswith("_total"), sample
            assert sample.value >= 0
        elif family.type == "gauge":
            assert not sample.name.endswith("_total"), sample
    if family.type == "histogram":
        _check_histogram(family)


def _check_histogram(family: Metric) -> None:
    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    counts: dict[tuple[tuple[str, str], ...], float] = {}
    sums = set()
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        key = tuple(sorted(labels.items()))
        if sample.name.endswith("_bucket"):
            buckets.setdefault(key, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_count"):
            counts[key] = sample.value
        elif sample.name.endswith("_sum"):
            sums.add(key)
    assert set(buckets) == set(counts) == sums, family.name
    for key, found in buckets.items():
        edges, values = [edge for edge, _ in found], [value for _, value in found]
        assert edges == sorted(set(edges)), family.name
        assert edges[-1] == math.inf, family.name
        assert values == sorted(values), family.name
        assert values[-1] == counts[key], family.name


def value(values: Values, name: str, **labels: str) -> float:
    """One sample; 0 if there is none."""
    return values.get((name, tuple(sorted(labels.items()))), 0.0)
