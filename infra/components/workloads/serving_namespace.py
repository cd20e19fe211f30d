"""The namespace of gateways and engines: Pod Security `restricted`, service accounts without tokens, priorities."""

from __future__ import annotations

import pulumi
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.scheduling import v1 as scheduling

from infra.components.component import Component
from infra.components.workloads import pods
from infra.naming import ENGINE, GATEWAY, NAMESPACE, PROJECT, StackName

PRIORITIES = {GATEWAY: 1_000_000, ENGINE: 100_000}
"""A gateway displaces an engine, never the other way: without gateways no engine is of use."""


class ServingNamespace(Component):
    """Namespace, service accounts and priority classes."""

    def __init__(self, name: str, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("workloads:ServingNamespace", name, stack, opts)
        common = pods.labels(stack, name, NAMESPACE)
        security = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
        self.namespace = core.Namespace(
            NAMESPACE, metadata={"name": NAMESPACE, "labels": {**common, **security}}, opts=self.child(protect=True)
        )
        self.priority_classes: dict[str, str] = {}
        for role, value in PRIORITIES.items():
            core.ServiceAccount(
                role,
                metadata=pods.metadata(role, pods.labels(stack, name, role)),
                automount_service_account_token=False,
                opts=self.child(depends_on=[self.namespace]),
            )
            self.priority_classes[role] = f"{PROJECT}-{role}"
            scheduling.PriorityClass(
                role,
                metadata={"name": self.priority_classes[role], "labels": pods.labels(stack, name, role)},
                value=value,
                description=f"Pods of the {role}.",
                opts=self.child(),
            )
        self.register_outputs({})
