"""When somebody must look at metering: usage that cannot be made durable, does not arrive, or does not add up.

Prometheus evaluates these rules and shows them under `ALERTS`. Who is woken is a choice of whoever runs it: the chart's alert
manager is left out (`monitoring.py`), and nothing here routes an alert to anybody.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.apiextensions import CustomResource

from infra.components.component import Component
from infra.components.workloads import pods
from infra.naming import MONITORING, StackName
from serving import series

SEVERITY_LABEL = "severity"


@dataclass(frozen=True)
class Alert:
    """A rule: it fires where `expr` has had a value for `lasts`."""

    name: str
    expr: str
    lasts: str
    severity: str
    """`page`: now, at night too. `ticket`: at work."""
    summary: str
    do: str


ALERTS = (
    Alert(
        "FlotillaJournalStopped",
        f"min by (pod) ({series.JOURNAL_HEALTHY.name}) == 0",
        "30s",
        "page",
        "{{ $labels.pod }} cannot make usage durable and refuses all paid work (503 metering_unavailable).",
        "Its disk is full or fails: see the gateway's log for `journal`, then the volume. Other pods take its traffic.",
    ),
    Alert(
        "FlotillaUsageNotShipped",
        f"max by (pod) ({series.OLDEST_UNSHIPPED.name}) > 900",
        "5m",
        "ticket",
        "Usage on the volume of {{ $labels.pod }} waits for over 15 minutes to reach archive and ledger.",
        "See its shipper's log: S3 or DynamoDB refuse it, or a segment cannot be read. Nothing is lost while the volume lives.",
    ),
    Alert(
        "FlotillaUsageUnexplained",
        f"sum by (kind) (increase({series.UNEXPLAINED_TOKENS.name}[2h])) > 0",
        "0s",
        "ticket",
        "Engines counted {{ $value }} {{ $labels.kind }} tokens more or fewer than bills say, and nothing explains it.",
        "`flotilla ledger reconcile HOUR` names the engines; then `flotilla ledger verify`.",
    ),
    Alert(
        "FlotillaLedgerConflict",
        f'sum(increase({series.LEDGER_ROWS.name}{{result="conflict"}}[2h])) > 0',
        "0s",
        "page",
        "The ledger holds another row than the journal says: it was changed, or two events share an id.",
        "`flotilla ledger verify` names the row and the difference.",
    ),
)


class UsageAlerts(Component):
    """The rules, as the Prometheus operator takes them."""

    def __init__(self, name: str, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observability:UsageAlerts", name, stack, opts)
        rules = [
            {
                "alert": alert.name,
                "expr": alert.expr,
                "for": alert.lasts,
                "labels": {SEVERITY_LABEL: alert.severity},
                "annotations": {"summary": alert.summary, "do": alert.do},
            }
            for alert in ALERTS
        ]
        CustomResource(
            name,
            api_version="monitoring.coreos.com/v1",
            kind="PrometheusRule",
            metadata={"name": name, "namespace": MONITORING, "labels": pods.labels(stack, name, name)},
            spec={"groups": [{"name": name, "rules": rules}]},
            opts=self.child(),
        )
        self.register_outputs({})
