"""Whoever runs a region is told when usage cannot be made durable, does not arrive, or does not add up."""

from __future__ import annotations

import re

from workload_support import PROD, named

from infra.components.observability.usage_alerts import ALERTS
from infra.embedded.graph import Graph
from serving import series

RULE = "kubernetes:monitoring.coreos.com/v1:PrometheusRule"


def test_every_rule_reaches_the_region(graphs: dict[str, Graph]) -> None:
    (rule,) = named(graphs[PROD], RULE).values()
    (group,) = rule.inputs["spec"]["groups"]
    assert [found["alert"] for found in group["rules"]] == [alert.name for alert in ALERTS]
    assert all(found["annotations"]["do"] and found["labels"]["severity"] in ("page", "ticket") for found in group["rules"])


def test_what_must_wake_or_tell_somebody_has_a_rule() -> None:
    watched = {item.name for item in series.ALL for alert in ALERTS if item.name in alert.expr}
    assert watched == {
        series.JOURNAL_HEALTHY.name,
        series.OLDEST_UNSHIPPED.name,
        series.UNEXPLAINED_TOKENS.name,
        series.LEDGER_ROWS.name,
    }


def test_a_rule_asks_only_for_labels_that_its_series_has() -> None:
    """A misspelt label matches nothing, and the rule never fires."""
    for alert in ALERTS:
        (watched,) = (item for item in series.ALL if item.name in alert.expr)
        asked = set(re.findall(r"(\w+)=", alert.expr)) | set(re.findall(r"by \((\w+)\)", alert.expr))
        assert asked <= {*watched.labels, "pod"}, alert.name
        assert set(re.findall(r"\$labels\.(\w+)", alert.summary)) <= asked, alert.name
