"""A metric name that `infra/` queries must be one that the processes produce."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import infra
from serving import series

METRIC = re.compile(r"\bflotilla_[a-z_]+\b")
INFRA = Path(infra.__file__).parent


def unknown_metrics(texts: Iterable[str]) -> set[str]:
    """Names that look like our metrics and are none; a histogram is also known by its parts."""
    known = {item.name for item in series.ALL}
    known |= {f"{item.name}_{part}" for item in series.ALL if item.kind == "histogram" for part in ("bucket", "sum", "count")}
    return {name for text in texts for name in METRIC.findall(text)} - known


def test_infra_names_no_metric_that_nobody_produces() -> None:
    sources = list(INFRA.rglob("*.py"))
    assert len(sources) > 30
    assert unknown_metrics(source.read_text() for source in sources) == set()


def test_a_misspelt_metric_would_be_found() -> None:
    assert unknown_metrics(["sum(rate(flotilla_requsts_total[5m]))", "flotilla_ttft_seconds_bucket"]) == {
        "flotilla_requsts_total"
    }
