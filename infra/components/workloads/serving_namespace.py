"""The namespace of gateways and engines: Pod Security `restricted`, service accounts without tokens, priorities."""

from __future__ import annotations

import pulumi
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.scheduling import v1 as scheduling

from infra.components.component import Component
from infra.components.workloads import pods
from infra.components.workloads.fleets import FleetKind
from infra.naming import ENGINE, GATEWAY, NAMESPACE, PROJECT, StackName

ACCOUNTS = (GATEWAY, ENGINE)
PRIORITIES = {GATEWAY: 1_000_000, ENGINE: 100_000, str(FleetKind.OVERFLOW): 10_000, str(FleetKind.BATCH): 1_000}
"""Who displaces whom where there is no room: a gateway an engine, since without gateways no engine is of use; on spot, overflow
takes a batch engine's GPUs."""
NEVER_DISPLACES = (str(FleetKind.BATCH),)
READINESS_GATE = {"elbv2.k8s.aws/pod-readiness-gate-inject": "enabled"}
"""The load balancer controller then holds a new gateway unready until the load balancer has found it healthy. Else a rollout,
which waits for readiness alone, can be through before any new gateway gets traffic."""


class ServingNamespace(Component):
    """Namespace, service accounts and priority classes."""

    def __init__(self, name: str, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("workloads:ServingNamespace", name, stack, opts)
        common = pods.labels(stack, name, NAMESPACE)
        security = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
        self.namespace = core.Namespace(
            NAMESPACE,
            metadata={"name": NAMESPACE, "labels": {**common, **security, **READINESS_GATE}},
            opts=self.child(protect=True),
        )
        for role in ACCOUNTS:
            core.ServiceAccount(
                role,
                metadata=pods.metadata(role, pods.labels(stack, name, role)),
                automount_service_account_token=False,
                opts=self.child(depends_on=[self.namespace]),
            )
        self.priority_classes: dict[str, str] = {}
        for role, value in PRIORITIES.items():
            self.priority_classes[role] = f"{PROJECT}-{role}"
            scheduling.PriorityClass(
                role,
                metadata={"name": self.priority_classes[role], "labels": pods.labels(stack, name, role)},
                value=value,
                preemption_policy="Never" if role in NEVER_DISPLACES else "PreemptLowerPriority",
                description=f"Pods of the {role}.",
                opts=self.child(),
            )
        self.register_outputs({})
