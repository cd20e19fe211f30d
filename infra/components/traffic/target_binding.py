"""Keeps the gateways' pods in the load balancer's target group, by the controller in the cluster."""

from __future__ import annotations

import pulumi
from pulumi_kubernetes.apiextensions import CustomResource

from infra.components.component import Component
from infra.components.workloads import pods
from infra.naming import GATEWAY, StackName


class TargetBinding(Component):
    """A TargetGroupBinding of the gateways' Service: its ready pods, by address. The program opens the ports between itself."""

    def __init__(
        self,
        name: str,
        target_group_arn: pulumi.Input[str],
        port: int,
        stack: StackName,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("traffic:TargetBinding", name, stack, opts)
        CustomResource(
            GATEWAY,
            api_version="elbv2.k8s.aws/v1beta1",
            kind="TargetGroupBinding",
            metadata=pods.metadata(GATEWAY, pods.labels(stack, name, GATEWAY)),
            spec={"targetGroupARN": target_group_arn, "targetType": "ip", "serviceRef": {"name": GATEWAY, "port": port}},
            opts=self.child(),
        )
        self.register_outputs({})
