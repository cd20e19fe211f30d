"""The controllers that everything else here waits for: Karpenter adds nodes, KEDA sets sizes, a third attaches pods to the ALB.

They run on the system nodes, which no controller makes, so that a cluster that has lost all else can grow again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi

from infra import versions
from infra.components.chart import chart
from infra.components.component import Component
from infra.naming import KARPENTER, LOAD_BALANCER_CONTROLLER, StackName
from infra.scheduling import POOL, SYSTEM_POOL, SYSTEM_TAINT

KEDA_NAMESPACE = "keda"
ON_SYSTEM_NODES: Mapping[str, Any] = {
    "nodeSelector": {POOL: SYSTEM_POOL},
    "tolerations": [{"key": SYSTEM_TAINT.key, "operator": "Equal", "value": SYSTEM_TAINT.value, "effect": SYSTEM_TAINT.effect}],
}
NUM_REPLICAS = 2
"""One works, one waits in another zone."""


@dataclass(frozen=True)
class ClusterControllersArgs:
    """What controllers must be told, since none may ask the metadata service of its node."""

    region: str
    cluster_name: pulumi.Input[str]
    cluster_endpoint: pulumi.Input[str]
    vpc_id: pulumi.Input[str]
    interruption_queue: pulumi.Input[str]


class ClusterControllers(Component):
    """Karpenter, the load balancer controller, KEDA. Whatever has one of their kinds depends on this component."""

    def __init__(
        self, name: str, args: ClusterControllersArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("controllers:ClusterControllers", name, stack, opts)
        self._args = args
        chart(versions.KARPENTER, KARPENTER.namespace, self._karpenter(), self.child())
        chart(
            versions.LOAD_BALANCER_CONTROLLER,
            LOAD_BALANCER_CONTROLLER.namespace,
            self._load_balancer_controller(),
            pulumi.ResourceOptions.merge(self.child(), pulumi.ResourceOptions(transforms=[_keep_certificates])),
        )
        chart(versions.KEDA, KEDA_NAMESPACE, _keda(), self.child())
        self.register_outputs({})

    def _karpenter(self) -> dict[str, Any]:
        return {
            **ON_SYSTEM_NODES,
            "replicas": NUM_REPLICAS,
            "serviceAccount": {"name": KARPENTER.name},
            "settings": {
                "clusterName": self._args.cluster_name,
                "clusterEndpoint": self._args.cluster_endpoint,
                "interruptionQueue": self._args.interruption_queue,
                "enableZonalShift": True,
            },
            "controller": {
                "env": [{"name": "AWS_REGION", "value": self._args.region}],
                "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
            },
            "serviceMonitor": {"enabled": False},
        }

    def _load_balancer_controller(self) -> dict[str, Any]:
        return {
            **ON_SYSTEM_NODES,
            "replicaCount": NUM_REPLICAS,
            "clusterName": self._args.cluster_name,
            "region": self._args.region,
            "vpcId": self._args.vpc_id,
            "serviceAccount": {"name": LOAD_BALANCER_CONTROLLER.name},
            # It attaches pods to the target group that we made, and makes no load balancer of its own.
            "enableServiceMutatorWebhook": False,
            "ingressClassConfig": {"default": False},
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "256Mi"}},
        }


def _keda() -> dict[str, Any]:
    return {
        **ON_SYSTEM_NODES,
        "operator": {"replicaCount": NUM_REPLICAS},
        "metricsServer": {"replicaCount": NUM_REPLICAS},
        "podDisruptionBudget": {role: {"maxUnavailable": 1} for role in ("operator", "metricServer", "webhooks")},
    }


def _keep_certificates(args: pulumi.ResourceTransformArgs) -> pulumi.ResourceTransformResult | None:
    """The chart makes a certificate for its webhooks each time it is rendered, so every preview would show three updates."""
    kept = {
        "kubernetes:core/v1:Secret": ["data"],
        "kubernetes:admissionregistration.k8s.io/v1:MutatingWebhookConfiguration": ["webhooks[*].clientConfig.caBundle"],
        "kubernetes:admissionregistration.k8s.io/v1:ValidatingWebhookConfiguration": ["webhooks[*].clientConfig.caBundle"],
    }.get(args.type_)
    if kept is None:
        return None
    opts = pulumi.ResourceOptions.merge(args.opts, pulumi.ResourceOptions(ignore_changes=kept))
    return pulumi.ResourceTransformResult(props=args.props, opts=opts)
