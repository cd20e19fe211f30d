"""A workload whose size follows a number in Prometheus, by KEDA.

A trigger's query gives the work of the whole workload, one number, and its target is the work of one replica; KEDA's type for
that pair is AverageValue: `ceil(work / target)` replicas. (A query that gives a mean per replica wants type Value; mixed up,
scaling never happens and nobody notices.) So the type is no choice here, and the query's shape follows.

When Prometheus does not answer, nothing may shrink. An empty answer is an error, not 0 (`ignoreNullValues`), and after three
errors the size stays what it is, or becomes `fallback_replicas` where that is more. That number is at least 1: KEDA takes a
workload whose minimum is 0 to 0 during an outage, unless its fallback is above 0 (`RequestScale` in KEDA 2.21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pulumi
from pulumi_kubernetes.apiextensions import CustomResource

from infra.components.workloads import pods
from infra.naming import PROMETHEUS_URL
from policies.autoscaling.pace import TOLERANCE, Pace

FAILURES_BEFORE_FALLBACK = 3


@dataclass(frozen=True)
class Trigger:
    """Work, and how much of it one replica does."""

    name: str
    query: str
    """PromQL with one number as its answer: the work of all replicas together."""
    target_per_replica: float

    def rendered(self) -> dict[str, Any]:
        """As KEDA's `triggers` has it; its metadata are texts."""
        return {
            "type": "prometheus",
            "name": self.name,
            "metricType": "AverageValue",
            "metadata": {
                "serverAddress": PROMETHEUS_URL,
                "query": self.query,
                "threshold": f"{self.target_per_replica:g}",
                "ignoreNullValues": "false",
            },
        }


def behavior(pace: Pace) -> dict[str, Any]:
    """The pace as a HorizontalPodAutoscaler's `behavior` has it."""
    return {
        "scaleUp": _direction(pace, pace.up_window_s, pace.pods_up, pace.up_period_s, pace.max_growth_ratio),
        "scaleDown": _direction(pace, pace.down_window_s, pace.pods_down, pace.down_period_s),
    }


def _direction(pace: Pace, window_s: int, num_pods: int, period_s: int, growth_ratio: float = 1.0) -> dict[str, Any]:
    policies = [{"type": "Pods", "value": num_pods, "periodSeconds": period_s}]
    if growth_ratio > 1:
        policies.append({"type": "Percent", "value": round((growth_ratio - 1) * 100), "periodSeconds": period_s})
    # Left out, it is the cluster's, a tenth: by that 28 engines where 26 are would be near enough, and never come.
    tolerance = {} if pace.tolerance_ratio == TOLERANCE else {"tolerance": f"{pace.tolerance_ratio:g}"}
    return {"stabilizationWindowSeconds": window_s, "selectPolicy": "Max", "policies": policies, **tolerance}


@dataclass(frozen=True)
class ScaledObjectArgs:
    """`target` is the name of a Deployment or StatefulSet in our namespace, whose manifest must leave `replicas` out."""

    target_kind: Literal["Deployment", "StatefulSet"]
    target: str
    min_replicas: int
    max_replicas: int
    triggers: Sequence[Trigger]
    """The one that asks for most wins. While one of them has no answer, nothing shrinks."""
    pace: Pace = field(default_factory=Pace)

    @property
    def fallback_replicas(self) -> int:
        """Kept at least while Prometheus is silent."""
        return max(1, self.min_replicas)

    def rendered(self) -> dict[str, Any]:
        """The object's `spec`."""
        return {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": self.target_kind, "name": self.target},
            "minReplicaCount": self.min_replicas,
            "maxReplicaCount": self.max_replicas,
            # From 1 to 0, for those that may; above, the pace decides.
            "cooldownPeriod": self.pace.down_window_s,
            "fallback": {
                "failureThreshold": FAILURES_BEFORE_FALLBACK,
                "replicas": self.fallback_replicas,
                "behavior": "currentReplicasIfHigher",
            },
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior(self.pace)}},
            "triggers": [trigger.rendered() for trigger in self.triggers],
        }


def scaled_object(args: ScaledObjectArgs, labels: Mapping[str, str], opts: pulumi.ResourceOptions) -> CustomResource:
    """KEDA's ScaledObject, which from then on owns the workload's `replicas`."""
    return CustomResource(
        args.target,
        api_version="keda.sh/v1alpha1",
        kind="ScaledObject",
        metadata=pods.metadata(args.target, labels),
        spec=args.rendered(),
        opts=opts,
    )
